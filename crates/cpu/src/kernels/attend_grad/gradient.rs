//! Scores to probabilities and their gradients, for tiles with keys down and queries across.

use crate::kernels::attend::exponent::{BLOCK, Floats, Narrow, exp2, fold, narrowing};
use crate::math::from_bf16;
use crate::simd::multiversion;

/// A tile: scores and products of do with values, rows of whole blocks so many words apart, and
/// lse (times log2(e)) and D of the queries across.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub scores: *mut f32,
    pub dp: *mut f32,
    pub row: usize,
    pub rows: usize,
    pub lse: &'a [f32],
    pub d: &'a [f32],
}

impl Tile<'_> {
    /// P and dS (without the scale) of one block.
    #[inline(always)]
    unsafe fn block(&self, row: usize, b: usize) -> (Floats, Floats) {
        let at = row * self.row + b * BLOCK;
        // SAFETY: the caller vouches for the tile.
        unsafe {
            let mut p = *self.scores.add(at).cast::<Floats>();
            let mut ds = *self.dp.add(at).cast::<Floats>();
            let lse = &*self.lse.as_ptr().add(b * BLOCK).cast::<Floats>();
            let d = &*self.d.as_ptr().add(b * BLOCK).cast::<Floats>();
            for l in 0..BLOCK {
                let x = p[l] - lse[l];
                // A score beyond lse is a sign of scores beyond f32: infinity, not a wrong number.
                p[l] = exp2(if x > 128.0 { 128.0 } else { x });
                ds[l] = p[l] * (ds[l] - d[l]);
            }
            (p, ds)
        }
    }
}

multiversion! {
    /// P in the place of the scores, dS in the place of dp.
    pub(super) fn in_place(tile: Tile<'_>) {
        for row in 0..tile.rows {
            for b in 0..tile.lse.len() / BLOCK {
                let at = row * tile.row + b * BLOCK;
                // SAFETY: the caller lays out the tile.
                unsafe {
                    let (p, ds) = tile.block(row, b);
                    *tile.scores.add(at).cast() = p;
                    *tile.dp.add(at).cast() = ds;
                }
            }
        }
    }
}

/// Where bf16 go: P and dS by rows, and dS as words of two rows.
#[derive(Clone, Copy)]
pub(super) struct Rounded {
    pub p: *mut u16,
    pub ds: *mut u16,
    pub row: usize,
    pub pairs: *mut u32,
    pub pairs_row: usize,
}

#[inline(always)]
unsafe fn rounded<N: Narrow>(tile: Tile<'_>, to: Rounded, by: N) {
    for row in (0..tile.rows).step_by(2) {
        for b in 0..tile.lse.len() / BLOCK {
            let at = row * to.row + b * BLOCK;
            // SAFETY: the caller lays out both; `by` fits the processor.
            unsafe {
                let (p, ds) = tile.block(row, b);
                *to.p.add(at).cast() = by.narrow(&p);
                let low = by.narrow(&ds);
                *to.ds.add(at).cast() = low;
                let (p, ds) = tile.block(row + 1, b);
                *to.p.add(at + to.row).cast() = by.narrow(&p);
                let high = by.narrow(&ds);
                *to.ds.add(at + to.row).cast() = high;
                let pairs = to.pairs.add(row / 2 * to.pairs_row + b * BLOCK);
                let pairs = &mut *pairs.cast::<[u32; BLOCK]>();
                for l in 0..BLOCK {
                    pairs[l] = u32::from(low[l]) | u32::from(high[l]) << 16;
                }
            }
        }
    }
}

narrowing! {
    /// P and dS, rounded to bf16; the number of rows is even.
    ///
    /// # Safety
    /// The tile and the room for the results are valid.
    pub(super) fn to_bf16 = rounded(tile: Tile<'_>, to: Rounded)
}

#[inline(always)]
unsafe fn products<A: Copy, B: Copy>(
    a: (*const A, isize, impl Fn(A) -> f32),
    b: (*const B, isize, impl Fn(B) -> f32),
    width: usize,
    sums: &mut [f32],
) {
    for (row, sum) in sums.iter_mut().enumerate() {
        // SAFETY: the caller vouches for the rows.
        let (from_a, from_b) = unsafe {
            (
                std::slice::from_raw_parts(a.0.offset(row as isize * a.1), width),
                std::slice::from_raw_parts(b.0.offset(row as isize * b.1), width),
            )
        };
        let mut lanes = [0.0f32; BLOCK];
        let (mut blocks_a, mut blocks_b) = (from_a.chunks_exact(BLOCK), from_b.chunks_exact(BLOCK));
        for (x, y) in (&mut blocks_a).zip(&mut blocks_b) {
            for l in 0..BLOCK {
                lanes[l] = a.2(x[l]).mul_add(b.2(y[l]), lanes[l]);
            }
        }
        let rest = blocks_a.remainder().iter().zip(blocks_b.remainder());
        for (lane, (&x, &y)) in lanes.iter_mut().zip(rest) {
            *lane = a.2(x).mul_add(b.2(y), *lane);
        }
        *sum += fold(&lanes, |a, b| a + b);
    }
}

multiversion! {
    /// Adds the products of rows of f32, so many elements apart, to `sums`.
    pub(super) fn products_f32(
        a: *const f32,
        a_row: isize,
        b: *const f32,
        b_row: isize,
        width: usize,
        sums: &mut [f32],
    ) {
        // SAFETY: the caller vouches for the rows.
        unsafe { products((a, a_row, |x| x), (b, b_row, |x| x), width, sums) }
    }
}

multiversion! {
    /// As `products_f32`, of bf16.
    pub(super) fn products_bf16(
        a: *const u16,
        a_row: isize,
        b: *const u16,
        b_row: isize,
        width: usize,
        sums: &mut [f32],
    ) {
        // SAFETY: the caller vouches for the rows.
        unsafe { products((a, a_row, from_bf16), (b, b_row, from_bf16), width, sums) }
    }
}
