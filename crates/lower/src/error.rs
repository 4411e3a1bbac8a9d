//! What cannot be lowered, and why.

/// Why a region has no description.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LowerError {
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
