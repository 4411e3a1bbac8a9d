use aerogel_cpu::kernel::{KernelError, Scalars};
use aerogel_cpu::kernels::gemm::Gemm;
use aerogel_graph::DType;
use aerogel_lower::{Axis, Binary, Contraction, Instr, Operand, OperandSums, Program, Role, Unary};
use proptest::prelude::*;

use super::common::{EPS, Rng, Tensor, cases, close, positions, run};

/// A random contraction with its tensors A, B, C.
struct Case {
    spec: Contraction,
    tensors: Vec<Tensor>,
    /// For each tensor, which axes of `spec` it has.
    axes: [Vec<usize>; 3],
}

fn case(rng: &mut Rng, roles: &[(Role, usize)], dtypes: [DType; 3]) -> Case {
    let has = |at: usize, role: Role| match at {
        0 => role != Role::N,
        1 => role != Role::M,
        _ => role != Role::K,
    };
    let axes = [0, 1, 2]
        .map(|at| (0..roles.len()).filter(|&axis| has(at, roles[axis].0)).collect::<Vec<_>>());
    let mut tensors = Vec::new();
    for at in 0..3 {
        let sizes: Vec<_> = axes[at].iter().map(|&axis| roles[axis].1).collect();
        tensors.push(Tensor::random(rng, dtypes[at], &sizes, 1.0));
    }
    let stride = |at: usize, axis: usize| {
        axes[at].iter().position(|&own| own == axis).map_or(77, |own| tensors[at].strides[own])
    };
    let spec_axes = roles.iter().enumerate().map(|(axis, &(role, size))| Axis {
        role,
        size,
        a: stride(0, axis),
        b: stride(1, axis),
        c: stride(2, axis),
    });
    let spec = Contraction {
        axes: spec_axes.collect(),
        a: dtypes[0],
        b: dtypes[1],
        c: dtypes[2],
        accumulate: rng.below(2) == 1,
        alpha: rng.pick(&[1.0, -0.5]),
        epilogue: None,
        sums: None,
    };
    Case { spec, tensors, axes }
}

/// Sum over K and the sum of magnitudes, for coordinates of C.
fn naive(case: &Case, c: &[usize]) -> (f64, f64) {
    let axes = &case.spec.axes;
    let k: Vec<_> = (0..axes.len()).filter(|&axis| axes[axis].role == Role::K).collect();
    let k_sizes: Vec<_> = k.iter().map(|&axis| axes[axis].size).collect();
    let mut all = vec![0; axes.len()];
    for (&axis, &at) in case.axes[2].iter().zip(c) {
        all[axis] = at;
    }
    let (mut sum, mut magnitude) = (0.0, 0.0);
    for position in positions(&k_sizes) {
        for (&axis, &at) in k.iter().zip(&position) {
            all[axis] = at;
        }
        let pick = |t: usize| -> Vec<_> { case.axes[t].iter().map(|&axis| all[axis]).collect() };
        let term = case.tensors[0].get(&pick(0)) * case.tensors[1].get(&pick(1));
        sum += term;
        magnitude += term.abs();
    }
    let alpha = f64::from(case.spec.alpha);
    (alpha * sum, magnitude)
}

fn check(case: &Case) {
    let kernel = Gemm::new(&case.spec).unwrap();
    let mut tensors = case.tensors.clone();
    let old = tensors[2].clone();
    if !case.spec.accumulate {
        tensors[2].fill(|_| f64::NAN);
    }
    let all: Vec<_> = positions(&old.sizes).into_iter().map(|c| (naive(case, &c), c)).collect();
    run(kernel, &tensors, 1, &Scalars::default(), |after| {
        for ((sum, magnitude), c) in &all {
            let wanted = sum + if case.spec.accumulate { old.get(c) } else { 0.0 };
            close(after[2].get(c), wanted, 4.0 * EPS * (magnitude + 1.0), old.dtype, c);
        }
    });
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn random_contractions(seed: u64) {
        let rng = &mut Rng(seed);
        let mut roles = Vec::new();
        for _ in 0..rng.range(1, 6) {
            let role = rng.pick(&[Role::Batch, Role::M, Role::N, Role::K]);
            roles.push((role, rng.pick(&[0, 1, 1, 2, 3, 5, 8, 9])));
        }
        let dtypes = [rng.float(), rng.float(), rng.float()];
        check(&case(rng, &roles, dtypes));
    }

    #[test]
    fn random_matrices(seed: u64) {
        let rng = &mut Rng(seed);
        let side = |rng: &mut Rng| rng.pick(&[1, 2, 7, 16, 33, 64, 70]);
        let mut roles =
            vec![(Role::M, side(rng)), (Role::N, side(rng)), (Role::K, side(rng))];
        if rng.below(3) == 0 {
            roles.insert(rng.below(4), (Role::Batch, 3));
        }
        let dtypes = [rng.float(), rng.float(), rng.float()];
        check(&case(rng, &roles, dtypes));
    }
}

#[test]
fn several_blocks_and_stages() {
    let rng = &mut Rng(5);
    for (sizes, dtypes) in [
        ([130, 150, 530], [DType::F32; 3]),
        ([270, 530, 290], [DType::Bf16; 3]),
        ([270, 530, 290], [DType::F16; 3]),
        ([130, 150, 530], [DType::F16, DType::Bf16, DType::F32]),
        ([1, 700, 900], [DType::F32; 3]),
        ([900, 1, 700], [DType::F32, DType::Bf16, DType::F32]),
    ] {
        let roles = [(Role::M, sizes[0]), (Role::N, sizes[1]), (Role::K, sizes[2])];
        check(&case(rng, &roles, dtypes));
    }
}

/// tanh(product + bias[n]) + residual[batch, m, n], over several axes and blocks.
#[test]
fn an_epilogue_sees_every_element_once() {
    let rng = &mut Rng(9);
    let shapes = [
        vec![(Role::M, 3), (Role::K, 20), (Role::M, 50), (Role::N, 7), (Role::N, 11)],
        vec![(Role::N, 600), (Role::Batch, 2), (Role::M, 130), (Role::K, 130)],
        vec![(Role::N, 1), (Role::K, 1)],
    ];
    for (roles, half) in shapes.into_iter().zip([DType::Bf16, DType::F16, DType::Bf16]) {
        let mut case = case(rng, &roles, [DType::F32, half, DType::F32]);
        case.spec.accumulate = false;
        let order = [Role::Batch, Role::M, Role::N];
        let axes: Vec<_> = order
            .iter()
            .flat_map(|&role| roles.iter().filter(move |axis| axis.0 == role))
            .collect();
        let sizes: Vec<_> = axes.iter().map(|axis| axis.1).collect();
        let residual = Tensor::random(rng, DType::F32, &sizes, 1.0);
        let out = Tensor::blank(rng, half, &sizes);
        let mut bias = Tensor::random(rng, DType::F32, &sizes, 1.0);
        for (stride, axis) in bias.strides.iter_mut().zip(&axes) {
            *stride *= isize::from(axis.0 == Role::N);
        }
        case.spec.epilogue = Some(Program {
            sizes: sizes.clone(),
            inputs: vec![bias.operand(), residual.operand()],
            outputs: vec![out.operand()],
            instrs: vec![
                Instr::Product { dst: 0 },
                Instr::Load { dst: 1, input: 0 },
                Instr::Load { dst: 2, input: 1 },
                Instr::Binary { op: Binary::Add, dst: 3, a: 0, b: 1 },
                Instr::Unary { op: Unary::Tanh, dst: 4, a: 3 },
                Instr::Binary { op: Binary::Add, dst: 5, a: 4, b: 2 },
                Instr::Store { output: 0, src: 5 },
            ],
        });
        let kernel = Gemm::new(&case.spec).unwrap();
        let tensors =
            vec![case.tensors[0].clone(), case.tensors[1].clone(), bias.clone(), residual, out];
        run(kernel, &tensors, 1, &Scalars::default(), |after| {
            for at in positions(&sizes) {
                // C has its axes in the order of `roles`, the program in the order of roles' kinds.
                let mut c = Vec::new();
                for &axis in &case.axes[2] {
                    let place = axes.iter().position(|own| std::ptr::eq(*own, &roles[axis]));
                    c.push(at[place.unwrap()]);
                }
                let (sum, magnitude) = naive(&case, &c);
                let wanted = (sum + after[2].get(&at)).tanh() + after[3].get(&at);
                let bound = 4.0 * EPS * (magnitude + 4.0);
                close(after[4].get(&at), wanted, bound, half, &at);
            }
        });
    }
}

#[test]
fn bad_specifications_are_refused() {
    let axis = |role, c| Axis { role, size: 4, a: 1, b: 1, c };
    let good = Contraction {
        axes: vec![axis(Role::M, 4), axis(Role::N, 1), axis(Role::K, 0)],
        a: DType::F32,
        b: DType::F32,
        c: DType::F32,
        accumulate: false,
        alpha: 1.0,
        epilogue: None,
        sums: None,
    };
    assert!(Gemm::new(&good).is_ok());
    let repeated = Contraction { axes: vec![axis(Role::M, 0)], ..good.clone() };
    assert!(matches!(Gemm::new(&repeated), Err(KernelError::Overlap { axis: 0, size: 4, .. })));
    let ids = Contraction { b: DType::U32, ..good.clone() };
    assert!(matches!(Gemm::new(&ids), Err(KernelError::Unsupported { .. })));
    let sums = Some(OperandSums { factor: 0, output: Operand::f32([1, 0, 0]) });
    let sums = Contraction { sums, ..good.clone() };
    assert!(matches!(Gemm::new(&sums), Err(KernelError::Unsupported { .. })));
    let empty = Program { sizes: vec![3], inputs: vec![], outputs: vec![], instrs: vec![] };
    let other = Contraction { epilogue: Some(empty), ..good };
    assert!(Gemm::new(&other).unwrap_err().to_string().contains("[4, 4]"));
}
