//! File systems for tests: one that loses what was not fsynced, one that fails on demand.

mod crash;
mod fault;

pub use crash::{Crash, CrashFs, Crashes};
pub use fault::{Fault, FaultFs};
