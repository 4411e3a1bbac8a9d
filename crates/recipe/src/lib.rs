//! A recipe: the one file that describes a training run.
//!
//! TOML text and overrides go in, and a fully resolved, validated [`Recipe`] comes out, or a
//! [`RecipeError`] with the line, the reason and what to do. [`Recipe`] is the one type to know.
//!
//! The invariant: a `Recipe` that exists is free of contradictions. Every value is in its range,
//! every key that was given has an effect, and every default is filled in, so no later crate has
//! to check a key again. This crate knows nothing of graphs, devices or the contents of data.
//!
//! The way through it: [`schema`] is the table of keys; `entries` reads text, `[tiny]` and
//! overrides into checked single `values`; `resolve` turns those into typed sections and refuses
//! contradictions; `print` writes the resolved form back. Tests are in `tests/all/`: broken
//! recipes with their exact messages, round trips, overrides, the frozen set of keys, and the
//! files of `recipes/`.

mod choices;
mod divisors;
mod entries;
mod error;
mod fields;
mod layout;
mod parse;
mod print;
mod recipe;
mod resolve;
mod running;
mod schema;
mod suggest;
mod values;

pub use choices::{
    AttentionKind, BinFormat, Combine, Compute, DataKind, Determinism, Device, Family, Init,
    OptimizerKind, PipelineSchedule, Preset, ScheduleKind, TokenizerKind,
};
pub use error::{Place, Problem, RecipeError};
pub use layout::{Memory, Parallel, RecomputePolicy, Shard};
pub use recipe::{
    Attention, Data, Derived, Image, LayerAttention, Model, Optimizer, Part, Recipe, Rule,
    Schedule, Source, Tokenizer, Train,
};
pub use running::{Checkpoint, Eval, LossScale, Precision, Sample};
pub use schema::{DefaultValue, Key, KeyType, Range, reference, schema};
