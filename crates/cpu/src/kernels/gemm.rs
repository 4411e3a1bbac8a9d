//! Contractions of two tensors over named roles of axes: batched matrix products.
//!
//! Axes that strides allow are merged; of each role the longest becomes the matrix axis, the
//! others are loops around it (batch, M, N: more tasks; K: accumulation in order). Each task owns
//! one block of C for the full depth, so its bits do not depend on who computes it. A finished
//! block can go through a tile program (bias, activation, residual) while it is in cache.

use crate::axes::Space;
use crate::kernel::{
    Carve, Dtype, Kernel, KernelError, Operand, Ptr, Scalars, per_worker_bytes, scratch_for,
};
use crate::kernels::convert;
use crate::kernels::product::{Matrix, product, staging};
use crate::kernels::tile::{Engine, Frame, Program, TILE, check_output};
use crate::pool::Pool;
use crate::simd::Simd;

/// What an axis is to the product `c[batch, m, n] = sum over k of a[batch, m, k] * b[batch, k, n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// In all three.
    Batch,
    /// In A and C.
    M,
    /// In B and C.
    N,
    /// Summed: in A and B.
    K,
}

/// One axis of a contraction; strides in elements, ignored where the role lacks the axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Its role.
    pub role: Role,
    /// Its size.
    pub size: usize,
    /// Stride in A.
    pub a: isize,
    /// Stride in B.
    pub b: isize,
    /// Stride in C.
    pub c: isize,
}

/// A contraction to prepare.
#[derive(Clone, Debug, PartialEq)]
pub struct Contraction {
    /// The axes, in any order.
    pub axes: Vec<Axis>,
    /// Element type of A: f32 or bf16.
    pub a: Dtype,
    /// Element type of B: f32 or bf16.
    pub b: Dtype,
    /// Element type of C; unused with an epilogue.
    pub c: Dtype,
    /// Add to C instead of replacing it.
    pub accumulate: bool,
    /// Factor on the product.
    pub alpha: f32,
    /// A program over the axes of roles Batch, M, N (in this order of roles, within a role in the
    /// order of `axes`) that reads `Instr::Product` and stores the results; C itself is then not
    /// written and has no address.
    pub epilogue: Option<Program>,
}

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;
/// Fourth "operand": the row-major position in the epilogue's space.
const POSITION: usize = 3;

/// Multiply-adds that make a task worth its hand-over.
const TASK_MACS: usize = 1 << 21;
const MOST_TASKS: usize = 64;
/// Largest block that is kept in scratch.
const BLOCK_ROWS: usize = 256;
const BLOCK_COLS: usize = 512;

/// A prepared contraction. Addresses: A, B, C; with an epilogue A, B, then the inputs and the
/// outputs of the program.
#[derive(Clone, Debug)]
pub struct Gemm {
    /// Loops around a block: the rest of batch, M and N.
    outer: Space,
    /// The rest of K.
    depth: Space,
    /// Sizes and strides of the matrix axes M, N, K.
    size: [usize; 3],
    stride: [[isize; 4]; 3],
    block: [usize; 2],
    dtypes: [Dtype; 3],
    accumulate: bool,
    alpha: f32,
    epilogue: Option<Engine>,
    operands: usize,
}

impl Gemm {
    /// Chooses the matrix axes and the blocks.
    ///
    /// # Errors
    /// For element types other than f32 and bf16, a C that repeats along one of its axes, an
    /// epilogue together with `accumulate` or over other sizes, and more axes than are supported.
    pub fn new(spec: &Contraction) -> Result<Gemm, KernelError> {
        check(spec)?;
        let position = positions(&spec.axes);
        let role = |role: Role| group(spec, &position, role);
        let keep_last = spec.epilogue.is_some();
        let (batch, _) = role(Role::Batch)?;
        let (m_rest, m) = split(role(Role::M)?.0, false);
        let (n_rest, n) = split(role(Role::N)?.0, keep_last);
        let (k_rest, k) = split(role(Role::K)?.0, false);
        let outer = join(vec![batch, m_rest, n_rest]).finish("gemm")?;
        let depth = k_rest.finish("gemm")?;
        let size = [m.0, n.0, k.0];
        let mut epilogue = None;
        if let Some(program) = &spec.epilogue {
            let mut engine = Engine::compile(program, &[], None, true)?;
            let rank = engine.space.sizes.len();
            engine.space.collapse(rank);
            engine.space = engine.space.finish("gemm epilogue")?;
            epilogue = Some(engine);
        }
        let mut gemm = Gemm {
            outer,
            depth,
            size,
            stride: [m.1, n.1, k.1],
            block: [0, 0],
            dtypes: [spec.a, spec.b, spec.c],
            accumulate: spec.accumulate,
            alpha: spec.alpha,
            epilogue,
            operands: spec.epilogue.as_ref().map_or(3, |p| 2 + p.inputs.len() + p.outputs.len()),
        };
        gemm.block = gemm.choose_block();
        Ok(gemm)
    }

    /// Whether blocks are made in scratch rather than in C.
    fn staged_block(&self) -> bool {
        self.epilogue.is_some() || self.dtypes[C] != Dtype::F32
    }

    fn choose_block(&self) -> [usize; 2] {
        let [m, n, k] = self.size;
        let (mut rows, mut cols) = (m.max(1), n.max(1));
        if self.staged_block() || self.dtypes != [Dtype::F32; 3] {
            (rows, cols) = (rows.min(BLOCK_ROWS), cols.min(BLOCK_COLS));
        }
        let outer = self.outer.elements();
        let macs = outer * m * n * k * self.depth.elements();
        let wanted = (macs / TASK_MACS).min(MOST_TASKS);
        while outer * m.div_ceil(rows) * n.div_ceil(cols) < wanted {
            if rows >= cols && rows > 32 {
                rows = rows.div_ceil(2).next_multiple_of(16);
            } else if cols > 32 {
                cols = cols.div_ceil(2).next_multiple_of(16);
            } else {
                break;
            }
        }
        [rows, cols]
    }

    fn stage_floats(&self) -> usize {
        staging(self.block[0], self.block[1], self.size[2], self.dtypes[A], self.dtypes[B])
    }

    fn block_floats(&self) -> usize {
        if self.staged_block() { self.block[0] * self.block[1] } else { 0 }
    }

    fn worker_bytes(&self) -> usize {
        let floats = self.stage_floats() + self.block_floats() + self.block[1];
        let registers = self.epilogue.as_ref().map_or(0, Engine::register_bytes);
        floats * size_of::<f32>() + registers
    }

    /// The product of one block into `to`, over the whole depth.
    #[allow(clippy::too_many_arguments)] // one block of three matrices
    unsafe fn multiply(
        &self,
        simd: Simd,
        ptrs: &[Ptr],
        offsets: [isize; 2],
        [rows, cols]: [usize; 2],
        to: (*mut f32, isize, isize),
        accumulate: bool,
        stage: *mut f32,
    ) {
        let [m, n, k] = self.stride;
        for step in 0..self.depth.elements() {
            let matrix = |which: usize, row: isize, col: isize| Matrix {
                ptr: ptrs[which],
                dtype: self.dtypes[which],
                offset: offsets[which] + self.depth.offset(which, step),
                row,
                col,
            };
            let (a, b) = (matrix(A, m[A], k[A]), matrix(B, k[B], n[B]));
            let sizes = [rows, cols, self.size[2]];
            // SAFETY: forwarded; the block lies within the matrices.
            unsafe {
                product(simd, sizes, to, accumulate || step > 0, self.alpha, a, b, stage);
            }
        }
        if self.depth.elements() == 0 && !accumulate {
            let empty = Matrix { ptr: ptrs[A], dtype: Dtype::F32, offset: 0, row: 0, col: 0 };
            // SAFETY: depth 0 reads nothing and writes zeros to the block.
            unsafe {
                product(simd, [rows, cols, 0], to, false, 1.0, empty, empty, stage);
            }
        }
    }

    /// Sends a finished block through the epilogue, row by row.
    unsafe fn finish(&self, engine: &Engine, frame: Frame<'_>, position: usize, block: Block) {
        let [m, ..] = self.stride;
        for row in 0..block.rows {
            let start = position + row * m[POSITION] as usize;
            for col in (0..block.cols).step_by(TILE) {
                let len = TILE.min(block.cols - col);
                // SAFETY: the block's rows are written; the caller of `run` vouches for the rest.
                unsafe {
                    engine.tile(frame, start + col, len, block.data.add(row * block.cols + col));
                }
            }
        }
    }

    /// Writes a finished block to C.
    unsafe fn store(&self, simd: Simd, c: Ptr, offset: isize, block: Block, old: *mut f32) {
        let [m, n, _] = self.stride;
        let to = (c, self.dtypes[C]);
        for row in 0..block.rows {
            let offset = offset + row as isize * m[C];
            // SAFETY: as for `finish`; `old` holds one row of the block.
            unsafe {
                let from = block.data.add(row * block.cols);
                if self.accumulate {
                    convert::load(simd, old, to, offset, n[C], block.cols);
                    (0..block.cols).for_each(|col| *from.add(col) += *old.add(col));
                }
                convert::store(simd, from, to, offset, n[C], block.cols);
            }
        }
    }
}

/// A finished block in scratch, row-major.
#[derive(Clone, Copy)]
struct Block {
    data: *mut f32,
    rows: usize,
    cols: usize,
}

impl Kernel for Gemm {
    fn operands(&self) -> usize {
        self.operands
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        scratch_for(&[per_worker_bytes(threads, self.worker_bytes())])
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], scalars: &Scalars, scratch: &mut [u8]) {
        assert_eq!(ptrs.len(), self.operands, "gemm: one address per operand");
        let simd = pool.simd();
        let workers = Carve::new(scratch).per_worker(pool.threads(), self.worker_bytes());
        let [m, n, _] = self.size;
        let [rows, cols] = self.block;
        let (row_blocks, col_blocks) = (m.div_ceil(rows), n.div_ceil(cols));
        let per_outer = row_blocks * col_blocks;
        pool.run(self.outer.elements() * per_outer, &|task, worker| {
            let (outer, block) = (task / per_outer, task % per_outer);
            let (m0, n0) = (block / col_blocks * rows, block % col_blocks * cols);
            let (rows, cols) = (rows.min(m - m0), cols.min(n - n0));
            let offset = |which: usize| {
                self.outer.offset(which, outer)
                    + m0 as isize * self.stride[0][which]
                    + n0 as isize * self.stride[1][which]
            };
            let registers: *mut f32 = workers.of(worker).at(0);
            let engine = self.epilogue.as_ref();
            let data =
                registers.wrapping_add(engine.map_or(0, Engine::register_bytes) / size_of::<f32>());
            let stage = data.wrapping_add(self.block_floats());
            let old = stage.wrapping_add(self.stage_floats());
            let sizes = [rows, cols];
            let inputs = [offset(A), offset(B)];
            // SAFETY: the caller vouches for the addresses; tasks own disjoint blocks of C.
            unsafe {
                if !self.staged_block() {
                    let to = (ptrs[C].at(offset(C)), self.stride[0][C], self.stride[1][C]);
                    return self.multiply(simd, ptrs, inputs, sizes, to, self.accumulate, stage);
                }
                let to = (data, cols as isize, 1);
                self.multiply(simd, ptrs, inputs, sizes, to, false, stage);
                let block = Block { data, rows, cols };
                match engine {
                    Some(engine) => {
                        let frame = Frame { simd, ptrs: &ptrs[2..], scalars, registers };
                        engine.begin(frame);
                        self.finish(engine, frame, offset(POSITION) as usize, block);
                    }
                    None => self.store(simd, ptrs[C], offset(C), block, old),
                }
            }
        });
    }
}

fn check(spec: &Contraction) -> Result<(), KernelError> {
    let refuse = |what: String| Err(KernelError::Unsupported { kernel: "gemm", what });
    for (name, dtype) in [("A", spec.a), ("B", spec.b), ("C", spec.c)] {
        if dtype == Dtype::U32 {
            return refuse(format!("{name} holds u32; contractions take f32 and bf16"));
        }
    }
    let in_c: Vec<_> = in_c(&spec.axes).collect();
    let sizes: Vec<_> = in_c.iter().map(|axis| axis.size).collect();
    match &spec.epilogue {
        None => {
            let c = Operand::f32(in_c.iter().map(|axis| axis.c).collect::<Vec<_>>());
            check_output("gemm", C, &c, &sizes)
        }
        Some(_) if spec.accumulate => {
            refuse("an epilogue cannot be combined with accumulate; load C in the program".into())
        }
        Some(program) if program.sizes != sizes => refuse(format!(
            "the epilogue's sizes {:?} are not those of batch, M and N: {sizes:?}",
            program.sizes
        )),
        Some(_) => Ok(()),
    }
}

/// The axes of C in the order of the epilogue's space.
fn in_c(axes: &[Axis]) -> impl Iterator<Item = &Axis> {
    let of = move |role: Role| axes.iter().filter(move |axis| axis.role == role);
    of(Role::Batch).chain(of(Role::M)).chain(of(Role::N))
}

/// For every axis, its row-major stride in the epilogue's space; 0 for K.
fn positions(axes: &[Axis]) -> Vec<isize> {
    let order = [Role::Batch, Role::M, Role::N];
    let after = |at: usize, role: Role| {
        let rank = |role| order.iter().position(|&other| other == role);
        let later = |(other, axis): &(usize, &Axis)| {
            axis.role != Role::K && (rank(axis.role), *other) > (rank(role), at)
        };
        axes.iter().enumerate().filter(later).map(|(_, axis)| axis.size as isize).product()
    };
    let stride = |(at, axis): (usize, &Axis)| match axis.role {
        Role::K => 0,
        role => after(at, role),
    };
    axes.iter().enumerate().map(stride).collect()
}

/// The merged axes of one role, as a space over A, B, C and the position.
fn group(
    spec: &Contraction,
    position: &[isize],
    role: Role,
) -> Result<(Space, usize), KernelError> {
    let keep = |here: bool, stride: isize| if here { stride } else { 0 };
    let (mut sizes, mut strides) = (Vec::new(), vec![Vec::new(); 4]);
    for (axis, &at) in spec.axes.iter().zip(position).filter(|(axis, _)| axis.role == role) {
        sizes.push(axis.size);
        strides[A].push(keep(role != Role::N, axis.a));
        strides[B].push(keep(role != Role::M, axis.b));
        strides[C].push(keep(role != Role::K && spec.epilogue.is_none(), axis.c));
        strides[POSITION].push(keep(spec.epilogue.is_some(), at));
    }
    let mut space = Space::new("gemm", &sizes, strides)?;
    if spec.epilogue.is_none() {
        let order = match role {
            Role::M | Role::K => [A, B],
            Role::N | Role::Batch => [B, A],
        };
        let keys = order.map(|which| space.strides[which].clone());
        let axes: Vec<_> = (0..sizes.len()).collect();
        space.permute(&crate::axes::by_stride(&axes, &[&keys[0], &keys[1]]));
    }
    let rank = space.sizes.len();
    space.collapse(rank);
    Ok((space, rank))
}

/// Takes the matrix axis out of a role: the longest, or the last.
fn split(mut space: Space, last: bool) -> (Space, (usize, [isize; 4])) {
    let count = space.sizes.len();
    let longest = (0..count).max_by_key(|&axis| space.sizes[axis]);
    let Some(axis) = (if last { count.checked_sub(1) } else { longest }) else {
        return (space, (1, [0; 4]));
    };
    let size = space.sizes.remove(axis);
    let mut strides = [0; 4];
    for (own, stride) in space.strides.iter_mut().zip(&mut strides) {
        *stride = own.remove(axis);
    }
    (space, (size, strides))
}

/// One space with the axes of all, in order.
fn join(spaces: Vec<Space>) -> Space {
    let mut all = Space { sizes: Vec::new(), strides: vec![Vec::new(); 4] };
    for space in spaces {
        all.sizes.extend(space.sizes);
        for (own, more) in all.strides.iter_mut().zip(space.strides) {
            own.extend(more);
        }
    }
    all
}
