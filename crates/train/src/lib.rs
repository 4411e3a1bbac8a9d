//! The step loop: a recipe becomes a plan, a plan becomes a run, and a run survives being killed.
//!
//! Read [`train()`] first: it is the story of a run. [`RunPlan`] is what `plan` shows and `train`
//! executes; [`Session`] is a loaded program with its weights. Invariant: nothing that decides a
//! number (data order, randomness, order of sums) depends on threads, time or where a run was cut.
//! Tests are in `tests/`.

mod backend;
mod bench;
mod checkpoint;
mod crew;
mod error;
mod evaluate;
mod events;
mod explain;
mod feed;
mod fit;
mod layout;
mod open;
mod pipe;
mod plan;
mod plan_rank;
mod recall;
mod report;
mod run;
mod sample;
mod sections;
pub mod selftest;
mod session;
mod setup;
mod step;
mod tensors;

pub use backend::{Backend, Loader};
pub use bench::{RegionSpan, RegionTime, Startup, StepTimes, time_steps};
pub use crew::OnHang;
pub use error::{Exit, TrainError};
pub use evaluate::{Evaluation, evaluate};
pub use events::{Event, Line, Sink};
pub use explain::{GraphFacts, explain};
pub use fit::{Choice, Fit, fit, fits};
pub use open::{Opened, Pick, find_run, newest_run, open_run};
pub use plan::{RunPlan, Stage};
pub use plan_rank::{MeshAxis, PipelinePlan, RankPlan, StagePlan, Traffic, Zero};
pub use report::plan_html;
pub use run::{Options, Outcome, grid, train};
pub use sample::{Samples, Sampling, sample};
pub use session::{Session, Ties, Wrap};
pub use setup::{Workspace, prepare_data, run_hash};
