//! The output layer: a linear layer and its cross entropy, without the logits of a batch.

use crate::operand::Operand;

/// Shapes and storage; every operand has strides over [row axes.., vocabulary, width], zero where
/// it lacks the axis. Of the outputs any may be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearCeSpec {
    /// Sizes of the axes of rows.
    pub rows: Vec<usize>,
    /// Entries of the vocabulary here.
    pub vocab: usize,
    /// The id of the first of them: targets are ids of the whole vocabulary.
    pub first_row: usize,
    /// Entries of the whole vocabulary. A target beyond them makes NaN.
    pub all_rows: usize,
    /// Width of x and w.
    pub width: usize,
    /// Inputs, floats.
    pub x: Operand,
    /// Output layer, floats.
    pub w: Operand,
    /// Targets, u32.
    pub targets: Operand,
    /// Weights of the rows, f32; all 1 if absent.
    pub weights: Option<Operand>,
    /// Log-sum-exps of the whole vocabulary, f32; those of the entries here if absent.
    pub given: Option<Operand>,
    /// Weight times cross entropy of each row in nats, f32.
    pub ce: Option<Operand>,
    /// Log-sum-exp of each row over the entries here, f32.
    pub lse: Option<Operand>,
    /// Logit of each row's target, f32; 0 where it is not here.
    pub hit: Option<Operand>,
    /// Gradient of x, floats.
    pub dx: Option<Operand>,
    /// Gradient of w, f32.
    pub dw: Option<Operand>,
}

impl LinearCeSpec {
    /// All operands in their order: x, w, targets, weights, given, ce, lse, hit, dx, dw.
    pub fn operands(&self) -> [Option<&Operand>; 10] {
        let [x, w, targets] = [&self.x, &self.w, &self.targets].map(Some);
        let each = [&self.weights, &self.given, &self.ce, &self.lse, &self.hit, &self.dx, &self.dw];
        let [weights, given, ce, lse, hit, dx, dw] = each.map(Option::as_ref);
        [x, w, targets, weights, given, ce, lse, hit, dx, dw]
    }
}
