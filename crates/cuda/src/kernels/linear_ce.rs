//! The output layer.

use super::{Chip, unsupported};
use crate::launch::Kernel;
use aerogel_lower::{LinearCeSpec, LowerError};

pub(crate) fn linear_ce(
    _spec: &LinearCeSpec,
    _align: &[u64],
    _chip: Chip,
) -> Result<Kernel, LowerError> {
    Err(unsupported("linear_ce", "not there yet"))
}
