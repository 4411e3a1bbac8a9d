//! Whole runs: tiny recipes trained, resumed and sampled; the device against the interpreter.

#[path = "all/collectives.rs"]
mod collectives;
#[path = "all/common.rs"]
mod common;
#[path = "all/concat.rs"]
mod concat;
#[path = "all/device.rs"]
mod device;
#[path = "all/harness.rs"]
mod harness;
#[path = "all/learning.rs"]
mod learning;
#[path = "all/parity.rs"]
mod parity;
#[path = "all/pieces.rs"]
mod pieces;
#[path = "all/planning.rs"]
mod planning;
#[path = "all/random_graphs.rs"]
mod random_graphs;
#[path = "all/ranks.rs"]
mod ranks;
#[path = "all/resume.rs"]
mod resume;
#[path = "all/sections.rs"]
mod sections;
#[path = "all/selftest.rs"]
mod selftest;
#[path = "all/steps_of_ranks.rs"]
mod steps_of_ranks;
