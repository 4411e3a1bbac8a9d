use aerogel_graph::DType;
use aerogel_lower::{AttendGradSpec, AttendSpec, Attention};
use std::sync::Arc;

use aerogel_cpu::kernel::Scalars;
use aerogel_cpu::kernels::attend::Attend;
use aerogel_cpu::kernels::attend_grad::AttendGrad;
use aerogel_cpu::kernels::pattern::BlockList;
use proptest::prelude::*;

use super::common::{Rng, Tensor, cases, close, positions, run};

type Allowed = fn(usize, usize, usize) -> bool;

struct Case {
    spec: Attention,
    /// What `allowed` allows.
    pattern: Arc<BlockList>,
    allowed: Allowed,
    keys: usize,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

/// A tensor of [batch, kv, group, position, width]; keys and values repeat along group, statistics
/// along width.
fn tensor(rng: &mut Rng, dtype: DType, sizes: [usize; 5], repeat: Option<usize>) -> Tensor {
    let mut own = sizes;
    if let Some(axis) = repeat {
        own[axis] = 1;
    }
    let mut tensor = Tensor::random(rng, dtype, &own, 1.5);
    if let Some(axis) = repeat {
        tensor.strides[axis] = 0;
    }
    tensor
}

const PATTERNS: [Allowed; 6] = [
    |_, _, _| true,
    |_, i, j| j <= i,
    |_, i, j| j <= i && i - j < 9,
    |_, i, j| j <= i && (i - j) % 5 == 0,
    |head, i, j| if head % 2 == 0 { j <= i } else { i / 7 == j / 7 },
    // Some queries see nothing at all.
    |_, i, j| i % 3 != 0 && (i + j) % 4 == 0,
];

fn case(rng: &mut Rng, lengths: [usize; 2], widths: [usize; 2], allowed: Allowed) -> Case {
    let dtype = rng.float();
    case_of(rng, dtype, lengths, widths, allowed)
}

fn case_of(
    rng: &mut Rng,
    dtype: DType,
    lengths: [usize; 2],
    widths: [usize; 2],
    allowed: Allowed,
) -> Case {
    let (batch, kv, group) = (rng.range(1, 2), rng.range(1, 2), rng.range(1, 3));
    let [queries, keys] = lengths;
    let pattern = BlockList::new(kv * group, queries, keys, &allowed).unwrap();
    let spec = Attention {
        batch: vec![batch],
        kv,
        group,
        queries,
        key_width: widths[0],
        value_width: widths[1],
        scale: 0.7 / (widths[0] as f32).sqrt(),
    };
    Case {
        q: tensor(rng, dtype, [batch, kv, group, queries, widths[0]], None),
        k: tensor(rng, dtype, [batch, kv, group, keys, widths[0]], Some(2)),
        v: tensor(rng, dtype, [batch, kv, group, keys, widths[1]], Some(2)),
        spec,
        pattern: Arc::new(pattern),
        allowed,
        keys,
    }
}

fn random(rng: &mut Rng) -> Case {
    let lengths = [rng.pick(&[1, 3, 17, 32, 70, 130]), rng.pick(&[1, 5, 32, 64, 100])];
    let widths = [rng.pick(&[1, 8, 16, 20]), rng.pick(&[1, 16, 24, 32])];
    let allowed = rng.pick(&PATTERNS);
    case(rng, lengths, widths, allowed)
}

/// Probabilities of one query, and its lse.
fn softmax(case: &Case, at: [usize; 3], i: usize, i_pattern: usize) -> (Vec<f64>, f64) {
    let [b, h, g] = at;
    let head = h * case.spec.group + g;
    let score = |j: usize| {
        let dot: f64 = (0..case.spec.key_width)
            .map(|d| case.q.get(&[b, h, g, i, d]) * case.k.get(&[b, h, 0, j, d]))
            .sum();
        let seen = (case.allowed)(head, i_pattern, j);
        if seen { f64::from(case.spec.scale) * dot } else { f64::NEG_INFINITY }
    };
    let scores: Vec<f64> = (0..case.keys).map(score).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return (vec![0.0; case.keys], max);
    }
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    (scores.iter().map(|s| (s - max).exp() / sum).collect(), max + sum.ln())
}

fn outputs(case: &Case, dtype: DType, rng: &mut Rng) -> [Tensor; 2] {
    let spec = &case.spec;
    let sizes = [spec.batch[0], spec.kv, spec.group, spec.queries];
    let o = Tensor::blank(rng, dtype, &[&sizes[..], &[spec.value_width]].concat());
    let mut lse = Tensor::blank(rng, DType::F32, &[&sizes[..], &[1]].concat());
    lse.strides[4] = 0;
    [o, lse]
}

/// The relative error of P and dS: they are rounded to bf16 where all factors are (q, k and v
/// always have one type), and else not at all.
fn rounding(factors: &[&Tensor]) -> f64 {
    let bf16 = factors.iter().all(|factor| factor.dtype == DType::Bf16);
    if bf16 { 2f64.powi(-8) } else { 0.0 }
}

/// The kernel for q, k, v, o, lse.
fn forward(case: &Case, tensors: &[Tensor; 5]) -> Attend {
    let [q, k, v, o, lse] = tensors.each_ref().map(Tensor::operand);
    let spec = AttendSpec { attention: case.spec.clone(), q, k, v, o, lse };
    Attend::new(&spec, case.pattern.clone()).unwrap()
}

/// The kernel for q, k, v, o, lse, dout, dq, dk, dv.
fn backward(case: &Case, tensors: &[Tensor], dlse: Option<&Tensor>) -> AttendGrad {
    let operands: Vec<_> = tensors.iter().map(Tensor::operand).collect();
    let [q, k, v, o, lse, dout, dq, dk, dv] = operands.try_into().unwrap();
    let (attention, dlse) = (case.spec.clone(), dlse.map(Tensor::operand));
    let spec = AttendGradSpec { attention, q, k, v, o, lse, dout, dq, dk, dv, dlse };
    AttendGrad::new(&spec, case.pattern.clone()).unwrap()
}

fn check_forward(case: &Case, rng: &mut Rng) {
    let dtype = rng.float();
    let [o, lse] = outputs(case, dtype, rng);
    let all = [&case.q, &case.k, &case.v, &o, &lse].map(Clone::clone);
    let kernel = forward(case, &all);
    run(kernel, &all, 2, &Scalars::default(), |after| {
        for at in positions(&case.q.sizes[..4]) {
            let [b, h, g, i] = at[..] else { unreachable!() };
            let (p, lse) = softmax(case, [b, h, g], i, i);
            close(after[4].get(&[b, h, g, i, 0]), lse, 2e-5, DType::F32, &("lse", &at));
            for d in 0..case.spec.value_width {
                let terms = || (0..case.keys).map(|j| p[j] * case.v.get(&[b, h, 0, j, d]));
                let wanted: f64 = terms().sum();
                let bound = 2e-5 + rounding(&[&case.q]) * terms().map(f64::abs).sum::<f64>();
                close(after[3].get(&[b, h, g, i, d]), wanted, bound, dtype, &("o", &at, d));
            }
        }
    });
}

fn check_backward(case: &Case, rng: &mut Rng) {
    let spec = &case.spec;
    let [mut o, mut lse] = outputs(case, DType::F32, rng);
    let sizes = [spec.batch[0], spec.kv, spec.group, spec.queries, spec.value_width];
    let float = rng.float();
    let grad = tensor(rng, float, sizes, None);
    let mut dlse = Tensor::random(rng, DType::F32, &lse.sizes.clone(), 1.0);
    dlse.strides[4] = 0;
    let with_dlse = rng.below(2) == 1;
    // Sums, and sums of magnitudes.
    let sums = |like: &Tensor| vec![(0.0, 0.0); like.sizes.iter().product()];
    let [mut dq, mut dk, mut dv] = [&case.q, &case.k, &case.v].map(sums);
    let add = |sum: &mut (f64, f64), term: f64| *sum = (sum.0 + term, sum.1 + term.abs());
    let (kd, vd) = (spec.key_width, spec.value_width);
    for (row, at) in positions(&case.q.sizes[..4]).iter().enumerate() {
        let [b, h, g, i] = at[..] else { unreachable!() };
        let (p, l) = softmax(case, [b, h, g], i, i);
        lse.set(&[b, h, g, i, 0], l);
        let key_row = |j: usize| (b * spec.kv + h) * case.keys + j;
        let dp = |j: usize| -> f64 {
            (0..vd).map(|d| grad.get(&[b, h, g, i, d]) * case.v.get(&[b, h, 0, j, d])).sum()
        };
        let mean: f64 = (0..case.keys).map(|j| p[j] * dp(j)).sum();
        let mean = mean - if with_dlse { dlse.get(&[b, h, g, i, 0]) } else { 0.0 };
        for d in 0..vd {
            let value: f64 = (0..case.keys).map(|j| p[j] * case.v.get(&[b, h, 0, j, d])).sum();
            o.set(&[b, h, g, i, d], value);
        }
        for j in 0..case.keys {
            let ds = p[j] * (dp(j) - mean) * f64::from(spec.scale);
            for d in 0..kd {
                add(&mut dq[row * kd + d], ds * case.k.get(&[b, h, 0, j, d]));
                add(&mut dk[key_row(j) * kd + d], ds * case.q.get(&[b, h, g, i, d]));
            }
            for d in 0..vd {
                add(&mut dv[key_row(j) * vd + d], p[j] * grad.get(&[b, h, g, i, d]));
            }
        }
    }
    let rounding = rounding(&[&case.q, &grad]);
    let out = [&case.q, &case.k, &case.v].map(|like| {
        let dtype = rng.float();
        Tensor::blank(rng, dtype, &like.sizes)
    });
    let mut all = vec![case.q.clone(), case.k.clone(), case.v.clone(), o, lse, grad];
    all.extend(out);
    let kernel = backward(case, &all, with_dlse.then_some(&dlse));
    let outputs = if with_dlse { 4 } else { 3 }; // dlse comes last and must stay as it is
    all.extend(with_dlse.then_some(dlse));
    run(kernel, &all, outputs, &Scalars::default(), |after| {
        for (tensor, wanted) in after[6..9].iter().zip([&dq, &dk, &dv]) {
            for (at, (wanted, size)) in positions(&tensor.sizes).iter().zip(wanted) {
                let bound = 1e-5 * (1.0 + (case.spec.queries * spec.group) as f64).sqrt() * 8.0;
                let bound = bound + rounding * size;
                close(tensor.get(at), *wanted, bound, tensor.dtype, at);
            }
        }
    });
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn forward_equals_the_definition(seed: u64) {
        let rng = &mut Rng(seed);
        let case = random(rng);
        check_forward(&case, rng);
    }

    #[test]
    fn backward_equals_the_derivative(seed: u64) {
        let rng = &mut Rng(seed);
        let case = random(rng);
        check_backward(&case, rng);
    }
}

#[test]
fn wide_heads_and_long_rows() {
    let rng = &mut Rng(8);
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        let case = case_of(rng, dtype, [200, 200], [64, 128], |_, i, j| j <= i);
        check_forward(&case, rng);
        if dtype != DType::F16 {
            check_backward(&case, rng); // packed f16 are f32 there as well
        }
    }
}

/// More keys than a span of scores, so that what was gathered is rescaled.
#[test]
fn keys_of_many_spans() {
    let rng = &mut Rng(12);
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        for pattern in [0, 5] {
            let mut case = case_of(rng, dtype, [40, 1100], [8, 16], PATTERNS[pattern]);
            // Scores grow with the keys: the maximum moves from span to span.
            for at in positions(&case.k.sizes.clone()) {
                let grown = case.k.get(&at) * (1.0 + at[3] as f64 / 200.0);
                case.k.set(&at, grown);
            }
            check_forward(&case, rng);
        }
    }
}

/// More keys than a stretch of the backward, of one head and of several, so that both ways to cut
/// the work are taken.
#[test]
fn keys_of_many_stretches() {
    let rng = &mut Rng(11);
    let cases = [(1, 1, DType::F32), (1, 5, DType::Bf16), (2, 2, DType::Bf16), (2, 1, DType::F16)];
    for (heads, pattern, dtype) in cases {
        let (queries, keys) = (280, 290);
        let mut case = case_of(rng, dtype, [queries, keys], [8, 16], PATTERNS[pattern]);
        case.spec.batch = vec![1];
        (case.spec.kv, case.spec.group) = (1, heads);
        let pattern = BlockList::new(heads, queries, keys, &case.allowed).unwrap();
        case.pattern = Arc::new(pattern);
        case.q = tensor(rng, dtype, [1, 1, heads, queries, 8], None);
        case.k = tensor(rng, dtype, [1, 1, heads, keys, 8], Some(2));
        case.v = tensor(rng, dtype, [1, 1, heads, keys, 16], Some(2));
        check_forward(&case, rng);
        check_backward(&case, rng);
    }
}

/// One query after another against a cache whose later part is NaN.
#[test]
fn decoding_reads_only_what_is_there() {
    let rng = &mut Rng(4);
    let cases = [
        (1, PATTERNS[1], DType::F32),
        (1, PATTERNS[3], DType::Bf16),
        (2, PATTERNS[1], DType::Bf16),
        (5, PATTERNS[2], DType::F32),
        (1, PATTERNS[3], DType::F16),
    ];
    for (queries, allowed, dtype) in cases {
        let mut case = case_of(rng, dtype, [100, 100], [16, 20], allowed);
        let sizes = [case.spec.batch[0], case.spec.kv, case.spec.group, queries, 16];
        case.q = tensor(rng, DType::F32, sizes, None);
        case.spec.queries = queries;
        let whole = (case.k.clone(), case.v.clone());
        for position in [0, 3, 47, 62, 100 - queries] {
            let [o, lse] = outputs(&case, DType::F32, rng);
            let mut all = [&case.q, &whole.0, &whole.1, &o, &lse].map(Clone::clone);
            for tensor in &mut all[1..3] {
                for at in positions(&tensor.sizes.clone()) {
                    if at[3] >= position + queries {
                        tensor.set(&at, f64::NAN);
                    }
                }
            }
            let kernel = forward(&case, &all);
            let scalars = Scalars { position, ..Scalars::default() };
            run(kernel, &all, 2, &scalars, |after| {
                for at in positions(&case.q.sizes[..4]) {
                    let [b, h, g, i] = at[..] else { unreachable!() };
                    let (p, _) = softmax(&case, [b, h, g], i, i + position);
                    for d in 0..20 {
                        let wanted: f64 =
                            (0..100).map(|j| p[j] * whole.1.get(&[b, h, 0, j, d])).sum();
                        let got = after[3].get(&[b, h, g, i, d]);
                        close(got, wanted, 2e-5, DType::F32, &(position, &at));
                    }
                }
            });
        }
    }
}
