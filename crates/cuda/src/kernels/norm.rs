//! Norms.

use super::unsupported;
use crate::launch::Kernel;
use aerogel_lower::{Draws, LowerError, NormSpec};

pub(crate) fn norm(_spec: &NormSpec, _draws: Draws, _align: &[u64]) -> Result<Kernel, LowerError> {
    Err(unsupported("norm", "not there yet"))
}
