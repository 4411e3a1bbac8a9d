use aerogel_cpu::executable::Library;
use aerogel_cpu::kernel::Scalars;
use aerogel_cpu::kernel::{Kernel, Ptr};
use aerogel_cpu::kernels::map::Map;
use aerogel_cpu::kernels::norm::{Norm, NormGrad};
use aerogel_cpu::pool::Pool;
use aerogel_cpu::simd::Simd;
use aerogel_graph::DType;
use aerogel_lower::{Binary, Instr, NormGradSpec, NormSpec, Normalisation, Output, Program, Unary};
use proptest::prelude::*;

use super::common::{Rng, Tensor, cases, close, positions, run};

struct Case {
    norm: Normalisation,
    x: Tensor,
    gain: Option<Tensor>,
    bias: Option<Tensor>,
}

impl Case {
    fn forward(&self, output: Output) -> NormSpec {
        let bias = self.bias.as_ref().map(Tensor::operand);
        NormSpec { norm: self.norm.clone(), x: self.x.operand(), bias, output }
    }

    fn backward(&self, dy: &Tensor, output: Output, sums: [Option<isize>; 2]) -> NormGradSpec {
        let (x, dy, [dgain, dbias]) = (self.x.operand(), dy.operand(), sums);
        NormGradSpec { norm: self.norm.clone(), x, dy, output, dgain, dbias }
    }
}

fn case(rng: &mut Rng) -> Case {
    let mut sizes: Vec<_> = (0..rng.below(3)).map(|_| rng.range(1, 9)).collect();
    sizes.push(rng.pick(&[1, 3, 16, 50, 300]));
    let (float, center) = (rng.float(), rng.below(2) == 1);
    let mut x = Tensor::random(rng, float, &sizes, 2.0);
    let old = x.clone();
    x.fill(|at| old.get(at) + 3.0); // a mean that a one-pass variance would feel
    let row = |rng: &mut Rng| {
        let present = rng.below(3) != 0;
        let mut own = vec![1; sizes.len()];
        *own.last_mut().unwrap() = *sizes.last().unwrap();
        let mut tensor = Tensor::random(rng, DType::F32, &own, 1.0);
        let last = sizes.len() - 1;
        tensor.strides[..last].fill(0);
        present.then_some(tensor)
    };
    let (gain, bias) = (row(rng), row(rng));
    let norm = Normalisation { sizes, center, eps: 1e-5, gain: gain.as_ref().map(Tensor::operand) };
    Case { norm, x, gain, bias }
}

/// The value of a row vector at a column, or a default without it.
fn entry(row: Option<&Tensor>, col: usize, default: f64) -> f64 {
    row.map_or(default, |row| {
        let mut at = vec![0; row.sizes.len()];
        *at.last_mut().unwrap() = col;
        row.get(&at)
    })
}

/// Normalised row and 1 / deviation.
fn normal(case: &Case, outer: &[usize]) -> (Vec<f64>, f64) {
    let width = *case.norm.sizes.last().unwrap();
    let x: Vec<f64> = (0..width).map(|d| case.x.get(&[outer, &[d]].concat())).collect();
    let mean = if case.norm.center { x.iter().sum::<f64>() / width as f64 } else { 0.0 };
    let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
    let inverse = 1.0 / (var + f64::from(case.norm.eps)).sqrt();
    (x.iter().map(|x| (x - mean) * inverse).collect(), inverse)
}

proptest! {
    #![proptest_config(cases(80))]

    #[test]
    fn forward_equals_the_definition(seed: u64) {
        let rng = &mut Rng(seed);
        let case = case(rng);
        let float = rng.float();
        let y = Tensor::blank(rng, float, &case.norm.sizes);
        let kernel = Norm::new(&case.forward(Output::Store(y.operand()))).unwrap();
        // The output comes second; what follows it must stay as it is.
        let all: Vec<_> = [Some(&case.x), Some(&y), case.gain.as_ref(), case.bias.as_ref()]
            .into_iter().flatten().cloned().collect();
        run(kernel, &all, all.len() - 1, &Scalars::default(), |after| {
            let (_, outer) = case.norm.sizes.split_last().unwrap();
            for at in positions(outer) {
                let (normal, inverse) = normal(&case, &at);
                for (d, normal) in normal.iter().enumerate() {
                    let wanted = normal * entry(case.gain.as_ref(), d, 1.0)
                        + entry(case.bias.as_ref(), d, 0.0);
                    let bound = 2e-6 * (1.0 + inverse * 6.0);
                    close(after[1].get(&[&at[..], &[d]].concat()), wanted, bound, y.dtype, &at);
                }
            }
        });
    }

    #[test]
    fn backward_equals_the_derivative(seed: u64) {
        let rng = &mut Rng(seed);
        let case = case(rng);
        let (float, width) = (rng.float(), *case.norm.sizes.last().unwrap());
        let dy = Tensor::random(rng, float, &case.norm.sizes, 1.0);
        let float = rng.float();
        let dx = Tensor::blank(rng, float, &case.norm.sizes);
        let row = Tensor::new(DType::F32, &[width], &[2]);
        let output = Output::Store(dx.operand());
        let kernel = NormGrad::new(&case.backward(&dy, output, [Some(2); 2])).unwrap();
        let mut all = vec![case.x.clone(), dy.clone(), dx];
        all.extend(case.gain.clone());
        let first = all.len();
        all.extend([row.clone(), row]);
        run(kernel, &all, all.len() - 2, &Scalars::default(), |after| {
            let (_, outer) = case.norm.sizes.split_last().unwrap();
            let (mut dgain, mut dbias) = (vec![0.0; width], vec![0.0; width]);
            for at in positions(outer) {
                let (normal, inverse) = normal(&case, &at);
                let full = |d: usize| [&at[..], &[d]].concat();
                let g: Vec<f64> = (0..width)
                    .map(|d| dy.get(&full(d)) * entry(case.gain.as_ref(), d, 1.0)).collect();
                let level = g.iter().sum::<f64>() / width as f64;
                let mean = if case.norm.center { level } else { 0.0 };
                let slope =
                    g.iter().zip(&normal).map(|(g, n)| g * n).sum::<f64>() / width as f64;
                for d in 0..width {
                    dgain[d] += dy.get(&full(d)) * normal[d];
                    dbias[d] += dy.get(&full(d));
                    let wanted = (g[d] - mean - normal[d] * slope) * inverse;
                    let bound = 1e-5 * inverse * (1.0 + inverse);
                    close(after[2].get(&full(d)), wanted, bound, after[2].dtype, &at);
                }
            }
            for d in 0..width {
                close(after[first].get(&[d]), dgain[d], 2e-3, DType::F32, &("dgain", d));
                close(after[first + 1].get(&[d]), dbias[d], 1e-4, DType::F32, &("dbias", d));
            }
        });
    }
}

/// The operands of a program: what is finished plus another tensor, dropped by a draw, and stored
/// beside what is finished.
struct Rest {
    other: Tensor,
    sum: Tensor,
    value: Tensor,
}

impl Rest {
    fn new(rng: &mut Rng, sizes: &[usize]) -> Rest {
        let [float, into, kept] = [rng.float(), rng.float(), rng.float()];
        Rest {
            other: Tensor::random(rng, float, sizes, 1.0),
            sum: Tensor::blank(rng, into, sizes),
            value: Tensor::blank(rng, kept, sizes),
        }
    }

    /// The program; `apart` reads the finished value from memory.
    fn program(&self, sizes: &[usize], apart: bool) -> Program {
        let strides = (0..sizes.len()).map(|a| sizes[a + 1..].iter().product::<usize>() as isize);
        let first =
            if apart { Instr::Load { dst: 0, input: 1 } } else { Instr::Product { dst: 0 } };
        let mut instrs = vec![Instr::Load { dst: 2, input: 0 }, first];
        // What is declared in 16 bits is rounded, stored or not.
        let op = match self.value.dtype {
            DType::Bf16 => Some(Unary::RoundBf16),
            DType::F16 => Some(Unary::RoundF16),
            DType::F32 | DType::U32 => None,
        };
        let value = u16::from(op.is_some());
        instrs.extend(op.map(|op| Instr::Unary { op, dst: 1, a: 0 }));
        instrs.extend([
            Instr::Binary { op: Binary::Add, dst: 3, a: value, b: 2 },
            Instr::Rand { dst: 4, stream: 7, strides: strides.collect() },
            Instr::Const { dst: 5, value: 0.25 },
            Instr::Binary { op: Binary::Lt, dst: 6, a: 4, b: 5 },
            Instr::Select { dst: 7, cond: 6, a: 5, b: 3 },
            Instr::Store { output: 0, src: 7 },
        ]);
        let (mut inputs, mut outputs) = (vec![self.other.operand()], vec![self.sum.operand()]);
        if apart {
            inputs.push(self.value.operand());
        } else {
            outputs.push(self.value.operand());
            instrs.push(Instr::Store { output: 1, src: value });
        }
        Program { sizes: sizes.to_vec(), inputs, outputs, instrs }
    }
}

const SCALARS: Scalars = Scalars { seed: 5, step: 2, element: 300, piece: 0, position: 0 };

/// The tensors after a run, for each instruction set.
fn results(kernel: impl Kernel, tensors: &[Tensor], outputs: usize) -> Vec<Vec<Tensor>> {
    let all = std::cell::RefCell::new(vec![]);
    run(kernel, tensors, outputs, &SCALARS, |after| all.borrow_mut().push(after.to_vec()));
    all.into_inner()
}

/// Compares a kernel with an epilogue, whose last operands are those of the program, with the norm
/// and the map one after the other. `tensors` are the norm's, which `value` is among at `at`, and
/// the last `outputs` of them it writes.
fn compare(
    case: &Case,
    rest: &Rest,
    (alone, fused): (impl Kernel, impl Kernel),
    (tensors, at, outputs): (&[Tensor], usize, usize),
) {
    let map = Map::new(&rest.program(&case.norm.sizes, true)).unwrap();
    let mut own = tensors.to_vec();
    own.remove(at);
    let program = [rest.other.clone(), rest.sum.clone(), rest.value.clone()];
    let together = results(fused, &[own, program.to_vec()].concat(), outputs + 2);
    let apart = results(alone, tensors, outputs);
    assert_eq!(apart.len(), together.len());
    for (level, (apart, together)) in apart.iter().zip(together).enumerate() {
        let operands = [rest.other.clone(), apart[at].clone(), rest.sum.clone()];
        let sum = &results(map.clone(), &operands, 1)[level][2];
        let mut wanted = apart.clone();
        let value = wanted.remove(at);
        wanted.extend([rest.other.clone(), sum.clone(), value]);
        for (n, (got, wanted)) in together.iter().zip(&wanted).enumerate() {
            assert!(got.bytes() == wanted.bytes(), "operand {n}, level {level}");
        }
    }
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn an_epilogue_has_the_bits_of_a_map_after_the_norm(seed: u64) {
        let rng = &mut Rng(seed);
        let case = case(rng);
        let rest = Rest::new(rng, &case.norm.sizes);
        let alone = Norm::new(&case.forward(Output::Store(rest.value.operand()))).unwrap();
        let program = rest.program(&case.norm.sizes, false);
        let fused = Norm::new(&case.forward(Output::Epilogue(program))).unwrap();
        let all: Vec<_> = [Some(&case.x), Some(&rest.value), case.gain.as_ref(), case.bias.as_ref()]
            .into_iter().flatten().cloned().collect();
        compare(&case, &rest, (alone, fused), (&all, 1, all.len() - 1));
    }

    #[test]
    fn an_epilogue_has_the_bits_of_a_map_after_the_gradient(seed: u64) {
        let rng = &mut Rng(seed);
        let case = case(rng);
        let rest = Rest::new(rng, &case.norm.sizes);
        let float = rng.float();
        let dy = Tensor::random(rng, float, &case.norm.sizes, 1.0);
        let dx = rest.value.operand();
        let program = rest.program(&case.norm.sizes, false);
        let sums = [0, 1].map(|_| (rng.below(3) != 0).then_some(2));
        let kernel = |to| NormGrad::new(&case.backward(&dy, to, sums)).unwrap();
        let (alone, fused) = (kernel(Output::Store(dx)), kernel(Output::Epilogue(program)));
        let row = Tensor::new(DType::F32, &[*case.norm.sizes.last().unwrap()], &[2]);
        let mut all = vec![case.x.clone(), dy.clone(), rest.value.clone()];
        all.extend(case.gain.clone());
        all.extend(sums.into_iter().flatten().map(|_| row.clone()));
        compare(&case, &rest, (alone, fused), (&all, 2, all.len() - 2));
    }
}

/// The sum of a gradient and a residual may lie where the residual lay.
#[test]
fn an_epilogue_writes_where_it_has_read() {
    let sizes = [40, 300];
    let rng = &mut Rng(9);
    let tensor = |rng: &mut Rng| {
        let mut tensor = Tensor::new(DType::F32, &sizes, &[304, 1]);
        tensor.fill(|_| rng.value());
        tensor
    };
    let [x, dy, residual, sum] = [0; 4].map(|_| tensor(rng));
    let norm = Normalisation { sizes: sizes.to_vec(), center: true, eps: 1e-5, gain: None };
    let program = Program {
        sizes: sizes.to_vec(),
        inputs: vec![residual.operand()],
        outputs: vec![sum.operand()],
        instrs: vec![
            Instr::Product { dst: 0 },
            Instr::Load { dst: 1, input: 0 },
            Instr::Binary { op: Binary::Add, dst: 2, a: 0, b: 1 },
            Instr::Store { output: 0, src: 2 },
        ],
    };
    let (output, dgain, dbias) = (Output::Epilogue(program), None, None);
    let spec = NormGradSpec { norm, x: x.operand(), dy: dy.operand(), output, dgain, dbias };
    let mut kernel = NormGrad::new(&spec).unwrap();
    kernel.prepare(&mut Library::new(Simd::best()));
    let pool = Pool::new(2).unwrap();
    let mut scratch = vec![0xff; kernel.scratch_bytes(2)];
    let mut run = |ptrs: [Ptr; 4]| {
        // SAFETY: the tensors cover what their strides reach, and live to the end of the test.
        unsafe { kernel.run(&pool, &ptrs, &SCALARS, &mut scratch) }
    };
    run([x.ptr(), dy.ptr(), residual.ptr(), sum.ptr()]);
    run([x.ptr(), dy.ptr(), residual.ptr(), residual.ptr()]);
    let same = |at: &Vec<usize>| residual.get(at) == sum.get(at);
    assert!(positions(&sizes).iter().all(same), "in place, bits differ");
}

#[test]
fn an_epilogue_of_other_sizes_is_refused() {
    let x = Tensor::new(DType::F32, &[2, 4], &[4, 1]).operand();
    let norm = Normalisation { sizes: vec![2, 4], center: true, eps: 1e-5, gain: None };
    let program =
        Program { sizes: vec![4, 2], inputs: vec![], outputs: vec![x.clone()], instrs: vec![] };
    let spec = NormSpec { norm, x, bias: None, output: Output::Epilogue(program) };
    let error = Norm::new(&spec).unwrap_err().to_string();
    assert!(error.contains("[4, 2]") && error.contains("[2, 4]"), "{error}");
}
