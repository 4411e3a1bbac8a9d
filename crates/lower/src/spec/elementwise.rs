//! What moves, sets or folds elements one by one.

use crate::operand::Operand;
use crate::program::{Program, Value};
use aerogel_graph::ops::Fold;

/// The sum or the maximum of a program's value over some axes.
#[derive(Clone, Debug, PartialEq)]
pub struct ReduceSpec {
    /// What is folded: a program that stores nothing.
    pub program: Program,
    /// Which of its values.
    pub value: Value,
    /// For each axis of the program, whether it is folded over.
    pub reduced: Vec<bool>,
    /// The result, with a stride for every axis; those of reduced axes mean nothing.
    pub output: Operand,
    /// How values are combined. A sum over nothing is 0, a maximum -infinity; a maximum is NaN if
    /// any value is.
    pub fold: Fold,
}

/// A strided copy. Equal types are copied bit for bit, others go through f32.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopySpec {
    /// Axis sizes.
    pub sizes: Vec<usize>,
    /// What is read.
    pub from: Operand,
    /// What is written.
    pub to: Operand,
}

/// One value at every position.
#[derive(Clone, Debug, PartialEq)]
pub struct FillSpec {
    /// Axis sizes.
    pub sizes: Vec<usize>,
    /// What is written.
    pub to: Operand,
    /// The value.
    pub value: f32,
}
