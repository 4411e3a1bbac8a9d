//! Contractions of two tensors over axes by role: batched matrix products.

use crate::operand::Operand;
use crate::program::Program;
use aerogel_graph::DType;

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

/// A batched matrix product, and what becomes of its finished elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Contraction {
    /// The axes, in any order.
    pub axes: Vec<Axis>,
    /// Element type of A: a float.
    pub a: DType,
    /// Element type of B: a float.
    pub b: DType,
    /// Element type of C; unused with an epilogue.
    pub c: DType,
    /// Add to C instead of replacing it.
    pub accumulate: bool,
    /// Factor on the product.
    pub alpha: f32,
    /// A program over the axes of roles Batch, M, N (in this order of roles, within a role in the
    /// order of `axes`) that reads `Instr::Product` and stores the results; C itself is then not
    /// written and has no address.
    pub epilogue: Option<Program>,
    /// Sums of one of the factors, beside the product.
    pub sums: Option<OperandSums>,
}

/// Contractions that read one factor together, over the same axes of role K, and nothing that
/// another of them writes. None of their programs draws.
#[derive(Clone, Debug, PartialEq)]
pub struct Products {
    /// Which factor they have in common: 0 for A, 1 for B.
    pub common: usize,
    /// Two or more.
    pub members: Vec<Contraction>,
}

/// The sum over the axes of role K of a factor, in f32: of A `sum over k of a[batch, m, k]`. What
/// becomes of the product's elements (`alpha`, `accumulate`, the epilogue) is nothing to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperandSums {
    /// Of which factor: 0 for A, 1 for B.
    pub factor: usize,
    /// Where they go, with a stride for every axis of the contraction; those of axes that the sums
    /// lack mean nothing.
    pub output: Operand,
}
