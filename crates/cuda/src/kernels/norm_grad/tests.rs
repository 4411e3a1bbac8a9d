use super::*;
use crate::kernels::elements::testing::{residual, spills, whole};
use aerogel_graph::DType;
use aerogel_lower::Normalisation;

fn spec(rows: usize, width: usize, dtype: DType, drops: Option<bool>) -> NormGradSpec {
    let sizes = vec![rows, width];
    let operand = Operand { dtype, strides: whole(&sizes) };
    let output = match drops {
        None => Output::Store(operand.clone()),
        Some(drops) => Output::Epilogue(residual(&sizes, drops)),
    };
    let gain = Some(Operand::f32([0, 1]));
    let norm = Normalisation { sizes, center: true, eps: 1e-5, gain };
    let dy = operand.clone();
    NormGradSpec { norm, x: operand, dy, output, dgain: Some(1), dbias: Some(1) }
}

fn made(spec: &NormGradSpec) -> Kernel {
    let own = match &spec.output {
        Output::Store(_) => 1,
        Output::Epilogue(program) => program.inputs.len() + program.outputs.len(),
    };
    let sums = usize::from(spec.dgain.is_some()) + usize::from(spec.dbias.is_some());
    let gain = usize::from(spec.norm.gain.is_some());
    norm_grad(spec, Draws::default(), &vec![64; 2 + own + gain + sums]).unwrap()
}

#[test]
fn widths_are_walked_as_measured() {
    let shape = |width: usize, drops: Option<bool>| {
        let kernel = made(&spec(65536, width, DType::Bf16, drops));
        let own = &kernel.launches[0];
        let wanted =
            |d: &&String| ["LANES", "UNITS", "THREADS", "AHEAD"].iter().any(|n| d.starts_with(n));
        let list: Vec<&str> = own.source.defines.iter().filter(wanted).map(|d| &d[..]).collect();
        (list.join(" "), own.grid[0])
    };
    // 65536 rows in chunks of 168: multiples of the 4 groups of a block.
    let gpt = ("LANES=32 UNITS=3 THREADS=128 AHEAD=1".to_owned(), 391);
    assert_eq!(shape(768, Some(false)), gpt);
    assert_eq!(shape(256, None).0, "LANES=32 UNITS=1 THREADS=256 AHEAD=1");
    assert_eq!(shape(64, None).0, "LANES=8 UNITS=1 THREADS=256 AHEAD=1");
    assert_eq!(shape(1600, None), ("LANES=128 UNITS=2 THREADS=128 AHEAD=1".to_owned(), 656));
    assert_eq!(shape(8192, None).0, "LANES=512 UNITS=2 THREADS=512 AHEAD=1");
}

#[test]
fn one_unit_of_every_lane_leaves_room_for_draws() {
    let made = |width: usize, drops: bool| {
        let kernel = made(&spec(49152, width, DType::Bf16, Some(drops)));
        let own = &kernel.launches[0];
        let has = |name: &str| own.source.defines.iter().any(|d| d == name);
        (has("WHOLE=1"), has("ALIKE=1"), own.grid[0])
    };
    // 49152 rows in chunks of 128: multiples of the 8 groups of a block, at most 396 of them.
    assert_eq!(made(256, true), (true, true, 384));
    // Lanes without a unit, several units, shorter rows: 264 blocks at most.
    assert_eq!(made(248, true), (false, true, 256));
    assert_eq!(made(768, true), (false, true, 262));
    assert_eq!(made(512, false), (false, true, 256));
}

#[test]
fn sums_have_a_second_phase() {
    let kernel = made(&spec(65536, 768, DType::Bf16, None));
    assert_eq!(kernel.workspace_bytes, 8 * 391 * 768);
    assert_eq!(kernel.launches[1].grid, [24, 2, 1]);
    let mut alone = spec(65536, 768, DType::Bf16, None);
    (alone.dgain, alone.dbias) = (None, None);
    assert_eq!((made(&alone).workspace_bytes, made(&alone).launches.len()), (0, 1));
    // Without rows both sums are zero.
    let none = made(&spec(0, 768, DType::Bf16, None));
    assert!(none.launches.iter().all(|l| l.entry == "fill") && none.launches.len() == 2);
}

#[test]
fn operands_come_in_the_order_of_the_spec() {
    let addresses = |drops: Option<bool>| -> Vec<usize> {
        let kernel = made(&spec(64, 256, DType::Bf16, drops));
        let list = kernel.launches[0].parameters.addresses().to_vec();
        let number = |(_, address): (usize, Address)| match address {
            Address::Operand { operand, .. } => Some(operand),
            _ => None,
        };
        list.into_iter().filter_map(number).collect()
    };
    // x, dy, dx; gain, dgain, dbias.
    assert_eq!(addresses(None), [0, 1, 2, 3, 4, 5]);
    // x, dy, what the program reads and writes; gain, dgain, dbias.
    assert_eq!(addresses(Some(false)), [0, 1, 5, 6, 2, 3, 4]);
}

#[test]
#[ignore = "needs NVRTC"]
fn rows_stay_in_registers() {
    let mut list = vec![];
    for width in [1, 64, 255, 513, 768, 1024, 1600, 2048, 4096, 5001, 8192, 12288] {
        for (dtype, drops) in [
            (DType::Bf16, None),
            (DType::F32, None),
            (DType::Bf16, Some(false)),
            (DType::Bf16, Some(true)),
        ] {
            // Where draws would not have room, they go to memory.
            if width <= 8192 || drops != Some(true) {
                list.push(made(&spec(4096, width, dtype, drops)));
            }
        }
    }
    list.extend([768, 5001].map(|width| made(&spec(4096, width, DType::F16, Some(true)))));
    assert_eq!(spills(list), Vec::<String>::new());
}
