//! What cannot be lowered, and why.

/// Why a region has no description.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LowerError {
    /// An operand's strides do not match the iteration space.
    #[error("{kernel}: operand {operand} has {got} strides for {wanted} axes; give one per axis")]
    Rank {
        /// Which kernel.
        kernel: &'static str,
        /// Which operand, in the order of the addresses.
        operand: usize,
        /// Axes of the iteration space.
        wanted: usize,
        /// Strides found.
        got: usize,
    },
    /// More axes remain after merging than the kernels walk.
    #[error("{kernel}: {got} axes remain after merging, at most {most} are supported")]
    TooManyAxes {
        /// Which kernel.
        kernel: &'static str,
        /// Axes left.
        got: usize,
        /// The limit.
        most: usize,
    },
    /// A node that no kernel runs in this form.
    #[error("{kernel}: {what}")]
    Unsupported {
        /// Which kernel.
        kernel: &'static str,
        /// What is wrong, with the values.
        what: String,
    },
}

impl LowerError {
    pub(crate) fn unsupported(kernel: &'static str, what: impl Into<String>) -> LowerError {
        LowerError::Unsupported { kernel, what: what.into() }
    }
}
