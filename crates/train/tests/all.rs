//! Whole runs: tiny recipes trained, resumed and sampled; the device against the interpreter.

#[path = "all/common.rs"]
mod common;
#[path = "all/parity.rs"]
mod parity;
#[path = "all/recipes.rs"]
mod recipes;
#[path = "all/resume.rs"]
mod resume;
