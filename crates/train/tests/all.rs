//! Whole runs: tiny recipes trained, resumed and sampled; the device against the interpreter.

#[path = "all/collectives.rs"]
mod collectives;
#[path = "all/concat.rs"]
mod concat;
#[path = "all/device.rs"]
mod device;
#[path = "all/harness.rs"]
mod harness;
#[path = "all/op_table.rs"]
mod op_table;
#[path = "all/random_graphs.rs"]
mod random_graphs;
#[path = "all/ranks.rs"]
mod ranks;
