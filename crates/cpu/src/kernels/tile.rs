//! Tile programs: element-wise arithmetic on tiles of [`TILE`] elements, registers in cache.
//!
//! A [`Program`] is single-assignment: every instruction defines a value number once. It is
//! compiled once into an [`Engine`] with few physical registers; `map`, `reduce` and the epilogue
//! of `gemm` all run engines over positions of their iteration space.

use crate::axes::{Space, by_stride};
use crate::kernel::{Dtype, KernelError, Operand, Ptr, Scalars};
use crate::kernels::convert;
use crate::kernels::ops::{self, Binary, Unary};
use crate::philox::fill_uniform;
use crate::simd::Simd;

/// Elements of a tile.
pub const TILE: usize = 1024;

/// The number of a value; each is defined by one instruction.
pub type Value = u16;

/// One instruction of a tile program: it defines the value `dst` from earlier values.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // each variant's line says what its fields are
pub enum Instr {
    /// Reads the input of this number.
    Load { dst: Value, input: usize },
    /// The finished product, in the epilogue of a contraction only.
    Product { dst: Value },
    /// A constant.
    Const { dst: Value, value: f32 },
    /// The index along an axis of the space.
    Coord { dst: Value, axis: usize },
    /// [`Scalars::piece`], as a number.
    Piece { dst: Value },
    /// A uniform draw in [0, 1) for the logical element `sum(index * strides) + Scalars::element`.
    Rand { dst: Value, stream: u64, strides: Vec<isize> },
    /// `op(a)`.
    Unary { op: Unary, dst: Value, a: Value },
    /// `op(a, b)`; comparisons give 1 or 0.
    Binary { op: Binary, dst: Value, a: Value, b: Value },
    /// `a * b + c`, rounded once.
    Fma { dst: Value, a: Value, b: Value, c: Value },
    /// `a` where `cond` is not 0, else `b`.
    Select { dst: Value, cond: Value, a: Value, b: Value },
    /// Writes the output of this number; all stores follow all loads.
    Store { output: usize, src: Value },
}

/// An element-wise computation over a space of named sizes.
///
/// The addresses of a run are the inputs, then the outputs. An output may share its address with
/// an input of the same type and strides.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Axis sizes, outermost first.
    pub sizes: Vec<usize>,
    /// What `Load` reads.
    pub inputs: Vec<Operand>,
    /// What `Store` writes.
    pub outputs: Vec<Operand>,
    /// The instructions in order.
    pub instrs: Vec<Instr>,
}

/// A compiled instruction on physical registers; `operand` counts in the engine's space.
#[derive(Clone, Debug)]
enum Step {
    Load { dst: usize, operand: usize },
    Product { dst: usize },
    Const { dst: usize, value: f32 },
    Coord { dst: usize, operand: usize },
    Piece { dst: usize },
    Rand { dst: usize, operand: usize, stream: u64 },
    Unary { op: Unary, dst: usize, a: usize },
    Binary { op: Binary, dst: usize, a: usize, b: usize },
    Fma { dst: usize, a: usize, b: usize, c: usize },
    Select { dst: usize, cond: usize, a: usize, b: usize },
    Store { operand: usize, src: usize },
}

/// A compiled program.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    pub space: Space,
    dtypes: Vec<Dtype>,
    /// Constants and operands that repeat everywhere: once per task.
    setup: Vec<Step>,
    /// Once per tile.
    steps: Vec<Step>,
    registers: usize,
    /// The register of the value that the caller reads after a tile, if it asked for one.
    pub result: usize,
}

/// What an engine run needs besides the positions.
#[derive(Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub simd: Simd,
    pub ptrs: &'a [Ptr],
    pub scalars: &'a Scalars,
    /// The worker's registers, of `Engine::register_bytes`.
    pub registers: *mut f32,
}

impl Engine {
    /// Compiles with the axes as they are. `extra` operands (outputs of the caller) are walked
    /// with the space; `result` stays readable after each tile.
    pub fn compile(
        program: &Program,
        extra: &[&Operand],
        result: Option<Value>,
        in_epilogue: bool,
    ) -> Result<Engine, KernelError> {
        let operands: Vec<_> =
            program.inputs.iter().chain(&program.outputs).chain(extra.iter().copied()).collect();
        let strides = operands.iter().map(|operand| operand.strides.clone()).collect();
        let space = Space::new("tile program", &program.sizes, strides)?;
        let dtypes = operands.iter().map(|operand| operand.dtype).collect();
        for (number, output) in program.outputs.iter().enumerate() {
            check_output("tile program", program.inputs.len() + number, output, &program.sizes)?;
        }
        let engine =
            Engine { space, dtypes, setup: vec![], steps: vec![], registers: 0, result: 0 };
        Ok(Compiler::new(engine, program, result, in_epilogue)?.engine)
    }

    /// Bytes of registers that each worker needs.
    pub fn register_bytes(&self) -> usize {
        self.registers * TILE * size_of::<f32>()
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
    /// As [`Engine::tile`].
    pub unsafe fn begin(&self, frame: Frame<'_>) {
        for step in &self.setup {
            // SAFETY: forwarded; a full tile of a uniform operand reads its one element.
            unsafe { self.step(step, frame, 0, TILE, std::ptr::null()) }
        }
    }

    /// Runs the program on the `len <= TILE` positions from `start`; `product` is what
    /// `Instr::Product` reads.
    ///
    /// # Safety
    /// `begin` has run on these registers, the frame's addresses are valid for the operands, and
    /// `product` for `len` reads if the program uses it.
    pub unsafe fn tile(&self, frame: Frame<'_>, start: usize, len: usize, product: *const f32) {
        for step in &self.steps {
            // SAFETY: forwarded.
            unsafe { self.step(step, frame, start, len, product) }
        }
    }

    /// Runs the program on a finished block: row `i` of it is the `cols` consecutive positions
    /// from `position + i * row_step`, whose products lie at `product + i * product_row`.
    ///
    /// # Safety
    /// As [`Engine::tile`], for every row.
    #[allow(dead_code)] // the contraction calls it once its blocks are made in scratch
    pub unsafe fn block(
        &self,
        frame: Frame<'_>,
        position: usize,
        row_step: usize,
        [rows, cols]: [usize; 2],
        product: *const f32,
        product_row: usize,
    ) {
        for row in 0..rows {
            let (start, product) =
                (position + row * row_step, product.wrapping_add(row * product_row));
            for col in (0..cols).step_by(TILE) {
                let len = TILE.min(cols - col);
                // SAFETY: forwarded.
                unsafe { self.tile(frame, start + col, len, product.wrapping_add(col)) }
            }
        }
    }

    /// The values of `register` after a tile.
    ///
    /// # Safety
    /// The frame's registers have been written by a tile of at least `len` positions.
    pub unsafe fn values<'a>(&self, frame: Frame<'a>, register: usize, len: usize) -> &'a [f32] {
        // SAFETY: the register lies within the worker's registers and has been written.
        unsafe { std::slice::from_raw_parts(frame.registers.add(register * TILE), len) }
    }

    unsafe fn step(
        &self,
        step: &Step,
        frame: Frame<'_>,
        start: usize,
        len: usize,
        product: *const f32,
    ) {
        let Frame { simd, ptrs, scalars, registers } = frame;
        // SAFETY: registers are disjoint stretches of TILE floats; the compiler of programs never
        // gives an instruction a destination that is one of its sources.
        let out =
            |r: usize| unsafe { std::slice::from_raw_parts_mut(registers.add(r * TILE), len) };
        // SAFETY: as above, and every source was written by an earlier instruction.
        let get = |r: usize| unsafe { std::slice::from_raw_parts(registers.add(r * TILE), len) };
        let inner = |operand: usize| *self.space.strides[operand].last().unwrap_or(&0);
        match *step {
            Step::Load { dst, operand } => {
                let from = (ptrs[operand], self.dtypes[operand]);
                if self.space.strides[operand].iter().all(|&stride| stride == 0) {
                    // SAFETY: the one element is valid, the register holds `len` floats.
                    unsafe { convert::load(simd, out(dst).as_mut_ptr(), from, 0, 0, len) };
                    return;
                }
                let stride = inner(operand);
                let to = out(dst).as_mut_ptr();
                self.space.runs(operand, start, len, |at, offset, n| {
                    // SAFETY: the caller vouches for the operand's elements; at + n <= len.
                    unsafe { convert::load(simd, to.add(at), from, offset, stride, n) }
                });
            }
            Step::Store { operand, src } => {
                let (to, stride) = ((ptrs[operand], self.dtypes[operand]), inner(operand));
                let from = get(src).as_ptr();
                self.space.runs(operand, start, len, |at, offset, n| {
                    // SAFETY: as for loads.
                    unsafe { convert::store(simd, from.add(at), to, offset, stride, n) }
                });
            }
            // SAFETY: the caller gives `len` products.
            Step::Product { dst } => unsafe {
                out(dst).as_mut_ptr().copy_from_nonoverlapping(product, len);
            },
            Step::Const { dst, value } => out(dst).fill(value),
            Step::Piece { dst } => out(dst).fill(scalars.piece as f32),
            Step::Coord { dst, operand } => {
                let (to, stride) = (out(dst), inner(operand));
                self.space.runs(operand, start, len, |at, offset, n| {
                    ops::ramp(simd, &mut to[at..at + n], offset as i32, stride as i32);
                });
            }
            Step::Rand { dst, operand, stream } => {
                let (to, stride) = (out(dst), inner(operand));
                self.space.runs(operand, start, len, |at, offset, n| {
                    draw(simd, &mut to[at..at + n], scalars, stream, offset, stride);
                });
            }
            Step::Unary { op, dst, a } => ops::unary(simd, op, out(dst), get(a)),
            Step::Binary { op, dst, a, b } => ops::binary(simd, op, out(dst), get(a), get(b)),
            Step::Fma { dst, a, b, c } => ops::fma(simd, out(dst), get(a), get(b), get(c)),
            Step::Select { dst, cond, a, b } => {
                ops::select(simd, out(dst), get(cond), get(a), get(b));
            }
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

/// Refuses an output that several positions would write.
pub(crate) fn check_output(
    kernel: &'static str,
    operand: usize,
    output: &Operand,
    sizes: &[usize],
) -> Result<(), KernelError> {
    for (axis, (&stride, &size)) in output.strides.iter().zip(sizes).enumerate() {
        if stride == 0 && size > 1 {
            return Err(KernelError::Overlap { kernel, operand, axis, size });
        }
    }
    Ok(())
}

/// Gives values physical registers: lowest free one, never one of the instruction's sources.
struct Compiler<'a> {
    engine: Engine,
    program: &'a Program,
    /// Physical register by value.
    home: Vec<Option<usize>>,
    /// Last instruction that reads a value; `usize::MAX` keeps it for good.
    last_use: Vec<usize>,
    free: Vec<usize>,
    in_epilogue: bool,
    stored: bool,
}

impl<'a> Compiler<'a> {
    fn new(
        engine: Engine,
        program: &'a Program,
        result: Option<Value>,
        in_epilogue: bool,
    ) -> Result<Self, KernelError> {
        let named = program.instrs.iter().flat_map(|i| sources(i).chain(target(i)));
        let values = named.chain(result).max().map_or(0, |most| usize::from(most) + 1);
        let mut last_use = vec![0; values];
        for (at, instr) in program.instrs.iter().enumerate() {
            for source in sources(instr) {
                last_use[usize::from(source)] = at;
            }
        }
        if let Some(result) = result {
            last_use[usize::from(result)] = usize::MAX;
        }
        let home = vec![None; last_use.len()];
        let mut compiler = Compiler {
            engine,
            program,
            home,
            last_use,
            free: Vec::new(),
            in_epilogue,
            stored: false,
        };
        for (at, instr) in program.instrs.iter().enumerate() {
            compiler.add(at, instr)?;
        }
        if let Some(result) = result {
            compiler.engine.result = compiler.read(program.instrs.len(), result)?;
        }
        Ok(compiler)
    }

    fn read(&self, at: usize, value: Value) -> Result<usize, KernelError> {
        self.home[usize::from(value)].ok_or_else(|| KernelError::Program {
            at,
            what: format!("reads value {value} before any instruction defines it"),
        })
    }

    fn define(&mut self, at: usize, dst: Value, pinned: bool) -> Result<usize, KernelError> {
        let value = usize::from(dst);
        if self.home[value].is_some() {
            let what = format!("defines value {dst} a second time");
            return Err(KernelError::Program { at, what });
        }
        // A pinned register is filled before the first tile, so no earlier value may use it.
        let register = if pinned { None } else { self.free.pop() }.unwrap_or_else(|| {
            self.engine.registers += 1;
            self.engine.registers - 1
        });
        if pinned {
            self.last_use[value] = usize::MAX;
        }
        self.home[value] = Some(register);
        Ok(register)
    }

    /// Strides of a pseudo-operand: a number that is linear in the coordinates.
    fn index(&mut self, strides: Vec<isize>) -> usize {
        self.engine.space.strides.push(strides);
        self.engine.space.strides.len() - 1
    }

    fn add(&mut self, at: usize, instr: &Instr) -> Result<(), KernelError> {
        let wrong = |what: String| Err(KernelError::Program { at, what });
        let rank = self.program.sizes.len();
        let mut setup = false;
        let step = match *instr {
            Instr::Load { input, .. } if input >= self.program.inputs.len() => {
                return wrong(format!("loads input {input}, which does not exist"));
            }
            Instr::Load { input, .. } if self.stored => {
                return wrong(format!("loads input {input} after a store"));
            }
            Instr::Load { dst, input } => {
                setup = self.program.inputs[input].strides.iter().all(|&stride| stride == 0);
                Step::Load { dst: self.define(at, dst, setup)?, operand: input }
            }
            Instr::Product { dst } if self.in_epilogue => {
                Step::Product { dst: self.define(at, dst, false)? }
            }
            Instr::Product { .. } => {
                return wrong("reads a product outside the epilogue of a contraction".into());
            }
            Instr::Const { dst, value } => {
                setup = true;
                Step::Const { dst: self.define(at, dst, true)?, value }
            }
            Instr::Piece { dst } => {
                setup = true;
                Step::Piece { dst: self.define(at, dst, true)? }
            }
            Instr::Coord { axis, .. } if axis >= rank => {
                return wrong(format!("asks for axis {axis} of {rank}"));
            }
            Instr::Coord { dst, axis } => {
                let strides = (0..rank).map(|other| isize::from(other == axis)).collect();
                Step::Coord { dst: self.define(at, dst, false)?, operand: self.index(strides) }
            }
            Instr::Rand { ref strides, .. } if strides.len() != rank => {
                return wrong(format!("has {} strides for {rank} axes", strides.len()));
            }
            Instr::Rand { dst, stream, ref strides } => {
                let operand = self.index(strides.clone());
                Step::Rand { dst: self.define(at, dst, false)?, operand, stream }
            }
            Instr::Unary { op, dst, a } => {
                let a = self.read(at, a)?;
                Step::Unary { op, dst: self.define(at, dst, false)?, a }
            }
            Instr::Binary { op, dst, a, b } => {
                let (a, b) = (self.read(at, a)?, self.read(at, b)?);
                Step::Binary { op, dst: self.define(at, dst, false)?, a, b }
            }
            Instr::Fma { dst, a, b, c } => {
                let (a, b, c) = (self.read(at, a)?, self.read(at, b)?, self.read(at, c)?);
                Step::Fma { dst: self.define(at, dst, false)?, a, b, c }
            }
            Instr::Select { dst, cond, a, b } => {
                let [cond, a, b] = [self.read(at, cond)?, self.read(at, a)?, self.read(at, b)?];
                Step::Select { dst: self.define(at, dst, false)?, cond, a, b }
            }
            Instr::Store { output, src } => {
                if output >= self.program.outputs.len() {
                    return wrong(format!("stores output {output}, which does not exist"));
                }
                self.stored = true;
                let operand = self.program.inputs.len() + output;
                Step::Store { operand, src: self.read(at, src)? }
            }
        };
        if setup {
            self.engine.setup.push(step)
        } else {
            self.engine.steps.push(step)
        }
        self.release(at, instr);
        Ok(())
    }

    /// Frees the registers of values that nothing reads after instruction `at`.
    fn release(&mut self, at: usize, instr: &Instr) {
        let mut done: Vec<usize> = sources(instr)
            .chain(target(instr))
            .map(usize::from)
            .filter(|&value| self.last_use[value] <= at)
            .filter_map(|value| self.home[value])
            .collect();
        done.sort_unstable_by(|a, b| b.cmp(a));
        done.dedup();
        for register in done {
            self.free.push(register);
        }
    }
}

fn sources(instr: &Instr) -> impl Iterator<Item = Value> + use<> {
    let sources = match *instr {
        Instr::Unary { a, .. } => [Some(a), None, None],
        Instr::Binary { a, b, .. } => [Some(a), Some(b), None],
        Instr::Fma { a, b, c, .. } => [Some(a), Some(b), Some(c)],
        Instr::Select { cond, a, b, .. } => [Some(cond), Some(a), Some(b)],
        Instr::Store { src, .. } => [Some(src), None, None],
        _ => [None, None, None],
    };
    sources.into_iter().flatten()
}

fn target(instr: &Instr) -> Option<Value> {
    match *instr {
        Instr::Load { dst, .. }
        | Instr::Product { dst }
        | Instr::Const { dst, .. }
        | Instr::Coord { dst, .. }
        | Instr::Piece { dst }
        | Instr::Rand { dst, .. }
        | Instr::Unary { dst, .. }
        | Instr::Binary { dst, .. }
        | Instr::Fma { dst, .. }
        | Instr::Select { dst, .. } => Some(dst),
        Instr::Store { .. } => None,
    }
}
