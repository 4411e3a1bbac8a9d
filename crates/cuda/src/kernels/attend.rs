//! Attention.

use super::{Chip, unsupported};
use crate::launch::Kernel;
use aerogel_lower::{AttendGradSpec, AttendMask, AttendSpec, LowerError};

pub(crate) fn attend(
    _spec: &AttendSpec,
    _mask: &AttendMask,
    _align: &[u64],
    _chip: Chip,
) -> Result<Kernel, LowerError> {
    Err(unsupported("attend", "not there yet"))
}

pub(crate) fn attend_grad(
    _spec: &AttendGradSpec,
    _mask: &AttendMask,
    _align: &[u64],
    _chip: Chip,
) -> Result<Kernel, LowerError> {
    Err(unsupported("attend_grad", "not there yet"))
}

pub(crate) fn decode(_spec: &AttendSpec, _mask: &AttendMask) -> Result<Kernel, LowerError> {
    Err(unsupported("decode", "not there yet"))
}
