//! What can go wrong with stored things, each with the values that a user needs to act.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// The result of every fallible call of this crate.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Who has to act on an error; the binary turns it into an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The disk, or what lies on it, is at fault (exit code 23).
    Storage,
    /// The command line or the recipe asks for something that cannot be (exit code 20).
    Choice,
    /// The calling program broke the rules of this crate (exit code 101).
    Bug,
}

/// Any error of this crate.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The operating system refused an operation.
    #[error("cannot {action} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The disk has too little room for a checkpoint; nothing was written.
    #[error(
        "{} has {free_bytes} bytes free and a checkpoint needs {need_bytes}: free some space, \
         keep fewer checkpoints, or put the runs on another disk", path.display()
    )]
    NoSpace {
        /// The folder that the checkpoint was meant for.
        path: PathBuf,
        /// Bytes that the checkpoint takes, with a tenth to spare.
        need_bytes: u64,
        /// Bytes that are free.
        free_bytes: u64,
    },
    /// A stored file is not what was committed.
    #[error("{}{} is damaged: {reason}; use an older checkpoint or restore the file from a copy",
        path.display(), of_tensor(tensor))]
    Damaged {
        /// The file at fault.
        path: PathBuf,
        /// The tensor at fault, where it is one.
        tensor: Option<String>,
        /// What is wrong, with what was wanted and found.
        reason: String,
    },
    /// There are checkpoints, and none of them verifies.
    #[error("none of the {} checkpoints in {} verifies (the newest: {}): restore one from a copy, \
             or start anew with `--resume never`", skipped.len(), path.display(), newest(skipped))]
    NoneVerifies {
        /// The folder of checkpoints.
        path: PathBuf,
        /// Each of them with what is wrong, newest first.
        skipped: Vec<Skipped>,
    },
    /// A stored file was written by a newer aerogel.
    #[error("{} has version {got} and this aerogel reads versions up to {known}: use a newer \
             aerogel", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        got: u64,
        /// The newest version that this build reads.
        known: u64,
    },
    /// The step is already committed, by a run of another recipe.
    #[error("step {step} in {} belongs to the run {have} and not to {wanted}: choose another run \
             name, or start beside it with `--resume never`", path.display())]
    StepTaken {
        /// The step.
        step: u64,
        /// Its folder.
        path: PathBuf,
        /// The `run_hash` of what is there.
        have: String,
        /// The `run_hash` of what should be written.
        wanted: String,
    },
    /// No such committed step.
    #[error("{} has no checkpoint of step {step}; {}", path.display(), available_steps(available))]
    NoSuchStep {
        /// The step asked for.
        step: u64,
        /// Where it was looked for.
        path: PathBuf,
        /// The steps that are there, ascending.
        available: Vec<u64>,
    },
    /// Another process works in the run folder.
    #[error("{} is in use by {}: wait for it, stop it, or start beside it with `--resume never`",
        path.display(), holder(pid))]
    Locked {
        /// The run folder.
        path: PathBuf,
        /// The process that holds it, where the lock file says so.
        pid: Option<u32>,
    },
    /// The unfinished run of this name was started with another recipe.
    #[error("the unfinished run in {} has run_hash {have} and this recipe has {wanted}: start \
             {next_name} beside it with `--resume never`, or undo the change of model, data, \
             optimizer, batch or seed to continue it", path.display())]
    WrongRun {
        /// The run folder.
        path: PathBuf,
        /// The `run_hash` in its `run.json`.
        have: String,
        /// The `run_hash` of the recipe.
        wanted: String,
        /// The name that `--resume never` would use.
        next_name: String,
    },
    /// The folder that the run's name leads to holds something else.
    #[error("{} has files but no run.json, so it is not a run folder: choose another run name or \
             move it away", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// The folder that the run's name leads to belongs to a run of another name.
    #[error("{} belongs to the run {owner:?}: choose another run name, or start beside it with \
             `--resume never`", path.display())]
    NameTaken {
        /// The folder.
        path: PathBuf,
        /// The name in its `run.json`.
        owner: String,
    },
    /// A run's name that cannot be a folder's name.
    #[error(
        "{name:?} cannot name a run: use letters, digits, `-`, `_` and `.`, not beginning with \
             `.`, and at most 100 of them"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// The checkpoint has no tensor of this name.
    #[error("the checkpoint {} has no tensor {name:?}: it was written by another model",
        path.display())]
    NoSuchTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor asked for.
        name: String,
    },
    /// A tensor is read into a buffer of another size.
    #[error(
        "tensor {name:?} has {wanted_bytes} bytes and the buffer to read it into has \
             {got_bytes}: the layout differs from the checkpoint's"
    )]
    BufferSize {
        /// The tensor.
        name: String,
        /// Bytes of the tensor.
        wanted_bytes: u64,
        /// Bytes of the buffer.
        got_bytes: u64,
    },
    /// A tensor that cannot be committed.
    #[error("tensor {name:?} cannot be stored: {reason}")]
    BadTensor {
        /// The tensor.
        name: String,
        /// Why not.
        reason: String,
    },
    /// The caller could not give the bytes of a tensor.
    #[error(
        "tensor {name:?} could not be fetched for the checkpoint, which was not written: \
             {source}"
    )]
    Fill {
        /// The tensor.
        name: String,
        /// What the caller said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// Who has to act: the disk's owner, the user who chose, or the programmer.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } | Self::NoSpace { .. } | Self::Damaged { .. } => ErrorKind::Storage,
            Self::NoneVerifies { .. } | Self::Version { .. } => ErrorKind::Storage,
            Self::StepTaken { .. } | Self::NoSuchStep { .. } | Self::Locked { .. } => {
                ErrorKind::Choice
            }
            Self::WrongRun { .. } | Self::NotARun { .. } | Self::NameTaken { .. } => {
                ErrorKind::Choice
            }
            Self::BadName { .. } => ErrorKind::Choice,
            Self::NoSuchTensor { .. } => ErrorKind::Storage,
            Self::BufferSize { .. } | Self::BadTensor { .. } | Self::Fill { .. } => ErrorKind::Bug,
        }
    }

    /// True where stored bytes are wrong or missing, false where the disk could not be asked.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::Version { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    pub(crate) fn damaged(path: &Path, tensor: Option<&str>, reason: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            tensor: tensor.map(str::to_owned),
            reason: reason.into(),
        }
    }
}

/// A committed step that could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The step.
    pub step: u64,
    /// What is wrong: file, tensor and reason in one sentence.
    pub reason: String,
}

/// Turns an [`io::Error`] into a [`StoreError`] that says what was tried on which path.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| StoreError::Io { action, path: path.to_owned(), source })
    }
}

fn advice(error: &io::Error) -> &'static str {
    use io::ErrorKind as K;
    match error.kind() {
        K::StorageFull => "; free some space or keep fewer checkpoints, then resume",
        K::QuotaExceeded => "; your disk quota is used up, free some of it, then resume",
        K::ReadOnlyFilesystem => "; the file system is read-only, choose another folder for runs",
        K::PermissionDenied => "; change its permissions or choose another folder for runs",
        K::NotADirectory | K::AlreadyExists => {
            "; a file is in the way, choose another folder for runs"
        }
        K::NotFound => "; restore it from a copy or choose another",
        _ => "; check the disk (kernel log, SMART), then resume",
    }
}

fn of_tensor(tensor: &Option<String>) -> String {
    tensor.as_ref().map_or_else(String::new, |name| format!(" (tensor {name:?})"))
}

fn available_steps(steps: &[u64]) -> String {
    if steps.is_empty() {
        return "there are none, so start with `--resume auto`".to_owned();
    }
    let list: Vec<String> = steps.iter().map(u64::to_string).collect();
    format!("choose one of {}", list.join(", "))
}

fn holder(pid: &Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

fn newest(skipped: &[Skipped]) -> &str {
    skipped.first().map_or("unknown", |s| &s.reason)
}
