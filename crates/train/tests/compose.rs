//! Techniques together: whole runs of small models, whose numbers a technique must not change.

#[path = "compose/case.rs"]
mod case;
#[path = "compose/fit.rs"]
mod fit;
#[path = "compose/matrix.rs"]
mod matrix;
#[path = "compose/ranks.rs"]
mod ranks;
#[path = "compose/reshard.rs"]
mod reshard;
