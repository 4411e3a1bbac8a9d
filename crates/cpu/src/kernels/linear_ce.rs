//! Linear layer and cross entropy in one pass: loss, dx and dw, without the logits of a batch.
//!
//! Rows go in chunks whose logits fit in scratch. For each chunk: logits by ranges of the
//! vocabulary; then per row the loss, and the logits become their gradients in place; then dx by
//! blocks and dw by ranges of the vocabulary, each with one owner that adds chunk after chunk.

use crate::kernel::{
    Carve, Dtype, Kernel, KernelError, Operand, Ptr, Scalars, per_worker_bytes, scratch_for,
};
use crate::kernels::convert;
use crate::kernels::ops;
use crate::kernels::product::{Matrix, product, staging};
use crate::kernels::tile::check_output;
use crate::math;
use crate::pool::Pool;
use crate::simd::{Simd, multiversion};

/// Logits kept in scratch at most, beyond the smallest chunk.
const LOGITS_BYTES: usize = 4 << 20;
const SMALLEST_CHUNK: usize = 16;
/// Vocabulary entries of a task.
const RANGE: usize = 512;
/// Blocks of dx.
const BLOCK_ROWS: usize = 128;
const BLOCK_COLS: usize = 64;

/// Shapes and storage; every operand has strides over [row, vocabulary, width], zero where it lacks
/// the axis.
#[derive(Clone, Debug)]
pub struct LinearCeSpec {
    /// Rows.
    pub rows: usize,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Width of x and w.
    pub width: usize,
    /// Inputs.
    pub x: Operand,
    /// Output layer.
    pub w: Operand,
    /// Targets, u32. One outside the vocabulary makes the loss NaN.
    pub targets: Operand,
    /// Weights of the rows, f32; all 1 if absent.
    pub weights: Option<Operand>,
    /// Gradient of x.
    pub dx: Option<Operand>,
    /// Gradient of w, f32.
    pub dw: Option<Operand>,
}

/// A prepared pass. Addresses: x, w, targets, loss (one f32: the weighted sum in nats), then those
/// of weights, dx, dw that the spec has, in this order.
#[derive(Clone, Debug)]
pub struct LinearCe {
    spec: LinearCeSpec,
    chunk: usize,
}

/// Addresses by name.
struct Io {
    x: Matrix,
    w: Matrix,
    targets: Ptr,
    loss: Ptr,
    weights: Option<Ptr>,
    dx: Option<Ptr>,
    dw: Option<Ptr>,
}

/// A chunk of rows.
#[derive(Clone, Copy)]
struct Chunk {
    first: usize,
    rows: usize,
}

struct Parts {
    logits: Ptr,
    /// Loss of each row of a chunk, f64.
    losses: Ptr,
}

impl LinearCe {
    /// Checks storage and chooses the chunk.
    ///
    /// # Errors
    /// If strides or types do not fit, or an output repeats.
    pub fn new(spec: &LinearCeSpec) -> Result<LinearCe, KernelError> {
        let kernel = "linear_ce";
        let float = |operand: &Operand| operand.dtype != Dtype::U32;
        let f32 =
            |operand: &Option<Operand>| operand.as_ref().is_none_or(|o| o.dtype == Dtype::F32);
        if !float(&spec.x)
            || !float(&spec.w)
            || spec.targets.dtype != Dtype::U32
            || !f32(&spec.weights)
            || !f32(&spec.dw)
            || spec.vocab == 0
        {
            let what =
                "wants x and w in f32 or bf16, targets in u32, weights and dw in f32, and a \
                        vocabulary"
                    .to_string();
            return Err(KernelError::Unsupported { kernel, what });
        }
        let all = [Some(&spec.x), Some(&spec.w), Some(&spec.targets), spec.weights.as_ref()];
        let all = all.into_iter().chain([spec.dx.as_ref(), spec.dw.as_ref()]).flatten();
        let mut wrong = all.enumerate().filter(|(_, own)| own.strides.len() != 3);
        if let Some((operand, own)) = wrong.next() {
            let got = own.strides.len();
            return Err(KernelError::Rank { kernel, operand, wanted: 3, got });
        }
        if let Some(dx) = &spec.dx {
            check_output(kernel, 4, dx, &[spec.rows, 1, spec.width])?;
        }
        if let Some(dw) = &spec.dw {
            check_output(kernel, 5, dw, &[1, spec.vocab, spec.width])?;
        }
        let fitting = LOGITS_BYTES / (spec.vocab * size_of::<f32>());
        let chunk = fitting.max(SMALLEST_CHUNK).min(spec.rows.max(1));
        Ok(LinearCe { spec: spec.clone(), chunk })
    }

    fn worker_floats(&self) -> usize {
        let (x, w) = (self.spec.x.dtype, self.spec.w.dtype);
        let logits = staging(self.chunk, RANGE, self.spec.width, x, w);
        let dx = BLOCK_ROWS * BLOCK_COLS
            + staging(BLOCK_ROWS, BLOCK_COLS, self.spec.vocab, Dtype::F32, w);
        let dw = staging(RANGE, self.spec.width, self.chunk, Dtype::F32, x);
        logits.max(dx).max(dw)
    }

    fn logits(&self, parts: &Parts, row: usize, entry: usize) -> Matrix {
        let offset = (row * self.spec.vocab + entry) as isize;
        let (row, col) = (self.spec.vocab as isize, 1);
        Matrix { ptr: parts.logits, dtype: Dtype::F32, offset, row, col }
    }

    unsafe fn forward(
        &self,
        simd: Simd,
        io: &Io,
        parts: &Parts,
        Chunk { first, rows }: Chunk,
        range: usize,
        stage: *mut f32,
    ) {
        let spec = &self.spec;
        let v0 = range * RANGE;
        let entries = RANGE.min(spec.vocab - v0);
        let to = self.logits(parts, 0, v0);
        let x = Matrix { offset: first as isize * io.x.row, ..io.x };
        // w is [vocabulary, width]; the product wants [width, vocabulary].
        let w = Matrix { offset: v0 as isize * io.w.row, row: io.w.col, col: io.w.row, ..io.w };
        let size = [rows, entries, spec.width];
        // SAFETY: the caller of `run` vouches for x and w; each range of logits has one owner.
        unsafe { product(simd, size, (to.ptr.at(to.offset), to.row, 1), false, 1.0, x, w, stage) }
    }

    /// Loss of one row; its logits become their gradients.
    unsafe fn row(&self, simd: Simd, io: &Io, parts: &Parts, first: usize, row: usize) {
        let spec = &self.spec;
        let at = |operand: &Operand| (first + row) as isize * operand.strides[0];
        // SAFETY: the caller of `run` vouches for targets and weights; each row has one owner.
        unsafe {
            let logits = self.logits(parts, row, 0);
            let logits =
                std::slice::from_raw_parts_mut(logits.ptr.at::<f32>(logits.offset), spec.vocab);
            let target = *io.targets.at::<u32>(at(&spec.targets)) as usize;
            let weight = match (io.weights, &spec.weights) {
                (Some(ptr), Some(operand)) => *ptr.at::<f32>(at(operand)),
                _ => 1.0,
            };
            let (mut max, mut sum) = (0.0, 0.0);
            ops::largest(simd, &mut max, logits);
            let hit = logits.get(target).copied().unwrap_or(f32::NAN);
            exponentials(simd, logits, max);
            ops::sum(simd, &mut sum, logits);
            let loss = f64::from(sum).ln() + f64::from(max) - f64::from(hit);
            // A row of weight 0 does not count, whatever its target.
            let loss = if weight == 0.0 { 0.0 } else { f64::from(weight) * loss };
            *parts.losses.at::<f64>(row as isize) = loss;
            scale(simd, logits, weight / sum);
            if let Some(logit) = logits.get_mut(target) {
                *logit -= weight;
            }
        }
    }

    unsafe fn dx(
        &self,
        simd: Simd,
        io: &Io,
        parts: &Parts,
        Chunk { first, rows }: Chunk,
        block: usize,
        work: *mut f32,
    ) {
        let (spec, Some(ptr), Some(dx)) = (&self.spec, io.dx, &self.spec.dx) else { return };
        let blocks = spec.width.div_ceil(BLOCK_COLS);
        let (r0, d0) = (block / blocks * BLOCK_ROWS, block % blocks * BLOCK_COLS);
        let (rows, cols) = (BLOCK_ROWS.min(rows - r0), BLOCK_COLS.min(spec.width - d0));
        let stage = work.wrapping_add(BLOCK_ROWS * BLOCK_COLS);
        let w = Matrix { offset: d0 as isize * io.w.col, ..io.w };
        let g = self.logits(parts, r0, 0);
        // SAFETY: the caller of `run` vouches for w and dx; each block of dx has one owner.
        unsafe {
            let to = (work, cols as isize, 1);
            product(simd, [rows, cols, spec.vocab], to, false, 1.0, g, w, stage);
            for row in 0..rows {
                let offset =
                    (first + r0 + row) as isize * dx.strides[0] + d0 as isize * dx.strides[2];
                let from = work.add(row * cols);
                convert::store(simd, from, (ptr, dx.dtype), offset, dx.strides[2], cols);
            }
        }
    }

    unsafe fn dw(
        &self,
        simd: Simd,
        io: &Io,
        parts: &Parts,
        Chunk { first, rows }: Chunk,
        range: usize,
        stage: *mut f32,
    ) {
        let (spec, Some(ptr), Some(dw)) = (&self.spec, io.dw, &self.spec.dw) else { return };
        let v0 = range * RANGE;
        let entries = RANGE.min(spec.vocab - v0);
        let g = self.logits(parts, 0, v0);
        let g = Matrix { row: g.col, col: g.row, ..g };
        let x = Matrix { offset: first as isize * io.x.row, ..io.x };
        let to = (ptr.at(v0 as isize * dw.strides[1]), dw.strides[1], dw.strides[2]);
        // SAFETY: the caller of `run` vouches for x and dw; each range of dw has one owner.
        unsafe { product(simd, [entries, spec.width, rows], to, first > 0, 1.0, g, x, stage) }
    }
}

multiversion! {
    fn exponentials(x: &mut [f32], max: f32) {
        x.iter_mut().for_each(|x| *x = math::exp(*x - max));
    }
}

multiversion! {
    fn scale(x: &mut [f32], by: f32) {
        x.iter_mut().for_each(|x| *x *= by);
    }
}

impl Kernel for LinearCe {
    fn operands(&self) -> usize {
        let optional = [&self.spec.weights, &self.spec.dx, &self.spec.dw];
        4 + optional.into_iter().flatten().count()
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        scratch_for(&[
            self.chunk * self.spec.vocab * size_of::<f32>(),
            self.chunk * size_of::<f64>(),
            per_worker_bytes(threads, self.worker_floats() * size_of::<f32>()),
        ])
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], _: &Scalars, scratch: &mut [u8]) {
        assert_eq!(ptrs.len(), self.operands(), "linear_ce: one address per operand");
        let spec = &self.spec;
        let mut rest = ptrs[4..].iter().copied();
        let mut optional = |operand: &Option<Operand>| operand.as_ref().and_then(|_| rest.next());
        let matrix = |ptr: Ptr, operand: &Operand, row: usize| Matrix {
            ptr,
            dtype: operand.dtype,
            offset: 0,
            row: operand.strides[row],
            col: operand.strides[2],
        };
        let io = Io {
            x: matrix(ptrs[0], &spec.x, 0),
            w: matrix(ptrs[1], &spec.w, 1),
            targets: ptrs[2],
            loss: ptrs[3],
            weights: optional(&spec.weights),
            dx: optional(&spec.dx),
            dw: optional(&spec.dw),
        };
        let mut carve = Carve::new(scratch);
        let parts = Parts {
            logits: carve.take(self.chunk * spec.vocab * size_of::<f32>()),
            losses: carve.take(self.chunk * size_of::<f64>()),
        };
        let bytes = self.worker_floats() * size_of::<f32>();
        let workers = carve.per_worker(pool.threads(), bytes);
        let (simd, ranges) = (pool.simd(), spec.vocab.div_ceil(RANGE));
        let mut loss = 0.0;
        // SAFETY: the caller vouches for the operands; phases are separated by the pool, and within
        // a phase every element has one owner.
        unsafe {
            for first in (0..spec.rows).step_by(self.chunk) {
                let rows = self.chunk.min(spec.rows - first);
                let chunk = Chunk { first, rows };
                pool.run(ranges, &|range, worker| {
                    let stage = workers.of(worker).at(0);
                    self.forward(simd, &io, &parts, chunk, range, stage);
                });
                pool.run(rows, &|row, _| self.row(simd, &io, &parts, first, row));
                for row in 0..rows {
                    loss += *parts.losses.at::<f64>(row as isize);
                }
                let blocks = rows.div_ceil(BLOCK_ROWS) * spec.width.div_ceil(BLOCK_COLS);
                let blocks = if io.dx.is_some() { blocks } else { 0 };
                let dw = if io.dw.is_some() { ranges } else { 0 };
                pool.run(blocks + dw, &|task, worker| {
                    let work = workers.of(worker).at(0);
                    match task.checked_sub(blocks) {
                        None => self.dx(simd, &io, &parts, chunk, task, work),
                        Some(range) => self.dw(simd, &io, &parts, chunk, range, work),
                    }
                });
            }
            if spec.rows == 0 && io.dw.is_some() {
                let (work, none) = (workers.of(0).at(0), Chunk { first: 0, rows: 0 });
                (0..ranges).for_each(|range| self.dw(simd, &io, &parts, none, range, work));
            }
            *io.loss.at::<f32>(0) = loss as f32;
        }
    }
}
