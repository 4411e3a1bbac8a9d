//! The arithmetic of tile programs, one vectorised loop per operation.

use crate::math;
use crate::simd::multiversion;

/// Operations on one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the mathematics
pub enum Unary {
    Neg,
    Exp,
    Ln,
    Tanh,
    Sqrt,
    Rsqrt,
    Recip,
    Sigmoid,
    Erf,
    Abs,
    Sin,
    Cos,
    Floor,
    /// 1 where the value is 0, else 0.
    Not,
    /// The value rounded to bf16.
    RoundBf16,
}

/// Operations on two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the mathematics
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    /// The smaller; NaN if either is.
    Min,
    /// The larger; NaN if either is.
    Max,
    Pow,
    Lt,
    Le,
    Eq,
}

#[inline(always)]
fn each(out: &mut [f32], a: &[f32], f: impl Fn(f32) -> f32) {
    for (o, &a) in out.iter_mut().zip(a) {
        *o = f(a);
    }
}

#[inline(always)]
fn both(out: &mut [f32], a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) {
    for ((o, &a), &b) in out.iter_mut().zip(a).zip(b) {
        *o = f(a, b);
    }
}

#[inline(always)]
fn truth(holds: bool) -> f32 {
    if holds { 1.0 } else { 0.0 }
}

/// `fast` where every argument is in its range, otherwise the library function.
#[inline(always)]
fn wave(out: &mut [f32], a: &[f32], fast: impl Fn(f32) -> f32, slow: fn(f32) -> f32) {
    if a.iter().all(|x| x.abs() <= math::SIN_LIMIT) {
        each(out, a, fast);
    } else {
        each(out, a, slow);
    }
}

multiversion! {
    /// `out = op(a)`.
    pub(crate) fn unary(op: Unary, out: &mut [f32], a: &[f32]) {
        match op {
            Unary::Neg => each(out, a, |x| -x),
            Unary::Exp => each(out, a, math::exp),
            Unary::Ln => each(out, a, math::ln),
            Unary::Tanh => each(out, a, math::tanh),
            Unary::Sqrt => each(out, a, f32::sqrt),
            Unary::Rsqrt => each(out, a, |x| 1.0 / x.sqrt()),
            Unary::Recip => each(out, a, |x| 1.0 / x),
            Unary::Sigmoid => each(out, a, math::sigmoid),
            Unary::Erf => each(out, a, math::erf),
            Unary::Abs => each(out, a, f32::abs),
            Unary::Sin => wave(out, a, math::sin, f32::sin),
            Unary::Cos => wave(out, a, math::cos, f32::cos),
            Unary::Floor => each(out, a, f32::floor),
            Unary::Not => each(out, a, |x| truth(x == 0.0)),
            Unary::RoundBf16 => each(out, a, |x| math::from_bf16(math::to_bf16(x))),
        }
    }
}

multiversion! {
    /// `out = op(a, b)`.
    pub(crate) fn binary(op: Binary, out: &mut [f32], a: &[f32], b: &[f32]) {
        match op {
            Binary::Add => both(out, a, b, |a, b| a + b),
            Binary::Sub => both(out, a, b, |a, b| a - b),
            Binary::Mul => both(out, a, b, |a, b| a * b),
            Binary::Div => both(out, a, b, |a, b| a / b),
            Binary::Min => both(out, a, b, math::min),
            Binary::Max => both(out, a, b, math::max),
            Binary::Pow => both(out, a, b, f32::powf),
            Binary::Lt => both(out, a, b, |a, b| truth(a < b)),
            Binary::Le => both(out, a, b, |a, b| truth(a <= b)),
            Binary::Eq => both(out, a, b, |a, b| truth(a == b)),
        }
    }
}

multiversion! {
    /// `out = a * b + c`, rounded once.
    pub(crate) fn fma(out: &mut [f32], a: &[f32], b: &[f32], c: &[f32]) {
        for (((o, &a), &b), &c) in out.iter_mut().zip(a).zip(b).zip(c) {
            *o = a.mul_add(b, c);
        }
    }
}

multiversion! {
    /// `out = a` where `cond` is not 0, else `b`.
    pub(crate) fn select(out: &mut [f32], cond: &[f32], a: &[f32], b: &[f32]) {
        for (((o, &cond), &a), &b) in out.iter_mut().zip(cond).zip(a).zip(b) {
            *o = if cond != 0.0 { a } else { b };
        }
    }
}

multiversion! {
    /// `out[i] = first + i * stride`.
    pub(crate) fn ramp(out: &mut [f32], first: i32, stride: i32) {
        for (i, o) in out.iter_mut().enumerate() {
            *o = (first + i as i32 * stride) as f32;
        }
    }
}

const LANES: usize = 16;

/// Folds in sixteen lanes, then a fixed tree over the lanes.
#[inline(always)]
fn fold(a: &[f32], zero: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [zero; LANES];
    let blocks = a.chunks_exact(LANES);
    let rest = blocks.remainder();
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane = f(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = f(*lane, x);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

multiversion! {
    /// The sum of a slice, in a fixed order.
    pub(crate) fn sum(out: &mut f32, a: &[f32]) {
        *out = fold(a, 0.0, |a, b| a + b);
    }
}

multiversion! {
    /// The sum of products of two slices, in a fixed order.
    pub(crate) fn dot(out: &mut f32, a: &[f32], b: &[f32]) {
        let mut lanes = [0.0f32; LANES];
        let (blocks_a, blocks_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        let (rest_a, rest_b) = (blocks_a.remainder(), blocks_b.remainder());
        for (block_a, block_b) in blocks_a.zip(blocks_b) {
            for i in 0..LANES {
                lanes[i] = block_a[i].mul_add(block_b[i], lanes[i]);
            }
        }
        for ((lane, &a), &b) in lanes.iter_mut().zip(rest_a).zip(rest_b) {
            *lane = a.mul_add(b, *lane);
        }
        *out = fold(&lanes, 0.0, |a, b| a + b);
    }
}

multiversion! {
    /// The largest of a slice; -infinity if empty, NaN if any is.
    pub(crate) fn largest(out: &mut f32, a: &[f32]) {
        *out = fold(a, f32::NEG_INFINITY, math::max);
    }
}
