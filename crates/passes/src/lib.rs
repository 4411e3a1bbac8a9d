//! Techniques as functions from graphs to graphs, one file each.
//!
//! There is no type to know beside [`Graph`](aerogel_graph::Graph). A training step is the loss of
//! the global batch through [`precision`], [`scale()`], [`backward()`], [`chunk()`],
//! [`recompute`](recompute::recompute()), [`partition()`] (tensor ranks), [`Buckets::apply`]
//! (ZeRO), [`cut`] (micro-batches, and ranks that share a batch), [`pipeline::split`] (stages) and
//! [`accumulate`]; then the section that [`update`] writes, or [`inside()`] in place of the last
//! two. [`schedule`] gives the one number that the update is told each step.
//!
//! Invariant: a pass reads and writes graphs and nothing else; it knows no machine, and the same
//! graph in gives the same graph out. What it adds is ordinary ops, so that the interpreter runs
//! it. Tests are in `tests/`: graph text in and out under `tests/golden/`, and the meaning of each
//! pass through the interpreter.

mod backward;
mod bucket;
mod chunk;
mod error;
mod inside;
mod partition;
pub mod pipeline;
mod precision;
pub mod recompute;
mod scalar;
mod scale;
pub mod schedule;
mod scope;
mod shards;
mod tile;
mod update;

pub use backward::backward;
pub use bucket::{Bucket, BucketTensor, Buckets, Partials};
pub use chunk::chunk;
pub use error::PassError;
pub use inside::inside;
pub use partition::{Partitioned, Tensor, partition};
pub use precision::{Compute, precision};
pub use scale::{LEAST_SCALE, LossScale, scale};
pub use scope::layer_of;
pub use shards::Shards;
pub use tile::{Order, accumulate, cut, section_of};
pub use update::{Optimizer, Share, UpdateConfig, copies, update};
