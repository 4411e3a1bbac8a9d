//! Tile programs: element-wise arithmetic on pieces of up to [`TILE`] elements, values in cache.
//!
//! A [`Program`] is single-assignment: every instruction defines a value number once. It is
//! compiled once into an [`Engine`] with few slots; `map`, `reduce` and the epilogue of `gemm` all
//! run engines over positions of their iteration space. A slot is a register of the worker or a
//! matrix in memory: contiguous f32 operands and products are read in place, and a step whose
//! result is stored as contiguous f32 writes it there itself.
//!
//! Where there is AVX-512, `Engine::prepare` makes machine code of the program, which passes over
//! a piece once (`native`); elsewhere an interpreter passes over it once per step
//! (`interpret`). The results are the same bits, but for which NaN a NaN is.

mod compile;
mod interpret;
mod native;
mod pieces;

use self::compile::Code;
pub(crate) use self::interpret::Frame;
pub use self::interpret::TILE;
use self::interpret::{PITCH, SLOT, Slot, Work};
use self::native::Native;
use self::pieces::Piece;
use crate::executable::Library;
use crate::kernel::{KernelError, check_output};
use crate::kernels::ops::Rows;
use crate::simd::Level;
use aerogel_graph::DType;
use aerogel_lower::space::{Space, by_stride};
use aerogel_lower::{Operand, Program, Value};

/// Most elements of a piece of which no value is kept in a register of the worker.
const FREE_TILE: usize = 8192;

/// A compiled program.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    pub space: Space,
    dtypes: Vec<DType>,
    code: Code,
    /// Whether the caller reads a value after each piece.
    with_result: bool,
    /// Machine code for most of it, once it was prepared.
    native: Option<Native>,
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
        let with_result = result.is_some();
        Ok(Engine { space, dtypes, code, with_result, native: None })
    }

    /// Compiles what runs on finished rows of a kernel, which are even steps of the space, whatever
    /// axes are merged.
    pub fn epilogue(program: &Program, kernel: &'static str) -> Result<Engine, KernelError> {
        let mut engine = Engine::compile(program, &[], None, true)?;
        let rank = engine.space.sizes.len();
        engine.space.collapse(rank);
        engine.space = engine.space.finish(kernel)?;
        Ok(engine)
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

    /// Makes machine code of the program as it lies now, if the library takes any. The results
    /// stay the same bits.
    pub fn prepare(&mut self, library: &mut Library) {
        let (result, table) = (self.with_result, self.table_floats());
        self.native = Native::new(&self.code, result, table, (&self.space, &self.dtypes), library);
    }

    /// The generated code, where the frame's instructions are those that it has.
    fn native(&self, frame: Frame<'_>) -> Option<&Native> {
        self.native.as_ref().filter(|_| frame.simd.level() >= Level::Avx512)
    }

    fn work<'a>(&'a self, frame: Frame<'a>, piece: Piece, product: Slot) -> Work<'a> {
        let table_floats = self.table_floats();
        Work { space: &self.space, dtypes: &self.dtypes, frame, piece, product, table_floats }
    }

    /// Fills the registers that hold for a whole task.
    ///
    /// # Safety
    /// As [`Engine::block`].
    pub unsafe fn begin(&self, frame: Frame<'_>) {
        let setup = self.native(frame).map_or(&self.code.setup, |native| native.setup());
        for step in setup {
            let piece = Piece::origin(if step.narrow { 1 } else { TILE });
            let work = self.work(frame, piece, Slot::NONE);
            // SAFETY: forwarded; a piece of a uniform operand reads its one element.
            unsafe { work.step(step) }
            let ptr = work.register(step.dst);
            work.put(step.dst, Slot { ptr, step: None, uniform: true });
        }
    }

    /// Runs the program on a block, piece by piece; `product` is where that of a piece lies.
    unsafe fn pieces(
        &self,
        frame: Frame<'_>,
        (position, row_step): (usize, usize),
        size: [usize; 2],
        product: impl Fn(&Piece) -> Slot,
        mut visit: impl FnMut(&Work<'_>),
    ) {
        if size.contains(&0) {
            return;
        }
        let native = self.native(frame);
        let most = if native.is_some_and(Native::is_free) { FREE_TILE } else { TILE };
        pieces::cut(&self.space, position, row_step, size, most, &mut |piece| {
            let product = product(&piece);
            let work = self.work(frame, piece, product);
            // SAFETY: forwarded from the caller.
            unsafe {
                match native {
                    Some(native) => native.run(&work),
                    None => self.code.steps.iter().for_each(|step| work.step(step)),
                }
            }
            visit(&work);
        });
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
        let product = |piece: &Piece| {
            let ptr = product.wrapping_add(piece.row * product_row + piece.col).cast_mut();
            Slot { ptr, step: Some(product_row as isize), uniform: false }
        };
        // SAFETY: forwarded.
        unsafe { self.pieces(frame, (position, row_step), size, product, |_| ()) }
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
        // SAFETY: forwarded; the steps define the result.
        unsafe {
            self.pieces(
                frame,
                (position, row_step),
                size,
                |_| Slot::NONE,
                |work| {
                    let (rows, Piece { rows: count, cols, col, .. }) =
                        (work.get(self.code.result), work.piece);
                    visit(Values { rows, size: [count, cols], col });
                },
            );
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Ptr, Scalars};
    use crate::simd::Simd;
    use aerogel_lower::{Binary, Instr};

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
        let engine = Engine::epilogue(&program, "test").unwrap();
        let product: Vec<f32> = (0..rows * product_row).map(|i| (i % 101) as f32).collect();
        let bias: Vec<f32> = (0..cols).map(|i| i as f32 - 9.0).collect();
        let mut prepared = engine.clone();
        prepared.prepare(&mut Library::new(Simd::best()));
        let run = |engine: &Engine, blocks: &[(usize, usize, usize, usize)], single: bool| {
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
            let (wanted, got) = (run(&engine, blocks, true), run(&engine, blocks, false));
            assert!(wanted == got, "{blocks:?}");
            assert!(wanted == run(&prepared, blocks, true), "code, {blocks:?}");
            assert!(wanted == run(&prepared, blocks, false), "code, {blocks:?}");
            assert!(got.0.iter().any(|&x| x != -1.0));
        }
    }
}
