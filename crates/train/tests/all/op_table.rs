//! The table of random graphs of the graph crate, op by op: what checks gradients there is what
//! the device is held to here, so that an op cannot be in one and not in the other.

// What differences and completeness of the table need is for the graph crate only.
#[allow(dead_code)]
#[path = "../../../graph/tests/all/cases.rs"]
pub mod cases;
#[allow(dead_code)]
#[path = "../../../graph/tests/all/harness.rs"]
pub mod harness;
