//! Linear layer and cross entropy in one pass: losses, log-sum-exps and gradients, without the
//! logits of a batch.
//!
//! Rows go in chunks whose logits fit in scratch. For each chunk: rows of x as f32; logits by
//! ranges of the vocabulary; then per row the log-sum-exp, and the logits become their gradients in
//! place; then dx by blocks and dw by ranges of the vocabulary, each with one owner that adds chunk
//! after chunk.
//!
//! What a row gets depends on nothing but that row: a product chooses its order of sums by its
//! shape, so every product that makes logits or dx has the same number of rows, however many rows
//! there are; the last block is filled up with zeros.

use crate::axes::Space;
use crate::kernel::{
    Carve, Dtype, Kernel, KernelError, Operand, PerWorker, Ptr, Scalars, per_worker_bytes,
    scratch_for,
};
use crate::kernels::convert;
use crate::kernels::ops;
use crate::kernels::product::{Matrix, product, staging};
use crate::kernels::tile::check_output;
use crate::math;
use crate::pool::Pool;
use crate::simd::{Simd, multiversion};

/// Logits and rows of x kept in scratch at most, beyond the smallest block.
const CHUNK_BYTES: usize = 4 << 20;
/// Rows of a product.
const SMALLEST_BLOCK: usize = 16;
const LARGEST_BLOCK: usize = 64;
/// Vocabulary entries of a task.
const RANGE: usize = 512;
/// Columns of a task that makes dx.
const BLOCK_COLS: usize = 64;

/// Shapes and storage; every operand has strides over [row axes.., vocabulary, width], zero where
/// it lacks the axis. Of the outputs any may be asked for.
#[derive(Clone, Debug)]
pub struct LinearCeSpec {
    /// Sizes of the axes of rows.
    pub rows: Vec<usize>,
    /// Entries of the vocabulary here.
    pub vocab: usize,
    /// The id of the first of them: targets are ids of the whole vocabulary.
    pub first_row: usize,
    /// Entries of the whole vocabulary. A target beyond them makes NaN.
    pub all_rows: usize,
    /// Width of x and w.
    pub width: usize,
    /// Inputs, f32 or bf16.
    pub x: Operand,
    /// Output layer, f32 or bf16.
    pub w: Operand,
    /// Targets, u32.
    pub targets: Operand,
    /// Weights of the rows, f32; all 1 if absent.
    pub weights: Option<Operand>,
    /// Log-sum-exps of the whole vocabulary, f32; those of the entries here if absent.
    pub given: Option<Operand>,
    /// Weight times cross entropy of each row in nats, f32.
    pub ce: Option<Operand>,
    /// Log-sum-exp of each row over the entries here, f32.
    pub lse: Option<Operand>,
    /// Logit of each row's target, f32; 0 where it is not here.
    pub hit: Option<Operand>,
    /// Gradient of x.
    pub dx: Option<Operand>,
    /// Gradient of w, f32.
    pub dw: Option<Operand>,
}

const X: usize = 0;
const W: usize = 1;
const TARGETS: usize = 2;
const WEIGHTS: usize = 3;
const GIVEN: usize = 4;
const CE: usize = 5;
const LSE: usize = 6;
const HIT: usize = 7;
const DX: usize = 8;
const DW: usize = 9;
const OPERANDS: usize = 10;

impl LinearCeSpec {
    /// All operands, by number.
    fn operands(&self) -> [Option<&Operand>; OPERANDS] {
        let [x, w, targets] = [&self.x, &self.w, &self.targets].map(Some);
        let each = [&self.weights, &self.given, &self.ce, &self.lse, &self.hit, &self.dx, &self.dw];
        let [weights, given, ce, lse, hit, dx, dw] = each.map(Option::as_ref);
        [x, w, targets, weights, given, ce, lse, hit, dx, dw]
    }

    fn check(&self) -> Result<(), KernelError> {
        let kernel = "linear_ce";
        let operands = self.operands();
        let rank = self.rows.len() + 2;
        for (operand, own) in operands.iter().enumerate().filter_map(|(i, o)| Some((i, (*o)?))) {
            let fits = match operand {
                X | W | DX => own.dtype != Dtype::U32,
                TARGETS => own.dtype == Dtype::U32,
                _ => own.dtype == Dtype::F32,
            };
            if !fits || self.vocab == 0 {
                let what = "wants x, w and dx in f32 or bf16, targets in u32, all else in f32, \
                            and a vocabulary"
                    .to_string();
                return Err(KernelError::Unsupported { kernel, what });
            }
            let got = own.strides.len();
            if got != rank {
                return Err(KernelError::Rank { kernel, operand, wanted: rank, got });
            }
            let sizes = |rows: bool, inner: [usize; 2]| {
                let row = |&size| if rows { size } else { 1 };
                self.rows.iter().map(row).chain(inner).collect::<Vec<_>>()
            };
            match operand {
                CE | LSE | HIT => check_output(kernel, operand, own, &sizes(true, [1, 1]))?,
                DX => check_output(kernel, operand, own, &sizes(true, [1, self.width]))?,
                DW => check_output(kernel, operand, own, &sizes(false, [self.vocab, self.width]))?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// A prepared pass. Addresses: x, w, targets, then those of weights, given, ce, lse, hit, dx, dw
/// that the spec has, in this order.
#[derive(Clone, Debug)]
pub struct LinearCe {
    spec: LinearCeSpec,
    /// The rows over all operands.
    rows: Space,
    /// Rows of a product: by width and vocabulary alone.
    block: usize,
    /// Blocks of a chunk.
    blocks: usize,
}

/// Addresses by operand.
type Io = [Option<Ptr>; OPERANDS];

/// Rows at work.
#[derive(Clone, Copy)]
struct Chunk {
    first: usize,
    rows: usize,
}

struct Parts {
    /// Rows of x in f32, row-major.
    x: Ptr,
    logits: Ptr,
    workers: PerWorker,
}

impl LinearCe {
    /// Checks storage and chooses blocks and chunks.
    ///
    /// # Errors
    /// If strides or types do not fit, or an output repeats.
    pub fn new(spec: &LinearCeSpec) -> Result<LinearCe, KernelError> {
        spec.check()?;
        let kernel = "linear_ce";
        let none = vec![0; spec.rows.len()];
        let of = |o: Option<&Operand>| o.map_or(none.clone(), |o| o.strides[..none.len()].to_vec());
        let mut rows = Space::new(kernel, &spec.rows, spec.operands().map(of).to_vec())?;
        rows.collapse(spec.rows.len());
        let rows = rows.finish(kernel)?;
        let fitting = CHUNK_BYTES / ((spec.vocab + spec.width) * size_of::<f32>());
        let block = fitting.clamp(SMALLEST_BLOCK, LARGEST_BLOCK);
        let blocks = (fitting / block).clamp(1, rows.elements().div_ceil(block).max(1));
        Ok(LinearCe { spec: spec.clone(), rows, block, blocks })
    }

    /// f32 that fit all logits, and all rows of x, of a chunk.
    fn chunk_floats(&self) -> [usize; 2] {
        [self.spec.vocab, self.spec.width].map(|n| self.blocks * self.block * n)
    }

    fn worker_floats(&self) -> usize {
        let (w, block) = (self.spec.w.dtype, self.block);
        let logits = staging(block, RANGE, self.spec.width, Dtype::F32, w);
        let dx = block * BLOCK_COLS + staging(block, BLOCK_COLS, self.spec.vocab, Dtype::F32, w);
        logits.max(dx)
    }

    /// A row-major f32 matrix in scratch, from a position on.
    fn scratch(ptr: Ptr, width: usize, row: usize, col: usize) -> Matrix {
        let offset = (row * width + col) as isize;
        Matrix { ptr, dtype: Dtype::F32, offset, row: width as isize, col: 1 }
    }

    fn logits(&self, parts: &Parts, row: usize, entry: usize) -> Matrix {
        LinearCe::scratch(parts.logits, self.spec.vocab, row, entry)
    }

    /// w [vocabulary, width], from an entry and a column on.
    fn layer(&self, io: &Io, entry: usize, col: usize) -> Matrix {
        let w = &self.spec.w;
        let [.., by_entry, by_col] = w.strides[..] else { unreachable!("checked when prepared") };
        let offset = entry as isize * by_entry + col as isize * by_col;
        let ptr = io[W].expect("every spec has w");
        Matrix { ptr, dtype: w.dtype, offset, row: by_entry, col: by_col }
    }

    /// Where the f32 of a row is stored, if the spec has the operand.
    fn cell(&self, io: &Io, operand: usize, row: usize) -> Option<*mut f32> {
        io[operand].map(|ptr| ptr.at::<f32>(self.rows.offset(operand, row)))
    }

    /// The rows of one block of x as f32, and zeros after the last.
    unsafe fn stage(&self, simd: Simd, io: &Io, parts: &Parts, chunk: Chunk, block: usize) {
        let (spec, ptr) = (&self.spec, io[X].expect("every spec has x"));
        let col = spec.x.strides[spec.rows.len() + 1];
        for row in block * self.block..(block + 1) * self.block {
            let to = parts.x.at::<f32>((row * spec.width) as isize);
            // SAFETY: the caller of `run` vouches for x; each row of the chunk has one owner.
            unsafe {
                if row < chunk.rows {
                    let offset = self.rows.offset(X, chunk.first + row);
                    convert::load(simd, to, (ptr, spec.x.dtype), offset, col, spec.width);
                } else {
                    std::slice::from_raw_parts_mut(to, spec.width).fill(0.0);
                }
            }
        }
    }

    /// The logits of one block of rows for one range of the vocabulary.
    unsafe fn forward(
        &self,
        simd: Simd,
        io: &Io,
        parts: &Parts,
        (block, range): (usize, usize),
        stage: *mut f32,
    ) {
        let spec = &self.spec;
        let (r0, v0) = (block * self.block, range * RANGE);
        let entries = RANGE.min(spec.vocab - v0);
        let to = self.logits(parts, r0, v0);
        let x = LinearCe::scratch(parts.x, spec.width, r0, 0);
        // w is [vocabulary, width]; the product wants [width, vocabulary].
        let w = self.layer(io, v0, 0);
        let w = Matrix { row: w.col, col: w.row, ..w };
        let size = [self.block, entries, spec.width];
        // SAFETY: the caller of `run` vouches for w; each part of the logits has one owner.
        unsafe { product(simd, size, (to.ptr.at(to.offset), to.row, 1), false, 1.0, x, w, stage) }
    }

    /// What is asked for of one row; its logits become their gradients.
    unsafe fn row(&self, simd: Simd, io: &Io, parts: &Parts, chunk: Chunk, row: usize) {
        let spec = &self.spec;
        let (at, matrix) = (chunk.first + row, self.logits(parts, row, 0));
        // SAFETY: the caller of `run` vouches for the operands; each row has one owner.
        unsafe {
            let logits =
                std::slice::from_raw_parts_mut(matrix.ptr.at::<f32>(matrix.offset), spec.vocab);
            let targets = io[TARGETS].expect("every spec has targets");
            let id = *targets.at::<u32>(self.rows.offset(TARGETS, at)) as usize;
            let target = id.checked_sub(spec.first_row).filter(|&row| row < spec.vocab);
            let missing = if id < spec.all_rows { 0.0 } else { f32::NAN };
            let hit = target.map_or(missing, |target| logits[target]);
            let weight = self.cell(io, WEIGHTS, at).map_or(1.0, |weight| *weight);
            let (lse, factor) = match self.cell(io, GIVEN, at) {
                Some(lse) => {
                    exponentials(simd, logits, *lse);
                    (f64::from(*lse), 1.0)
                }
                None => {
                    let (mut top, mut sum) = (0.0, 0.0);
                    ops::largest(simd, &mut top, logits);
                    exponentials(simd, logits, top);
                    ops::sum(simd, &mut sum, logits);
                    (f64::from(top) + f64::from(sum).ln(), 1.0 / sum)
                }
            };
            if let Some(to) = self.cell(io, CE, at) {
                // A row of weight 0 does not count, whatever its target.
                let ce = f64::from(weight) * (lse - f64::from(hit));
                *to = if weight == 0.0 { 0.0 } else { ce as f32 };
            }
            if let Some(to) = self.cell(io, LSE, at) {
                *to = lse as f32;
            }
            if let Some(to) = self.cell(io, HIT, at) {
                *to = hit;
            }
            if io[DX].is_some() || io[DW].is_some() {
                scale(simd, logits, weight * factor);
                if let Some(target) = target {
                    logits[target] -= weight;
                }
            }
        }
    }

    /// One block of rows of dx, of some columns.
    unsafe fn dx(
        &self,
        simd: Simd,
        io: &Io,
        parts: &Parts,
        chunk: Chunk,
        (block, d0): (usize, usize),
        work: *mut f32,
    ) {
        let (spec, Some(ptr), Some(dx)) = (&self.spec, io[DX], &self.spec.dx) else { return };
        let cols = BLOCK_COLS.min(spec.width - d0);
        let stage = work.wrapping_add(self.block * BLOCK_COLS);
        let (w, g) = (self.layer(io, 0, d0), self.logits(parts, block * self.block, 0));
        let by_col = dx.strides[spec.rows.len() + 1];
        // SAFETY: the caller of `run` vouches for w and dx; each block of dx has one owner.
        unsafe {
            let (size, to) = ([self.block, cols, spec.vocab], (work, cols as isize, 1));
            product(simd, size, to, false, 1.0, g, w, stage);
            let rows = block * self.block..((block + 1) * self.block).min(chunk.rows);
            for (i, row) in rows.enumerate() {
                let offset = self.rows.offset(DX, chunk.first + row) + d0 as isize * by_col;
                let from = work.add(i * cols);
                convert::store(simd, from, (ptr, dx.dtype), offset, by_col, cols);
            }
        }
    }

    /// What a chunk adds to one range of the vocabulary of dw.
    unsafe fn dw(&self, simd: Simd, io: &Io, parts: &Parts, chunk: Chunk, range: usize) {
        let (spec, Some(ptr), Some(dw)) = (&self.spec, io[DW], &self.spec.dw) else { return };
        let [.., by_entry, by_col] = dw.strides[..] else { return };
        let v0 = range * RANGE;
        let entries = RANGE.min(spec.vocab - v0);
        let g = self.logits(parts, 0, v0);
        let g = Matrix { row: g.col, col: g.row, ..g };
        let x = LinearCe::scratch(parts.x, spec.width, 0, 0);
        let to = (ptr.at(v0 as isize * by_entry), by_entry, by_col);
        let size = [entries, spec.width, chunk.rows];
        let nothing = std::ptr::null_mut();
        // SAFETY: the caller of `run` vouches for dw; each range of dw has one owner; two f32
        // matrices need no staging.
        unsafe { product(simd, size, to, chunk.first > 0, 1.0, g, x, nothing) }
    }

    /// One chunk, phase by phase.
    unsafe fn chunk(&self, pool: &Pool, io: &Io, parts: &Parts, chunk: Chunk) {
        let (simd, ranges) = (pool.simd(), self.spec.vocab.div_ceil(RANGE));
        let blocks = chunk.rows.div_ceil(self.block);
        // SAFETY: forwarded; phases are separated by the pool, and within a phase every element
        // has one owner.
        unsafe {
            pool.run(blocks, &|block, _| self.stage(simd, io, parts, chunk, block));
            pool.run(blocks * ranges, &|task, worker| {
                let stage = parts.workers.of(worker).at(0);
                self.forward(simd, io, parts, (task / ranges, task % ranges), stage);
            });
            pool.run(chunk.rows, &|row, _| self.row(simd, io, parts, chunk, row));
            let columns = self.spec.width.div_ceil(BLOCK_COLS);
            let dx = if io[DX].is_some() { blocks * columns } else { 0 };
            let dw = if io[DW].is_some() { ranges } else { 0 };
            pool.run(dx + dw, &|task, worker| match task.checked_sub(dx) {
                None => {
                    let work = parts.workers.of(worker).at(0);
                    let block = (task / columns, task % columns * BLOCK_COLS);
                    self.dx(simd, io, parts, chunk, block, work);
                }
                Some(range) => self.dw(simd, io, parts, chunk, range),
            });
        }
    }
}

multiversion! {
    fn exponentials(x: &mut [f32], less: f32) {
        x.iter_mut().for_each(|x| *x = math::exp(*x - less));
    }
}

multiversion! {
    fn scale(x: &mut [f32], by: f32) {
        x.iter_mut().for_each(|x| *x *= by);
    }
}

impl Kernel for LinearCe {
    fn operands(&self) -> usize {
        self.spec.operands().into_iter().flatten().count()
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        let [logits, x] = self.chunk_floats().map(|n| n * size_of::<f32>());
        let workers = per_worker_bytes(threads, self.worker_floats() * size_of::<f32>());
        scratch_for(&[logits, x, workers])
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], _: &Scalars, scratch: &mut [u8]) {
        assert_eq!(ptrs.len(), self.operands(), "linear_ce: one address per operand");
        let mut rest = ptrs.iter().copied();
        let io = self.spec.operands().map(|operand| operand.and_then(|_| rest.next()));
        let mut carve = Carve::new(scratch);
        let [logits, x] = self.chunk_floats().map(|n| carve.take(n * size_of::<f32>()));
        let bytes = self.worker_floats() * size_of::<f32>();
        let parts = Parts { x, logits, workers: carve.per_worker(pool.threads(), bytes) };
        let (all, step) = (self.rows.elements(), self.blocks * self.block);
        // SAFETY: the caller vouches for the operands.
        unsafe {
            for first in (0..all).step_by(step) {
                let chunk = Chunk { first, rows: step.min(all - first) };
                self.chunk(pool, &io, &parts, chunk);
            }
            if all == 0 {
                let none = Chunk { first: 0, rows: 0 };
                let ranges = self.spec.vocab.div_ceil(RANGE);
                (0..ranges).for_each(|range| self.dw(pool.simd(), &io, &parts, none, range));
            }
        }
    }
}
