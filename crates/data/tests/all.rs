//! Integration tests of `aerogel-data`, on made data only.

#[path = "all/bad_input.rs"]
mod bad_input;
#[path = "all/common.rs"]
mod common;
#[path = "all/images.rs"]
mod images;
#[cfg(feature = "parquet")]
#[path = "all/parquet_columns.rs"]
mod parquet_columns;
#[path = "all/preparing.rs"]
mod preparing;
#[path = "all/sampling.rs"]
mod sampling;
#[path = "all/shards.rs"]
mod shards;
#[path = "all/splits.rs"]
mod splits;
#[path = "all/tokenizers.rs"]
mod tokenizers;
