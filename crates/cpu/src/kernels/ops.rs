//! The arithmetic of tile programs, one vectorised loop per operation.

use crate::math;
use crate::simd::multiversion;
use aerogel_graph::types::round_f16;
use aerogel_lower::{Binary, Unary};

/// A matrix of floats whose rows are contiguous.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    ptr: *mut f32,
    step: isize,
    /// Every float is the first one; `binary` reads no other then.
    uniform: bool,
}

impl Rows {
    /// Rows that begin `step` floats apart, or one float for all.
    ///
    /// # Safety
    /// The floats are valid for every operation on them, in the sizes that these are called with.
    /// What an operation writes is one of its arguments, or disjoint from all of them.
    pub unsafe fn new(ptr: *mut f32, step: isize, uniform: bool) -> Rows {
        Rows { ptr, step, uniform }
    }

    pub fn ptr(self) -> *mut f32 {
        self.ptr
    }

    pub fn step(self) -> isize {
        self.step
    }

    #[inline(always)]
    pub fn row(self, row: usize) -> *mut f32 {
        self.ptr.wrapping_offset(row as isize * self.step)
    }

    #[inline(always)]
    fn read<'a>(self, row: usize, cols: usize) -> &'a [f32] {
        // SAFETY: who made the rows vouched for them.
        unsafe { std::slice::from_raw_parts(self.row(row), cols) }
    }

    #[inline(always)]
    fn write<'a>(self, row: usize, cols: usize) -> &'a mut [f32] {
        // SAFETY: as above; operations have one slice of what they write at a time.
        unsafe { std::slice::from_raw_parts_mut(self.row(row), cols) }
    }
}

/// One long row if all matrices are dense.
#[inline(always)]
fn merged<const N: usize>(all: [Rows; N], [rows, cols]: [usize; 2]) -> [usize; 2] {
    let dense = all.iter().all(|x| x.step == cols as isize);
    if dense { [1, rows * cols] } else { [rows, cols] }
}

#[inline(always)]
fn each(out: Rows, a: Rows, size: [usize; 2], f: impl Fn(f32) -> f32) {
    let [rows, cols] = merged([out, a], size);
    for row in 0..rows {
        let o = out.write(row, cols);
        if out.ptr == a.ptr {
            o.iter_mut().for_each(|o| *o = f(*o));
            continue;
        }
        for (o, &a) in o.iter_mut().zip(a.read(row, cols)) {
            *o = f(a);
        }
    }
}

#[inline(always)]
fn both(out: Rows, a: Rows, b: Rows, size: [usize; 2], f: impl Fn(f32, f32) -> f32) {
    // A constant stays in a register of the processor rather than fill a part of its cache.
    match (a.uniform, b.uniform) {
        (false, true) => {
            let b = b.read(0, 1)[0];
            return each(out, a, size, |a| f(a, b));
        }
        (true, false) => {
            let a = a.read(0, 1)[0];
            return each(out, b, size, |b| f(a, b));
        }
        _ => {}
    }
    let [rows, cols] = merged([out, a, b], size);
    for row in 0..rows {
        let o = out.write(row, cols);
        match (out.ptr == a.ptr, out.ptr == b.ptr) {
            (false, false) => {
                for ((o, &a), &b) in o.iter_mut().zip(a.read(row, cols)).zip(b.read(row, cols)) {
                    *o = f(a, b);
                }
            }
            (true, false) => {
                for (o, &b) in o.iter_mut().zip(b.read(row, cols)) {
                    *o = f(*o, b);
                }
            }
            (false, true) => {
                for (o, &a) in o.iter_mut().zip(a.read(row, cols)) {
                    *o = f(a, *o);
                }
            }
            (true, true) => o.iter_mut().for_each(|o| *o = f(*o, *o)),
        }
    }
}

#[inline(always)]
fn truth(holds: bool) -> f32 {
    if holds { 1.0 } else { 0.0 }
}

/// `fast` where an argument is in its range, otherwise the library function.
#[inline(always)]
fn wave(out: Rows, a: Rows, size: [usize; 2], fast: impl Fn(f32) -> f32, slow: fn(f32) -> f32) {
    let near = |x: f32| x.abs() <= math::SIN_LIMIT;
    if (0..size[0]).all(|row| a.read(row, size[1]).iter().all(|&x| near(x))) {
        each(out, a, size, fast);
    } else {
        each(out, a, size, |x| if near(x) { fast(x) } else { slow(x) });
    }
}

multiversion! {
    /// `out = op(a)`.
    pub(crate) fn unary(op: Unary, out: Rows, a: Rows, size: [usize; 2]) {
        match op {
            Unary::Neg => each(out, a, size, |x| -x),
            Unary::Exp => each(out, a, size, math::exp),
            Unary::Ln => each(out, a, size, math::ln),
            Unary::Tanh => each(out, a, size, math::tanh),
            Unary::Sqrt => each(out, a, size, f32::sqrt),
            Unary::Rsqrt => each(out, a, size, |x| 1.0 / x.sqrt()),
            Unary::Recip => each(out, a, size, |x| 1.0 / x),
            Unary::Sigmoid => each(out, a, size, math::sigmoid),
            Unary::Erf => each(out, a, size, math::erf),
            Unary::Abs => each(out, a, size, f32::abs),
            Unary::Sin => wave(out, a, size, math::sin, f32::sin),
            Unary::Cos => wave(out, a, size, math::cos, f32::cos),
            Unary::Floor => each(out, a, size, f32::floor),
            Unary::Not => each(out, a, size, |x| truth(x == 0.0)),
            Unary::RoundF16 => each(out, a, size, round_f16),
            Unary::RoundBf16 => each(out, a, size, |x| math::from_bf16(math::to_bf16(x))),
        }
    }
}

multiversion! {
    /// `out = op(a, b)`.
    pub(crate) fn binary(op: Binary, out: Rows, a: Rows, b: Rows, size: [usize; 2]) {
        match op {
            Binary::Add => both(out, a, b, size, |a, b| a + b),
            Binary::Sub => both(out, a, b, size, |a, b| a - b),
            Binary::Mul => both(out, a, b, size, |a, b| a * b),
            Binary::Div => both(out, a, b, size, |a, b| a / b),
            Binary::Min => both(out, a, b, size, math::min),
            Binary::Max => both(out, a, b, size, math::max),
            Binary::Pow => both(out, a, b, size, f32::powf),
            Binary::Lt => both(out, a, b, size, |a, b| truth(a < b)),
            Binary::Le => both(out, a, b, size, |a, b| truth(a <= b)),
            Binary::Eq => both(out, a, b, size, |a, b| truth(a == b)),
        }
    }
}

multiversion! {
    /// `out = a * b + c`, rounded once; `out` is none of the arguments.
    pub(crate) fn fma(out: Rows, a: Rows, b: Rows, c: Rows, size: [usize; 2]) {
        let [rows, cols] = merged([out, a, b, c], size);
        for row in 0..rows {
            let (a, b, c) = (a.read(row, cols), b.read(row, cols), c.read(row, cols));
            for (((o, &a), &b), &c) in out.write(row, cols).iter_mut().zip(a).zip(b).zip(c) {
                *o = a.mul_add(b, c);
            }
        }
    }
}

multiversion! {
    /// `out = a` where `cond` is not 0, else `b`; `out` is none of the arguments.
    pub(crate) fn select(out: Rows, cond: Rows, a: Rows, b: Rows, size: [usize; 2]) {
        let [rows, cols] = merged([out, cond, a, b], size);
        for row in 0..rows {
            let (cond, a, b) = (cond.read(row, cols), a.read(row, cols), b.read(row, cols));
            for (((o, &cond), &a), &b) in out.write(row, cols).iter_mut().zip(cond).zip(a).zip(b) {
                *o = if cond != 0.0 { a } else { b };
            }
        }
    }
}

multiversion! {
    /// `sums += row` for each row in turn: a strip of columns stays in registers over all of them.
    pub(crate) fn add_rows(sums: &mut [f32], rows: Rows, count: usize) {
        const STRIP: usize = 64;
        let mut strips = sums.chunks_exact_mut(STRIP);
        let mut first = 0;
        for strip in &mut strips {
            let mut local = [0.0f32; STRIP];
            local.copy_from_slice(strip);
            for row in 0..count {
                let from = &rows.read(row, first + STRIP)[first..];
                for i in 0..STRIP {
                    local[i] += from[i];
                }
            }
            strip.copy_from_slice(&local);
            first += STRIP;
        }
        let rest = strips.into_remainder();
        for row in 0..count {
            let from = &rows.read(row, first + rest.len())[first..];
            rest.iter_mut().zip(from).for_each(|(sum, &x)| *sum += x);
        }
    }
}

multiversion! {
    /// `tops = max(tops, row)` for each row in turn.
    pub(crate) fn max_rows(tops: &mut [f32], rows: Rows, count: usize) {
        for row in 0..count {
            let from = rows.read(row, tops.len());
            tops.iter_mut().zip(from).for_each(|(top, &x)| *top = math::max(*top, x));
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

/// Partial results of a fold: enough vectors that none waits for the one before.
const LANES: usize = 64;

/// Folds `f(lane, a, b)` in lanes, then a fixed tree over the lanes by `join`.
#[inline(always)]
pub(crate) fn fold(
    a: &[f32],
    b: &[f32],
    zero: f32,
    f: impl Fn(f32, f32, f32) -> f32,
    join: impl Fn(f32, f32) -> f32,
) -> f32 {
    let mut lanes = [zero; LANES];
    let (blocks_a, blocks_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (rest_a, rest_b) = (blocks_a.remainder(), blocks_b.remainder());
    for (a, b) in blocks_a.zip(blocks_b) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane = f(*lane, a, b);
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(rest_a).zip(rest_b) {
        *lane = f(*lane, a, b);
    }
    tree(&lanes, join)
}

/// Joins halves until one is left; every width is a constant, so that no loop remains.
#[inline(always)]
fn tree(lanes: &[f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let (mut two, mut one) = ([0.0f32; 32], [0.0f32; 16]);
    for i in 0..32 {
        two[i] = join(lanes[i], lanes[i + 32]);
    }
    for i in 0..16 {
        one[i] = join(two[i], two[i + 16]);
    }
    for i in 0..8 {
        one[i] = join(one[i], one[i + 8]);
    }
    for i in 0..4 {
        one[i] = join(one[i], one[i + 4]);
    }
    join(join(one[0], one[2]), join(one[1], one[3]))
}

multiversion! {
    /// The sum of a slice, in a fixed order.
    pub(crate) fn sum(out: &mut f32, a: &[f32]) {
        *out = fold(a, a, 0.0, |sum, a, _| sum + a, |a, b| a + b);
    }
}

multiversion! {
    /// The largest of a slice; -infinity if empty, NaN if any is.
    pub(crate) fn largest(out: &mut f32, a: &[f32]) {
        *out = fold(a, a, f32::NEG_INFINITY, |top, a, _| math::max(top, a), math::max);
    }
}
