use super::*;
use crate::kernels::elements::testing::{Builder, spills};
use aerogel_graph::DType;
use aerogel_lower::{Binary, Program, Value};

fn spec(program: Program, value: Value, reduced: &[bool], fold: Fold) -> ReduceSpec {
    let kept = |axis: usize| -> isize {
        let inner = axis + 1..reduced.len();
        inner.filter(|a| !reduced[*a]).map(|a| program.sizes[a] as isize).product()
    };
    let output = Operand::f32((0..reduced.len()).map(kept).collect::<Vec<_>>());
    ReduceSpec { program, value, reduced: reduced.to_vec(), output, fold }
}

fn of(sizes: &[usize], dtype: DType, reduced: &[bool], fold: Fold) -> ReduceSpec {
    let mut b = Builder::new(sizes);
    let x = b.load(dtype);
    let y = if dtype == DType::F32 { b.binary(Binary::Mul, x, x) } else { x };
    spec(b.finish(), y, reduced, fold)
}

fn made(spec: &ReduceSpec) -> Kernel {
    let operands = spec.program.inputs.len() + 1;
    reduce(spec, Draws::default(), &vec![64; operands]).unwrap()
}

fn has(kernel: &Kernel, constants: &str) -> bool {
    let own = &kernel.launches[0].source.defines;
    constants.split(' ').all(|wanted| own.iter().any(|d| d == wanted))
}

/// A bias gradient: the blocks that an H100 holds at once, or four times as many.
#[test]
fn columns_are_cut_for_the_multiprocessors() {
    let kernel = made(&of(&[65536, 768], DType::Bf16, &[true, false], Fold::Sum));
    assert!(has(&kernel, "COLUMNS=1 V=8 LANES=32 THREADS=512 UNROLL=4 OUTER=1 INNER=1"));
    assert_eq!(kernel.launches[0].grid, [3, 88, 1]);
    assert_eq!(kernel.launches[1].grid, [24, 1, 1]);
    assert_eq!(kernel.workspace_bytes, 4 * 88 * 768);
    // 264 / 3 is 88 chunks of 745 rows.
    let bytes = kernel.launches[0].parameters.bytes();
    let tail: Vec<u32> = bytes[bytes.len() - 24..][..20]
        .chunks(4)
        .map(|w| u32::from_le_bytes(w.try_into().unwrap()))
        .collect();
    assert_eq!(tail, [65536, 96, 0, 88, 745]);
    let few = made(&of(&[65536, 12], DType::Bf16, &[true, false], Fold::Sum));
    assert!(has(&few, "V=4 LANES=4 THREADS=256"));
    assert_eq!(few.launches[0].grid, [1, 256, 1]);
    assert!(has(&made(&of(&[64, 64], DType::Bf16, &[true, false], Fold::Sum)), "LANES=8"));
    assert_eq!(made(&of(&[64, 64], DType::Bf16, &[true, false], Fold::Sum)).launches.len(), 1);
}

#[test]
fn rows_are_folded_by_as_many_lanes_as_they_have_units() {
    let rows = |sizes: &[usize]| made(&of(sizes, DType::F32, &[false, true], Fold::Sum));
    assert!(has(&rows(&[65536, 768]), "COLUMNS=0 V=4 LANES=32 THREADS=256 UNROLL=6"));
    assert_eq!(rows(&[65536, 768]).launches[0].grid, [8192, 1, 1]);
    assert_eq!(rows(&[65536, 768]).workspace_bytes, 0);
    assert!(has(&rows(&[65536, 16]), "LANES=4 UNROLL=1"));
    let all = made(&of(&[1 << 24], DType::F32, &[true], Fold::Sum));
    assert!(has(&all, "LANES=256 UNROLL=4 V=4"));
    assert_eq!((all.launches[0].grid, all.launches[1].grid), ([1, 1024, 1], [1, 1, 1]));
    assert_eq!(all.workspace_bytes, 4096);
}

#[test]
fn a_sum_over_nothing_is_a_fill() {
    let value = |fold| {
        let kernel = made(&of(&[5, 0, 3], DType::F32, &[false, true, false], fold));
        let [launch] = &kernel.launches[..] else { panic!("one launch") };
        assert_eq!(
            (launch.entry, launch.parameters.addresses()[0].1),
            ("fill", Address::operand(1))
        );
        let bytes = launch.parameters.bytes();
        let at = launch.parameters.bytes().len();
        // The bits are the last field; the struct's end is aligned to 8 bytes.
        let words =
            [at - 8, at - 4].map(|i| u32::from_le_bytes(bytes[i..i + 4].try_into().unwrap()));
        if words[1] == 0 { words[0] } else { words[1] }
    };
    assert_eq!(f32::from_bits(value(Fold::Max)), f32::NEG_INFINITY);
    assert!(made(&of(&[0, 4], DType::F32, &[false, true], Fold::Sum)).launches.is_empty());
}

fn list() -> Vec<ReduceSpec> {
    let mut specs = vec![];
    for (dtype, fold) in [(DType::F32, Fold::Sum), (DType::Bf16, Fold::Max)] {
        for reduced in [[false, true], [true, false]] {
            specs.push(of(&[65536, 768], dtype, &reduced, fold));
            specs.push(of(&[4096, 50257], dtype, &reduced, fold));
            specs.push(of(&[4096, 6], dtype, &reduced, fold));
        }
        specs.push(of(&[4, 12, 128, 64], dtype, &[true, false, true, false], fold));
        specs.push(of(&[1 << 20], dtype, &[true], fold));
    }
    specs.push(of(&[65536, 768], DType::F16, &[true, false], Fold::Sum));
    for reduced in [[false, true], [true, false]] {
        let mut b = Builder::new(&[65536, 3072]);
        let (x, dy) = (b.load(DType::Bf16), b.load(DType::Bf16));
        let (y, tangent) = b.gelu(x);
        let y = b.binary(Binary::Mul, y, tangent);
        let y = b.binary(Binary::Mul, y, dy);
        let y = b.dropout(y);
        specs.push(spec(b.finish(), y, &reduced, Fold::Sum));
        let mut b = Builder::new(&[4096, 512]);
        let (x, one) = (b.coord(1), b.constant(1.0));
        let y = b.binary(Binary::Add, x, one);
        specs.push(spec(b.finish(), y, &reduced, Fold::Sum));
    }
    specs
}

#[test]
#[ignore = "needs NVRTC"]
fn reductions_stay_in_registers() {
    assert_eq!(spills(list().iter().map(made)), Vec::<String>::new());
}
