//! Tile programs: element-wise arithmetic on pieces of up to [`TILE`] elements, values in cache.
//!
//! A [`Program`] is single-assignment: every instruction defines a value number once. It is
//! compiled once into an [`Engine`] with few slots; `map`, `reduce` and the epilogue of `gemm` all
//! run engines over positions of their iteration space. A slot is a register of the worker or a
//! matrix in memory: contiguous f32 operands and products are read in place, and a step whose
//! result is stored as contiguous f32 writes it there itself.

mod compile;
mod pieces;
mod program;

use self::compile::{Code, Direct, Step, What};
use self::pieces::Piece;
pub(crate) use self::program::check_output;
pub use self::program::{Instr, Program, Value};
use crate::axes::{Space, by_stride};
use crate::kernel::{Dtype, KernelError, Operand, Ptr, Scalars};
use crate::kernels::convert;
use crate::kernels::ops::{self, Rows};
use crate::philox::fill_uniform;
use crate::simd::{self, Simd};

/// Most elements of a piece.
pub const TILE: usize = 1024;
/// Floats from one register to the next: registers at the same place of different pages would
/// fall into the same sets of the cache.
const PITCH: usize = TILE + 16;
/// Floats that a slot's address and row step take.
const SLOT: usize = size_of::<Slot>() / size_of::<f32>();

/// A compiled program.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    pub space: Space,
    dtypes: Vec<Dtype>,
    code: Code,
}

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
struct Slot {
    ptr: *mut f32,
    step: Option<isize>,
    uniform: bool,
}

/// Values of the result at some positions of a block.
#[derive(Clone, Copy)]
pub(crate) struct Values {
    pub rows: Rows,
    /// Rows and columns of the values.
    pub size: [usize; 2],
    /// Where they are in the block.
    pub col: usize,
}

impl Engine {
    /// Compiles with the axes as they are. `extra` operands (outputs of the caller) are walked
    /// with the space; `result` stays readable after each piece.
    pub fn compile(
        program: &Program,
        extra: &[&Operand],
        result: Option<Value>,
        in_epilogue: bool,
    ) -> Result<Engine, KernelError> {
        let operands: Vec<_> =
            program.inputs.iter().chain(&program.outputs).chain(extra.iter().copied()).collect();
        let strides = operands.iter().map(|operand| operand.strides.clone()).collect();
        let mut space = Space::new("tile program", &program.sizes, strides)?;
        let dtypes = operands.iter().map(|operand| operand.dtype).collect();
        for (number, output) in program.outputs.iter().enumerate() {
            check_output("tile program", program.inputs.len() + number, output, &program.sizes)?;
        }
        let code = compile::compile(program, operands.len(), result, in_epilogue)?;
        space.strides.extend(code.indices.iter().cloned());
        Ok(Engine { space, dtypes, code })
    }

    /// Addresses that it takes.
    pub fn operands(&self) -> usize {
        self.dtypes.len()
    }

    /// Bytes of registers that each worker needs.
    pub fn register_bytes(&self) -> usize {
        (self.code.slots * PITCH + self.table_floats()) * size_of::<f32>()
    }

    /// Floats before the registers: where each slot is.
    fn table_floats(&self) -> usize {
        (self.code.slots * SLOT).next_multiple_of(16)
    }

    /// Orders the axes for walking memory forward and merges them. Only for runs that visit every
    /// position in any order.
    pub fn reorder(&mut self, first: usize) {
        let axes: Vec<_> = (0..self.space.sizes.len()).collect();
        let mut keys: Vec<&[isize]> = self.space.strides[first..].iter().map(|s| &s[..]).collect();
        keys.extend(self.space.strides[..first].iter().map(|s| &s[..]));
        let order = by_stride(&axes, &keys);
        self.space.permute(&order);
        let rank = self.space.sizes.len();
        self.space.collapse(rank);
    }

    /// Fills the registers that hold for a whole task.
    ///
    /// # Safety
    /// As [`Engine::block`].
    pub unsafe fn begin(&self, frame: Frame<'_>) {
        for step in &self.code.setup {
            let piece = Piece::origin(if step.narrow { 1 } else { TILE });
            let work = Work { engine: self, frame, piece, product: Slot::NONE };
            // SAFETY: forwarded; a piece of a uniform operand reads its one element.
            unsafe { work.step(step) }
            let ptr = work.register(step.dst);
            work.put(step.dst, Slot { ptr, step: None, uniform: true });
        }
    }

    /// Runs the program on a finished block: row `i` of it is the `cols` consecutive positions
    /// from `position + i * row_step`, whose products lie at `product + i * product_row`.
    ///
    /// # Safety
    /// `begin` has run on these registers, the frame's addresses are valid for the operands at
    /// these positions, and the products for reads if the program uses them.
    pub unsafe fn block(
        &self,
        frame: Frame<'_>,
        position: usize,
        row_step: usize,
        size: [usize; 2],
        product: *const f32,
        product_row: usize,
    ) {
        if size.contains(&0) {
            return;
        }
        pieces::cut(&self.space, position, row_step, size, TILE, &mut |piece| {
            let at = product.wrapping_add(piece.row * product_row + piece.col).cast_mut();
            let product = Slot { ptr: at, step: Some(product_row as isize), uniform: false };
            let work = Work { engine: self, frame, piece, product };
            for step in &self.code.steps {
                // SAFETY: forwarded.
                unsafe { work.step(step) }
            }
        });
    }

    /// The same for a program without products whose result is wanted, in the order of `cut`.
    ///
    /// # Safety
    /// As [`Engine::block`].
    pub unsafe fn values(
        &self,
        frame: Frame<'_>,
        position: usize,
        row_step: usize,
        size: [usize; 2],
        mut visit: impl FnMut(Values),
    ) {
        if size.contains(&0) {
            return;
        }
        pieces::cut(&self.space, position, row_step, size, TILE, &mut |piece| {
            let work = Work { engine: self, frame, piece, product: Slot::NONE };
            for step in &self.code.steps {
                // SAFETY: forwarded.
                unsafe { work.step(step) }
            }
            // SAFETY: the steps have defined the result.
            let rows = unsafe { work.get(self.code.result) };
            visit(Values { rows, size: [piece.rows, piece.cols], col: piece.col });
        });
    }

    /// Runs the program on the `len` positions from `start`; `product` is what `Instr::Product`
    /// reads.
    ///
    /// # Safety
    /// As [`Engine::block`].
    pub unsafe fn tile(&self, frame: Frame<'_>, start: usize, len: usize, product: *const f32) {
        let inner = self.space.sizes[self.space.sizes.len() - 1];
        let head = ((inner - start % inner) % inner).min(len);
        let rows = (len - head) / inner;
        let tail = (len - head) % inner;
        let mut at = 0;
        for size in [[1, head], [rows, inner], [1, tail]] {
            // SAFETY: forwarded; the three blocks follow each other.
            unsafe { self.block(frame, start + at, inner, size, product.wrapping_add(at), inner) }
            at += size[0] * size[1];
        }
    }
}

impl Values {
    /// One row of them.
    ///
    /// # Safety
    /// It is one of `size[0]`, and no later piece has begun.
    pub unsafe fn row<'a>(&self, row: usize) -> &'a [f32] {
        // SAFETY: the engine has computed these rows.
        unsafe { std::slice::from_raw_parts(self.rows.row(row), self.size[1]) }
    }
}

impl Slot {
    const NONE: Slot = Slot { ptr: std::ptr::null_mut(), step: None, uniform: false };
}

/// Elements of a piece that make it worth asking for the next one.
const PREFETCHED: usize = 512;

/// One piece in work.
struct Work<'a> {
    engine: &'a Engine,
    frame: Frame<'a>,
    piece: Piece,
    product: Slot,
}

impl Work<'_> {
    /// The entry of the table for a slot.
    fn entry(&self, slot: usize) -> *mut Slot {
        self.frame.registers.cast::<Slot>().wrapping_add(slot)
    }

    fn put(&self, slot: usize, at: Slot) {
        // SAFETY: the table is as long as the program has slots, and aligned as the registers are.
        unsafe { self.entry(slot).write(at) }
    }

    /// A slot's register, which becomes its place.
    fn register(&self, slot: usize) -> *mut f32 {
        let first = self.engine.table_floats();
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
    unsafe fn get(&self, slot: usize) -> Rows {
        // SAFETY: the entry is written.
        self.rows(unsafe { self.entry(slot).read() })
    }

    /// An operand's first element in the piece, its step from row to row and from column to column.
    fn place(&self, operand: usize) -> (isize, isize, isize) {
        let strides = &self.engine.space.strides[operand];
        let (offset, row) = self.piece.place(strides);
        (offset, row, strides[strides.len() - 1])
    }

    /// An operand as a slot, if it can be one.
    fn in_place(&self, operand: usize) -> Option<Slot> {
        let (offset, row, col) = self.place(operand);
        let plain = col == 1 && self.engine.dtypes[operand] == Dtype::F32;
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

    /// # Safety
    /// As [`Engine::block`]; earlier steps have defined the sources.
    #[inline]
    unsafe fn step(&self, step: &Step) {
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
        let from = (self.frame.ptrs[operand], self.engine.dtypes[operand]);
        let (to, stride) = (self.register(dst), self.place(operand).2);
        self.stretches(operand, |offset, at, n| {
            // SAFETY: the caller vouches for the operand's elements; a register holds a piece.
            unsafe { convert::load(self.frame.simd, to.add(at), from, offset, stride, n) }
        });
    }

    /// Asks for what probably follows: the next tile of an operand that is read from end to end.
    /// With many operands side by side, a page of each a tile, processors do not foresee it.
    fn prefetch(&self, operand: usize) {
        let Piece { rows, cols, .. } = self.piece;
        let (offset, row, col) = self.place(operand);
        let count = rows * cols;
        if col != 1 || count < PREFETCHED || (rows > 1 && row != cols as isize) {
            return;
        }
        let bytes = self.engine.dtypes[operand].bytes();
        let next = self.frame.ptrs[operand].at::<u8>((offset + count as isize) * bytes as isize);
        simd::prefetch(next, count * bytes);
    }

    unsafe fn store(&self, operand: usize, from: Rows) {
        let to = (self.frame.ptrs[operand], self.engine.dtypes[operand]);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::ops::Binary;

    /// Rows of 33 in a space of heads of 11: a block gives what its positions give one by one,
    /// and touches nothing else.
    #[test]
    fn a_block_is_its_positions() {
        let (rows, cols, product_row) = (40, 33, 37);
        let sizes = vec![rows, 3, 11];
        let strides = [[33, 11, 1], [0, 11, 1], [11, 1320 / 3, 1], [1, 40, 120]];
        let [bias, out] = [strides[1], strides[2]].map(Operand::f32);
        let other = Operand::bf16(strides[3]);
        let instrs = vec![
            Instr::Product { dst: 0 },
            Instr::Load { dst: 1, input: 0 },
            Instr::Coord { dst: 2, axis: 0 },
            Instr::Binary { op: Binary::Mul, dst: 3, a: 0, b: 1 },
            Instr::Binary { op: Binary::Add, dst: 4, a: 3, b: 2 },
            Instr::Store { output: 0, src: 4 },
            Instr::Store { output: 1, src: 4 },
        ];
        let program = Program { sizes, inputs: vec![bias], outputs: vec![out, other], instrs };
        let mut engine = Engine::compile(&program, &[], None, true).unwrap();
        engine.space.collapse(3);
        engine.space = engine.space.finish("test").unwrap();
        let product: Vec<f32> = (0..rows * product_row).map(|i| (i % 101) as f32).collect();
        let bias: Vec<f32> = (0..cols).map(|i| i as f32 - 9.0).collect();
        let run = |blocks: &[(usize, usize, usize, usize)], single: bool| {
            let (mut out, mut other) = (vec![-1.0f32; 1320], vec![7u16; 1320]);
            let ptrs =
                [Ptr::new(bias.as_ptr()), Ptr::new(out.as_mut_ptr()), Ptr::new(other.as_mut_ptr())];
            let mut scratch = vec![0u8; engine.register_bytes() + 128];
            let registers = crate::kernel::Carve::new(&mut scratch).take(engine.register_bytes());
            let scalars = Scalars::default();
            let (simd, registers) = (Simd::best(), registers.at(0));
            let frame = Frame { simd, ptrs: &ptrs, scalars: &scalars, registers };
            // SAFETY: the buffers hold what the strides reach.
            unsafe {
                engine.begin(frame);
                for &(row, col, rows, cols) in blocks {
                    let (at, from) = (row * 33 + col, row * product_row + col);
                    let from = product.as_ptr().add(from);
                    if !single {
                        engine.block(frame, at, 33, [rows, cols], from, product_row);
                        continue;
                    }
                    for (i, j) in (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))) {
                        engine.tile(frame, at + i * 33 + j, 1, from.add(i * product_row + j));
                    }
                }
            }
            (out, other)
        };
        for blocks in [&[(0, 0, 40, 33)][..], &[(3, 5, 14, 16), (20, 0, 1, 7)], &[(0, 32, 40, 1)]] {
            let (wanted, got) = (run(blocks, true), run(blocks, false));
            assert!(wanted == got, "{blocks:?}");
            assert!(got.0.iter().any(|&x| x != -1.0));
        }
    }
}
