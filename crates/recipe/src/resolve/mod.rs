//! From checked single values to typed sections: defaults are derived, contradictions and idle
//! keys refused. One file for each group of sections.

pub(crate) mod data;
pub(crate) mod model;
pub(crate) mod running;
pub(crate) mod training;
