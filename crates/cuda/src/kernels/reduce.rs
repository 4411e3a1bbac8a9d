//! Reductions.

use super::unsupported;
use crate::launch::Kernel;
use aerogel_lower::{Draws, LowerError, ReduceSpec};

pub(crate) fn reduce(
    _spec: &ReduceSpec,
    _draws: Draws,
    _align: &[u64],
) -> Result<Kernel, LowerError> {
    Err(unsupported("reduce", "not there yet"))
}
