//! Sums of products: what is one launch, and that it adds all of them.

use super::compile::spills;
use super::emulate::{Memory, WORKSPACE, defined, int, meaning, run};
use super::*;
use std::collections::HashMap;

/// The gradient of what linear layers of so many columns read, over so many tokens.
fn terms(tokens: usize, deep: usize, columns: &[usize]) -> Vec<Contraction> {
    columns.iter().map(|&n| plain([tokens, deep, n], [true, false], BF16)).collect()
}

fn with_residual(mut terms: Vec<Contraction>) -> Vec<Contraction> {
    let add = vec![
        Instr::Product { dst: 0 },
        Instr::Load { dst: 1, input: 0 },
        Instr::Binary { op: Binary::Add, dst: 2, a: 0, b: 1 },
        Instr::Store { output: 0, src: 2 },
    ];
    let last = terms.pop().unwrap();
    terms.push(with_program(last, &[(DType::Bf16, true)], &[DType::Bf16], add));
    terms
}

fn made(terms: &[Contraction], align: u64) -> Kernel {
    let kernel = super::super::summed(terms, Draws::default(), &[align; 12], HOPPER);
    kernel.unwrap_or_else(|e| panic!("{e}: {terms:?}"))
}

#[test]
fn three_gradients_are_one_launch() {
    let terms = terms(49_152, 256, &[256, 128, 128]);
    let kernel = made(&terms, 64);
    let [start] = kernel.launches.as_slice() else { panic!("{}", kernel.launches.len()) };
    assert_eq!(["TERMS", "SPLIT", "A_K", "B_K"].map(|name| defined(start, name)), [3, 0, 1, 0]);
    assert_eq!(start.parameters.maps().len(), 6);
    // Behind Gemm and one operand with its strides, in steps of 64 bytes.
    let more: Vec<usize> = start.parameters.maps()[2..].iter().map(|map| map.0).collect();
    assert_eq!(more, [384, 512, 704, 832]);
    assert_eq!((int(start, 640), int(start, 960)), (128, 128));
    assert_eq!(start.parameters.bytes().len(), 384 + 2 * 320);
    let refused = |chip| super::super::summed(&terms, Draws::default(), &[64; 12], chip).is_err();
    assert!(refused(AMPERE) && !refused(HOPPER));
}

/// What terms make together, of operands as the spec lists them.
fn wanted(terms: &[Contraction]) -> HashMap<(usize, i64), f64> {
    let (last, others) = terms.split_last().unwrap();
    let before = Memory::default();
    let at = |first: usize| Shifted { first, last: 2 * others.len() };
    let mut all = HashMap::new();
    for (place, value) in meaning(last, &at(2 * others.len()).of(&before, last)) {
        all.insert((place.0 + 2 * others.len(), place.1), value);
    }
    for (i, term) in others.iter().enumerate() {
        let bare = Contraction { epilogue: None, ..term.clone() };
        for (place, value) in meaning(&bare, &at(2 * i).of(&before, &bare)) {
            let outputs = last.epilogue.as_ref().map_or(0, |p| p.inputs.len());
            *all.get_mut(&(2 * others.len() + 2 + outputs, place.1)).unwrap() += value;
        }
    }
    all
}

/// Memory in which operands are counted from a term's first.
struct Shifted {
    first: usize,
    last: usize,
}

impl Shifted {
    fn of(&self, memory: &Memory, spec: &Contraction) -> Memory {
        let mut out = Memory::default();
        let most = spec.axes.iter().map(|axis| axis.size).product::<usize>().min(1 << 16);
        for operand in 0..4 {
            // Of the last term what follows its factors, too.
            if operand >= FIRST && self.first != self.last {
                continue;
            }
            for element in 0..most as i64 {
                let place = (operand, 2 * element);
                out.0.insert(place, memory.get((operand + self.first, 2 * element)));
            }
        }
        out
    }
}

#[test]
fn one_launch_adds_all_terms() {
    for columns in [&[72, 40][..], &[64, 72, 8], &[128, 64, 72, 80]] {
        for residual in [false, true] {
            let plain = terms(150, 72, columns);
            let terms = if residual { with_residual(plain) } else { plain };
            for align in [64, 2] {
                let kernel = made(&terms, align);
                let mut memory = Memory::default();
                for launch in kernel.launches.iter().filter(|launch| launch.entry == "gemm") {
                    run(launch, &mut memory);
                }
                assert_eq!(kernel.launches.len() == 1, align == 64);
                let wanted = wanted(&terms);
                let written = memory.0.keys().filter(|place| place.0 != WORKSPACE).count();
                assert_eq!(written, wanted.len());
                for (place, value) in wanted {
                    let got = memory.get(place);
                    assert!((got - value).abs() < 1e-6, "{place:?}: {got} for {value}");
                }
            }
        }
    }
}

#[test]
#[ignore = "needs NVRTC"]
fn sums_compile_without_spills() {
    let list = [
        terms(49_152, 256, &[256, 128, 128]),
        terms(65_536, 768, &[768; 3]),
        terms(65_536, 1600, &[1600; 3]),
        terms(4096, 104, &[72, 128]),
        with_residual(terms(65_536, 768, &[768; 4])),
    ];
    let one = |terms: &Vec<Contraction>| {
        super::super::summed(terms, Draws::default(), &[64; 12], HOPPER).ok()
    };
    let kernels: Vec<_> = list.iter().filter_map(one).map(|kernel| (HOPPER, kernel)).collect();
    assert!(kernels.len() > 2, "{}", kernels.len());
    let bad = spills(kernels);
    assert!(bad.is_empty(), "{}:\n{}", bad.len(), bad.join("\n"));
}
