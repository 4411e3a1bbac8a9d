//! Ops that are one kernel each.

use super::{Call, Source};
use crate::kernel::KernelError;
use aerogel_graph::Node;

/// The kernel of a coarse op.
pub(super) fn whole(_s: &Source<'_>, node: &Node) -> Result<Call, KernelError> {
    Err(KernelError::Unsupported { kernel: node.op.name(), what: "no kernel".to_owned() })
}
