//! Sums and maxima of a tile program's value over some axes.
//!
//! Two walks, chosen from the strides alone. *Rows*: the reduced axes are innermost, each tile is
//! folded in sixteen lanes. *Columns*: the kept axes are innermost, tiles are added element by
//! element (bias gradients). Long reductions are cut into at most [`CHUNKS`] chunks; chunk results
//! are combined in f64 in chunk order.

use crate::executable::Library;
use crate::kernel::{
    Carve, Kernel, KernelError, Ptr, Scalars, check_output, per_worker_bytes, scratch_for,
};
use crate::kernels::convert;
use crate::kernels::ops;
use crate::kernels::tile::{Engine, Frame};
use crate::pool::Pool;
use aerogel_graph::DType;
use aerogel_graph::ops::Fold;
use aerogel_lower::ReduceSpec;
use aerogel_lower::space::by_stride;

const CHUNKS: usize = 64;
/// Rows that are added in one go: rounding errors of equal values grow with this, not with all.
const SHORT: usize = 128;
/// Elements that one task should see at least.
const TASK_ELEMENTS: usize = 8192;
/// Columns of a task of the walk by columns.
const COLUMNS: usize = 1024;
/// Longest row that is folded at once.
const ROW: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Walk {
    Rows,
    Columns,
}

/// A prepared reduction. Addresses: the program's inputs, then the one output.
#[derive(Clone, Debug)]
pub struct Reduce {
    engine: Engine,
    fold: Fold,
    walk: Walk,
    operands: usize,
    /// Position of the output among the engine's operands.
    output: usize,
    dtype: DType,
    kept: usize,
    reduced: usize,
    chunks: usize,
    /// Reduced positions of a chunk.
    chunk: usize,
}

impl Reduce {
    /// Chooses how the axes are walked.
    ///
    /// # Errors
    /// If strides do not match the sizes, the output repeats along a kept axis, the program is
    /// malformed or has outputs, or more than eight axes remain after merging.
    pub fn new(spec: &ReduceSpec) -> Result<Reduce, KernelError> {
        let ReduceSpec { program, value, reduced, output, fold } = spec;
        let rank = program.sizes.len();
        if !program.outputs.is_empty() || reduced.len() != rank || output.strides.len() != rank {
            let what = format!(
                "wants a program without outputs, {rank} flags and {rank} output strides, got {}, \
                 {} and {}",
                program.outputs.len(),
                reduced.len(),
                output.strides.len()
            );
            return Err(KernelError::Unsupported { kernel: "reduce", what });
        }
        let mut output = output.clone();
        let mut own_sizes = program.sizes.clone();
        for axis in (0..rank).filter(|&axis| reduced[axis]) {
            output.strides[axis] = 0;
            own_sizes[axis] = 1;
        }
        check_output("reduce", program.inputs.len(), &output, &own_sizes)?;
        let mut engine = Engine::compile(program, &[&output], Some(*value), false)?;
        let (kept_axes, reduced_axes) = split_axes(&engine, reduced);
        let size = |axes: &[usize]| axes.iter().map(|&axis| program.sizes[axis]).product();
        let (kept, reduced): (usize, usize) = (size(&kept_axes), size(&reduced_axes));
        if reduced == 0 {
            // Nothing will be read; the walk over the output needs a space that is not empty.
            reduced_axes.iter().for_each(|&axis| engine.space.sizes[axis] = 1);
        }
        let walk = choose(&engine, &kept_axes, &reduced_axes, kept);
        let (outer, inner) = match walk {
            Walk::Rows => (&kept_axes, &reduced_axes),
            Walk::Columns => (&reduced_axes, &kept_axes),
        };
        engine.space.permute(&[&outer[..], &inner[..]].concat());
        engine.space.collapse(outer.len());
        engine.space = engine.space.finish("reduce")?;
        let (chunks, chunk) = cut(walk, kept, reduced);
        Ok(Reduce {
            engine,
            fold: *fold,
            walk,
            operands: program.inputs.len() + 1,
            output: program.inputs.len(),
            dtype: output.dtype,
            kept,
            reduced,
            chunks,
            chunk,
        })
    }

    fn zero(&self) -> f32 {
        match self.fold {
            Fold::Sum => 0.0,
            Fold::Max => f32::NEG_INFINITY,
        }
    }

    fn combine(&self, a: f64, b: f64) -> f64 {
        match self.fold {
            Fold::Sum => a + b,
            Fold::Max if a > b || a.is_nan() => a,
            Fold::Max => b,
        }
    }

    /// The fold of `values`.
    fn fold(&self, frame: Frame<'_>, values: &[f32]) -> f32 {
        let mut result = 0.0;
        match self.fold {
            Fold::Sum => ops::sum(frame.simd, &mut result, values),
            Fold::Max => ops::largest(frame.simd, &mut result, values),
        }
        result
    }

    /// Writes results of consecutive kept positions.
    unsafe fn write(&self, frame: Frame<'_>, first: usize, results: &[f32]) {
        let to = (frame.ptrs[self.output], self.dtype);
        for (i, result) in results.iter().enumerate() {
            let position = match self.walk {
                Walk::Rows => (first + i) * self.reduced.max(1),
                Walk::Columns => first + i,
            };
            let offset = self.engine.space.offset(self.output, position);
            // SAFETY: the caller of `run` vouches for every element of the output.
            unsafe { convert::store(frame.simd, result, to, offset, 1, 1) }
        }
    }

    /// Short rows: a task has many whole rows.
    unsafe fn short_rows(&self, pool: &Pool, frame: impl Fn(usize) -> Scratch + Sync, io: Io<'_>) {
        let per_task = TASK_ELEMENTS.div_ceil(self.reduced);
        pool.run(self.kept.div_ceil(per_task), &|task, worker| {
            let Scratch { registers, totals } = frame(worker);
            let frame = io.frame(pool, registers);
            let first = task * per_task;
            let rows = per_task.min(self.kept - first);
            // SAFETY: the caller of `run` vouches for the addresses; tasks own disjoint rows, and
            // the worker's totals hold a row.
            unsafe {
                self.engine.begin(frame);
                let totals = std::slice::from_raw_parts_mut(totals, self.reduced);
                // Rows that are cut come one after the other only if they are asked for so.
                let batch = if self.inner() < self.reduced { 1 } else { rows };
                let (mut row, mut col) = (first, 0);
                for at in (first..first + rows).step_by(batch) {
                    let (start, size) = (at * self.reduced, [batch, self.reduced]);
                    self.engine.values(frame, start, self.reduced, size, |values| {
                        for i in 0..values.size[0] {
                            let part = values.row(i);
                            if part.len() == self.reduced {
                                self.write(frame, row, &[self.fold(frame, part)]);
                                row += 1;
                                continue;
                            }
                            totals[col..col + part.len()].copy_from_slice(part);
                            col += part.len();
                            if col == self.reduced {
                                self.write(frame, row, &[self.fold(frame, totals)]);
                                (row, col) = (row + 1, 0);
                            }
                        }
                    });
                }
            }
        });
    }

    /// Positions along the innermost axis.
    fn inner(&self) -> usize {
        self.engine.space.sizes.last().copied().unwrap_or(1)
    }

    /// Long rows: one task per row and chunk.
    unsafe fn long_rows(
        &self,
        pool: &Pool,
        scratch: impl Fn(usize) -> Scratch + Sync,
        partials: Ptr,
        io: Io<'_>,
    ) {
        pool.run(self.kept * self.chunks, &|task, worker| {
            let frame = io.frame(pool, scratch(worker).registers);
            let (row, chunk) = (task / self.chunks, task % self.chunks);
            let (from, to) = (chunk * self.chunk, ((chunk + 1) * self.chunk).min(self.reduced));
            let mut result = f64::from(self.zero());
            // SAFETY: the caller of `run` vouches for the addresses; each task owns one partial.
            unsafe {
                self.engine.begin(frame);
                self.engine.values(frame, row * self.reduced + from, 0, [1, to - from], |values| {
                    let part = self.fold(frame, values.row(0));
                    result = self.combine(result, f64::from(part));
                });
                if self.chunks == 1 {
                    self.write(frame, row, &[result as f32]);
                } else {
                    *partials.at::<f32>((chunk * self.kept + row) as isize) = result as f32;
                }
            }
        });
    }

    /// Adds the sums of a few rows to those of all rows, and starts again.
    fn flush(&self, sums: &mut [f32], total: &mut [f32]) {
        for (sum, total) in sums.iter_mut().zip(total) {
            *total = self.combine(f64::from(*total), f64::from(*sum)) as f32;
            *sum = self.zero();
        }
    }

    /// Columns: one task per chunk of rows and block of columns.
    unsafe fn columns(
        &self,
        pool: &Pool,
        scratch: impl Fn(usize) -> Scratch + Sync,
        partials: Ptr,
        io: Io<'_>,
    ) {
        let blocks = self.kept.div_ceil(COLUMNS);
        pool.run(blocks * self.chunks, &|task, worker| {
            let Scratch { registers, totals } = scratch(worker);
            let frame = io.frame(pool, registers);
            let (chunk, first) = (task / blocks, task % blocks * COLUMNS);
            let width = COLUMNS.min(self.kept - first);
            let end = ((chunk + 1) * self.chunk).min(self.reduced);
            // SAFETY: the caller of `run` vouches for the addresses; `totals` is the worker's own
            // twice COLUMNS floats; each task owns its stretch of partials.
            unsafe {
                let sums = std::slice::from_raw_parts_mut(totals, width);
                let total = std::slice::from_raw_parts_mut(totals.add(COLUMNS), width);
                sums.fill(self.zero());
                total.fill(self.zero());
                self.engine.begin(frame);
                for row in (chunk * self.chunk..end).step_by(SHORT) {
                    let size = [SHORT.min(end - row), width];
                    let start = row * self.kept + first;
                    self.engine.values(frame, start, self.kept, size, |values| {
                        let sums = &mut sums[values.col..values.col + values.size[1]];
                        match self.fold {
                            Fold::Sum => {
                                ops::add_rows(frame.simd, sums, values.rows, values.size[0]);
                            }
                            Fold::Max => {
                                ops::max_rows(frame.simd, sums, values.rows, values.size[0]);
                            }
                        }
                    });
                    self.flush(sums, total);
                }
                if self.chunks == 1 {
                    self.write(frame, first, total);
                } else {
                    let to = partials.at::<f32>((chunk * self.kept + first) as isize);
                    to.copy_from_nonoverlapping(total.as_ptr(), width);
                }
            }
        });
    }

    /// Combines the chunks of every kept position, in chunk order.
    unsafe fn combine_chunks(&self, pool: &Pool, partials: Ptr, io: Io<'_>) {
        pool.run(self.kept.div_ceil(COLUMNS), &|task, _| {
            let frame = io.frame(pool, std::ptr::null_mut());
            for kept in task * COLUMNS..((task + 1) * COLUMNS).min(self.kept) {
                let mut result = f64::from(self.zero());
                for chunk in 0..self.chunks {
                    // SAFETY: the first phase wrote every partial.
                    let partial =
                        unsafe { *partials.at::<f32>((chunk * self.kept + kept) as isize) };
                    result = self.combine(result, f64::from(partial));
                }
                // SAFETY: the caller of `run` vouches for the output.
                unsafe { self.write(frame, kept, &[result as f32]) }
            }
        });
    }
}

/// A worker's part of scratch.
struct Scratch {
    registers: *mut f32,
    totals: *mut f32,
}

#[derive(Clone, Copy)]
struct Io<'a> {
    ptrs: &'a [Ptr],
    scalars: &'a Scalars,
}

impl<'a> Io<'a> {
    fn frame(self, pool: &Pool, registers: *mut f32) -> Frame<'a> {
        Frame { simd: pool.simd(), ptrs: self.ptrs, scalars: self.scalars, registers }
    }
}

/// The kept and the reduced axes, each ordered for walking the inputs forward.
fn split_axes(engine: &Engine, reduced: &[bool]) -> (Vec<usize>, Vec<usize>) {
    let keys: Vec<&[isize]> = engine.space.strides.iter().map(|own| &own[..]).collect();
    let (reduced_axes, kept_axes): (Vec<_>, Vec<_>) =
        (0..reduced.len()).partition(|&axis| reduced[axis]);
    (by_stride(&kept_axes, &keys), by_stride(&reduced_axes, &keys))
}

/// Columns if the input that covers most elements has its smallest stride on a kept axis.
fn choose(engine: &Engine, kept_axes: &[usize], reduced_axes: &[usize], kept: usize) -> Walk {
    let sizes = &engine.space.sizes;
    let covered = |own: &[isize]| -> usize {
        (0..sizes.len()).filter(|&axis| own[axis] != 0).map(|axis| sizes[axis]).product()
    };
    // The first of those that cover most: `max_by_key` alone would take the last.
    let main = engine.space.strides.iter().rev().max_by_key(|own| covered(own));
    let smallest = |axes: &[usize]| {
        let strides = axes
            .iter()
            .filter(|&&axis| sizes[axis] > 1)
            .map(|&axis| main.map_or(0, |own| own[axis].unsigned_abs()));
        strides.filter(|&stride| stride != 0).min().unwrap_or(usize::MAX)
    };
    if kept >= 4 && smallest(kept_axes) < smallest(reduced_axes) {
        Walk::Columns
    } else {
        Walk::Rows
    }
}

/// The number of chunks and the reduced positions of each.
fn cut(walk: Walk, kept: usize, reduced: usize) -> (usize, usize) {
    let (wanted, step) = match walk {
        Walk::Rows => (CHUNKS.div_ceil(kept.max(1)).min(reduced.div_ceil(TASK_ELEMENTS)), ROW),
        Walk::Columns => {
            let blocks = kept.div_ceil(COLUMNS).max(1);
            let rows = (TASK_ELEMENTS / kept.clamp(1, COLUMNS)).max(16);
            (CHUNKS.div_ceil(blocks).min(reduced.div_ceil(rows)), 1)
        }
    };
    let chunk = reduced.div_ceil(wanted.max(1)).next_multiple_of(step).max(1);
    (reduced.div_ceil(chunk).max(1), chunk)
}

impl Kernel for Reduce {
    fn operands(&self) -> usize {
        self.operands
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        let partials = self.chunks * self.kept * size_of::<f32>();
        let worker = self.engine.register_bytes() + 2 * COLUMNS * size_of::<f32>();
        scratch_for(&[partials, per_worker_bytes(threads, worker)])
    }

    fn prepare(&mut self, library: &mut Library) {
        self.engine.prepare(library);
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], scalars: &Scalars, scratch: &mut [u8]) {
        assert_eq!(ptrs.len(), self.operands, "reduce: one address per operand");
        let io = Io { ptrs, scalars };
        let mut carve = Carve::new(scratch);
        let partials = carve.take(self.chunks * self.kept * size_of::<f32>());
        let register_bytes = self.engine.register_bytes();
        let workers =
            carve.per_worker(pool.threads(), register_bytes + 2 * COLUMNS * size_of::<f32>());
        let own = |worker: usize| {
            let registers: *mut f32 = workers.of(worker).at(0);
            Scratch { registers, totals: registers.wrapping_add(register_bytes / size_of::<f32>()) }
        };
        // SAFETY: forwarded from the caller.
        unsafe {
            if self.kept == 0 {
                return;
            } else if self.reduced == 0 {
                let frame = io.frame(pool, std::ptr::null_mut());
                for kept in 0..self.kept {
                    self.write(frame, kept, &[self.zero()]);
                }
                return;
            }
            match self.walk {
                Walk::Rows if self.reduced <= ROW => return self.short_rows(pool, own, io),
                Walk::Rows => self.long_rows(pool, own, partials, io),
                Walk::Columns => self.columns(pool, own, partials, io),
            }
            if self.chunks > 1 {
                self.combine_chunks(pool, partials, io);
            }
        }
    }
}
