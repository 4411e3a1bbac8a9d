//! Rows into tables.

use super::unsupported;
use crate::launch::Kernel;
use aerogel_lower::{LowerError, ScatterSpec};

pub(crate) fn scatter(_spec: &ScatterSpec, _align: &[u64]) -> Result<Kernel, LowerError> {
    Err(unsupported("scatter", "not there yet"))
}
