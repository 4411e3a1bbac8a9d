//! Why a plan cannot be made.

use aerogel_graph::OpError;

/// Why a plan cannot be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// Two sections declare a state differently.
    #[error("state `{name}` has another type in section {section} than in an earlier one")]
    States {
        /// The state.
        name: String,
        /// The later section.
        section: String,
    },
    /// No kernel for an op.
    #[error("{target} has no kernel for `{op}` at {scope} (section {section}): {reason}")]
    NoKernel {
        /// The target.
        target: String,
        /// The op.
        op: String,
        /// Its place in the model.
        scope: String,
        /// The section.
        section: String,
        /// What the target says.
        reason: String,
    },
    /// A graph that does not hold together.
    #[error(transparent)]
    Op(#[from] OpError),
    /// The checker refused the program: a bug of the planner.
    #[error("the plan of section {section} is wrong at step {step}: {message}")]
    Unsound {
        /// The section.
        section: String,
        /// Position of the step.
        step: usize,
        /// What was found.
        message: String,
    },
    /// More than there is.
    #[error(
        "the run needs {need_bytes} bytes ({:.2} GiB) and may take {have_bytes} ({:.2} GiB); the \
         largest at the peak: {largest}; {advice}",
        gib(*need_bytes),
        gib(*have_bytes)
    )]
    DoesNotFit {
        /// Bytes of the arena.
        need_bytes: u64,
        /// The budget.
        have_bytes: u64,
        /// The largest values at the peak.
        largest: String,
        /// What to change so that it fits.
        advice: String,
    },
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}
