//! Whole runs: tiny recipes trained, resumed and sampled; the device against the interpreter.

#[path = "all/common.rs"]
mod common;
#[path = "all/recipes.rs"]
mod recipes;
