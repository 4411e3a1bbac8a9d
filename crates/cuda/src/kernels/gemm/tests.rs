pub(crate) mod compile;
pub(crate) mod emulate;
mod summed;
mod together;

use super::choice::{self, Choice, Factor, Form, Layout, Question};
use super::matrix::{self, Roles};
use super::*;
use crate::gpu::Architecture;
use aerogel_graph::DType;
use aerogel_lower::{Axis, OperandSums, Role};

pub(super) const HOPPER: Chip = Chip { architecture: Architecture::SM90A };
pub(super) const AMPERE: Chip = Chip { architecture: Architecture::SM80 };

/// A row-major product of so many rows, columns and depth; factors have K inside, or their side.
pub(super) fn plain(sizes: [usize; 3], k_inside: [bool; 2], dtypes: [DType; 3]) -> Contraction {
    let [m, n, k] = sizes;
    let [rows, cols, deep] = sizes.map(|size| size as isize);
    let a = if k_inside[0] { (deep, 1) } else { (1, rows) };
    let b = if k_inside[1] { (deep, 1) } else { (1, cols) };
    let axes = vec![
        Axis { role: Role::M, size: m, a: a.0, b: 0, c: cols },
        Axis { role: Role::N, size: n, a: 0, b: b.0, c: 1 },
        Axis { role: Role::K, size: k, a: a.1, b: b.1, c: 0 },
    ];
    let [a, b, c] = dtypes;
    Contraction { axes, a, b, c, accumulate: false, alpha: 1.0, epilogue: None, sums: None }
}

/// The same with a program, whose operands are row-major, or one row (`None`).
pub(super) fn with_program(
    mut spec: Contraction,
    inputs: &[(DType, bool)],
    outputs: &[DType],
    instrs: Vec<Instr>,
) -> Contraction {
    let sizes = vec![spec.axes[0].size, spec.axes[1].size];
    let row = sizes[1] as isize;
    let operand =
        |dtype, whole: bool| Operand { dtype, strides: vec![if whole { row } else { 0 }, 1] };
    let inputs = inputs.iter().map(|&(dtype, whole)| operand(dtype, whole)).collect();
    let outputs = outputs.iter().map(|&dtype| operand(dtype, true)).collect();
    spec.epilogue = Some(Program { sizes, inputs, outputs, instrs });
    spec
}

const BF16: [DType; 3] = [DType::Bf16; 3];
const GRADIENT: [DType; 3] = [DType::Bf16, DType::Bf16, DType::F32];

fn chosen(spec: &Contraction, chip: Chip) -> Choice {
    let program = matrix::program(spec).unwrap();
    let product = Product { alpha: 1.0, dtypes: [spec.a, spec.b], draws: Draws::default(), chip };
    let places: Vec<Place> = (0..FIRST + program.inputs.len() + program.outputs.len())
        .map(|i| Place::operand(i, 64, DType::F32))
        .collect();
    let all = Roles::new(spec, &program).unwrap().arrangements();
    product.arrange(&all, &program, &places, 0, None, u64::MAX).1
}

/// Each is the fastest on an H100 or within 3 % of it, by `lab/results/h100-gemm.txt`.
#[test]
fn measured_shapes_get_kernels_that_were_fast() {
    let form = |sizes, k_inside, dtypes| {
        let choice = chosen(&plain(sizes, k_inside, dtypes), HOPPER);
        (choice.form, choice.splits)
    };
    let both = [Layout::K; 2];
    let right = [Layout::K, Layout::Side];
    let sides = [Layout::Side; 2];
    let ring = |bn, cluster, layouts: [Layout; 2]| Form::Ring {
        bn,
        cluster,
        layouts,
        permuted: layouts[1] == Layout::K,
    };
    for n in [256, 512, 768, 1024] {
        let wanted = Form::Resident { bn: 256, layouts: both, permuted: true };
        assert_eq!(form([73_728, n, 256], [true; 2], BF16), (wanted, 1), "{n} columns");
    }
    for k in [512, 1024] {
        assert_eq!(form([73_728, 256, k], [true; 2], BF16), (ring(128, 1, both), 1), "K = {k}");
    }
    let dx = |sizes| form(sizes, [true, false], BF16);
    assert_eq!(dx([73_728, 256, 1024]), (ring(128, 1, right), 1));
    assert_eq!(dx([65_536, 768, 3072]), (ring(256, 1, right), 1));
    assert_eq!(dx([65_536, 3072, 768]), (ring(256, 2, right), 1));
    for [n, k] in [[2304, 768], [768, 768], [3072, 768], [768, 3072]] {
        assert_eq!(form([65_536, n, k], [true; 2], BF16), (ring(256, 1, both), 1), "{n} {k}");
    }
    assert_eq!(form([4096; 3], [true; 2], BF16), (ring(256, 1, both), 1));
    let dw = |m, n, k| form([m, n, k], [false; 2], GRADIENT);
    assert_eq!(dw(256, 256, 73_728), (ring(256, 2, sides), 64));
    assert_eq!(dw(768, 256, 73_728), (ring(256, 1, sides), 22));
    assert_eq!(dw(2304, 768, 65_536), (ring(256, 1, sides), 7));
    assert_eq!(dw(768, 768, 65_536), (ring(256, 2, sides), 7));
    assert_eq!(dw(768, 3072, 65_536), (ring(256, 2, sides), 7));
    let program = vec![
        Instr::Product { dst: 0 },
        Instr::Load { dst: 1, input: 0 },
        Instr::Binary { op: Binary::Add, dst: 2, a: 0, b: 1 },
        Instr::Store { output: 0, src: 2 },
    ];
    let residual = plain([73_728, 256, 256], [true; 2], BF16);
    let residual = with_program(residual, &[(DType::Bf16, true)], &[DType::Bf16], program);
    let wanted = Form::Resident { bn: 256, layouts: both, permuted: false };
    assert_eq!(chosen(&residual, HOPPER).form, wanted);
}

/// 1,600 columns are five tiles of 320: GPT-2 1.5B, micro-batches of 9 and 16 sequences.
#[test]
fn widths_are_chosen_for_columns_and_rounds() {
    let ring = |sizes, k_inside, dtypes| match chosen(&plain(sizes, k_inside, dtypes), HOPPER) {
        Choice { form: Form::Ring { bn, cluster, .. }, splits, .. } => (bn, cluster, splits),
        other => panic!("{other:?}"),
    };
    for m in [9216, 16_384] {
        for k in [1600, 6400] {
            assert_eq!(ring([m, 1600, k], [true; 2], BF16), (320, 1, 1));
            assert_eq!(ring([m, 1600, k], [true, false], BF16), (320, 1, 1));
        }
        // Pairs of 13 tiles would take a second round.
        assert_eq!(ring([1600, 1600, m], [false; 2], GRADIENT), (320, 1, 2));
        assert_eq!(ring([6400, 1600, m], [false; 2], GRADIENT), (320, 1, 1));
        assert_eq!(ring([1600, 6400, m], [false; 2], GRADIENT), (320, 1, 1));
    }
    assert_eq!(ring([9216, 6400, 1600], [true; 2], BF16), (320, 1, 1));
    assert_eq!(ring([9216, 6400, 1600], [true, false], BF16), (320, 2, 1));
    // Where both widths fit, that which was measured.
    assert_eq!(ring([16_384, 1280, 1280], [true; 2], BF16).0, 256);
    let launch = &launches_of(&plain([9216, 1600, 1600], [true; 2], BF16), 64)[0];
    assert!(launch.source.defines.contains(&"BN=320".to_owned()));
    assert_eq!((launch.grid, launch.shared_bytes), ([132, 1, 1], 230_400));
    let list = launches_of(&plain([1600, 1600, 9216], [false; 2], GRADIENT), 64);
    assert_eq!((list.len(), list[0].grid), (2, [130, 1, 1]));
}

#[test]
fn what_is_not_for_hopper_goes_to_the_general_kernel() {
    let general = |spec: &Contraction, chip| match chosen(spec, chip).form {
        Form::General { float, layouts, tile } => (float, layouts, tile.bm),
        other => panic!("{other:?}"),
    };
    let small = |k_inside, dtypes| plain([512, 384, 256], k_inside, dtypes);
    let (k, side, any) = (Layout::K, Layout::Side, Layout::Any);
    assert_eq!(general(&small([true; 2], BF16), AMPERE).1, [k; 2]);
    assert_eq!(general(&small([false, true], BF16), AMPERE).1, [side, k]);
    let floats = [DType::F32; 3];
    assert_eq!(general(&small([true; 2], floats), HOPPER), (true, [any; 2], 64));
    let mixed = [DType::Bf16, DType::F32, DType::F32];
    assert!(general(&small([true; 2], mixed), HOPPER).0);
    let halves = [DType::Bf16, DType::F16, DType::F32];
    assert!(general(&small([true; 2], halves), HOPPER).0);
    let odd = plain([512, 384, 250], [true; 2], BF16);
    assert_eq!(general(&odd, HOPPER).1, [any; 2], "rows of 500 bytes");
    // No depth, or one without elements.
    let mut none = plain([64, 64, 0], [true; 2], BF16);
    assert!(!general(&none, HOPPER).0);
    none.axes.pop();
    assert_eq!(launches_of(&none, 64).len(), 1);
}

fn launches_of(spec: &Contraction, align: u64) -> Vec<Launch> {
    product(spec, Draws::default(), &[align; 8], HOPPER).unwrap().launches
}

#[test]
fn a_product_without_elements_launches_nothing() {
    for sizes in [[0, 64, 64], [64, 0, 64]] {
        assert!(launches_of(&plain(sizes, [true; 2], BF16), 64).is_empty());
    }
}

#[test]
fn scratch_for_any_alignment_is_within_that_of_the_extremes() {
    for sizes in [[256, 256, 73_728], [64, 96, 5000], [768, 3072, 16_384], [40, 4096, 4096]] {
        for k_inside in [[true, true], [true, false], [false, false]] {
            let mut spec = plain(sizes, k_inside, GRADIENT);
            spec.accumulate = true;
            for sums in [None, Some((0, [1, 0, 0])), Some((1, [0, 1, 0]))] {
                spec.sums = sums
                    .map(|(factor, strides)| OperandSums { factor, output: Operand::f32(strides) });
                let bytes = |[a, b, c]: [u64; 3]| {
                    product(&spec, Draws::default(), &[a, b, c, 4], HOPPER).unwrap().workspace_bytes
                };
                let most = bytes([64; 3]).max(bytes([2, 2, 4]));
                for align in [[64, 2, 64], [2, 64, 64], [16, 8, 4], [64, 64, 4], [2, 2, 64]] {
                    assert!(bytes(align) <= most, "{sizes:?} {k_inside:?} {align:?}");
                }
            }
        }
    }
}

/// The forms for f16 are those for bf16: the types of the maps and one constant tell them apart.
#[test]
fn factors_of_f16_are_told_by_a_constant() {
    let [bf16, f16, f32] = [DType::Bf16, DType::F16, DType::F32];
    let first = |dtypes| launches_of(&plain([4096; 3], [true; 2], dtypes), 64).remove(0);
    let (one, other) = (first([bf16, bf16, f32]), first([f16, f16, f32]));
    let constants = [&one.source.defines[..], &["F16=1".to_owned()]].concat();
    assert_eq!((&other.source.defines, other.grid), (&constants, one.grid));
    assert_eq!(other.parameters.bytes(), one.parameters.bytes());
    let types = |launch: &Launch| launch.parameters.maps().iter().map(|m| m.1.dtype).collect();
    let (one, other): (Vec<DType>, Vec<DType>) = (types(&one), types(&other));
    assert_eq!((one, other), (vec![bf16; 2], vec![f16; 2]));
    let rest = |dtypes| {
        let defines = first(dtypes).source.defines;
        let is_type =
            |d: &&String| ["F16", "A_F32", "B_F32", "B_HALF"].iter().any(|n| d.starts_with(n));
        defines.iter().filter(is_type).cloned().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(rest([f16, bf16, f32]), "A_F32=0 B_F32=0 F16=1 B_HALF=bf16");
    assert_eq!(rest([bf16, f16, f32]), "A_F32=0 B_F32=0 B_HALF=f16");
    assert_eq!(rest([f32, f16, f32]), "A_F32=1 B_F32=0 F16=1");
    assert_eq!(rest([f32, bf16, f32]), "A_F32=1 B_F32=0");
}

/// A weight gradient and that of the bias, in shares of the depth.
#[test]
fn sums_of_the_left_factor_are_made_by_its_product() {
    let mut spec = plain([768, 256, 73_728], [false; 2], GRADIENT);
    let without = product(&spec, Draws::default(), &[64; 3], HOPPER).unwrap();
    let output = Operand::f32([2, 0, 0]);
    spec.sums = Some(OperandSums { factor: 0, output });
    let with = product(&spec, Draws::default(), &[64; 4], HOPPER).unwrap();
    let (old, new) = (&without.launches, &with.launches);
    assert_eq!(new.len(), 2);
    assert!(new.iter().all(|launch| launch.source.defines.contains(&"SUMS=1".to_owned())));
    assert_eq!(with.workspace_bytes, without.workspace_bytes + 22 * 768 * 4);
    assert_eq!((new[0].grid, new[1].grid[0]), (old[0].grid, old[1].grid[0] + 768 / 64));
    // Behind the epilogue's address and strides: address and stride.
    let (bytes, at) = (new[0].parameters.bytes(), 320 + 8 + 40);
    assert_eq!(new[0].parameters.addresses().last(), Some(&(at, Address::operand(3))));
    assert_eq!(words(&bytes[at..]), [0, 0, 2, 0]);
    assert_eq!(bytes.len() % 64, 0);
    // Whichever way would be the product's own, the summed factor comes to the left if that pays.
    let mut few = plain([128, 256, 6144], [false; 2], GRADIENT);
    assert!(matches!(chosen(&few, HOPPER).form, Form::Ring { bn: 128, .. }), "swapped");
    few.sums = Some(OperandSums { factor: 0, output: Operand::f32([1, 0, 0]) });
    let list = product(&few, Draws::default(), &[64; 4], HOPPER).unwrap().launches;
    assert!(list.iter().all(|launch| launch.source.defines.contains(&"SUMS=1".to_owned())));
    // Those of a factor that is read along K are a reduction's.
    let mut spec = plain([4096; 3], [true; 2], BF16);
    spec.sums = Some(OperandSums { factor: 0, output: Operand::f32([1, 0, 0]) });
    let list = product(&spec, Draws::default(), &[64; 4], HOPPER).unwrap().launches;
    assert_eq!((list.len(), list[1].entry), (2, "reduce"));
}

/// A product without elements still has the sums of a factor that has some.
#[test]
fn sums_do_not_need_a_product() {
    let mut spec = plain([64, 0, 64], [false; 2], GRADIENT);
    spec.sums = Some(OperandSums { factor: 0, output: Operand::f32([1, 0, 0]) });
    let entries: Vec<&str> = launches_of(&spec, 64).iter().map(|l| l.entry).collect();
    assert_eq!(entries, ["reduce"]);
    let mut spec = plain([64, 64, 0], [false; 2], GRADIENT);
    spec.sums = Some(OperandSums { factor: 0, output: Operand::f32([1, 0, 0]) });
    let entries: Vec<&str> = launches_of(&spec, 64).iter().map(|l| l.entry).collect();
    assert_eq!(entries, ["gemm", "fill"]);
}

#[test]
fn an_epilogue_and_accumulate_exclude_each_other() {
    let mut spec = plain([64, 64, 64], [true; 2], BF16);
    let program = vec![Instr::Product { dst: 0 }, Instr::Store { output: 0, src: 0 }];
    spec.accumulate = true;
    let spec = with_program(spec, &[], &[DType::F32], program);
    assert!(product(&spec, Draws::default(), &[64; 4], HOPPER).is_err());
}

fn words(bytes: &[u8]) -> Vec<i32> {
    bytes.chunks(4).map(|w| i32::from_le_bytes(w.try_into().unwrap())).collect()
}

/// Against what `lab/gemm_host.py` packs.
#[test]
fn parameters_are_those_of_the_lab() {
    // general(): a [1, 1, 6, 65, 77] in f32, b without the batch axis, c in f32.
    let axis = |role, size, a, b, c| Axis { role, size, a, b, c };
    let axes = vec![
        axis(Role::Batch, 6, 5300, 3600, 2900),
        axis(Role::M, 65, 80, 0, 44),
        axis(Role::N, 43, 0, 82, 1),
        axis(Role::K, 77, 1, 1, 0),
    ];
    let f32 = DType::F32;
    let (a, b, c, alpha) = (f32, f32, f32, 0.5);
    let spec = Contraction { axes, a, b, c, accumulate: false, alpha, epilogue: None, sums: None };
    let list = launches_of(&spec, 64);
    let [launch] = &list[..] else { panic!("{} launches", list.len()) };
    let mut wanted = vec![0i32; 6];
    let mut long = |list: &[i32]| list.iter().for_each(|x| wanted.extend([*x, 0]));
    long(&[80, 1, 0, 82, 1, 0, 0, 0, 5300, 0, 0, 3600]);
    wanted.extend([65, 43, 77, 1, 1, 1, 6, 1, 0.5f32.to_bits() as i32, 0]);
    let mut long = |list: &[i32]| list.iter().for_each(|x| wanted.extend([*x, 0]));
    long(&[0, 0, 0, 2900, 44, 1]);
    assert_eq!(words(launch.parameters.bytes()), wanted);
    let operand = Address::operand;
    let addresses = [(0, operand(0)), (8, operand(1)), (160, operand(2))];
    assert_eq!(launch.parameters.addresses(), addresses);
    assert_eq!((launch.grid, launch.threads, launch.shared_bytes), ([2, 1, 6], 256, 34_816));

    // hopper(): a weight gradient in 22 shares.
    let mut spec = plain([768, 256, 73_728], [false; 2], GRADIENT);
    spec.accumulate = true;
    let kernel = product(&spec, Draws::default(), &[64; 3], HOPPER).unwrap();
    let [launch, reduce] = &kernel.launches[..] else { panic!("a product and its sum") };
    let bytes = launch.parameters.bytes();
    let core = [0, 0, 768, 256, 73_728, 1, 1, 1, 0, 0, 0, 0, 0, 0, 22, 1.0f32.to_bits() as i32];
    assert_eq!(words(&bytes[256..320]), core);
    let c = [0, 0, 0, 0, 0, 0, 256, 0, 1, 0];
    assert_eq!(words(&bytes[320..416]), [&[0; 4][..], &c, &c].concat());
    assert_eq!(bytes.len(), 448);
    let maps = launch.parameters.maps();
    assert_eq!(maps[0].1.sizes, [768, 73_728, 1, 1, 1]);
    assert_eq!(maps[0].1.strides, [768; 4]);
    assert_eq!(maps[1].1.sizes, [256, 73_728, 1, 1, 1]);
    assert_eq!((maps[0].0, maps[1].0, maps[1].1.tile), (0, 128, [64, 64, 1, 1, 1]));
    assert_eq!(kernel.workspace_bytes, 22 * 768 * 256 * 4);
    assert_eq!((launch.grid, launch.shared_bytes), ([132, 1, 1], 197_632));
    assert_eq!((reduce.entry, reduce.grid), ("gemm_reduce", [768 * 32 / 64, 1, 1]));
}

/// Draws are for elements of the whole tensor, whichever way the product lies.
#[test]
fn dropout_draws_for_the_elements_that_it_drops() {
    let program = vec![
        Instr::Product { dst: 0 },
        Instr::Rand { dst: 1, stream: 7, strides: vec![640, 1] },
        Instr::Binary { op: Binary::Mul, dst: 2, a: 0, b: 1 },
        Instr::Store { output: 0, src: 2 },
    ];
    let spec = plain([128, 640, 64], [true; 2], BF16);
    let mut spec = with_program(spec, &[], &[DType::Bf16], program);
    let draws = Draws { first: 3, step: 5 };
    let made = |spec: &Contraction| product(spec, draws, &[64; 3], AMPERE).unwrap().launches;
    let list = made(&spec);
    assert!(list[0].source.generated.contains("draw_unit<V>(t1, n1, d1);"));
    // One address, two times strides, the number between them, then clock and draws.
    let epi = &words(list[0].parameters.bytes())[40..];
    assert_eq!(epi[12..24], [0, 0, 0, 0, 0, 0, 0, 0, 640, 0, 1, 0]);
    assert_eq!(epi[24..], [0, 0, 3, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
    assert!(list[0].parameters.addresses().contains(&(160 + 96, Address::Clock)));
    // An output with its rows inside: the kernel's columns are the tensor's rows.
    spec.epilogue.as_mut().unwrap().outputs[0].strides = vec![1, 128];
    let list = made(&spec);
    assert!(list[0].source.generated.contains("draw_strided<V>(t1, n1, e.at0.col, d1);"));
    let epi = &words(list[0].parameters.bytes())[40..];
    assert_eq!(epi[2..12], [0, 0, 0, 0, 0, 0, 128, 0, 1, 0]);
    assert_eq!(epi[14..24], [0, 0, 0, 0, 0, 0, 1, 0, 640, 0]);
}

#[test]
fn no_share_is_empty() {
    for slices in 1..200 {
        for wanted in 1..100 {
            let splits = choice::shares(slices, wanted);
            let share = slices.div_ceil(splits);
            assert!(splits <= wanted && (splits - 1) * share < slices, "{slices} {wanted}");
        }
    }
}

/// Whatever the alignment, an answer is a form that the kernels have.
#[test]
fn a_question_always_has_an_answer() {
    let spec = plain([3, 5, 7], [true; 2], BF16);
    let program = matrix::program(&spec).unwrap();
    for matrices in Roles::new(&spec, &program).unwrap().arrangements() {
        let factors = [Factor { dtype: DType::Bf16, align: 2 }; 2];
        let (matrices, hopper, plain) = (&matrices, true, true);
        let (traffic, beside, most_bytes) = (0.0, 0, 0);
        let question = Question { matrices, factors, hopper, traffic, plain, beside, most_bytes };
        let choice = choice::choose(&question);
        assert!(matches!(choice.form, Form::General { float: false, .. }));
        assert_eq!(choice.splits, 1);
    }
}
