//! Gradients of norms.

use super::unsupported;
use crate::launch::Kernel;
use aerogel_lower::{Draws, LowerError, NormGradSpec};

pub(crate) fn norm_grad(
    _spec: &NormGradSpec,
    _draws: Draws,
    _align: &[u64],
) -> Result<Kernel, LowerError> {
    Err(unsupported("norm_grad", "not there yet"))
}
