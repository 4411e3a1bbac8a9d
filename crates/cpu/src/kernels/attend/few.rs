//! Attention of so few queries that packing keys and values would cost more than the products: a
//! step of decoding reads each key and value once, where it lies.

use super::exponent::{Floats, fold, masked};
use super::softmax::{Scores, Stats, in_place};
use super::spec::Matrix;
use crate::kernel::Dtype;
use crate::kernels::pattern::TILE;
use crate::simd::{Simd, multiversion};

/// Lanes that sums over the width are kept in.
const LANES: usize = 32;

/// One query and what it has gathered.
pub(crate) struct Query<'a> {
    pub simd: Simd,
    /// The query, scaled.
    pub q: &'a [f32],
    /// Its output, not yet divided by the sum.
    pub o: &'a mut [f32],
    pub stats: &'a mut Stats,
    /// Room for a tile of keys or values.
    pub stage: &'a mut [f32],
}

impl Query<'_> {
    /// Takes in one tile of `keys` keys, of which the bits of `word` allow some.
    ///
    /// # Safety
    /// The keys and values are valid for reads.
    pub unsafe fn tile(&mut self, k: Matrix, v: Matrix, keys: usize, word: u32) {
        let (simd, d, w) = (self.simd, self.q.len(), self.o.len());
        let mut scores: Floats = [f32::NEG_INFINITY; TILE];
        // SAFETY: forwarded; rows of `d` and `w` floats.
        unsafe {
            let (k, row) = rows(simd, k, [keys, d], self.stage);
            dots(simd, k, row, self.q, &mut scores[..keys]);
            masked(&mut scores, word);
            let data = scores.as_mut_ptr();
            in_place(simd, Scores { data, row: TILE, rows: 1, blocks: 1 }, self.stats);
            let factor = self.stats.factor[0];
            let (v, row) = rows(simd, v, [keys, w], self.stage);
            gather(simd, v, row, &scores[..keys], factor, self.o);
        }
    }
}

/// The rows of a matrix as f32: where they lie, or copied to `stage`.
unsafe fn rows(
    simd: Simd,
    matrix: Matrix,
    [rows, cols]: [usize; 2],
    stage: &mut [f32],
) -> (*const f32, isize) {
    if matrix.dtype == Dtype::F32 && matrix.col == 1 {
        return (matrix.ptr.at(matrix.offset), matrix.row);
    }
    for (row, to) in stage.chunks_exact_mut(cols).enumerate().take(rows) {
        // SAFETY: the caller vouches for the rows.
        unsafe { matrix.from(row).load(simd, to) }
    }
    (stage.as_ptr(), cols as isize)
}

multiversion! {
    /// Scores of one query against rows of keys.
    fn dots(k: *const f32, row: isize, q: &[f32], scores: &mut [f32]) {
        for (j, score) in scores.iter_mut().enumerate() {
            // SAFETY: the caller vouches for the rows.
            let k = unsafe { std::slice::from_raw_parts(k.offset(j as isize * row), q.len()) };
            let mut sums = [0.0; LANES];
            let (mut q, mut k) = (q.chunks_exact(LANES), k.chunks_exact(LANES));
            for (q, k) in (&mut q).zip(&mut k) {
                for l in 0..LANES {
                    sums[l] = q[l].mul_add(k[l], sums[l]);
                }
            }
            for (sum, (&q, &k)) in sums.iter_mut().zip(q.remainder().iter().zip(k.remainder())) {
                *sum = q.mul_add(k, *sum);
            }
            *score = fold(&sums, |a, b| a + b);
        }
    }
}

multiversion! {
    /// `o = factor o + p v`, leaving out what has no weight.
    fn gather(v: *const f32, row: isize, p: &[f32], factor: f32, o: &mut [f32]) {
        for x in o.iter_mut() {
            *x *= factor;
        }
        for (j, &p) in p.iter().enumerate() {
            if p != 0.0 {
                // SAFETY: the caller vouches for the rows.
                let v = unsafe { std::slice::from_raw_parts(v.offset(j as isize * row), o.len()) };
                for (o, &v) in o.iter_mut().zip(v) {
                    *o = p.mul_add(v, *o);
                }
            }
        }
    }
}
