//! The interpreter: one step after the other over a piece, each a vectorised loop of `ops`.
//!
//! It runs wherever there is no generated code, and the parts of programs that such code lacks.

use super::compile::{Direct, Step, What};
use super::pieces::Piece;
use crate::kernel::{Ptr, Scalars};
use crate::kernels::convert;
use crate::kernels::ops::{self, Rows};
use crate::philox::fill_uniform;
use crate::simd::{self, Simd};
use aerogel_graph::DType;
use aerogel_lower::space::Space;

/// Most elements of a piece: what a register holds.
pub const TILE: usize = 1024;
/// Floats from one register to the next: registers at the same place of different pages would
/// fall into the same sets of the cache.
pub(super) const PITCH: usize = TILE + 16;
/// Floats that a slot's address and row step take.
pub(super) const SLOT: usize = size_of::<Slot>() / size_of::<f32>();

/// What an engine run needs besides the positions.
#[derive(Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub simd: Simd,
    pub ptrs: &'a [Ptr],
    pub scalars: &'a Scalars,
    /// The worker's registers, of `Engine::register_bytes`, on a cache line.
    pub registers: *mut f32,
}

/// Where a value is: `step` elements from row to row, or as many as the piece has columns.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub ptr: *mut f32,
    pub step: Option<isize>,
    pub uniform: bool,
}

impl Slot {
    pub const NONE: Slot = Slot { ptr: std::ptr::null_mut(), step: None, uniform: false };
}

/// Elements of a piece that make it worth asking for the next one.
const PREFETCHED: usize = 512;

/// One piece in work.
pub(super) struct Work<'a> {
    pub space: &'a Space,
    pub dtypes: &'a [DType],
    pub frame: Frame<'a>,
    pub piece: Piece,
    pub product: Slot,
    /// Floats before the registers: where each slot is.
    pub table_floats: usize,
}

impl Work<'_> {
    /// The entry of the table for a slot.
    fn entry(&self, slot: usize) -> *mut Slot {
        self.frame.registers.cast::<Slot>().wrapping_add(slot)
    }

    /// Where a slot is from now on.
    pub fn put(&self, slot: usize, at: Slot) {
        // SAFETY: the table is as long as the program has slots, and aligned as the registers are.
        unsafe { self.entry(slot).write(at) }
    }

    /// A slot's register, which becomes its place.
    pub fn register(&self, slot: usize) -> *mut f32 {
        let first = self.table_floats;
        let ptr = self.frame.registers.wrapping_add(first + slot * PITCH);
        self.put(slot, Slot { ptr, step: None, uniform: false });
        ptr
    }

    fn rows(&self, slot: Slot) -> Rows {
        // SAFETY: what defined the slot vouched for `piece.rows` times `piece.cols` floats.
        unsafe { Rows::new(slot.ptr, slot.step.unwrap_or(self.piece.cols as isize), slot.uniform) }
    }

    /// What is in a slot.
    ///
    /// # Safety
    /// An earlier step has defined it.
    pub unsafe fn get(&self, slot: usize) -> Rows {
        // SAFETY: the entry is written.
        self.rows(unsafe { self.entry(slot).read() })
    }

    /// An operand's first element in the piece, its step from row to row and from column to column.
    pub fn place(&self, operand: usize) -> (isize, isize, isize) {
        let strides = &self.space.strides[operand];
        let (offset, row) = self.piece.place(strides);
        (offset, row, strides[strides.len() - 1])
    }

    /// An operand as a slot, if it can be one.
    fn in_place(&self, operand: usize) -> Option<Slot> {
        let (offset, row, col) = self.place(operand);
        let plain = col == 1 && self.dtypes[operand] == DType::F32;
        plain.then(|| Slot {
            ptr: self.frame.ptrs[operand].at(offset),
            step: Some(row),
            uniform: false,
        })
    }

    /// Where a step writes: the output that it is stored to, or its register.
    fn out(&self, step: &Step) -> Rows {
        let output = step.direct.as_ref().filter(|direct| self.may_write(direct));
        if let Some(slot) = output.and_then(|direct| self.in_place(direct.operand)) {
            self.put(step.dst, slot);
            return self.rows(slot);
        }
        let ptr = self.register(step.dst);
        self.rows(Slot { ptr, step: None, uniform: false })
    }

    fn may_write(&self, direct: &Direct) -> bool {
        let ptrs = self.frame.ptrs;
        let own = ptrs[direct.operand].address();
        direct.unless.iter().all(|&input| ptrs[input].address() != own)
    }

    /// Calls `f(offset, at, n)` for each stretch of an operand that is even along the columns.
    fn stretches(&self, operand: usize, mut f: impl FnMut(isize, usize, usize)) {
        let Piece { rows, cols, .. } = self.piece;
        let (offset, row, col) = self.place(operand);
        if rows == 1 || row == cols as isize * col {
            return f(offset, 0, rows * cols);
        }
        for i in 0..rows {
            f(offset + i as isize * row, i * cols, cols);
        }
    }

    /// Runs a step.
    ///
    /// # Safety
    /// Earlier steps have defined the sources, and the frame's addresses are valid for the operands
    /// in the piece.
    #[inline]
    pub unsafe fn step(&self, step: &Step) {
        let simd = self.frame.simd;
        let size = [self.piece.rows, self.piece.cols];
        // SAFETY: the compiler of programs lets a slot be read only where it is defined.
        let get = |slot: usize| unsafe { self.get(slot) };
        let fill = |value: f32| {
            // SAFETY: a register holds a piece.
            unsafe {
                let to = self.register(step.dst);
                std::slice::from_raw_parts_mut(to, size[0] * size[1]).fill(value);
            }
        };
        match step.what {
            // SAFETY: forwarded.
            What::Load { operand, keep } => unsafe { self.load(step.dst, operand, keep) },
            // SAFETY: forwarded.
            What::Store { operand, src } => unsafe { self.store(operand, get(src)) },
            What::Product => self.put(step.dst, self.product),
            What::Const(value) => fill(value),
            What::Piece => fill(self.frame.scalars.piece as f32),
            What::Coord { operand } => {
                let (to, stride) = (self.register(step.dst), self.place(operand).2);
                self.stretches(operand, |offset, at, n| {
                    // SAFETY: a register holds a piece.
                    let to = unsafe { std::slice::from_raw_parts_mut(to.add(at), n) };
                    ops::ramp(simd, to, offset as i32, stride as i32);
                });
            }
            What::Rand { operand, stream } => {
                let (to, stride) = (self.register(step.dst), self.place(operand).2);
                self.stretches(operand, |offset, at, n| {
                    // SAFETY: a register holds a piece.
                    let to = unsafe { std::slice::from_raw_parts_mut(to.add(at), n) };
                    draw(simd, to, self.frame.scalars, stream, offset, stride);
                });
            }
            What::Unary { op, a } => ops::unary(simd, op, self.out(step), get(a), size),
            What::Binary { op, a, b } => {
                ops::binary(simd, op, self.out(step), get(a), get(b), size);
            }
            What::Fma { a, b, c } => {
                ops::fma(simd, self.out(step), get(a), get(b), get(c), size);
            }
            What::Select { cond, a, b } => {
                ops::select(simd, self.out(step), get(cond), get(a), get(b), size);
            }
        }
    }

    unsafe fn load(&self, dst: usize, operand: usize, keep: bool) {
        self.prefetch(operand);
        let slot = self.in_place(operand).filter(|_| !keep);
        if let Some(slot) = slot {
            return self.put(dst, slot);
        }
        let from = (self.frame.ptrs[operand], self.dtypes[operand]);
        let (to, stride) = (self.register(dst), self.place(operand).2);
        self.stretches(operand, |offset, at, n| {
            // SAFETY: the caller vouches for the operand's elements; a register holds a piece.
            unsafe { convert::load(self.frame.simd, to.add(at), from, offset, stride, n) }
        });
    }

    /// Asks for what probably follows: the next tile of an operand that is read from end to end.
    /// With many operands side by side, a page of each a tile, processors do not foresee it.
    pub fn prefetch(&self, operand: usize) {
        let Piece { rows, cols, .. } = self.piece;
        let (offset, row, col) = self.place(operand);
        let count = rows * cols;
        if col != 1 || count < PREFETCHED || (rows > 1 && row != cols as isize) {
            return;
        }
        let bytes = self.dtypes[operand].bytes();
        let next = self.frame.ptrs[operand].at::<u8>((offset + count as isize) * bytes as isize);
        simd::prefetch(next, count * bytes);
    }

    unsafe fn store(&self, operand: usize, from: Rows) {
        let to = (self.frame.ptrs[operand], self.dtypes[operand]);
        if self.in_place(operand).is_some_and(|slot| slot.ptr == from.ptr()) {
            return; // written where it was computed
        }
        let Piece { rows, cols, .. } = self.piece;
        let (offset, row, stride) = self.place(operand);
        let one = rows == 1 || (row == cols as isize * stride && from.step() == cols as isize);
        let (rows, cols) = if one { (1, rows * cols) } else { (rows, cols) };
        for i in 0..rows {
            let offset = offset + i as isize * row;
            // SAFETY: as for loads.
            unsafe { convert::store(self.frame.simd, from.row(i), to, offset, stride, cols) }
        }
    }
}

fn draw(simd: Simd, out: &mut [f32], scalars: &Scalars, stream: u64, offset: isize, stride: isize) {
    let first = scalars.element.wrapping_add(offset as u64);
    if stride == 1 {
        return fill_uniform(simd, out, scalars.seed, scalars.step, stream, first);
    }
    for (i, slot) in out.iter_mut().enumerate() {
        let element = first.wrapping_add((i as isize * stride) as u64);
        *slot = crate::philox::uniform(scalars.seed, scalars.step, stream, element);
    }
}
