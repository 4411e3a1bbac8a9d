//! Descriptions of kernels, and of their calls.

mod attention;
mod contraction;
mod elementwise;
mod linear_ce;
mod norm;
mod rows;

pub use attention::{AttendGradSpec, AttendMask, AttendSpec, Attention};
pub use contraction::{Axis, Contraction, OperandSums, Products, Role};
pub use elementwise::{CopySpec, FillSpec, ReduceSpec};
pub use linear_ce::LinearCeSpec;
pub use norm::{NormGradSpec, NormSpec, Normalisation, Output};
pub use rows::{GatherSpec, RowsShape, ScatterSpec};

use crate::draws::Draws;
use crate::program::Program;
use aerogel_graph::ValueId;

/// What a kernel computes. Each variant says in which order its operands come.
#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    /// A program at every position of its space. Operands: its inputs, then its outputs.
    Map(Program),
    /// A program, folded over some axes. Operands: its inputs, then the result.
    Reduce(ReduceSpec),
    /// A contraction. Operands: A, B, C; with an epilogue A, B, then the inputs and the outputs of
    /// the program; then the sums of a factor if it has them.
    Product(Contraction),
    /// Contractions with a factor in common. Operands: those of the first, then of the second, ...
    Products(Products),
    /// The sum of contractions over equal axes of roles Batch, M and N, each with its own of role
    /// K. The last says what becomes of the sum, as one alone does of its product; of the others
    /// nothing but axes and types of factors counts. Sums are f32 all the way: a graph may say
    /// that each contraction's result is bf16, and these are not rounded. Operands: A and B of
    /// each, then C of the last, or the inputs and the outputs of its program.
    Summed(Vec<Contraction>),
    /// A norm. Operands: x, y, then gain and bias where the spec has them; y may be x. With an
    /// epilogue there is no y, and the program's inputs and outputs follow at the end; these may
    /// share addresses as the program allows, but not that of x.
    Norm(NormSpec),
    /// The gradient of a norm. Operands: x, dy, dx, then gain, dgain and dbias where the spec has
    /// them; dx may be dy. With an epilogue there is no dx, and the program's inputs and outputs
    /// follow at the end; these may share addresses as the program allows, but not those of x and
    /// dy.
    NormGrad(NormGradSpec),
    /// Attention. Operands: q, k, v, o, lse.
    Attend(AttendSpec, AttendMask),
    /// The gradients of attention. Operands: q, k, v, o, lse, dout, dq, dk, dv, then dlse if there
    /// is one.
    AttendGrad(AttendGradSpec, AttendMask),
    /// Rows of a table. Operands: table, ids, rows.
    Gather(GatherSpec),
    /// Rows into a table. Operands: table, ids, rows.
    Scatter(ScatterSpec),
    /// The output layer. Operands: x, w, targets, then those of weights, given, ce, lse, hit, dx,
    /// dw that the spec has.
    LinearCe(LinearCeSpec),
    /// A copy. Operands: from, to.
    Copy(CopySpec),
    /// A fill. Operand: to.
    Fill(FillSpec),
}

/// One kernel of a region, and what it works on.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// What it computes.
    pub spec: Spec,
    /// Value and first element of each operand, in the spec's order.
    pub operands: Vec<(ValueId, isize)>,
    /// Where random draws begin.
    pub draws: Draws,
    /// The scalar input, u32, that holds the position of the first query, for decoding.
    pub position: Option<ValueId>,
    /// Nothing to do where the first two operands are in one place.
    pub idle_in_place: bool,
}

impl Call {
    pub(crate) fn new(spec: Spec, operands: impl IntoIterator<Item = ValueId>) -> Call {
        Call {
            spec,
            operands: operands.into_iter().map(|v| (v, 0)).collect(),
            draws: Draws::default(),
            position: None,
            idle_in_place: false,
        }
    }
}
