//! Contractions of two tensors over named roles of axes: batched matrix products.
//!
//! Axes that strides allow are merged; of each role the longest becomes the matrix axis, the
//! others are loops around it (batch, M, N: more tasks; K: accumulation in order). A task owns a
//! block of C: for each slice of the depth it packs its part of B into panels, then takes A a few
//! rows at a time, so that the panels stay in the second-level cache and the rows in the first.
//! Every element of C is one sum in the order of the depth, however the blocks are cut, so blocks
//! may follow the number of threads and the bits do not. Finished rows can go through a tile
//! program (bias, activation, residual) while they are in cache.

mod walk;

use crate::executable::Library;
use crate::kernel::{Carve, Kernel, KernelError, Ptr, Scalars, per_worker_bytes, scratch_for};
use crate::kernels::convert;
use crate::kernels::micro::{COLS, MOST_ROWS, Out, Right, Store, Word, multiply};
use crate::kernels::pack::{self, Factor};
use crate::kernels::tile::{Engine, Frame};
use crate::pool::Pool;
use crate::simd::Simd;
use aerogel_graph::DType;
use aerogel_lower::{Contraction, Role};
use walk::{A, B, C, POSITION, Walk};

/// What handing a task over costs, in multiply-adds.
const HAND_OVER: f64 = 2e5;
/// What packing an element costs, in multiply-adds on vectors, and what reading it where it lies
/// does. Matrix tiles multiply four times as fast.
const PACK: usize = 32;
const READ: usize = 8;
const TILES: usize = 4;
/// By what part of a task the last thread is late.
const LATE: f64 = 0.1;
/// Words of the depth that are worked on at once: 14 rows of them fit the first-level cache.
const SLICE_WORDS: usize = 512;
/// Columns of a block: with a slice of the depth, half of a second-level cache.
const BLOCK_COLS: usize = 256;
/// Rows of a block that is kept in scratch over several slices.
const BLOCK_ROWS: usize = 256;
/// Rows that blocks are cut by: whole slivers of every micro-kernel.
const ROW_STEP: usize = MOST_ROWS;
/// Rows of A that are taken together: those of eight calls of a micro-kernel on vectors, and whole
/// tiles.
const GROUP: usize = 112;
/// With so few rows, packing B would cost more than what it saves.
const FEW_ROWS: usize = 4;

/// A prepared contraction. Addresses: A, B, C; with an epilogue A, B, then the inputs and the
/// outputs of the program.
#[derive(Clone, Debug)]
pub struct Gemm {
    walk: Walk,
    /// Where A and B are among the addresses: A is the operand whose side is the rows.
    factors: [usize; 2],
    dtypes: [DType; 3],
    word: Word,
    accumulate: bool,
    alpha: f32,
    epilogue: Option<Engine>,
    operands: usize,
}

/// Scratch of a worker.
#[derive(Clone, Copy)]
struct Work {
    registers: *mut f32,
    right: *mut u32,
    left: *mut u32,
    block: *mut f32,
    old: *mut f32,
}

/// What all tasks of a run share.
struct Run<'a> {
    simd: Simd,
    ptrs: &'a [Ptr],
    scalars: &'a Scalars,
}

/// A block of C: where it begins in the operands, and its extent.
#[derive(Clone, Copy)]
struct Block {
    /// Offsets of its first element in A, B, C and the epilogue's space.
    offset: [isize; 4],
    rows: usize,
    cols: usize,
}

impl Gemm {
    /// Chooses the matrix axes.
    ///
    /// # Errors
    /// For u32, a C that repeats along one of its axes, an
    /// epilogue together with `accumulate` or over other sizes, and more axes than are supported;
    /// sums of a factor, which a reduction makes as fast.
    pub fn new(spec: &Contraction) -> Result<Gemm, KernelError> {
        if spec.sums.is_some() {
            let what = "sums of a factor beside the product; reduce it by itself".to_owned();
            return Err(KernelError::Unsupported { kernel: "gemm", what });
        }
        let mut spec = spec.clone();
        let mut walk = Walk::new(&spec)?;
        let mut factors = [0, 1];
        if spec.epilogue.is_none() && mirrored(&walk) {
            mirror(&mut spec);
            walk = Walk::new(&spec)?;
            factors = [1, 0];
        }
        let program = spec.epilogue.as_ref();
        let epilogue = program.map(|p| Engine::epilogue(p, "gemm epilogue")).transpose()?;
        Ok(Gemm {
            walk,
            factors,
            dtypes: [spec.a, spec.b, spec.c],
            word: pack::word([spec.a, spec.b]),
            accumulate: spec.accumulate,
            alpha: spec.alpha,
            epilogue,
            operands: spec.epilogue.as_ref().map_or(3, |p| 2 + p.inputs.len() + p.outputs.len()),
        })
    }

    /// Whether rows are made in scratch rather than in C.
    fn staged(&self) -> bool {
        let by_col = self.walk.stride[1][C];
        self.epilogue.is_some()
            || self.dtypes[C] != DType::F32
            || (by_col != 1 && self.walk.size[1] > 1)
    }

    /// Elements of the depth in a slice.
    fn slice(&self) -> usize {
        self.walk.size[2].min(SLICE_WORDS * self.word.elements())
    }

    /// Slices over the whole depth.
    fn slices(&self) -> usize {
        self.walk.depth.elements() * self.walk.size[2].div_ceil(self.slice().max(1))
    }

    /// Rows and columns of a block on so many threads: the cheapest ones of all halves.
    fn cut(&self, threads: usize, tiles: bool) -> [usize; 2] {
        let [m, n, _] = self.walk.size;
        let widest = n.next_multiple_of(COLS).clamp(COLS, BLOCK_COLS);
        let mut highest = m.next_multiple_of(ROW_STEP).max(ROW_STEP);
        if self.staged() && self.slices() > 1 {
            highest = highest.min(BLOCK_ROWS);
        }
        let halves = |most: usize, step: usize| {
            let half =
                move |&size: &usize| (size > step).then(|| (size / 2).next_multiple_of(step));
            std::iter::successors(Some(most), half)
        };
        let cuts = halves(highest, ROW_STEP)
            .flat_map(|rows| halves(widest, COLS).map(move |cols| [rows, cols]));
        let cost = |cut: &[usize; 2]| self.cost(*cut, threads, if tiles { TILES } else { 1 });
        let by_cost = |a: &[usize; 2], b: &[usize; 2]| cost(a).total_cmp(&cost(b));
        cuts.min_by(by_cost).unwrap_or([highest, widest])
    }

    /// What a cut costs each thread, in multiply-adds. Every block of rows packs B again, and every
    /// block of columns reads A again, or packs it; with few blocks a thread that is late keeps
    /// the others waiting.
    fn cost(&self, [rows, cols]: [usize; 2], threads: usize, rate: usize) -> f64 {
        let [m, n, k] = self.walk.size;
        let deep = k * self.walk.depth.elements();
        let (row_blocks, col_blocks) = (m.div_ceil(rows), n.div_ceil(cols));
        let tasks = self.walk.outer.elements() * row_blocks * col_blocks;
        let rounds = tasks.div_ceil(threads) as f64;
        let left = if self.walk.stride[2][A] == 1 { READ } else { PACK };
        let task = (rows * cols * deep) as f64
            + (rate * (rows.min(m) * left + cols.min(n) * PACK) * deep) as f64
            + rate as f64 * HAND_OVER;
        task * (rounds + LATE)
    }

    /// Rows of a block that are in scratch at a time.
    fn staged_rows(&self, rows: usize) -> usize {
        match (self.staged(), self.slices()) {
            (false, _) => 0,
            (true, 0 | 1) => GROUP.min(rows),
            (true, _) => rows,
        }
    }

    /// Bytes of registers, then words of right and left factor, block and a row of C.
    fn worker_parts(&self, [rows, cols]: [usize; 2]) -> [usize; 5] {
        let registers = self.epilogue.as_ref().map_or(0, Engine::register_bytes);
        let (right, left) = (
            pack::right_words(self.word, cols, self.slice()),
            pack::left_words(self.word, GROUP, self.slice()),
        );
        let words = [right, left, self.staged_rows(rows) * cols, cols];
        let [right, left, block, old] = words.map(|n| 4 * n.next_multiple_of(COLS));
        [registers.next_multiple_of(64), right, left, block, old]
    }

    fn factor(&self, run: &Run<'_>, which: usize, offset: isize) -> Factor {
        let [m, n, k] = self.walk.stride;
        Factor {
            ptr: run.ptrs[self.factors[which]],
            dtype: self.dtypes[which],
            offset,
            side: if which == A { m[which] } else { n[which] },
            depth: k[which],
        }
    }

    /// One slice of B for a block: in place where that pays, else packed.
    unsafe fn right(
        &self,
        run: &Run<'_>,
        b: Factor,
        size: [usize; 2],
        m: usize,
        work: Work,
    ) -> Right {
        let as_it_lies = (self.word, b.dtype, b.side) == (Word::F32, DType::F32, 1);
        if let Ok(step) = usize::try_from(b.depth)
            && as_it_lies
            && m <= FEW_ROWS
            && size[0].is_multiple_of(COLS)
        {
            return Right { data: b.ptr.at(b.offset), panel: COLS, step };
        }
        // SAFETY: the caller of `run` vouches for B; the part of scratch is sized for it.
        unsafe { pack::right(run.simd, self.word, b, size, work.right) }
    }

    /// One block of C.
    unsafe fn task(&self, run: &Run<'_>, block: Block, work: Work) {
        let Block { offset, rows, cols } = block;
        let [m, _, k] = self.walk.stride;
        let (deep, slice) = (self.walk.size[2], self.slice().max(1));
        let (slices, staged) = (self.slices(), self.staged());
        let parts = deep.div_ceil(slice).max(1);
        for number in 0..slices.max(1) {
            let (step, first) = (number / parts, number % parts * slice);
            let depth = if slices == 0 { 0 } else { slice.min(deep - first) };
            let at = |which: usize| {
                let loops = if slices == 0 { 0 } else { self.walk.depth.offset(which, step) };
                offset[which] + loops + first as isize * k[which]
            };
            let (a, b) = (self.factor(run, A, at(A)), self.factor(run, B, at(B)));
            let words = self.word.words(run.simd, depth);
            // SAFETY: the caller of `run` vouches for the operands; the block is this task's own,
            // and so is the worker's scratch.
            unsafe {
                let right = self.right(run, b, [cols, depth], rows, work);
                for row in (0..rows).step_by(GROUP) {
                    let count = GROUP.min(rows - row);
                    let size = [count, depth];
                    let left = pack::left(run.simd, self.word, a.from(row, 0), size, work.left);
                    let staged_row = if slices > 1 { row } else { 0 };
                    let out = if staged {
                        Out { data: work.block.add(staged_row * cols), row: cols }
                    } else {
                        let first = offset[C] + row as isize * m[C];
                        Out { data: run.ptrs[C].at(first), row: m[C] as usize }
                    };
                    let accumulate = number > 0 || (!staged && self.accumulate);
                    let store = Store { alpha: self.alpha, accumulate };
                    for (first, count, left) in left.of(count) {
                        if a.depth == 1 {
                            // A sliver is read once: too little for a processor to see it coming.
                            let next = (row + GROUP + first).min(rows);
                            a.from(next, 0).prefetch([count.min(rows - next), depth]);
                        }
                        let size = [count, cols, words];
                        multiply(run.simd, self.word, size, left, right, out.at(first, 0), store);
                    }
                    if staged && number + 1 >= slices {
                        self.finish(run, block, [row, count], out.data, work);
                    }
                }
            }
        }
    }

    /// Sends finished rows through the epilogue, or writes them to C.
    unsafe fn finish(
        &self,
        run: &Run<'_>,
        block: Block,
        [first, count]: [usize; 2],
        data: *mut f32,
        work: Work,
    ) {
        let [m, n, _] = self.walk.stride;
        // SAFETY: the rows are written; the caller of `run` vouches for the rest.
        unsafe {
            if let Some(engine) = &self.epilogue {
                let Run { simd, ptrs, scalars } = *run;
                let frame = Frame { simd, ptrs: &ptrs[2..], scalars, registers: work.registers };
                let start = block.offset[POSITION] as usize + first * m[POSITION] as usize;
                let (step, size) = (m[POSITION] as usize, [count, block.cols]);
                engine.block(frame, start, step, size, data, block.cols);
                return;
            }
            let to = (run.ptrs[C], self.dtypes[C]);
            for row in 0..count {
                let offset = block.offset[C] + (first + row) as isize * m[C];
                let from = data.add(row * block.cols);
                if self.accumulate {
                    convert::load(run.simd, work.old, to, offset, n[C], block.cols);
                    (0..block.cols).for_each(|col| *from.add(col) += *work.old.add(col));
                }
                convert::store(run.simd, from, to, offset, n[C], block.cols);
            }
        }
    }
}

/// Whether C is contiguous along the rows, or its columns hardly fill a panel: then the product
/// is made of the mirror images.
fn mirrored(walk: &Walk) -> bool {
    let ([m, n, _], [by_row, by_col, _]) = (walk.size, walk.stride);
    let (across, along) = (by_col[C] == 1 || n == 1, by_row[C] == 1 || m == 1);
    along && (!across || (n < COLS && m > n))
}

/// Exchanges the roles of A and B.
fn mirror(spec: &mut Contraction) {
    for axis in &mut spec.axes {
        axis.role = match axis.role {
            Role::M => Role::N,
            Role::N => Role::M,
            other => other,
        };
        std::mem::swap(&mut axis.a, &mut axis.b);
    }
    std::mem::swap(&mut spec.a, &mut spec.b);
}

impl Kernel for Gemm {
    fn operands(&self) -> usize {
        self.operands
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        // The plan is the same on every instruction set.
        let bytes = |tiles: bool| self.worker_parts(self.cut(threads, tiles)).iter().sum::<usize>();
        let most = bytes(false).max(bytes(true));
        scratch_for(&[per_worker_bytes(threads, most)])
    }

    fn prepare(&mut self, library: &mut Library) {
        if let Some(engine) = &mut self.epilogue {
            engine.prepare(library);
        }
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], scalars: &Scalars, scratch: &mut [u8]) {
        assert_eq!(ptrs.len(), self.operands, "gemm: one address per operand");
        let cut = self.cut(pool.threads(), self.word.tiles(pool.simd()));
        let parts = self.worker_parts(cut);
        let workers = Carve::new(scratch).per_worker(pool.threads(), parts.iter().sum());
        let [m, n, _] = self.walk.size;
        let [rows, cols] = cut;
        let (row_blocks, col_blocks) = (m.div_ceil(rows), n.div_ceil(cols));
        let per_outer = row_blocks * col_blocks;
        let run = Run { simd: pool.simd(), ptrs, scalars };
        pool.run(self.walk.outer.elements() * per_outer, &|task, worker| {
            let (outer, block) = (task / per_outer, task % per_outer);
            let (m0, n0) = (block / col_blocks * rows, block % col_blocks * cols);
            let mut offset = [0; 4];
            for (which, offset) in offset.iter_mut().enumerate() {
                *offset = self.walk.outer.offset(which, outer)
                    + m0 as isize * self.walk.stride[0][which]
                    + n0 as isize * self.walk.stride[1][which];
            }
            let block = Block { offset, rows: rows.min(m - m0), cols: cols.min(n - n0) };
            let mut at = 0;
            let [registers, right, left, staged, old] = parts.map(|bytes| {
                at += bytes;
                workers.of(worker).at::<u8>((at - bytes) as isize)
            });
            let work = Work {
                registers: registers.cast(),
                right: right.cast(),
                left: left.cast(),
                block: staged.cast(),
                old: old.cast(),
            };
            // SAFETY: the caller vouches for the addresses; tasks own disjoint blocks of C.
            unsafe {
                if let Some(engine) = &self.epilogue {
                    let ptrs = &ptrs[2..];
                    engine.begin(Frame {
                        simd: run.simd,
                        ptrs,
                        scalars,
                        registers: work.registers,
                    });
                }
                self.task(&run, block, work);
            }
        });
    }
}
