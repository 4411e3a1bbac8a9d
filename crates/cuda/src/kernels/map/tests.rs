use super::*;
use crate::kernels::elements::testing::{Builder, adamw, spills, whole};
use aerogel_graph::DType;
use aerogel_lower::{Binary, Unary};

fn programs() -> Vec<(Program, u64)> {
    let sizes = [64, 1024, 768];
    let mut gelu = Builder::new(&sizes);
    let x = gelu.load(DType::Bf16);
    let (y, _) = gelu.gelu(x);
    gelu.store(DType::Bf16, y);
    let mut slope = Builder::new(&sizes);
    let (x, dy) = (slope.load(DType::Bf16), slope.load(DType::Bf16));
    let (y, tangent) = slope.gelu(x);
    let y = slope.binary(Binary::Mul, y, tangent);
    let dx = slope.binary(Binary::Mul, y, dy);
    slope.store(DType::Bf16, dx);
    let mut swiglu = Builder::new(&sizes);
    let (a, b) = (swiglu.load(DType::Bf16), swiglu.load(DType::Bf16));
    let gate = swiglu.unary(Unary::Sigmoid, a);
    let gate = swiglu.binary(Binary::Mul, gate, a);
    let y = swiglu.binary(Binary::Mul, gate, b);
    swiglu.store(DType::Bf16, y);
    let mut gates = Builder::new(&sizes);
    let [a, b, dy] = [0; 3].map(|_| gates.load(DType::Bf16));
    let gate = gates.unary(Unary::Sigmoid, a);
    let db = gates.binary(Binary::Mul, dy, gate);
    let da = gates.binary(Binary::Mul, db, b);
    gates.store(DType::Bf16, da);
    gates.store(DType::Bf16, db);
    let mut dropout = Builder::new(&sizes);
    let (x, y) = (dropout.load(DType::Bf16), dropout.load(DType::Bf16));
    let y = dropout.dropout(y);
    let sum = dropout.binary(Binary::Add, x, y);
    dropout.store(DType::Bf16, sum);
    let mut rotary = Builder::new(&[8, 1024, 12, 64]);
    let angle = rotary.coord(1);
    let lane = rotary.coord(3);
    let angle = rotary.binary(Binary::Mul, angle, lane);
    let (sine, cosine) = (rotary.unary(Unary::Sin, angle), rotary.unary(Unary::Cos, angle));
    let x = rotary.load(DType::Bf16);
    let (a, b) = (rotary.binary(Binary::Mul, x, sine), rotary.binary(Binary::Mul, x, cosine));
    rotary.write(DType::Bf16, [12 * 1024 * 64, 64, 1024 * 64, 1], a);
    rotary.write(DType::F32, [12 * 1024 * 64, 1, 1024 * 64, 1024], b);
    let mut bias = Builder::new(&[4096, 1001]);
    let (x, b) = (bias.load(DType::Bf16), bias.read(DType::F32, [0, 1]));
    let y = bias.binary(Binary::Add, x, b);
    bias.store(DType::Bf16, y);
    let mut eight = Builder::new(&[2, 3, 2, 3, 2, 3, 2, 4]);
    let x = eight.read(DType::F32, [4, 8, 24, 48, 144, 288, 864, 1]);
    eight.store(DType::Bf16, x);
    let list = [gelu, slope, swiglu, gates, dropout, rotary, bias, eight].map(Builder::finish);
    let aligned = list.iter().cloned().chain([adamw(1 << 20)]).map(|p| (p, 64));
    let not = list.iter().cloned().chain([adamw((1 << 20) + 3)]).map(|p| (p, 4));
    aligned.chain(not).collect()
}

fn made(program: &Program, align: u64) -> Kernel {
    let operands = program.inputs.len() + program.outputs.len();
    map(program, Draws::default(), &vec![align; operands]).unwrap()
}

/// The constants that were measured.
#[test]
fn lanes_follow_types() {
    let constants = |p: &Program, align: u64| made(p, align).launches[0].source.defines.join(" ");
    let list = programs();
    assert_eq!(constants(&list[0].0, 64), "V=8 AXES=1 UNROLL=2 THREADS=256");
    assert_eq!(constants(&list[1].0, 64), "V=8 AXES=1 UNROLL=1 THREADS=256");
    assert_eq!(constants(&list[4].0, 64), "V=8 AXES=1 UNROLL=1 THREADS=256");
    assert_eq!(constants(&list[6].0, 64), "V=1 AXES=2 UNROLL=4 THREADS=256");
    assert_eq!(constants(&adamw(40), 64), "V=4 AXES=1 UNROLL=1 THREADS=256");
}

#[test]
fn a_flat_axis_ends_in_a_tail() {
    let kernel = made(&adamw(4099), 64);
    let [launch] = &kernel.launches[..] else { panic!("one launch") };
    let bytes = launch.parameters.bytes();
    let word = |from_end: usize| {
        let at = bytes.len() - from_end;
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    };
    // 12 operands: addresses, clock, draws, strides and lanes, one division, two counts.
    assert_eq!(bytes.len(), (12 * 8 + 8 + 48 + 2 * 12 * 8 + 12 + 8usize).next_multiple_of(8));
    assert_eq!((word(8), word(4)), (1024, 3));
    assert_eq!(launch.grid, [4, 1, 1]);
    assert_eq!(made(&adamw(3), 64).launches[0].grid, [1, 1, 1]);
    assert!(made(&adamw(0), 64).launches.is_empty());
}

#[test]
fn what_is_not_aligned_is_read_in_pieces() {
    let text = |align: u64| made(&programs()[0].0, align).launches[0].source.text.clone();
    assert!(text(64).contains("::load<bf16, N, 8>(s.ptr[0], s.at[0])"));
    assert!(text(4).contains("::load<bf16, N, 2>(s.ptr[0], s.at[0])"));
    assert!(text(2).contains("::store<bf16, N, 1>(s.ptr[1], s.at[1], y0)"));
}

/// The target's axes decide the order, and what repeats is read once.
#[test]
fn axes_are_walked_as_the_target_lies() {
    let mut b = Builder::new(&[64, 48]);
    let x = b.read(DType::F32, [48, 1]);
    let y = b.read(DType::F32, [1, 0]);
    let sum = b.binary(Binary::Add, x, y);
    b.write(DType::F32, [1, 64], sum);
    let kernel = made(&b.finish(), 64);
    let text = &kernel.launches[0].source.text;
    assert!(text.contains("::load_strided<f32, N>(s.ptr[0]"), "{text}");
    assert!(text.contains("::load<f32, N, 4>(s.ptr[1]"), "{text}");
    assert!(text.contains("::store<f32, N, 4>(s.ptr[2]"), "{text}");
    assert_eq!(whole(&[64, 48]), [48, 1]);
}

#[test]
#[ignore = "needs NVRTC"]
fn programs_of_models_stay_in_registers() {
    let found = spills(programs().iter().map(|(program, align)| made(program, *align)));
    assert_eq!(found, Vec::<String>::new());
}
