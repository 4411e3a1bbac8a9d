//! Programs of element-wise arithmetic: every instruction defines a value of its own.

use crate::operand::Operand;

/// Operations on one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are the mathematics
pub enum Unary {
    Neg,
    Exp,
    Ln,
    Tanh,
    Sqrt,
    Rsqrt,
    Recip,
    Sigmoid,
    Erf,
    Abs,
    Sin,
    Cos,
    Floor,
    /// 1 where the value is 0, else 0.
    Not,
    /// The value rounded to bf16.
    RoundBf16,
    /// The value rounded to f16.
    RoundF16,
}

/// Operations on two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are the mathematics
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    /// The smaller; NaN if either is.
    Min,
    /// The larger; NaN if either is.
    Max,
    Pow,
    Lt,
    Le,
    Eq,
}

/// The number of a value; each is defined by one instruction.
pub type Value = u16;

/// One instruction of a program: it defines the value `dst` from earlier values.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // each variant's line says what its fields are
pub enum Instr {
    /// Reads the input of this number.
    Load { dst: Value, input: usize },
    /// The finished product or row, in the epilogue of a contraction or a norm only.
    Product { dst: Value },
    /// A constant.
    Const { dst: Value, value: f32 },
    /// The index along an axis of the space.
    Coord { dst: Value, axis: usize },
    /// The number of the micro-batch, as a float.
    Piece { dst: Value },
    /// A uniform draw in [0, 1) for the element `Draws::element + sum(index * strides)` of the
    /// whole tensor.
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

impl Instr {
    /// The values that it reads.
    pub fn sources(&self) -> impl Iterator<Item = Value> + use<> {
        let sources = match *self {
            Instr::Unary { a, .. } => [Some(a), None, None],
            Instr::Binary { a, b, .. } => [Some(a), Some(b), None],
            Instr::Fma { a, b, c, .. } => [Some(a), Some(b), Some(c)],
            Instr::Select { cond, a, b, .. } => [Some(cond), Some(a), Some(b)],
            Instr::Store { src, .. } => [Some(src), None, None],
            _ => [None, None, None],
        };
        sources.into_iter().flatten()
    }

    /// The value that it defines.
    pub fn target(&self) -> Option<Value> {
        match *self {
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
}

/// An element-wise computation over a space of sizes; arithmetic is f32.
///
/// Its operands are the inputs, then the outputs. An output may share its address with an input of
/// the same type and strides.
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
