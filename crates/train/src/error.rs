//! What can go wrong in a run, and the exit code of each.

use aerogel_cuda::CudaError;
use aerogel_data::{DataError, ErrorKind as DataKind};
use aerogel_machine::{CommError, DeviceError};
use aerogel_models::ModelError;
use aerogel_passes::PassError;
use aerogel_passes::pipeline::PipelineError;
use aerogel_plan::PlanError;
use aerogel_store::{ErrorKind as StoreKind, StoreError};
use std::path::PathBuf;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Everything was done.
    Done = 0,
    /// Stopped on request; the run can be resumed.
    Resumable = 10,
    /// The recipe or the command line is wrong.
    Recipe = 20,
    /// The plan needs more memory than it may take.
    WillNotFit = 21,
    /// The data is wrong or missing.
    Data = 22,
    /// Storage failed.
    Storage = 23,
    /// A loss or gradient is not finite.
    NonFinite = 30,
    /// A device failed, or computes what it should not.
    Hardware = 31,
    /// A rank went silent.
    Hang = 32,
    /// A rank is gone, or ran something else than the others.
    PeerLost = 40,
    /// An error of aerogel itself.
    Bug = 101,
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Data could not be prepared or read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Data is not there, and the recipe says how to get it.
    #[error("{source}\nTo get the data: {hint}")]
    Hint {
        /// What is missing.
        source: DataError,
        /// The recipe's words.
        hint: String,
    },
    /// A checkpoint or the run folder could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The model cannot be built.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A pass refused the graph.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// A pipeline cannot be made.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// The plan cannot be made, or does not fit.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// There is no GPU to run on, or it failed while it was made ready.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The recipe asks for something that the data or the model does not allow.
    #[error("{what}; {advice}")]
    Contradiction {
        /// What does not go together.
        what: String,
        /// What to change.
        advice: String,
    },
    /// The source files are not those that the recipe means.
    #[error(
        "the source files have BLAKE3 {got}, and data.blake3 is {wanted}; get the files again, or \
         correct data.blake3"
    )]
    Checksum {
        /// Of the files, in the order of their paths.
        got: String,
        /// The recipe's.
        wanted: String,
    },
    /// A loss or a gradient is not a number.
    #[error(
        "step {step}: {what} is not finite; the update was not applied and the last checkpoint is \
         good. Lower optimizer.learning_rate or raise schedule.warmup, and start that recipe with \
         --resume never"
    )]
    NonFinite {
        /// The step, from 1.
        step: u64,
        /// Loss or gradient norm.
        what: &'static str,
    },
    /// A rank's thread panicked: a bug.
    #[error("rank {rank} panicked: {message}")]
    Panicked {
        /// The rank.
        rank: usize,
        /// What it said.
        message: String,
    },
    /// A checkpoint lacks a tensor, or has it in another form.
    #[error("the checkpoint of step {step} does not fit the model: `{name}` {problem}")]
    Mismatch {
        /// Step of the checkpoint.
        step: u64,
        /// The tensor.
        name: String,
        /// What is different.
        problem: String,
    },
    /// There is nothing to load.
    #[error("{path} has no checkpoint; train first, or name a run that has one")]
    NoCheckpoint {
        /// Folder of the run.
        path: PathBuf,
    },
    /// The caller's sink failed.
    #[error("writing output failed: {0}")]
    Output(#[from] std::io::Error),
}

impl TrainError {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            TrainError::Hint { .. } => Exit::Data,
            TrainError::Data(e) => match e.kind() {
                DataKind::Recipe => Exit::Recipe,
                DataKind::Data => Exit::Data,
                DataKind::Storage => Exit::Storage,
                DataKind::Interrupted => Exit::Resumable,
            },
            TrainError::Store(e) => match e.kind() {
                StoreKind::Storage => Exit::Storage,
                StoreKind::Choice => Exit::Recipe,
                StoreKind::Bug => Exit::Bug,
            },
            TrainError::Plan(PlanError::DoesNotFit { .. }) => Exit::WillNotFit,
            TrainError::Device(DeviceError::Arena { .. }) => Exit::WillNotFit,
            TrainError::Device(DeviceError::Failed { .. }) => Exit::Hardware,
            TrainError::Device(DeviceError::Comm(CommError::Missing { .. })) => Exit::Hang,
            TrainError::Device(DeviceError::Comm(_)) => Exit::PeerLost,
            TrainError::Panicked { .. } => Exit::Bug,
            TrainError::Model(_)
            | TrainError::Pipeline(_)
            | TrainError::Pass(PassError::Layout { .. })
            | TrainError::Contradiction { .. }
            | TrainError::NoCheckpoint { .. }
            | TrainError::Mismatch { .. } => Exit::Recipe,
            TrainError::Cuda(e) => match e {
                CudaError::Missing { .. } | CudaError::NoGpu { .. } | CudaError::TooOld { .. } => {
                    Exit::Recipe
                }
                CudaError::Memory { .. } => Exit::WillNotFit,
                CudaError::Call { .. } => Exit::Hardware,
                CudaError::Compile { .. } => Exit::Bug,
            },
            TrainError::Checksum { .. } => Exit::Data,
            TrainError::NonFinite { .. } => Exit::NonFinite,
            TrainError::Output(_) => Exit::Storage,
            TrainError::Pass(_) | TrainError::Plan(_) | TrainError::Device(_) => Exit::Bug,
        }
    }
}
