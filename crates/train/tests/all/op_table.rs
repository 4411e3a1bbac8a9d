//! The table of random graphs of the graph crate, op by op: what checks gradients there is what
//! the device is held to here, so that an op cannot be in one and not in the other.

#[allow(dead_code, reason = "completeness of the table is checked in the graph crate only")]
#[path = "../../../graph/tests/all/cases.rs"]
pub mod cases;
#[allow(dead_code, reason = "differences are taken in the graph crate only")]
#[path = "../../../graph/tests/all/harness.rs"]
pub mod harness;
