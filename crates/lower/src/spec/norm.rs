//! Norms over one axis, forward and backward.

use crate::operand::Operand;
use crate::program::Program;

/// What both directions share: layer norm (Ba et al. 2016) or RMS norm (Zhang and Sennrich 2019),
/// `y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * gain + bias`, without the mean if it is not
/// centred.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalisation {
    /// Axis sizes; the last is the width, which is normalised over.
    pub sizes: Vec<usize>,
    /// Whether the mean is subtracted.
    pub center: bool,
    /// Added to the variance.
    pub eps: f32,
    /// The gain, if there is one, with strides over all axes, zero but the last.
    pub gain: Option<Operand>,
}

/// What becomes of finished rows.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// They are stored.
    Store(Operand),
    /// A program over the axes of the norm reads them as [`Instr::Product`] and stores the results;
    /// the rows themselves are not written and are no operand.
    ///
    /// [`Instr::Product`]: crate::Instr::Product
    Epilogue(Program),
}

/// A norm.
#[derive(Clone, Debug, PartialEq)]
pub struct NormSpec {
    /// Sizes and options.
    pub norm: Normalisation,
    /// What is normalised.
    pub x: Operand,
    /// The bias, if there is one, with strides as those of the gain.
    pub bias: Option<Operand>,
    /// Where the rows go.
    pub output: Output,
}

/// The gradient of a norm.
#[derive(Clone, Debug, PartialEq)]
pub struct NormGradSpec {
    /// Sizes and options.
    pub norm: Normalisation,
    /// What was normalised: statistics are computed again.
    pub x: Operand,
    /// The gradient of the norm's result.
    pub dy: Operand,
    /// Where the rows of dx go.
    pub output: Output,
    /// The stride of the gradient of the gain, one row of f32, if it is wanted.
    pub dgain: Option<isize>,
    /// The same of the bias.
    pub dbias: Option<isize>,
}
