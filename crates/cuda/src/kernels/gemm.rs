//! Products.

use super::{Chip, unsupported};
use crate::launch::Kernel;
use aerogel_lower::{Contraction, Draws, LowerError};

pub(crate) fn product(
    _spec: &Contraction,
    _draws: Draws,
    _align: &[u64],
    _chip: Chip,
) -> Result<Kernel, LowerError> {
    Err(unsupported("product", "not there yet"))
}
