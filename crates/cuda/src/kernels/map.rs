//! Element-wise regions.

use super::unsupported;
use crate::launch::Kernel;
use aerogel_lower::{Draws, LowerError, Program};

pub(crate) fn map(_program: &Program, _draws: Draws, _align: &[u64]) -> Result<Kernel, LowerError> {
    Err(unsupported("map", "not there yet"))
}
