use super::*;
use crate::kernels::elements::testing::{residual, spills, whole};
use aerogel_graph::DType;
use aerogel_lower::{Normalisation, Operand};

fn spec(width: usize, dtype: DType, drops: Option<bool>) -> NormSpec {
    let sizes = vec![64, width];
    let operand = Operand { dtype, strides: whole(&sizes) };
    let output = match drops {
        None => Output::Store(operand.clone()),
        Some(drops) => Output::Epilogue(residual(&sizes, drops)),
    };
    let gain = Some(Operand::f32([0, 1]));
    let norm = Normalisation { sizes, center: true, eps: 1e-5, gain: gain.clone() };
    NormSpec { norm, x: operand, bias: gain, output }
}

fn made(spec: &NormSpec) -> Kernel {
    let own = match &spec.output {
        Output::Store(_) => 1,
        Output::Epilogue(program) => program.inputs.len() + program.outputs.len(),
    };
    let constants = usize::from(spec.norm.gain.is_some()) + usize::from(spec.bias.is_some());
    norm(spec, Draws::default(), &vec![64; 1 + own + constants]).unwrap()
}

#[test]
fn widths_are_walked_as_measured() {
    let shape = |width: usize, dtype: DType| {
        made(&spec(width, dtype, None)).launches[0].source.defines[..4].join(" ")
    };
    assert_eq!(shape(64, DType::Bf16), "V=8 LANES=8 UNITS=1 THREADS=256");
    assert_eq!(shape(768, DType::Bf16), "V=8 LANES=32 UNITS=3 THREADS=256");
    assert_eq!(shape(1600, DType::Bf16), "V=8 LANES=128 UNITS=2 THREADS=128");
    assert_eq!(shape(8192, DType::Bf16), "V=8 LANES=256 UNITS=4 THREADS=256");
    assert_eq!(shape(768, DType::F32), "V=4 LANES=32 UNITS=6 THREADS=256");
    assert_eq!(shape(7, DType::Bf16), "V=1 LANES=8 UNITS=1 THREADS=256");
}

#[test]
fn operands_come_in_the_order_of_the_spec() {
    let addresses = |drops: Option<bool>| -> Vec<usize> {
        let kernel = made(&spec(256, DType::Bf16, drops));
        let list = kernel.launches[0].parameters.addresses().to_vec();
        let number = |(_, address): (usize, Address)| match address {
            Address::Operand { operand, .. } => Some(operand),
            _ => None,
        };
        list.into_iter().filter_map(number).collect()
    };
    // x, y, gain, bias.
    assert_eq!(addresses(None), [0, 1, 2, 3]);
    // x, the residual, the sum, gain, bias.
    assert_eq!(addresses(Some(false)), [0, 3, 4, 1, 2]);
    assert_eq!(made(&spec(256, DType::Bf16, Some(false))).launches[0].grid, [8, 1, 1]);
}

#[test]
fn a_gain_that_is_spread_out_is_refused() {
    let mut apart = spec(256, DType::Bf16, None);
    apart.norm.gain = Some(Operand::f32([0, 2]));
    let error = norm(&apart, Draws::default(), &[64; 4]).unwrap_err().to_string();
    assert_eq!(error, "norm: gain lies 2 elements apart; copy it to where it is contiguous");
    apart.norm.sizes[0] = 0;
    assert!(norm(&apart, Draws::default(), &[64; 4]).unwrap().launches.is_empty());
}

#[test]
#[ignore = "needs NVRTC"]
fn rows_stay_in_registers() {
    let mut list = vec![];
    for width in [1, 64, 255, 513, 768, 1024, 1600, 2048, 4096, 5001, 8192, 12288, 16384] {
        for (dtype, drops) in [
            (DType::Bf16, None),
            (DType::F32, None),
            (DType::Bf16, Some(false)),
            (DType::Bf16, Some(true)),
        ] {
            list.push(made(&spec(width, dtype, drops)));
        }
    }
    list.push(made(&spec(32768, DType::Bf16, None)));
    list.extend([768, 5001].map(|width| made(&spec(width, DType::F16, Some(true)))));
    assert_eq!(spills(list), Vec::<String>::new());
}
