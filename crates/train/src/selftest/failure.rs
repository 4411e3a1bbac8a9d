//! How a case can fail.

use crate::error::TrainError;
use aerogel_graph::OpError;
use aerogel_graph::interpret::EnvError;
use aerogel_machine::DeviceError;
use aerogel_plan::PlanError;
use std::any::Any;

/// What a device got wrong, or why it could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// An element is too far from what it should be.
    #[error(
        "{name} {shown}: element {element} is {got:e}, wanted {wanted:e} ± {bound:.1e}: \
         {:.1} times the bound", (got - wanted).abs() / bound
    )]
    Element {
        /// Output or state.
        name: String,
        /// Its type.
        shown: String,
        /// Row-major.
        element: usize,
        /// What the device computed.
        got: f64,
        /// What it should have.
        wanted: f64,
        /// How far it may be off.
        bound: f64,
    },
    /// All elements together are too far from what they should be.
    #[error(
        "{name} {shown}: the root mean square of errors is {got:.1e}, at most {bound:.1e} \
             was wanted"
    )]
    Mean {
        /// Output or state.
        name: String,
        /// Its type.
        shown: String,
        /// Root mean square of what is off.
        got: f64,
        /// What it may be.
        bound: f64,
    },
    /// The same work gave other bits when it was done again.
    #[error("{name} has other bits when it is computed again")]
    Bits {
        /// Output or state.
        name: String,
    },
    /// A technique that leaves the bits of a run as they are did not.
    #[error("{name} have other bits with `{technique}` than without it")]
    Technique {
        /// What was tried.
        technique: &'static str,
        /// Losses or parameters.
        name: String,
    },
    /// A state changed that nobody assigned.
    #[error("{name} is not assigned, and changed")]
    Touched {
        /// The state.
        name: String,
    },
    /// More or less memory was allocated than was planned.
    #[error("{planned} bytes were planned, and {allocated} allocated")]
    Memory {
        /// By the plan.
        planned: u64,
        /// By the device.
        allocated: u64,
    },
    /// The case's graph cannot be built.
    #[error(transparent)]
    Graph(#[from] OpError),
    /// Its data is not complete.
    #[error(transparent)]
    Data(#[from] EnvError),
    /// There is no plan of it.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The device refused or failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The code that runs it panicked.
    #[error("panicked: {message}")]
    Panicked {
        /// What it said.
        message: String,
    },
    /// A whole model could not be run.
    #[error(transparent)]
    Train(#[from] TrainError),
}

impl Failure {
    /// Of what a panic carries.
    pub(super) fn panicked(panic: &(dyn Any + Send)) -> Failure {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
        let message = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Failure::Panicked { message }
    }

    /// Whether the device can run nothing more.
    pub fn is_lost(&self) -> bool {
        matches!(
            self,
            Failure::Device(DeviceError::Failed { is_lost: true, .. })
                | Failure::Train(TrainError::Device(DeviceError::Failed { is_lost: true, .. }))
        )
    }
}
