use aerogel_cpu::executable::Library;
use aerogel_cpu::kernel::{Kernel, KernelError, Ptr, Scalars};
use aerogel_cpu::kernels::map::Map;
use aerogel_cpu::kernels::reduce::Reduce;
use aerogel_cpu::math::{from_bf16, to_bf16};
use aerogel_cpu::philox::uniform;
use aerogel_cpu::pool::Pool;
use aerogel_graph::DType;
use aerogel_graph::ops::Fold;
use aerogel_graph::types::round_f16;
use aerogel_lower::{Binary, Instr, Operand, Program, ReduceSpec, Unary};
use proptest::prelude::*;

use super::common::{EPS, Rng, Tensor, cases, close, positions, run};

const UNARY: [Unary; 9] = [
    Unary::Neg,
    Unary::Tanh,
    Unary::Sigmoid,
    Unary::Erf,
    Unary::Abs,
    Unary::Sin,
    Unary::Cos,
    Unary::RoundBf16,
    Unary::RoundF16,
];
/// To 16 bits.
const ROUNDINGS: [Unary; 2] = [Unary::RoundBf16, Unary::RoundF16];
const BINARY: [Binary; 5] = [Binary::Add, Binary::Sub, Binary::Mul, Binary::Min, Binary::Max];

fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-18 {
        n += 1.0;
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

fn unary(op: Unary, x: f64) -> f64 {
    match op {
        Unary::Neg => -x,
        Unary::Exp => x.exp(),
        Unary::Ln => x.ln(),
        Unary::Tanh => x.tanh(),
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Recip => 1.0 / x,
        Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Unary::Erf => erf(x),
        Unary::Abs => x.abs(),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Floor => x.floor(),
        Unary::Not => f64::from(u8::from(x == 0.0)),
        Unary::RoundF16 => f64::from(round_f16(x as f32)),
        Unary::RoundBf16 => f64::from(from_bf16(to_bf16(x as f32))),
    }
}

fn binary(op: Binary, a: f64, b: f64) -> f64 {
    let truth = |holds: bool| f64::from(u8::from(holds));
    match op {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Min => a.min(b),
        Binary::Max => a.max(b),
        Binary::Pow => a.powf(b),
        Binary::Lt => truth(a < b),
        Binary::Le => truth(a <= b),
        Binary::Eq => truth(a == b),
    }
}

/// The values of all instructions at one position, rounded to f32 one by one so that only the last
/// bits of single operations differ.
fn interpret(program: &Program, inputs: &[Tensor], at: &[usize], scalars: &Scalars) -> Vec<f64> {
    let mut values = vec![f64::NAN; 64];
    for instr in &program.instrs {
        let v = |value: u16| values[usize::from(value)];
        let (dst, value) = match *instr {
            Instr::Load { dst, input } => (dst, inputs[input].get(at)),
            Instr::Const { dst, value } => (dst, value.into()),
            Instr::Coord { dst, axis } => (dst, at[axis] as f64),
            Instr::Piece { dst } => (dst, scalars.piece as f64),
            Instr::Rand { dst, stream, ref strides } => {
                let element: isize =
                    at.iter().zip(strides).map(|(&at, &stride)| at as isize * stride).sum();
                let element = element as u64 + scalars.element;
                (dst, uniform(scalars.seed, scalars.step, stream, element).into())
            }
            Instr::Unary { op, dst, a } => (dst, unary(op, v(a))),
            Instr::Binary { op, dst, a, b } => (dst, binary(op, v(a), v(b))),
            Instr::Fma { dst, a, b, c } => (dst, v(a) * v(b) + v(c)),
            Instr::Select { dst, cond, a, b } => (dst, if v(cond) != 0.0 { v(a) } else { v(b) }),
            Instr::Store { .. } => continue,
            Instr::Product { .. } => unreachable!("no epilogue here"),
        };
        values[usize::from(dst)] = f64::from(value as f32);
    }
    values
}

fn sizes(rng: &mut Rng) -> Vec<usize> {
    let rank = rng.range(0, 4);
    bounded((0..rank).map(|_| rng.pick(&[1, 2, 3, 5, 8, 17, 40])).collect())
}

/// Fewer axes until the twin can walk them all in a moment.
fn bounded(mut sizes: Vec<usize>) -> Vec<usize> {
    while sizes.iter().product::<usize>() > 30_000 {
        sizes.remove(0);
    }
    sizes
}

/// An input that repeats along some axes.
fn input(rng: &mut Rng, sizes: &[usize]) -> Tensor {
    let dtype = rng.float();
    let mut tensor = Tensor::random(rng, dtype, sizes, 2.0);
    for stride in &mut tensor.strides {
        *stride *= isize::from(rng.below(4) != 0);
    }
    tensor
}

/// A random program over its inputs; returns the last value too.
fn program(rng: &mut Rng, sizes: &[usize], inputs: &[Tensor]) -> (Program, u16) {
    let mut instrs = vec![Instr::Const { dst: 0, value: 0.75 }];
    for input in 0..inputs.len() {
        instrs.push(Instr::Load { dst: input as u16 + 1, input });
    }
    if !sizes.is_empty() {
        let dst = instrs.len() as u16;
        instrs.push(Instr::Coord { dst, axis: rng.below(sizes.len()) });
        instrs.push(Instr::Unary { op: Unary::Sin, dst: dst + 1, a: dst });
    }
    for _ in 0..rng.range(1, 12) {
        let dst = instrs.len() as u16;
        let mut v = || rng.below(dst.into()) as u16;
        let (a, b, c) = (v(), v(), v());
        instrs.push(match rng.below(5) {
            0 => Instr::Unary { op: rng.pick(&UNARY), dst, a },
            1 => Instr::Fma { dst, a, b, c },
            2 => Instr::Select { dst, cond: a, a: b, b: c },
            _ => Instr::Binary { op: rng.pick(&BINARY), dst, a, b },
        });
    }
    let last = instrs.len() as u16 - 1;
    let inputs = inputs.iter().map(Tensor::operand).collect();
    (Program { sizes: sizes.to_vec(), inputs, outputs: vec![], instrs }, last)
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn random_maps(seed: u64) {
        let rng = &mut Rng(seed);
        let sizes = sizes(rng);
        let inputs: Vec<_> = (0..rng.range(0, 3)).map(|_| input(rng, &sizes)).collect();
        let (mut program, last) = program(rng, &sizes, &inputs);
        let stored = [last, rng.below(usize::from(last) + 1) as u16];
        let outputs: Vec<_> =
            stored.map(|_| { let dtype = rng.float(); Tensor::blank(rng, dtype, &sizes) }).into();
        program.outputs = outputs.iter().map(Tensor::operand).collect();
        for (output, src) in stored.into_iter().enumerate() {
            program.instrs.push(Instr::Store { output, src });
        }
        let kernel = Map::new(&program).unwrap();
        let all: Vec<_> = inputs.iter().chain(&outputs).cloned().collect();
        run(kernel, &all, 2, &Scalars::default(), |after| {
            for at in positions(&sizes) {
                let values = interpret(&program, &inputs, &at, &Scalars::default());
                for (output, &src) in stored.iter().enumerate() {
                    let (got, wanted) = (&after[inputs.len() + output], values[usize::from(src)]);
                    // A last bit may flip a rounding to 16 bits in the middle of a program.
                    let rounds = program.instrs.iter().any(
                        |i| matches!(i, Instr::Unary { op, .. } if ROUNDINGS.contains(op)));
                    let loose = if rounds { 2f64.powi(-6) } else { 1e-4 };
                    let biggest = values.iter().copied().filter(|v| v.is_finite())
                        .fold(1.0, |m, v| v.abs().max(m));
                    if !rounds || biggest < 100.0 {
                        close(got.get(&at), wanted, loose * biggest * biggest, got.dtype, &at);
                    }
                }
            }
        });
    }

    #[test]
    fn random_reductions(seed: u64) {
        let rng = &mut Rng(seed);
        let mut sizes = sizes(rng);
        if rng.below(4) == 0 {
            sizes.push(rng.pick(&[0, 1500, 9000]));
            sizes = bounded(sizes);
        }
        let reduced: Vec<_> = sizes.iter().map(|_| rng.below(2) == 1).collect();
        let input = input(rng, &sizes);
        let fold = rng.pick(&[Fold::Sum, Fold::Max]);
        let instrs = vec![
            Instr::Load { dst: 0, input: 0 },
            Instr::Binary { op: Binary::Mul, dst: 1, a: 0, b: 0 },
            Instr::Binary { op: Binary::Sub, dst: 2, a: 1, b: 0 },
        ];
        let program = Program {
            sizes: sizes.clone(), inputs: vec![input.operand()], outputs: vec![], instrs,
        };
        let own: Vec<_> =
            sizes.iter().zip(&reduced).map(|(&size, &gone)| if gone { 1 } else { size }).collect();
        let output = Tensor::blank(rng, DType::F32, &own);
        let spec = ReduceSpec {
            program, value: 2, reduced: reduced.clone(), output: output.operand(), fold,
        };
        let kernel = Reduce::new(&spec).unwrap();
        run(kernel, &[input.clone(), output], 1, &Scalars::default(), |after| {
            let start = if fold == Fold::Sum { 0.0 } else { f64::NEG_INFINITY };
            let mut wanted = vec![(start, 1.0); own.iter().product()];
            for at in positions(&sizes) {
                let x = input.get(&at);
                let value = x * x - x;
                let to = at.iter().zip(&own)
                    .fold(0, |to, (&at, &size)| to * size + at.min(size - 1));
                let (old, magnitude) = wanted[to];
                let new = if fold == Fold::Sum { old + value } else { old.max(value) };
                // x * x is rounded before x is taken away: the error goes with both, not with
                // their difference.
                wanted[to] = (new, magnitude + x * x + x.abs());
            }
            let terms = sizes.iter().product::<usize>() / own.iter().product::<usize>().max(1);
            let roundings = 8.0 + (terms as f64).sqrt();
            for (at, (wanted, magnitude)) in positions(&own).iter().zip(wanted) {
                close(after[1].get(at), wanted, roundings * EPS * magnitude, DType::F32, at);
            }
        });
    }
}

#[test]
fn large_reductions_of_every_walk() {
    let rng = &mut Rng(3);
    for (sizes, reduced) in [
        ([3000, 70], [true, false]),
        ([500, 1500], [true, false]),
        ([3000, 70], [false, true]),
        ([3, 40_000], [false, true]),
        ([700, 300], [true, true]),
    ] {
        let mut input = Tensor::new(DType::F32, &sizes, &[sizes[1] as isize, 1]);
        input.fill(|_| rng.value());
        let own: Vec<_> = (0..2).map(|axis| if reduced[axis] { 1 } else { sizes[axis] }).collect();
        let output = Tensor::new(DType::F32, &own, &[own[1] as isize, 1]);
        let program = Program {
            sizes: sizes.to_vec(),
            inputs: vec![input.operand()],
            outputs: vec![],
            instrs: vec![Instr::Load { dst: 5, input: 0 }],
        };
        let spec = ReduceSpec {
            program,
            value: 5,
            reduced: reduced.to_vec(),
            output: output.operand(),
            fold: Fold::Sum,
        };
        let kernel = Reduce::new(&spec).unwrap();
        let mut wanted = vec![0.0; own[0] * own[1]];
        for at in positions(&sizes) {
            let to = at[0].min(own[0] - 1) * own[1] + at[1].min(own[1] - 1);
            wanted[to] += input.get(&at);
        }
        run(kernel, &[input, output], 1, &Scalars::default(), |after| {
            for (at, wanted) in positions(&own).iter().zip(&wanted) {
                let terms = (sizes[0] * sizes[1] / wanted_len(&own)) as f64;
                close(after[1].get(at), *wanted, 4.0 * EPS * terms.sqrt().max(8.0), DType::F32, at);
            }
        });
    }
}

fn wanted_len(own: &[usize]) -> usize {
    own.iter().product()
}

#[test]
fn every_operation_on_edge_values() {
    let all = [
        Unary::Exp,
        Unary::Ln,
        Unary::Sqrt,
        Unary::Rsqrt,
        Unary::Recip,
        Unary::Floor,
        Unary::Not,
        Unary::Sin,
    ];
    let values = [0.0, 1.5, -2.5, 3e9, -1e30, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 7.0];
    for op in all.into_iter().chain(UNARY) {
        let mut x = Tensor::new(DType::F32, &[9], &[1]);
        x.fill(|at| values[at[0]]);
        let y = Tensor::new(DType::F32, &[9], &[1]);
        let program = Program {
            sizes: vec![9],
            inputs: vec![x.operand()],
            outputs: vec![y.operand()],
            instrs: vec![
                Instr::Load { dst: 0, input: 0 },
                Instr::Unary { op, dst: 1, a: 0 },
                Instr::Store { output: 0, src: 1 },
            ],
        };
        run(Map::new(&program).unwrap(), &[x, y], 1, &Scalars::default(), |after| {
            for at in 0..9 {
                let x = after[0].get(&[at]);
                let wanted = f64::from(unary(op, x) as f32);
                let got = after[1].get(&[at]);
                close(got, wanted, 4.0 * EPS * wanted.abs(), DType::F32, &(op, x));
            }
        });
    }
    for op in [Binary::Div, Binary::Pow, Binary::Lt, Binary::Le, Binary::Eq, Binary::Max] {
        let pairs = [(2.0, 3.0), (3.0, 2.0), (2.5, 2.5), (f64::NAN, 1.0), (1.0, f64::NAN)];
        let mut a = Tensor::new(DType::F32, &[5], &[1]);
        let mut b = a.clone();
        a.fill(|at| pairs[at[0]].0);
        b.fill(|at| pairs[at[0]].1);
        let y = Tensor::new(DType::F32, &[5], &[1]);
        let program = Program {
            sizes: vec![5],
            inputs: vec![a.operand(), b.operand()],
            outputs: vec![y.operand()],
            instrs: vec![
                Instr::Load { dst: 0, input: 0 },
                Instr::Load { dst: 1, input: 1 },
                Instr::Binary { op, dst: 2, a: 0, b: 1 },
                Instr::Store { output: 0, src: 2 },
            ],
        };
        run(Map::new(&program).unwrap(), &[a, b, y], 1, &Scalars::default(), |after| {
            for (at, (a, b)) in pairs.into_iter().enumerate() {
                let nan = op == Binary::Max && (a.is_nan() || b.is_nan());
                let wanted = if nan { f64::NAN } else { binary(op, a, b) };
                close(after[2].get(&[at]), wanted, EPS * wanted.abs(), DType::F32, &(op, a, b));
            }
        });
    }
}

/// A map whose outputs are its inputs, which are this many.
struct InPlace(Map, usize);

impl Kernel for InPlace {
    fn operands(&self) -> usize {
        self.1
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        self.0.scratch_bytes(threads)
    }

    fn prepare(&mut self, library: &mut Library) {
        self.0.prepare(library);
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], scalars: &Scalars, scratch: &mut [u8]) {
        // SAFETY: forwarded; an output may share an input's address.
        unsafe { self.0.run(pool, &[ptrs, ptrs].concat(), scalars, scratch) }
    }
}

/// Values are written while others at the same address are still to be read: by the same
/// instruction, by a later one, after another store.
#[test]
fn outputs_that_share_addresses_are_written_after_the_last_read() {
    let sizes = [5, 700];
    for (dtype, strides) in [
        (DType::F32, [704, 1]),
        (DType::F32, [700, 1]),
        (DType::F32, [1, 5]),
        (DType::Bf16, [704, 1]),
        (DType::F16, [704, 1]),
    ] {
        let mut tensors = vec![Tensor::new(dtype, &sizes, &strides); 3];
        for (n, tensor) in tensors.iter_mut().enumerate() {
            tensor.fill(|at| ((at[0] * 31 + at[1] * 7 + n * 3) % 16) as f64 - 5.0);
        }
        let operands: Vec<_> = tensors.iter().map(Tensor::operand).collect();
        let binary = |op, dst, a, b| Instr::Binary { op, dst, a, b };
        let instrs = vec![
            Instr::Load { dst: 0, input: 0 },
            Instr::Load { dst: 1, input: 1 },
            Instr::Load { dst: 2, input: 2 },
            Instr::Const { dst: 3, value: 2.0 },
            Instr::Const { dst: 4, value: 0.5 },
            binary(Binary::Sub, 5, 1, 0), // to be written where 0 lies, which 7 still reads
            Instr::Store { output: 0, src: 5 },
            binary(Binary::Mul, 6, 3, 4), // of constants alone
            Instr::Fma { dst: 7, a: 0, b: 6, c: 2 },
            Instr::Store { output: 2, src: 7 },
            binary(Binary::Sub, 8, 5, 1), // onto its second operand
            Instr::Select { dst: 9, cond: 8, a: 3, b: 8 },
            Instr::Store { output: 1, src: 9 },
        ];
        let program =
            Program { sizes: sizes.to_vec(), inputs: operands.clone(), outputs: operands, instrs };
        let kernel = InPlace(Map::new(&program).unwrap(), 3);
        run(kernel, &tensors, 3, &Scalars::default(), |after| {
            for at in positions(&sizes) {
                let values = interpret(&program, &tensors, &at, &Scalars::default());
                for (tensor, value) in [(0, 5), (2, 7), (1, 9)] {
                    assert_eq!(after[tensor].get(&at), values[value], "{tensor} {at:?}");
                }
            }
        });
    }
}

#[test]
fn draws_follow_the_logical_element_and_maps_run_in_place() {
    let sizes = [7, 300];
    let x = Tensor::random(&mut Rng(2), DType::F32, &sizes, 1.0);
    let program = Program {
        sizes: sizes.to_vec(),
        inputs: vec![x.operand()],
        outputs: vec![x.operand()],
        instrs: vec![
            Instr::Load { dst: 0, input: 0 },
            Instr::Rand { dst: 1, stream: 99 << 40, strides: vec![300, 1] },
            Instr::Rand { dst: 2, stream: 5, strides: vec![1, 7] },
            Instr::Binary { op: Binary::Lt, dst: 3, a: 1, b: 2 },
            Instr::Select { dst: 4, cond: 3, a: 0, b: 1 },
            Instr::Store { output: 0, src: 4 },
        ],
    };
    let scalars =
        Scalars { seed: 11 << 33, step: 4, element: 1001, piece: 3, ..Scalars::default() };
    run(InPlace(Map::new(&program).unwrap(), 1), std::slice::from_ref(&x), 1, &scalars, |after| {
        for at in positions(&sizes) {
            let wanted = interpret(&program, std::slice::from_ref(&x), &at, &scalars)[4];
            assert_eq!(after[0].get(&at), wanted, "{at:?}");
        }
    });
}

#[test]
fn malformed_programs_are_refused() {
    let refused = |instrs: Vec<Instr>| {
        let outputs = vec![Operand::f32([1])];
        let program = Program { sizes: vec![4], inputs: vec![Operand::f32([1])], outputs, instrs };
        Map::new(&program).unwrap_err().to_string()
    };
    let load = Instr::Load { dst: 0, input: 0 };
    let store = Instr::Store { output: 0, src: 0 };
    assert!(refused(vec![store.clone()]).contains("reads value 0 before"));
    assert!(refused(vec![load.clone(), load.clone()]).contains("a second time"));
    let late = Instr::Load { dst: 1, input: 0 };
    assert!(refused(vec![load.clone(), store, late]).contains("after a store"));
    assert!(refused(vec![Instr::Load { dst: 0, input: 3 }]).contains("input 3"));
    assert!(refused(vec![Instr::Coord { dst: 0, axis: 1 }]).contains("axis 1 of 1"));
    assert!(refused(vec![Instr::Product { dst: 0 }]).contains("epilogue"));
    let repeated = Program {
        sizes: vec![4],
        inputs: vec![],
        outputs: vec![Operand::f32([0])],
        instrs: vec![],
    };
    assert!(matches!(Map::new(&repeated), Err(KernelError::Overlap { .. })));
}
