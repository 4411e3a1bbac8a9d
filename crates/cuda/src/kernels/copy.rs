//! Copies and fills.

use super::unsupported;
use crate::launch::Kernel;
use aerogel_lower::{CopySpec, FillSpec, LowerError};

pub(crate) fn copy(_spec: &CopySpec, _align: &[u64]) -> Result<Kernel, LowerError> {
    Err(unsupported("copy", "not there yet"))
}

pub(crate) fn fill(_spec: &FillSpec, _align: &[u64]) -> Result<Kernel, LowerError> {
    Err(unsupported("fill", "not there yet"))
}
