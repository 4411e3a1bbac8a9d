//! Tests of the recipe crate; see `tests/all/`.

#[path = "all/broken.rs"]
mod broken;
#[path = "all/overrides.rs"]
mod overrides;
#[path = "all/parallel.rs"]
mod parallel;
#[path = "all/recipes.rs"]
mod recipes;
#[path = "all/resolved.rs"]
mod resolved;
#[path = "all/round_trip.rs"]
mod round_trip;
#[path = "all/schema.rs"]
mod schema;
#[path = "all/support.rs"]
mod support;
