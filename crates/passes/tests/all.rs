//! Integration tests of the passes.

#[path = "all/bucket.rs"]
mod bucket;
#[path = "all/chunk.rs"]
mod chunk;
#[path = "all/golden.rs"]
mod golden;
#[path = "all/inside.rs"]
mod inside;
#[path = "all/models.rs"]
mod models;
#[path = "all/partition.rs"]
mod partition;
#[path = "all/pipeline.rs"]
mod pipeline;
#[path = "all/precision.rs"]
mod precision;
#[path = "all/recompute.rs"]
mod recompute;
#[path = "all/scale.rs"]
mod scale;
#[path = "all/support.rs"]
mod support;
#[path = "all/tile.rs"]
mod tile;
#[path = "all/update.rs"]
mod update;
