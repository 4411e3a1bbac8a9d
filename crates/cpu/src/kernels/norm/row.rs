//! The arithmetic of one row.

use crate::kernels::ops;
use crate::simd::multiversion;

/// Mean (0 if not centred) and 1 / deviation of a row.
#[inline(always)]
fn statistics(x: &[f32], center: bool, eps: f32) -> (f32, f32) {
    let count = x.len() as f32;
    let add = |a, b| a + b;
    let mean = if center { ops::fold(x, x, 0.0, |sum, x, _| sum + x, add) / count } else { 0.0 };
    let square = |sum, x: f32, _| (x - mean).mul_add(x - mean, sum);
    let squares = ops::fold(x, x, 0.0, square, add);
    (mean, 1.0 / (squares / count + eps).sqrt())
}

multiversion! {
    /// `y = (x - mean) / deviation * gain + bias`.
    pub(super) fn normalise(
        y: &mut [f32],
        x: &[f32],
        gain: &[f32],
        bias: &[f32],
        center: bool,
        eps: f32,
    ) {
        let (mean, inverse) = statistics(x, center, eps);
        for (((y, &x), &gain), &bias) in y.iter_mut().zip(x).zip(gain).zip(bias) {
            *y = ((x - mean) * inverse).mul_add(gain, bias);
        }
    }
}

multiversion! {
    /// `dx` of a row; its share of the gradients is added to `dgain` and `dbias`.
    pub(super) fn normalise_grad(
        dx: &mut [f32],
        x: &[f32],
        dy: &[f32],
        gain: &[f32],
        dgain: &mut [f32],
        dbias: &mut [f32],
        center: bool,
        eps: f32,
    ) {
        let (mean, inverse) = statistics(x, center, eps);
        for (((dbias, dgain), &x), &dy) in dbias.iter_mut().zip(dgain).zip(x).zip(dy) {
            *dbias += dy;
            *dgain = dy.mul_add((x - mean) * inverse, *dgain);
        }
        let count = x.len() as f32;
        // The gradient of the normalised row, its mean and its slope along the row.
        dx.iter_mut().zip(dy).zip(gain).for_each(|((g, &dy), &gain)| *g = dy * gain);
        let add = |a, b| a + b;
        let level = if center { ops::fold(dx, dx, 0.0, |s, g, _| s + g, add) / count } else { 0.0 };
        let along = |sum, g: f32, x: f32| g.mul_add((x - mean) * inverse, sum);
        let slope = ops::fold(dx, x, 0.0, along, add) / count;
        for (g, &x) in dx.iter_mut().zip(x) {
            *g = (-slope).mul_add((x - mean) * inverse, *g - level) * inverse;
        }
    }
}

multiversion! {
    /// `total += part`.
    pub(super) fn add_part(total: &mut [f64], part: &[f32]) {
        total.iter_mut().zip(part).for_each(|(total, &part)| *total += f64::from(part));
    }
}
