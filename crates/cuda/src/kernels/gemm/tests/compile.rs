//! Every kind of source compiles on both architectures, without spills.

use super::*;
use crate::source::Source;
use aerogel_lower::Unary;
use std::collections::{BTreeMap, BTreeSet};

fn add(dst: u16, a: u16, b: u16) -> Instr {
    Instr::Binary { op: Binary::Add, dst, a, b }
}

fn mul(dst: u16, a: u16, b: u16) -> Instr {
    Instr::Binary { op: Binary::Mul, dst, a, b }
}

fn load(dst: u16, input: usize) -> Instr {
    Instr::Load { dst, input }
}

fn store(output: usize, src: u16) -> Instr {
    Instr::Store { output, src }
}

const PRODUCT: Instr = Instr::Product { dst: 0 };

/// GELU in its tanh form, from value `x` on: values from `next` on, the last of which it is.
fn gelu(x: u16, next: u16) -> Vec<Instr> {
    let value = |i: u16| next + i;
    vec![
        mul(value(0), x, x),
        Instr::Const { dst: value(1), value: 0.044715 },
        Instr::Const { dst: value(2), value: 1.0 },
        Instr::Fma { dst: value(3), a: value(0), b: value(1), c: value(2) },
        mul(value(4), value(3), x),
        Instr::Const { dst: value(5), value: 1.595_769 },
        mul(value(6), value(4), value(5)),
        Instr::Unary { op: Unary::Sigmoid, dst: value(7), a: value(6) },
        mul(value(8), value(7), x),
    ]
}

/// Programs with their inputs (type, and whether they have rows) and outputs.
type Case = (Vec<(DType, bool)>, Vec<DType>, Vec<Instr>);

fn programs() -> Vec<Case> {
    let (bf16, f32) = (DType::Bf16, DType::F32);
    let bias_gelu = [&[PRODUCT, load(1, 0), add(2, 0, 1)][..], &gelu(2, 3)].concat();
    let two = [&bias_gelu[..], &[store(0, 2), store(1, 11)]].concat();
    let slope = [&[PRODUCT, load(1, 0)][..], &gelu(1, 2), &[mul(20, 10, 0), store(0, 20)]].concat();
    let rand = Instr::Rand { dst: 4, stream: 0x1234_5678_9abc, strides: vec![768, 1] };
    let dropout = vec![
        PRODUCT,
        load(1, 0),
        load(2, 1),
        add(3, 0, 1),
        rand,
        Instr::Const { dst: 5, value: 0.1 },
        Instr::Const { dst: 6, value: 1.0 / 0.9 },
        Instr::Binary { op: Binary::Lt, dst: 7, a: 4, b: 5 },
        mul(8, 3, 6),
        Instr::Const { dst: 9, value: 0.0 },
        Instr::Select { dst: 10, cond: 7, a: 9, b: 8 },
        add(11, 10, 2),
        store(0, 11),
    ];
    let odd = vec![
        PRODUCT,
        load(1, 0),
        Instr::Coord { dst: 2, axis: 1 },
        Instr::Piece { dst: 3 },
        add(4, 0, 1),
        add(5, 2, 3),
        Instr::Unary { op: Unary::RoundBf16, dst: 6, a: 4 },
        mul(7, 5, 6),
        Instr::Unary { op: Unary::Erf, dst: 8, a: 7 },
        store(0, 8),
        store(1, 7),
    ];
    vec![
        (vec![], vec![bf16], vec![PRODUCT, store(0, 0)]),
        (vec![(f32, true)], vec![f32], vec![PRODUCT, load(1, 0), add(2, 0, 1), store(0, 2)]),
        (vec![(bf16, false)], vec![bf16, bf16], two),
        (vec![(bf16, true)], vec![bf16], slope),
        (vec![(f32, false), (bf16, true)], vec![bf16], dropout),
        (vec![(DType::U32, false)], vec![f32, DType::U32], odd),
    ]
}

fn specs() -> Vec<Contraction> {
    let shapes = [
        ([73_728, 768, 256], [true, true]),
        ([65_536, 768, 3072], [true, true]),
        ([65_536, 3072, 768], [true, false]),
        ([768, 768, 65_536], [false, false]),
        ([9216, 1600, 1600], [true, true]),
        ([9216, 1600, 6400], [true, false]),
        ([6400, 1600, 9216], [false, false]),
        ([512, 100, 72], [true, true]),
    ];
    let (bf16, f32) = (DType::Bf16, DType::F32);
    let mut all = vec![];
    for (inputs, outputs, instrs) in programs() {
        for (sizes, k_inside) in shapes {
            let spec = plain(sizes, k_inside, [bf16; 3]);
            all.push(with_program(spec, &inputs, &outputs, instrs.clone()));
        }
        let spec = plain([512, 768, 256], [true; 2], [f32, f32, f32]);
        all.push(with_program(spec, &inputs, &outputs, instrs.clone()));
        let spec = plain([64, 40, 4096], [true; 2], [f32, bf16, f32]);
        all.push(with_program(spec, &inputs, &outputs, instrs));
    }
    // Factors of f16, with outputs of bf16 as well; and mixtures.
    let f16 = DType::F16;
    for (inputs, outputs, instrs) in programs() {
        let other = |dtype| if dtype == bf16 { f16 } else { dtype };
        let inputs: Vec<(DType, bool)> = inputs.iter().map(|&(d, rows)| (other(d), rows)).collect();
        let spec = plain([65_536, 3072, 768], [true, true], [f16; 3]);
        all.push(with_program(spec, &inputs, &outputs, instrs));
    }
    let gradient = plain([768, 256, 73_728], [false; 2], [f16, f16, f32]);
    all.push(gradient.clone());
    all.push(Contraction { b: bf16, ..gradient.clone() });
    all.push(Contraction { a: f32, ..gradient.clone() });
    all.push(Contraction {
        sums: Some(OperandSums { factor: 0, output: Operand::f32([1, 0, 0]) }),
        ..gradient
    });
    // Gradients of weights and biases, in shares of the depth and without.
    let small = [[768, 256, 73_728], [256, 256, 73_728], [96, 72, 4096]];
    let large = [[4096, 4096, 4096], [1600, 1600, 9216], [6400, 1600, 9216]];
    for sizes in small.into_iter().chain(large) {
        let mut spec = plain(sizes, [false; 2], [bf16, bf16, f32]);
        spec.sums = Some(OperandSums { factor: 0, output: Operand::f32([1, 0, 0]) });
        all.push(spec);
    }
    all
}

/// Compiles what the launches of these kernels are made of; says which of them keep something in
/// memory because registers did not suffice.
pub(crate) fn spills(kernels: impl IntoIterator<Item = (Chip, Kernel)>) -> Vec<String> {
    let mut entries: BTreeMap<(Architecture, Source), BTreeSet<&str>> = BTreeMap::new();
    for (chip, kernel) in kernels {
        for launch in kernel.launches {
            let source = (chip.architecture, launch.source);
            entries.entry(source).or_default().insert(launch.entry);
        }
    }
    let mut bad = vec![];
    for ((architecture, source), entries) in &entries {
        let Source { file, defines, generated, .. } = source;
        let compiled = crate::nvrtc::compile(source, *architecture)
            .unwrap_or_else(|e| panic!("{e}\n{generated}"));
        let launched = compiled.usage.iter().filter(|u| entries.contains(u.entry.as_str()));
        let spills = launched.filter(|u| u.spill_bytes > 0 || u.stack_bytes > 0);
        bad.extend(spills.map(|u| format!("{architecture} {file} {defines:?} {u:?}\n{generated}")));
    }
    bad
}

#[test]
#[ignore = "needs NVRTC"]
fn all_sources_compile_without_spills() {
    let mut kernels = vec![];
    for chip in [AMPERE, HOPPER] {
        for (number, spec) in specs().iter().enumerate() {
            // Every third one without vectors, too: all shapes and programs have their turn.
            for align in if number % 3 == 0 { &[64, 4][..] } else { &[64] } {
                let made = product(spec, Draws::default(), &[*align; 8], chip).unwrap();
                kernels.push((chip, made));
            }
        }
    }
    let bad = spills(kernels);
    assert!(bad.is_empty(), "{}:\n{}", bad.len(), bad.join("\n"));
}
