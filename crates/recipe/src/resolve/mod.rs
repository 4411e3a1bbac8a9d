//! From checked single values to typed sections: defaults are derived, contradictions and idle
//! keys refused. One file for each group of sections.

pub(crate) mod batch;
pub(crate) mod data;
pub(crate) mod memory;
pub(crate) mod model;
pub(crate) mod parallel;
pub(crate) mod running;
mod shard;
pub(crate) mod training;
