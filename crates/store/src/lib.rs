//! Durable storage of a training run: checkpoints, the run folder, the metrics stream.
//!
//! The type to know is [`Checkpoints`], a folder of committed steps. [`Checkpoints::commit`] writes
//! one, [`Checkpoints::latest`] finds the newest that verifies, [`Checkpoint::read`] gives a tensor
//! back and checks it on the way. [`resolve`] decides which run folder a command works in, and
//! [`RunDir`] is that folder.
//!
//! The invariant: once `commit` has returned, no crash, power loss, full disk or later call of this
//! crate takes that step away unless a newer one verifies; and damaged bytes are never handed out.
//! To hold it, every durable write goes through the [`Fs`] trait: write, fsync the file, rename,
//! fsync the folder.
//!
//! Modules, lowest first: `error`, `fs`, `atomic`, `tensor`, `manifest`, `checkpoint` (read),
//! `commit` (write), `checkpoints` (the folder), `metrics`, `run`; `testing` holds the file systems
//! that crash and fail.
//!
//! Tests: `tests/all.rs` with one file per promise (crash states, faults, damage, resolution).

pub mod testing;

mod atomic;
mod checkpoint;
mod checkpoints;
mod commit;
mod error;
mod fs;
mod manifest;
mod metrics;
mod run;
mod tensor;

pub use atomic::write_atomic;
pub use checkpoint::Checkpoint;
pub use checkpoints::{Checkpoints, Latest};
pub use commit::{CommitInfo, Committed, FillError};
pub use error::{ErrorKind, Result, Skipped, StoreError};
pub use fs::{Entry, Fs, FsFile, FsRead, Lock, RealFs, TryLock};
pub use manifest::{FileEntry, Manifest, Part, TensorEntry};
pub use metrics::{CutBack, MetricsWriter, cut_back};
pub use run::{Resolution, Resume, RunDir, RunLock, RunRecord, RunStatus, Start, resolve};
pub use tensor::{Dtype, TensorSpec};
