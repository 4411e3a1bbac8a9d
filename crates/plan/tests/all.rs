//! The planner with a target of one kernel a node, and the checker with programs that were broken.

#[path = "all/broken.rs"]
mod broken;
#[path = "all/concat.rs"]
mod concat;
#[path = "all/copies.rs"]
mod copies;
#[path = "all/messages.rs"]
mod messages;
#[path = "all/order.rs"]
mod order;
#[path = "all/packing.rs"]
mod packing;
#[path = "all/planning.rs"]
mod planning;
#[path = "all/support.rs"]
mod support;
