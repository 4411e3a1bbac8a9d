//! The online softmax of a few rows of scores (Milakov and Gimelshein 2018; Dao et al. 2022).

use super::exponent::{BLOCK, Floats, Narrow, exp2, fold, masked, narrowing};
use crate::kernels::pattern::TILE;
use crate::math;
use crate::simd::{Simd, multiversion};

/// Statistics of a tile of queries.
#[repr(C, align(64))]
pub(crate) struct Stats {
    /// The sum of exponentials so far, in lanes that are folded in the end.
    pub sums: [Floats; TILE],
    /// The largest scores of a row, lane by lane.
    tops: [Floats; TILE],
    /// The maximum so far, times log2(e).
    pub max: [f32; TILE],
    /// What sums and outputs so far were multiplied with last, for the new maximum.
    pub factor: [f32; TILE],
}

impl Stats {
    /// Nothing seen yet.
    pub fn clear(&mut self) {
        self.sums = [[0.0; BLOCK]; TILE];
        self.max = [f32::NEG_INFINITY; TILE];
        self.factor = [1.0; TILE];
    }
}

/// Scores of a tile of queries: rows of whole blocks, and the words from row to row.
#[derive(Clone, Copy)]
pub(crate) struct Scores {
    pub data: *mut f32,
    pub row: usize,
    pub rows: usize,
    pub blocks: usize,
}

/// A NaN among the scores does not become the maximum, but its exponential is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

multiversion! {
    /// The largest scores of each row. Apart from where they are folded: folding makes the compiler
    /// take the whole loop to short vectors.
    fn tops(scores: Scores, tops: &mut [Floats; TILE]) {
        for (i, to) in tops.iter_mut().enumerate().take(scores.rows) {
            let row = scores.data.wrapping_add(i * scores.row).cast::<Floats>();
            let mut top = [f32::NEG_INFINITY; BLOCK];
            for b in 0..scores.blocks {
                // SAFETY: the caller lays out the rows of scores.
                let block = unsafe { &*row.add(b) };
                for l in 0..BLOCK {
                    top[l] = larger(top[l], block[l]);
                }
            }
            *to = top;
        }
    }
}

/// One row: the new maximum, then exponentials against it, which `put` stores by blocks.
#[inline(always)]
unsafe fn row(
    scores: *const Floats,
    blocks: usize,
    stats: &mut Stats,
    i: usize,
    mut put: impl FnMut(usize, &Floats),
) {
    let max = larger(stats.max[i], fold(&stats.tops[i], larger));
    // SAFETY: the caller vouches for the blocks of the row.
    unsafe {
        // A query that has seen nothing yet has no maximum to subtract.
        let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let factor = exp2(stats.max[i] - base);
        stats.max[i] = max;
        stats.factor[i] = factor;
        let mut sums = stats.sums[i];
        for sum in &mut sums {
            *sum *= factor;
        }
        for b in 0..blocks {
            let mut block = *scores.add(b);
            for l in 0..BLOCK {
                block[l] = exp2(block[l] - base);
                sums[l] += block[l];
            }
            put(b, &block);
        }
        stats.sums[i] = sums;
    }
}

multiversion! {
    fn replace(scores: Scores, stats: &mut Stats) {
        for i in 0..scores.rows {
            let to = scores.data.wrapping_add(i * scores.row).cast::<Floats>();
            // SAFETY: the caller lays out the rows of scores.
            unsafe { row(to, scores.blocks, stats, i, |b, block| *to.add(b) = *block) }
        }
    }
}

/// Exponentials in the place of the scores.
///
/// # Safety
/// The rows of scores are valid.
pub(crate) unsafe fn in_place(simd: Simd, scores: Scores, stats: &mut Stats) {
    tops(simd, scores, &mut stats.tops);
    replace(simd, scores, stats);
}

/// Exponentials as bf16 in rows at `to`, so many elements apart.
///
/// # Safety
/// Both have room for the rows and blocks.
pub(crate) unsafe fn to_bf16(
    simd: Simd,
    scores: Scores,
    to: *mut u16,
    to_row: usize,
    stats: &mut Stats,
) {
    tops(simd, scores, &mut stats.tops);
    // SAFETY: forwarded.
    unsafe { round(simd, scores, to, to_row, stats) }
}

#[inline(always)]
unsafe fn rounded<N: Narrow>(
    scores: Scores,
    to: *mut u16,
    to_row: usize,
    stats: &mut Stats,
    by: N,
) {
    for i in 0..scores.rows {
        let from = scores.data.wrapping_add(i * scores.row).cast::<Floats>();
        let to = to.wrapping_add(i * to_row).cast::<[u16; BLOCK]>();
        // SAFETY: the caller lays out both; `by` fits the processor.
        unsafe { row(from, scores.blocks, stats, i, |b, block| *to.add(b) = by.narrow(block)) }
    }
}

narrowing! {
    fn round = rounded(
        scores: Scores,
        to: *mut u16,
        to_row: usize,
        stats: &mut Stats,
    )
}

multiversion! {
    /// Hides what the words (one a row, one bit a column) do not allow, in one block of each row.
    pub(crate) fn hide(scores: *mut f32, row: usize, words: &[u32]) {
        for (i, &word) in words.iter().enumerate() {
            if word != u32::MAX {
                // SAFETY: the caller lays out the rows of scores.
                masked(unsafe { &mut *scores.add(i * row).cast::<Floats>() }, word);
            }
        }
    }
}

multiversion! {
    /// Rows of `o`, `width` floats each, times their factors.
    pub(crate) fn rescale(o: &mut [f32], width: usize, factors: &[f32]) {
        for (row, &factor) in o.chunks_exact_mut(width).zip(factors) {
            if factor != 1.0 {
                row.iter_mut().for_each(|x| *x *= factor);
            }
        }
    }
}

multiversion! {
    /// Divides rows of `o` by their sums; lse of each row.
    pub(crate) fn finish(o: &mut [f32], width: usize, stats: &Stats, lse: &mut [f32; TILE]) {
        let mut sums = [0.0; TILE];
        for (sum, lanes) in sums.iter_mut().zip(&stats.sums).take(o.len() / width) {
            *sum = fold(lanes, |a, b| a + b);
        }
        for i in 0..TILE {
            // Without a key, the sum is 0, and so is the output.
            lse[i] = stats.max[i].mul_add(std::f32::consts::LN_2, math::ln(sums[i]));
            lse[i] = if sums[i] == 0.0 { f32::NEG_INFINITY } else { lse[i] };
            sums[i] = if sums[i] == 0.0 { 0.0 } else { 1.0 / sums[i] };
        }
        for (row, &inverse) in o.chunks_exact_mut(width).zip(&sums) {
            for x in row {
                *x *= inverse;
            }
        }
    }
}
