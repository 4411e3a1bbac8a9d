//! From a program to steps on few slots, and where results may be written without a copy.

use super::program::{Instr, Program, Value};
use crate::kernel::{Dtype, KernelError};
use crate::kernels::ops::{Binary, Unary};

/// What a step computes from other slots; `operand` counts in the engine's space.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// `keep`: into a register even where it could be read in place, because a store that comes
    /// before the last use may write to the same address.
    Load {
        operand: usize,
        keep: bool,
    },
    Product,
    Const(f32),
    Coord {
        operand: usize,
    },
    Piece,
    Rand {
        operand: usize,
        stream: u64,
    },
    Unary {
        op: Unary,
        a: usize,
    },
    Binary {
        op: Binary,
        a: usize,
        b: usize,
    },
    Fma {
        a: usize,
        b: usize,
        c: usize,
    },
    Select {
        cond: usize,
        a: usize,
        b: usize,
    },
    Store {
        operand: usize,
        src: usize,
    },
}

impl What {
    /// The slots that it reads, in order.
    pub fn slots(&self) -> impl Iterator<Item = usize> + use<> {
        let mut slots = Vec::new();
        self.clone().rename(|slot| {
            slots.push(slot);
            slot
        });
        slots.into_iter()
    }

    /// Replaces the slots that it reads, in order.
    pub fn rename(&mut self, mut name: impl FnMut(usize) -> usize) {
        let [first, second, third] = match self {
            What::Unary { a, .. } | What::Store { src: a, .. } => [Some(a), None, None],
            What::Binary { a, b, .. } => [Some(a), Some(b), None],
            What::Fma { a, b, c } => [Some(a), Some(b), Some(c)],
            What::Select { cond, a, b } => [Some(cond), Some(a), Some(b)],
            _ => [None, None, None],
        };
        for slot in [first, second, third].into_iter().flatten() {
            *slot = name(*slot);
        }
    }
}

/// An output that a step may write in place of its register.
#[derive(Clone, Debug)]
pub(super) struct Direct {
    pub operand: usize,
    /// Inputs of the same layout that are still read afterwards: none may share the address.
    pub unless: Vec<usize>,
}

/// A compiled instruction.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub what: What,
    /// The slot that it defines; of no meaning for a store.
    pub dst: usize,
    pub direct: Option<Direct>,
    /// Of a value that is the same everywhere: whether one float of it is enough.
    pub narrow: bool,
}

/// A compiled program.
#[derive(Clone, Debug, Default)]
pub(super) struct Code {
    /// Constants and operands that repeat everywhere: once per task.
    pub setup: Vec<Step>,
    /// Once per piece.
    pub steps: Vec<Step>,
    pub slots: usize,
    /// The slot of the value that the caller reads after a piece, if it asked for one.
    pub result: usize,
    /// Strides of numbers that are linear in the coordinates, one for each pseudo-operand.
    pub indices: Vec<Vec<isize>>,
}

/// Compiles; `operands` is how many the space has, and `result` stays readable after each piece.
pub(super) fn compile(
    program: &Program,
    operands: usize,
    result: Option<Value>,
    in_epilogue: bool,
) -> Result<Code, KernelError> {
    let named = program.instrs.iter().flat_map(|i| i.sources().chain(i.target()));
    let values = named.chain(result).max().map_or(0, |most| usize::from(most) + 1);
    let mut last_use = vec![0; values];
    for (at, instr) in program.instrs.iter().enumerate() {
        for source in instr.sources() {
            last_use[usize::from(source)] = at;
        }
    }
    if let Some(result) = result {
        last_use[usize::from(result)] = usize::MAX;
    }
    let mut uniform = vec![false; values];
    for instr in &program.instrs {
        let Some(value) = instr.target() else { continue };
        uniform[usize::from(value)] = match *instr {
            Instr::Const { .. } | Instr::Piece { .. } => true,
            Instr::Load { input, .. } => (program.inputs.get(input))
                .is_some_and(|own| own.strides.iter().all(|&stride| stride == 0)),
            _ => false,
        };
    }
    let mut compiler = Compiler {
        uniform,
        result,
        code: Code::default(),
        program,
        operands,
        home: vec![None; values],
        last_use,
        free: Vec::new(),
        in_epilogue,
        stored: false,
    };
    for (at, instr) in program.instrs.iter().enumerate() {
        compiler.add(at, instr)?;
    }
    if let Some(result) = result {
        compiler.code.result = compiler.read(program.instrs.len(), result)?;
    }
    Ok(compiler.code)
}

/// Gives values slots: a free one, never one of the instruction's sources.
struct Compiler<'a> {
    code: Code,
    program: &'a Program,
    operands: usize,
    /// Slot by value.
    home: Vec<Option<usize>>,
    /// Whether a value is the same everywhere, by value.
    uniform: Vec<bool>,
    result: Option<Value>,
    /// Last instruction that reads a value; `usize::MAX` keeps it for good.
    last_use: Vec<usize>,
    free: Vec<usize>,
    in_epilogue: bool,
    stored: bool,
}

impl Compiler<'_> {
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
        // A pinned slot is filled before the first piece, so no earlier value may use it.
        let slot = if pinned { None } else { self.free.pop() }.unwrap_or_else(|| {
            self.code.slots += 1;
            self.code.slots - 1
        });
        if pinned {
            self.last_use[value] = usize::MAX;
        }
        self.home[value] = Some(slot);
        Ok(slot)
    }

    /// A pseudo-operand.
    fn index(&mut self, strides: Vec<isize>) -> usize {
        self.code.indices.push(strides);
        self.operands + self.code.indices.len() - 1
    }

    /// What an instruction computes, or why it cannot.
    fn what(&mut self, at: usize, instr: &Instr) -> Result<What, KernelError> {
        let wrong = |what: String| Err(KernelError::Program { at, what });
        let (rank, inputs) = (self.program.sizes.len(), self.program.inputs.len());
        Ok(match *instr {
            Instr::Load { input, .. } if input >= inputs => {
                return wrong(format!("loads input {input}, which does not exist"));
            }
            Instr::Load { input, .. } if self.stored => {
                return wrong(format!("loads input {input} after a store"));
            }
            Instr::Load { dst, input } => {
                What::Load { operand: input, keep: self.is_overwritten(dst, input) }
            }
            Instr::Product { .. } if self.in_epilogue => What::Product,
            Instr::Product { .. } => {
                return wrong("reads a product outside of an epilogue".into());
            }
            Instr::Const { value, .. } => What::Const(value),
            Instr::Piece { .. } => What::Piece,
            Instr::Coord { axis, .. } if axis >= rank => {
                return wrong(format!("asks for axis {axis} of {rank}"));
            }
            Instr::Coord { axis, .. } => {
                let strides = (0..rank).map(|other| isize::from(other == axis)).collect();
                What::Coord { operand: self.index(strides) }
            }
            Instr::Rand { ref strides, .. } if strides.len() != rank => {
                return wrong(format!("has {} strides for {rank} axes", strides.len()));
            }
            Instr::Rand { stream, ref strides, .. } => {
                What::Rand { operand: self.index(strides.clone()), stream }
            }
            Instr::Unary { op, a, .. } => What::Unary { op, a: self.read(at, a)? },
            Instr::Binary { op, a, b, .. } => {
                What::Binary { op, a: self.read(at, a)?, b: self.read(at, b)? }
            }
            Instr::Fma { a, b, c, .. } => {
                What::Fma { a: self.read(at, a)?, b: self.read(at, b)?, c: self.read(at, c)? }
            }
            Instr::Select { cond, a, b, .. } => {
                let [cond, a, b] = [self.read(at, cond)?, self.read(at, a)?, self.read(at, b)?];
                What::Select { cond, a, b }
            }
            Instr::Store { output, .. } if output >= self.program.outputs.len() => {
                return wrong(format!("stores output {output}, which does not exist"));
            }
            Instr::Store { output, src } => {
                self.stored = true;
                What::Store { operand: inputs + output, src: self.read(at, src)? }
            }
        })
    }

    fn add(&mut self, at: usize, instr: &Instr) -> Result<(), KernelError> {
        let what = self.what(at, instr)?;
        let setup = instr.target().is_some_and(|value| self.uniform[usize::from(value)]);
        let (mut dst, mut direct) = (0, None);
        if let Some(value) = instr.target() {
            dst = self.define(at, value, setup)?;
            direct = self.direct(at, value, &what);
        }
        let narrow = setup && instr.target().is_some_and(|value| self.is_narrow(value));
        let step = Step { what, dst, direct, narrow };
        if setup {
            self.code.setup.push(step)
        } else {
            self.code.steps.push(step)
        }
        self.release(at, instr);
        Ok(())
    }

    /// Whether all that reads a uniform value is binary, with another operand that is not uniform.
    fn is_narrow(&self, value: Value) -> bool {
        let is_uniform = |value: Value| self.uniform[usize::from(value)];
        let fits = |instr: &Instr| match *instr {
            Instr::Binary { a, b, .. } => {
                (a != value && b != value) || !(is_uniform(a) && is_uniform(b))
            }
            _ => !instr.sources().any(|source| source == value),
        };
        self.result != Some(value) && self.program.instrs.iter().all(fits)
    }

    /// Whether a store that comes before the last use of a loaded value may write where it lies.
    fn is_overwritten(&self, dst: Value, input: usize) -> bool {
        let own = &self.program.inputs[input];
        let last = self.last_use[usize::from(dst)];
        self.program.instrs.iter().take(last).any(|instr| match *instr {
            Instr::Store { output, .. } => self.program.outputs.get(output) == Some(own),
            _ => false,
        })
    }

    /// The output that the step which defines `value` may write itself: one of f32 that stores it.
    fn direct(&self, at: usize, value: Value, what: &What) -> Option<Direct> {
        // Steps of up to two sources can write onto one of them.
        let safe = match what {
            What::Unary { .. } | What::Binary { .. } => at + 1,
            What::Fma { .. } | What::Select { .. } => at,
            _ => return None,
        };
        let output = self.program.instrs.iter().find_map(|instr| match *instr {
            Instr::Store { output, src } if src == value => Some(output)
                .filter(|&o| self.program.outputs.get(o).is_some_and(|o| o.dtype == Dtype::F32)),
            _ => None,
        })?;
        let own = &self.program.outputs[output];
        let mut unless = Vec::new();
        for (later, instr) in self.program.instrs.iter().enumerate() {
            let Instr::Load { dst, input } = *instr else { continue };
            let last = self.last_use[usize::from(dst)].max(later);
            if last >= safe && self.program.inputs.get(input) == Some(own) {
                unless.push(input);
            }
        }
        Some(Direct { operand: self.program.inputs.len() + output, unless })
    }

    /// Frees the slots of values that nothing reads after instruction `at`.
    fn release(&mut self, at: usize, instr: &Instr) {
        let mut done: Vec<usize> = (instr.sources().chain(instr.target()).map(usize::from))
            .filter(|&value| self.last_use[value] <= at)
            .filter_map(|value| self.home[value])
            .collect();
        done.sort_unstable_by(|a, b| b.cmp(a));
        done.dedup();
        self.free.extend(done);
    }
}
