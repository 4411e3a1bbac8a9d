use aerogel_cpu::kernel::{Dtype, Scalars};
use aerogel_cpu::kernels::norm::{Norm, NormGrad, NormSpec};
use proptest::prelude::*;

use super::common::{Rng, Tensor, cases, close, positions, run};

struct Case {
    spec: NormSpec,
    x: Tensor,
    gain: Option<Tensor>,
    bias: Option<Tensor>,
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
        let mut tensor = Tensor::random(rng, Dtype::F32, &own, 1.0);
        let last = sizes.len() - 1;
        tensor.strides[..last].fill(0);
        present.then_some(tensor)
    };
    let (gain, bias) = (row(rng), row(rng));
    let spec = NormSpec {
        sizes,
        center,
        eps: 1e-5,
        gain: gain.as_ref().map(Tensor::operand),
        bias: bias.as_ref().map(Tensor::operand),
    };
    Case { spec, x, gain, bias }
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
    let width = *case.spec.sizes.last().unwrap();
    let x: Vec<f64> = (0..width).map(|d| case.x.get(&[outer, &[d]].concat())).collect();
    let mean = if case.spec.center { x.iter().sum::<f64>() / width as f64 } else { 0.0 };
    let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
    let inverse = 1.0 / (var + f64::from(case.spec.eps)).sqrt();
    (x.iter().map(|x| (x - mean) * inverse).collect(), inverse)
}

proptest! {
    #![proptest_config(cases(80))]

    #[test]
    fn forward_equals_the_definition(seed: u64) {
        let rng = &mut Rng(seed);
        let case = case(rng);
        let float = rng.float();
        let y = Tensor::blank(rng, float, &case.spec.sizes);
        let kernel = Norm::new(&case.spec, &case.x.operand(), &y.operand()).unwrap();
        // The output comes second; what follows it must stay as it is.
        let all: Vec<_> = [Some(&case.x), Some(&y), case.gain.as_ref(), case.bias.as_ref()]
            .into_iter().flatten().cloned().collect();
        run(&kernel, &all, all.len() - 1, &Scalars::default(), |after| {
            let (_, outer) = case.spec.sizes.split_last().unwrap();
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
        let (float, width) = (rng.float(), *case.spec.sizes.last().unwrap());
        let dy = Tensor::random(rng, float, &case.spec.sizes, 1.0);
        let float = rng.float();
        let dx = Tensor::blank(rng, float, &case.spec.sizes);
        let row = Tensor::new(Dtype::F32, &[width], &[2]);
        let operands = [case.x.operand(), dy.operand(), dx.operand()];
        let kernel =
            NormGrad::new(&case.spec, operands.each_ref(), Some(2), Some(2)).unwrap();
        let mut all = vec![case.x.clone(), dy.clone(), dx];
        all.extend(case.gain.clone());
        let first = all.len();
        all.extend([row.clone(), row]);
        run(&kernel, &all, all.len() - 2, &Scalars::default(), |after| {
            let (_, outer) = case.spec.sizes.split_last().unwrap();
            let (mut dgain, mut dbias) = (vec![0.0; width], vec![0.0; width]);
            for at in positions(outer) {
                let (normal, inverse) = normal(&case, &at);
                let full = |d: usize| [&at[..], &[d]].concat();
                let g: Vec<f64> = (0..width)
                    .map(|d| dy.get(&full(d)) * entry(case.gain.as_ref(), d, 1.0)).collect();
                let level = g.iter().sum::<f64>() / width as f64;
                let mean = if case.spec.center { level } else { 0.0 };
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
                close(after[first].get(&[d]), dgain[d], 2e-3, Dtype::F32, &("dgain", d));
                close(after[first + 1].get(&[d]), dbias[d], 1e-4, Dtype::F32, &("dbias", d));
            }
        });
    }
}
