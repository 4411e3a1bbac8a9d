//! Attention of so few queries that packing keys and values would cost more than the products: a
//! step of decoding reads each key and value once, where it lies.

use super::exponent::{BLOCK, Floats, fold, masked};
use super::heads::Matrix;
use super::softmax::{Scores, Stats, in_place};
use crate::kernels::pattern::TILE;
use crate::math::from_bf16;
use crate::simd::{Simd, multiversion};
use aerogel_graph::DType;

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
        // SAFETY: forwarded; rows of `d` and `w` elements.
        unsafe {
            match rows(simd, k, [keys, d], self.stage) {
                Rows::F32(k, row) => dots_f32(simd, k, row, self.q, &mut scores[..keys]),
                Rows::Bf16(k, row) => dots_bf16(simd, k, row, self.q, &mut scores[..keys]),
            }
            masked(&mut scores, word);
            let data = scores.as_mut_ptr();
            in_place(simd, Scores { data, row: TILE, rows: 1, blocks: 1 }, self.stats);
            let (p, factor) = (&scores[..keys], self.stats.factor[0]);
            match rows(simd, v, [keys, w], self.stage) {
                Rows::F32(v, row) => gather_f32(simd, v, row, p, factor, self.o),
                Rows::Bf16(v, row) => gather_bf16(simd, v, row, p, factor, self.o),
            }
        }
    }
}

/// Rows of consecutive elements, and the elements from row to row.
enum Rows {
    F32(*const f32, isize),
    Bf16(*const u16, isize),
}

/// The rows of a matrix: where they lie, or copied to `stage`.
unsafe fn rows(simd: Simd, matrix: Matrix, [rows, cols]: [usize; 2], stage: &mut [f32]) -> Rows {
    match matrix.dtype {
        DType::F32 if matrix.col == 1 => Rows::F32(matrix.ptr.at(matrix.offset), matrix.row),
        DType::Bf16 if matrix.col == 1 => Rows::Bf16(matrix.ptr.at(matrix.offset), matrix.row),
        _ => {
            for (row, to) in stage.chunks_exact_mut(cols).enumerate().take(rows) {
                // SAFETY: the caller vouches for the rows.
                unsafe { matrix.from(row).load(simd, to) }
            }
            Rows::F32(stage.as_ptr(), cols as isize)
        }
    }
}

/// Scores of one query against rows of keys.
#[inline(always)]
unsafe fn dots<T: Copy>(
    k: *const T,
    row: isize,
    q: &[f32],
    scores: &mut [f32],
    widen: impl Fn(T) -> f32,
) {
    for (j, score) in scores.iter_mut().enumerate() {
        // SAFETY: the caller vouches for the rows.
        let k = unsafe { std::slice::from_raw_parts(k.offset(j as isize * row), q.len()) };
        let mut sums = [0.0; BLOCK];
        let (mut q, mut k) = (q.chunks_exact(BLOCK), k.chunks_exact(BLOCK));
        for (q, k) in (&mut q).zip(&mut k) {
            for l in 0..BLOCK {
                sums[l] = q[l].mul_add(widen(k[l]), sums[l]);
            }
        }
        for (sum, (&q, &k)) in sums.iter_mut().zip(q.remainder().iter().zip(k.remainder())) {
            *sum = q.mul_add(widen(k), *sum);
        }
        *score = fold(&sums, |a, b| a + b);
    }
}

/// `o = factor o + p v`, leaving out what has no weight.
#[inline(always)]
unsafe fn gather<T: Copy>(
    v: *const T,
    row: isize,
    p: &[f32],
    factor: f32,
    o: &mut [f32],
    widen: impl Fn(T) -> f32,
) {
    for x in o.iter_mut() {
        *x *= factor;
    }
    for (j, &p) in p.iter().enumerate() {
        if p != 0.0 {
            // SAFETY: the caller vouches for the rows.
            let v = unsafe { std::slice::from_raw_parts(v.offset(j as isize * row), o.len()) };
            for (o, &v) in o.iter_mut().zip(v) {
                *o = p.mul_add(widen(v), *o);
            }
        }
    }
}

multiversion! {
    fn dots_f32(k: *const f32, row: isize, q: &[f32], scores: &mut [f32]) {
        // SAFETY: the caller vouches for the rows.
        unsafe { dots(k, row, q, scores, |x| x) }
    }
}

multiversion! {
    fn dots_bf16(k: *const u16, row: isize, q: &[f32], scores: &mut [f32]) {
        // SAFETY: as above.
        unsafe { dots(k, row, q, scores, from_bf16) }
    }
}

multiversion! {
    fn gather_f32(v: *const f32, row: isize, p: &[f32], factor: f32, o: &mut [f32]) {
        // SAFETY: as above.
        unsafe { gather(v, row, p, factor, o, |x| x) }
    }
}

multiversion! {
    fn gather_bf16(v: *const u16, row: isize, p: &[f32], factor: f32, o: &mut [f32]) {
        // SAFETY: as above.
        unsafe { gather(v, row, p, factor, o, from_bf16) }
    }
}
