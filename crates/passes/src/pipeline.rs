//! Pipeline parallelism: which rank runs which stage of which micro-batch, and when.
//!
//! [`cut`] deals out layers to stages, [`schedule`] writes each rank's list of [`Action`]s,
//! [`check`] says whether lists, however they came about, can be run, and [`timeline`] says when
//! each action starts and how long the ranks idle. [`split`] writes what the actions run.
//!
//! The one type to know is [`Schedule`]. It fixes who runs what in which order and nothing about
//! time: a rank runs its list from the top, waits for what an action receives and never for what
//! it sends. Times change the picture and no result, because every stage takes the micro-batches
//! in ascending order in every pass, and so sums its gradients in the order of a step without a
//! pipeline.

mod check;
mod cut;
mod error;
mod schedule;
mod split;
mod timeline;

pub use check::check;
pub use cut::{Cost, Stage, cut};
pub use error::{Defect, PipelineError};
pub use schedule::{Action, Kind, Pass, Schedule, schedule};
pub use split::{Message, Replica, Split, StageSections, layer_stages, split};
pub use timeline::{Seconds, Span, Timeline, timeline};
