use aerogel_cpu::kernel::{Dtype, Operand, Scalars};
use aerogel_cpu::kernels::linear_ce::{LinearCe, LinearCeSpec};
use proptest::prelude::*;

use super::common::{Rng, Tensor, cases, close, positions, run};

/// A [rows, vocabulary, width] operand that lacks some axes.
fn tensor(rng: &mut Rng, dtype: Dtype, sizes: [usize; 3], lacks: &[usize], scale: f64) -> Tensor {
    let mut own = sizes;
    lacks.iter().for_each(|&axis| own[axis] = 1);
    let mut tensor = Tensor::random(rng, dtype, &own, scale);
    lacks.iter().for_each(|&axis| tensor.strides[axis] = 0);
    tensor
}

fn optional(on: bool, tensor: &Tensor) -> Option<Operand> {
    on.then(|| tensor.operand())
}

/// Loss, the size of its terms, and both gradients, in f64.
fn naive(
    [rows, vocab, width]: [usize; 3],
    [x, w, targets]: [&Tensor; 3],
    weights: Option<&Tensor>,
) -> (f64, f64, Vec<f64>, Vec<f64>) {
    let (mut total, mut size) = (0.0, 0.0);
    let mut wanted_dx = vec![0.0; rows * width];
    let mut wanted_dw = vec![0.0; vocab * width];
    for r in 0..rows {
        let weight = weights.map_or(1.0, |w| w.get(&[r, 0, 0]));
        let target = targets.get(&[r, 0, 0]) as usize;
        let logits: Vec<f64> = (0..vocab)
            .map(|v| (0..width).map(|d| x.get(&[r, 0, d]) * w.get(&[0, v, d])).sum())
            .collect();
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|l| (l - max).exp()).sum();
        total += weight * (max + sum.ln() - logits[target]);
        size += (max + sum.ln() - logits[target]).abs() + max.abs();
        for v in 0..vocab {
            let hit = f64::from(u8::from(v == target));
            let g = weight * ((logits[v] - max).exp() / sum - hit);
            for d in 0..width {
                wanted_dx[r * width + d] += g * w.get(&[0, v, d]);
                wanted_dw[v * width + d] += g * x.get(&[r, 0, d]);
            }
        }
    }
    (total, size, wanted_dx, wanted_dw)
}

fn check(rng: &mut Rng, [rows, vocab, width]: [usize; 3], far: f64) {
    let sizes = [rows, vocab, width];
    let (x_type, w_type, dx_type) = (rng.float(), rng.float(), rng.float());
    let x = tensor(rng, x_type, sizes, &[1], 1.0);
    let w = tensor(rng, w_type, sizes, &[0], far);
    let mut targets = tensor(rng, Dtype::U32, sizes, &[1, 2], 1.0);
    targets.fill(|_| rng.below(vocab) as f64);
    let mut weights = tensor(rng, Dtype::F32, sizes, &[1, 2], 1.0);
    if rows > 2 {
        weights.set(&[2, 0, 0], 0.0);
    }
    let loss = Tensor::new(Dtype::F32, &[1], &[1]);
    let mut dx = tensor(rng, dx_type, sizes, &[1], 1.0);
    let mut dw = tensor(rng, Dtype::F32, sizes, &[0], 1.0);
    for output in [&mut dx, &mut dw] {
        output.fill(|_| f64::NAN);
    }
    let some = [(); 3].map(|()| rng.below(3) != 0);
    let spec = LinearCeSpec {
        rows,
        vocab,
        width,
        x: x.operand(),
        w: w.operand(),
        targets: targets.operand(),
        weights: optional(some[0], &weights),
        dx: optional(some[1], &dx),
        dw: optional(some[2], &dw),
    };
    let kernel = LinearCe::new(&spec).unwrap();
    let mut all = vec![x.clone(), w.clone(), targets.clone(), loss];
    for (on, tensor) in some.iter().zip([&weights, &dx, &dw]) {
        all.extend(on.then(|| tensor.clone()));
    }
    let weights = some[0].then_some(&weights);
    let (total, size, wanted_dx, wanted_dw) = naive(sizes, [&x, &w, &targets], weights);
    run(&kernel, &all, all.len() - 3, &Scalars::default(), |after| {
        close(after[3].get(&[0]), total, 2e-6 * (size + 1.0), Dtype::F32, &"loss");
        let mut next = 4 + usize::from(some[0]);
        for (on, wanted) in [(some[1], &wanted_dx), (some[2], &wanted_dw)] {
            if on {
                let tensor = &after[next];
                next += 1;
                for (at, wanted) in positions(&tensor.sizes).iter().zip(wanted) {
                    let bound = 2e-5 * (1.0 + far * far) * (1.0 + (rows as f64).sqrt() / 10.0);
                    close(tensor.get(at), *wanted, bound, tensor.dtype, at);
                }
            }
        }
    });
}

proptest! {
    #![proptest_config(cases(25))]

    #[test]
    fn loss_and_gradients_equal_the_definition(seed: u64) {
        let rng = &mut Rng(seed);
        let sizes = [rng.pick(&[1, 3, 40, 150]), rng.pick(&[1, 17, 600]), rng.pick(&[1, 9, 70])];
        check(rng, sizes, 1.0);
    }
}

#[test]
fn several_chunks_and_large_logits() {
    // 70,000 entries leave room for sixteen rows at a time.
    check(&mut Rng(1), [35, 70_000, 3], 1.0);
    check(&mut Rng(2), [20, 300, 5], 40.0);
}
