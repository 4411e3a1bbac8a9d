//! Attention forward: `o = softmax(scale q k^T, masked) v` and `lse`, tile by tile.
//!
//! Scores of a tile are held transposed, keys down and queries across, so that the running maximum
//! and sum of the online softmax (Milakov and Gimelshein 2018; Dao et al. 2022) work on whole
//! vectors of queries. A task is one (batch, kv head, group head, tile of queries); scores never
//! exceed one tile.

use std::sync::Arc;

use crate::axes::Space;
use crate::kernel::{
    Carve, Dtype, Kernel, KernelError, Operand, Ptr, Scalars, per_worker_bytes, scratch_for,
};
use crate::kernels::convert;
use crate::kernels::lanes::{Left, Rows, multiply, padded};
use crate::kernels::pattern::{BlockList, MAX_TILE};
use crate::kernels::tile::check_output;
use crate::math;
use crate::pool::Pool;
use crate::simd::{Simd, multiversion};

/// Shapes and storage of an attention.
///
/// The iteration space of every operand is [batch axes..., kv, group, position, width]; k and v
/// have stride 0 on group; lse, its gradient and D lack width (stride 0). The head that a pattern
/// sees is `kv * group_size + group`.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Sizes of the batch axes.
    pub batch: Vec<usize>,
    /// Key/value heads.
    pub kv: usize,
    /// Query heads that share a key/value head.
    pub group: usize,
    /// Queries of one run; the pattern may have more (decoding).
    pub queries: usize,
    /// Width of queries and keys.
    pub key_width: usize,
    /// Width of values.
    pub value_width: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// The allowed tiles.
    pub pattern: Arc<BlockList>,
}

impl Attention {
    /// Heads over batch and kv, the outer loop of both directions.
    pub(crate) fn outer(&self) -> usize {
        self.batch.iter().product::<usize>() * self.kv
    }

    /// The space [batch..., kv] and the strides [group, position, width] of each operand.
    pub(crate) fn place(
        &self,
        operands: &[&Operand],
    ) -> Result<(Space, Vec<[isize; 3]>), KernelError> {
        let rank = self.batch.len() + 4;
        let mut strides = Vec::new();
        let mut inner = Vec::new();
        for (operand, own) in operands.iter().enumerate() {
            let got = own.strides.len();
            if got != rank {
                return Err(KernelError::Rank { kernel: "attend", operand, wanted: rank, got });
            }
            if own.dtype == Dtype::U32 {
                let what = format!("operand {operand} holds u32; attention takes f32 and bf16");
                return Err(KernelError::Unsupported { kernel: "attend", what });
            }
            let (outer, rest) = own.strides.split_at(rank - 3);
            strides.push(outer.to_vec());
            inner.push([rest[0], rest[1], rest[2]]);
        }
        let heads = self.pattern.heads;
        if heads != 1 && heads != self.kv * self.group {
            let what = format!(
                "the pattern has {heads} heads, the attention {} x {}",
                self.kv, self.group
            );
            return Err(KernelError::Unsupported { kernel: "attend", what });
        }
        let sizes = [&self.batch[..], &[self.kv]].concat();
        let mut space = Space::new("attend", &sizes, strides)?;
        let count = space.sizes.len();
        space.collapse(count);
        Ok((space.finish("attend")?, inner))
    }

    /// Sizes of the iteration space with this position length and width.
    pub(crate) fn sizes(&self, positions: usize, width: usize) -> Vec<usize> {
        [&self.batch[..], &[self.kv, self.group, positions, width]].concat()
    }
}

/// A prepared forward. Addresses: q, k, v, o, lse.
///
/// `Scalars::position` is the place of the first query in the pattern. If it is set, or if the
/// pattern has more queries than a run, keys after a query's own position are never read.
#[derive(Clone, Debug)]
pub struct Attend {
    spec: Attention,
    space: Space,
    inner: Vec<[isize; 3]>,
    dtypes: Vec<Dtype>,
}

const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;
const O: usize = 3;
const LSE: usize = 4;

impl Attend {
    /// Checks shapes and storage; `operands` are q, k, v, o, lse (f32).
    ///
    /// # Errors
    /// If strides do not match, an output repeats, or the pattern does not fit.
    pub fn new(spec: &Attention, operands: [&Operand; 5]) -> Result<Attend, KernelError> {
        let (space, inner) = spec.place(&operands)?;
        if spec.queries > spec.pattern.queries {
            let what =
                format!("{} queries, but the pattern has {}", spec.queries, spec.pattern.queries);
            return Err(KernelError::Unsupported { kernel: "attend", what });
        }
        check_output("attend", O, operands[O], &spec.sizes(spec.queries, spec.value_width))?;
        check_output("attend", LSE, operands[LSE], &spec.sizes(spec.queries, 1))?;
        let dtypes = operands.iter().map(|operand| operand.dtype).collect();
        Ok(Attend { spec: spec.clone(), space, inner, dtypes })
    }

    /// Floats of a worker: q^T, k, v, scores, o, and three rows of statistics.
    fn worker_floats(&self) -> usize {
        let (d, w) = (self.spec.key_width, padded(self.spec.value_width));
        MAX_TILE * (padded(d) + d + 2 * w + MAX_TILE + 3)
    }

    /// One tile of queries of one head: `rows` queries from `first` (of the run), all in pattern
    /// tile `tile` starting at bit `bit`.
    unsafe fn tile(&self, run: &Run<'_>, outer: usize, group: usize, piece: Piece, work: *mut f32) {
        let spec = &self.spec;
        let (simd, d, w) = (run.simd, spec.key_width, padded(spec.value_width));
        let n = padded(piece.rows);
        let (qt, k) = (work, work.wrapping_add(MAX_TILE * padded(d)));
        let v = k.wrapping_add(MAX_TILE * d);
        let scores = v.wrapping_add(MAX_TILE * w);
        let o = scores.wrapping_add(MAX_TILE * MAX_TILE);
        let stats = o.wrapping_add(MAX_TILE * w);
        // SAFETY: the parts of scratch are disjoint and sized for MAX_TILE; the caller of `run`
        // vouches for the operands.
        unsafe {
            let max = std::slice::from_raw_parts_mut(stats, n);
            let sum = std::slice::from_raw_parts_mut(stats.add(MAX_TILE), n);
            let factor = std::slice::from_raw_parts_mut(stats.add(2 * MAX_TILE), n);
            max.fill(f32::NEG_INFINITY);
            sum.fill(0.0);
            std::slice::from_raw_parts_mut(o, piece.rows * w).fill(0.0);
            let q = self.at(run, Q, outer, group, piece.first);
            q.transposed(simd, qt, [piece.rows, d], n);
            std::slice::from_raw_parts_mut(qt, d * n).iter_mut().for_each(|x| *x *= spec.scale);
            let head = (outer % spec.kv) * spec.group + group;
            for entry in spec.pattern.row(head, piece.tile) {
                let j0 = entry.keys as usize * spec.pattern.tile_keys;
                let keys = spec.pattern.tile_keys.min(spec.pattern.keys - j0);
                let keys = keys.min((piece.visible).saturating_sub(j0));
                if keys == 0 {
                    break;
                }
                let key = self.at(run, K, outer, group, j0).as_left(simd, k, [keys, d]);
                let out = Rows { data: scores, row: n };
                multiply(simd, [keys, n, d], key, Rows { data: qt, row: n }, out, false);
                let tile = std::slice::from_raw_parts_mut(scores, keys * n);
                mask(simd, tile, n, spec.pattern.mask(entry.mask), piece, j0);
                online_softmax(simd, tile, n, max, sum, factor);
                rescale(simd, std::slice::from_raw_parts_mut(o, piece.rows * w), w, factor);
                let value = self.at(run, V, outer, group, j0);
                let value = value.as_rows(simd, v, [keys, spec.value_width]);
                let p = Left { data: scores, row: 1, col: n as isize };
                multiply(simd, [piece.rows, w, keys], p, value, Rows { data: o, row: w }, true);
            }
            for i in 0..piece.rows {
                let inverse = if sum[i] > 0.0 || sum[i].is_nan() { 1.0 / sum[i] } else { 0.0 };
                let row = std::slice::from_raw_parts_mut(o.add(i * w), w);
                row.iter_mut().for_each(|x| *x *= inverse);
                let lse = if sum[i] == 0.0 { f32::NEG_INFINITY } else { max[i] + sum[i].ln() };
                self.at(run, O, outer, group, piece.first + i).store(simd, row, spec.value_width);
                self.at(run, LSE, outer, group, piece.first + i).store(simd, &[lse], 1);
            }
        }
    }

    fn at(&self, run: &Run<'_>, operand: usize, outer: usize, group: usize, i: usize) -> Matrix {
        let [by_group, row, col] = self.inner[operand];
        let offset =
            self.space.offset(operand, outer) + group as isize * by_group + i as isize * row;
        Matrix { ptr: run.ptrs[operand], dtype: self.dtypes[operand], offset, row, col }
    }

    /// The pieces that the queries of a run fall into: at most one more than their tiles.
    fn piece(&self, position: usize, number: usize) -> Option<Piece> {
        let side = self.spec.pattern.tile_queries;
        let tile = position / side + number;
        let begin = (tile * side).max(position);
        let end =
            ((tile + 1) * side).min(position + self.spec.queries).min(self.spec.pattern.queries);
        let decoding = position > 0 || self.spec.queries < self.spec.pattern.queries;
        (begin < end).then(|| Piece {
            first: begin - position,
            rows: end - begin,
            tile,
            bit: begin % side,
            visible: if decoding { end } else { usize::MAX },
            causal_from: decoding.then_some(begin),
        })
    }
}

struct Run<'a> {
    simd: Simd,
    ptrs: &'a [Ptr],
}

/// Consecutive queries within one tile of the pattern.
#[derive(Clone, Copy)]
struct Piece {
    /// First query, counted in the run.
    first: usize,
    rows: usize,
    tile: usize,
    /// Place of the first query in its tile.
    bit: usize,
    /// Keys from here on are not there yet.
    visible: usize,
    /// Position of the first query, if later keys are to be hidden from each query.
    causal_from: Option<usize>,
}

/// A matrix within an operand.
#[derive(Clone, Copy)]
pub(crate) struct Matrix {
    pub ptr: Ptr,
    pub dtype: Dtype,
    pub offset: isize,
    pub row: isize,
    pub col: isize,
}

impl Matrix {
    /// Copies `[rows, cols]` to `to` as `[cols, width]`, zeros beyond `rows`.
    pub unsafe fn transposed(
        self,
        simd: Simd,
        to: *mut f32,
        [rows, cols]: [usize; 2],
        width: usize,
    ) {
        let from = (self.ptr, self.dtype);
        for c in 0..cols {
            let offset = self.offset + c as isize * self.col;
            // SAFETY: the caller vouches for the matrix and for `cols * width` floats.
            unsafe {
                convert::load(simd, to.add(c * width), from, offset, self.row, rows);
                std::slice::from_raw_parts_mut(to.add(c * width + rows), width - rows).fill(0.0);
            }
        }
    }

    /// The matrix as a left factor: in place if f32, else copied to `stage`.
    pub unsafe fn as_left(self, simd: Simd, stage: *mut f32, [rows, cols]: [usize; 2]) -> Left {
        if self.dtype == Dtype::F32 {
            return Left { data: self.ptr.at(self.offset), row: self.row, col: self.col };
        }
        for r in 0..rows {
            let (from, offset) = ((self.ptr, self.dtype), self.offset + r as isize * self.row);
            // SAFETY: the caller vouches for the matrix and for `rows * cols` floats.
            unsafe { convert::load(simd, stage.add(r * cols), from, offset, self.col, cols) }
        }
        Left { data: stage, row: cols as isize, col: 1 }
    }

    /// The matrix with rows of padded width: in place if it is so already, else copied to `stage`.
    pub unsafe fn as_rows(self, simd: Simd, stage: *mut f32, [rows, cols]: [usize; 2]) -> Rows {
        let width = padded(cols);
        if self.dtype == Dtype::F32 && self.col == 1 && width == cols && self.row >= 0 {
            return Rows { data: self.ptr.at(self.offset), row: self.row as usize };
        }
        for r in 0..rows {
            let (from, offset) = ((self.ptr, self.dtype), self.offset + r as isize * self.row);
            // SAFETY: the caller vouches for the matrix and for `rows * width` floats.
            unsafe {
                convert::load(simd, stage.add(r * width), from, offset, self.col, cols);
                std::slice::from_raw_parts_mut(stage.add(r * width + cols), width - cols).fill(0.0);
            }
        }
        Rows { data: stage, row: width }
    }

    /// Writes one row.
    pub unsafe fn store(self, simd: Simd, row: &[f32], cols: usize) {
        let to = (self.ptr, self.dtype);
        // SAFETY: the caller vouches for the row of the operand.
        unsafe { convert::store(simd, row.as_ptr(), to, self.offset, self.col, cols) }
    }
}

/// Sets scores of forbidden pairs to -infinity.
fn mask(simd: Simd, scores: &mut [f32], n: usize, words: Option<&[u64]>, piece: Piece, j0: usize) {
    let keys = scores.len() / n;
    if let Some(words) = words {
        mask_words(simd, scores, n, &words[..keys], piece.bit as u32);
    }
    if let Some(first) = piece.causal_from {
        for (j, row) in scores.chunks_exact_mut(n).enumerate() {
            let hidden = (j0 + j).saturating_sub(first).min(n);
            row[..hidden].fill(f32::NEG_INFINITY);
        }
    }
}

multiversion! {
    /// Row `j` keeps the queries whose bits, from `bit` on, are set in `words[j]`.
    pub(crate) fn mask_words(scores: &mut [f32], n: usize, words: &[u64], bit: u32) {
        for (row, &word) in scores.chunks_exact_mut(n).zip(words) {
            let word = word >> bit;
            for (half, part) in row.chunks_mut(32).enumerate() {
                let word = (word >> (32 * half)) as u32;
                for (i, x) in part.iter_mut().enumerate() {
                    *x = if (word >> i) & 1 == 0 { f32::NEG_INFINITY } else { *x };
                }
            }
        }
    }
}

multiversion! {
    /// Turns scores (keys down, `n` queries across) into exponentials against the running maximum;
    /// `factor` is what sums and outputs so far must be multiplied with.
    fn online_softmax(
        scores: &mut [f32],
        n: usize,
        max: &mut [f32],
        sum: &mut [f32],
        factor: &mut [f32],
    ) {
        let (max, sum, factor) = (&mut max[..n], &mut sum[..n], &mut factor[..n]);
        factor.copy_from_slice(max);
        for row in scores.chunks_exact(n) {
            for i in 0..n {
                max[i] = math::max(max[i], row[i]);
            }
        }
        for i in 0..n {
            // A query that has seen nothing yet has no maximum to subtract.
            let seen = max[i] != f32::NEG_INFINITY;
            factor[i] = if seen { math::exp(factor[i] - max[i]) } else { 1.0 };
            sum[i] *= factor[i];
        }
        for row in scores.chunks_exact_mut(n) {
            for i in 0..n {
                let base = if max[i] == f32::NEG_INFINITY { 0.0 } else { max[i] };
                row[i] = math::exp(row[i] - base);
                sum[i] += row[i];
            }
        }
    }
}

multiversion! {
    fn rescale(o: &mut [f32], w: usize, factor: &[f32]) {
        for (row, &factor) in o.chunks_exact_mut(w).zip(factor) {
            if factor != 1.0 {
                row.iter_mut().for_each(|x| *x *= factor);
            }
        }
    }
}

impl Kernel for Attend {
    fn operands(&self) -> usize {
        5
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        scratch_for(&[per_worker_bytes(threads, self.worker_floats() * size_of::<f32>())])
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], scalars: &Scalars, scratch: &mut [u8]) {
        assert_eq!(ptrs.len(), 5, "attend: q, k, v, o, lse");
        let end = scalars.position + self.spec.queries;
        assert!(end <= self.spec.pattern.queries, "attend: queries beyond the pattern");
        let run = Run { simd: pool.simd(), ptrs };
        let bytes = self.worker_floats() * size_of::<f32>();
        let workers = Carve::new(scratch).per_worker(pool.threads(), bytes);
        let pieces = self.spec.queries.div_ceil(self.spec.pattern.tile_queries) + 1;
        let heads = self.spec.outer() * self.spec.group;
        // Long rows last in a causal pattern: hand them out first.
        pool.run(heads * pieces, &|task, worker| {
            let (number, head) = (pieces - 1 - task / heads, task % heads);
            let Some(piece) = self.piece(scalars.position, number) else { return };
            let (outer, group) = (head / self.spec.group, head % self.spec.group);
            // SAFETY: the caller vouches for the operands; tasks own disjoint rows of o and lse.
            unsafe { self.tile(&run, outer, group, piece, workers.of(worker).at(0)) }
        });
    }
}
