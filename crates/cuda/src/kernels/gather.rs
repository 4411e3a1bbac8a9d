//! Rows of tables.

use super::unsupported;
use crate::launch::Kernel;
use aerogel_lower::{GatherSpec, LowerError};

pub(crate) fn gather(_spec: &GatherSpec, _align: &[u64]) -> Result<Kernel, LowerError> {
    Err(unsupported("gather", "not there yet"))
}
