//! The folder of checkpoints: which steps are there, commit, latest, prune.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::atomic::{TEMP_MARK, nonce};
use crate::checkpoint::Checkpoint;
use crate::commit::{CommitInfo, Committed, FilePlan, Fill, FillError};
use crate::commit::{plan_files, planned_bytes, write_step};
use crate::error::{At, Result, Skipped, StoreError};
use crate::fs::{Fs, ensure_dir, parent, remove_tree, retry};
use crate::tensor::TensorSpec;

/// Size at which a tensor file is closed and the next begun.
const FILE_BYTES: u64 = 4 << 30;

/// A folder of committed steps, `step-00000040/` and so on.
///
/// One process writes at a time, the one that holds the run's lock; any number may read.
#[derive(Clone)]
pub struct Checkpoints {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    file_bytes: u64,
}

/// The newest checkpoint that verifies.
#[derive(Debug)]
pub struct Latest {
    /// The checkpoint, its bytes verified; `None` where nothing was committed yet.
    pub checkpoint: Option<Checkpoint>,
    /// Newer steps that did not verify, newest first, to show to the user.
    pub skipped: Vec<Skipped>,
}

impl Checkpoints {
    /// The folder `dir`, which the first commit makes.
    pub fn new(fs: Arc<dyn Fs>, dir: impl Into<PathBuf>) -> Self {
        Self { fs, dir: dir.into(), file_bytes: FILE_BYTES }
    }

    /// Begins a new tensor file after about this many bytes, instead of 4 GiB.
    pub fn with_file_bytes(mut self, file_bytes: u64) -> Self {
        self.file_bytes = file_bytes;
        self
    }

    /// The committed steps, ascending, verified or not.
    ///
    /// # Errors
    /// `Io`.
    pub fn list(&self) -> Result<Vec<u64>> {
        let entries = match retry(|| self.fs.list(&self.dir)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.at("list", &self.dir)?,
        };
        let folders = entries.iter().filter(|entry| entry.is_dir);
        let mut steps: Vec<u64> = folders.filter_map(|entry| parse_step(&entry.name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Opens a committed step: its manifest, sizes and headers are checked, its bytes not yet.
    ///
    /// # Errors
    /// `NoSuchStep` with the steps that are there, `Damaged`, `Version`, `Io`.
    pub fn open(&self, step: u64) -> Result<Checkpoint> {
        let available = self.list()?;
        if !available.contains(&step) {
            return Err(StoreError::NoSuchStep { step, path: self.dir.clone(), available });
        }
        Checkpoint::open(self.fs.as_ref(), &self.step_path(step), step)
    }

    /// The highest step that verifies, to the last byte, and the newer ones that do not.
    ///
    /// # Errors
    /// `NoneVerifies` where there are steps and none is good, so that nobody takes a damaged run
    /// for a new one; `Io`.
    pub fn latest(&self) -> Result<Latest> {
        let mut skipped = Vec::new();
        for step in self.list()?.into_iter().rev() {
            match self.open_verified(step) {
                Ok(checkpoint) => return Ok(Latest { checkpoint: Some(checkpoint), skipped }),
                Err(error) => skipped.push(Skipped { step, reason: error.to_string() }),
            }
        }
        if skipped.is_empty() {
            Ok(Latest { checkpoint: None, skipped })
        } else {
            Err(StoreError::NoneVerifies { path: self.dir.clone(), skipped })
        }
    }

    /// Writes a step. `fill(tensor, offset, out)` gives the bytes of a tensor, row-major and
    /// little-endian, from byte `offset` on; one chunk of a few MiB is held at a time.
    ///
    /// When this returns `Ok`, the step survives a power loss. A step that is there and verifies
    /// is never written again: with the same `run_hash` this is a success that does nothing. One
    /// that is damaged is replaced, and the answer says so.
    ///
    /// # Errors
    /// `NoSpace` before anything is written, `StepTaken`, `BadTensor`, `Fill`, `Io`. All that was
    /// committed before is as it was. After a failure of the very last fsync the step may be
    /// there already; committing it again settles that.
    pub fn commit(
        &self,
        info: &CommitInfo,
        tensors: &[TensorSpec],
        mut fill: impl FnMut(&TensorSpec, u64, &mut [u8]) -> Result<(), FillError>,
    ) -> Result<Committed> {
        let fs = self.fs.as_ref();
        TensorSpec::check_all(tensors)?;
        let plans = plan_files(tensors, info.step, self.file_bytes)?;
        ensure_dir(fs, &self.dir).at("create", &self.dir)?;
        // An earlier process may have made the folder and died before it was durable.
        self.sync(parent(&self.dir))?;
        self.reclaim()?;
        let replaced = match self.find_existing(info)? {
            Existing::Good => {
                self.sync(&self.dir)?;
                return Ok(Committed::AlreadyThere);
            }
            Existing::Damaged(reason) => Some(reason),
            Existing::Absent => None,
        };
        self.check_space(&plans, info)?;
        let temp = self.temp_path(info.step);
        match self.write_and_rename(&temp, info, &plans, &mut fill, replaced.is_some()) {
            Ok(size_bytes) => Ok(Committed::Written { size_bytes, replaced }),
            Err(error) => {
                // Gives the space back; what cannot be removed now goes at the next commit.
                let _ = remove_tree(fs, &temp);
                Err(error)
            }
        }
    }

    /// Removes old steps but the `keep` highest, and never the highest that verifies (so `keep`
    /// of 0 is as 1). Returns the steps removed; where none verifies, nothing is removed.
    ///
    /// # Errors
    /// `Io`; every step is then whole, or gone.
    pub fn prune(&self, keep: usize) -> Result<Vec<u64>> {
        let mut old = self.list()?;
        old.truncate(old.len().saturating_sub(keep.max(1)));
        if old.is_empty() {
            return Ok(old);
        }
        let all = self.list()?;
        let good = all.into_iter().rev().find(|step| self.open_verified(*step).is_ok());
        let Some(good) = good else { return Ok(Vec::new()) };
        old.retain(|step| *step != good);
        // The newer steps must be durable before the older ones go.
        self.sync(&self.dir)?;
        let fs = self.fs.as_ref();
        let mut temps = Vec::new();
        for step in &old {
            let (path, temp) = (self.step_path(*step), self.temp_path(*step));
            retry(|| fs.rename(&path, &temp)).at("rename", &path)?;
            temps.push(temp);
        }
        // And a step must have lost its name before it loses its files.
        self.sync(&self.dir)?;
        for temp in temps {
            remove_tree(fs, &temp).at("remove", &temp)?;
        }
        Ok(old)
    }

    /// Takes the steps after `step` out of the count, for a run that goes on from there: their
    /// folders are kept as `aside-N-STEP`, and are no checkpoints any more. Returns the steps.
    ///
    /// # Errors
    /// `Io`; every step is then where it was, or set aside.
    pub fn set_aside_after(&self, step: u64) -> Result<Vec<u64>> {
        let later: Vec<u64> = self.list()?.into_iter().filter(|s| *s > step).collect();
        if later.is_empty() {
            return Ok(later);
        }
        let fs = self.fs.as_ref();
        let names = retry(|| fs.list(&self.dir)).at("list", &self.dir)?;
        let taken = |n: u64| names.iter().any(|e| e.name.starts_with(&format!("aside-{n}-")));
        let number = (1..).find(|n| !taken(*n)).unwrap_or(u64::MAX);
        // The highest first: cut off in between, what is left is a shorter line of steps.
        for later in later.iter().rev() {
            let path = self.step_path(*later);
            let aside = self.dir.join(format!("aside-{number}-{later:08}"));
            retry(|| fs.rename(&path, &aside)).at("rename", &path)?;
        }
        self.sync(&self.dir)?;
        Ok(later)
    }

    fn write_and_rename(
        &self,
        temp: &Path,
        info: &CommitInfo,
        plans: &[FilePlan<'_>],
        fill: Fill<'_>,
        replace: bool,
    ) -> Result<u64> {
        let fs = self.fs.as_ref();
        let size_bytes = write_step(fs, temp, info, plans, fill)?;
        let path = self.step_path(info.step);
        if replace {
            let damaged = self.temp_path(info.step);
            retry(|| fs.rename(&path, &damaged)).at("rename", &path)?;
        }
        retry(|| fs.rename(temp, &path)).at("rename a finished checkpoint to", &path)?;
        self.sync(&self.dir)?;
        if replace {
            self.reclaim()?;
        }
        Ok(size_bytes)
    }

    fn find_existing(&self, info: &CommitInfo) -> Result<Existing> {
        if !self.list()?.contains(&info.step) {
            return Ok(Existing::Absent);
        }
        let checkpoint = match self.open_verified(info.step) {
            Err(error) if error.is_damage() => return Ok(Existing::Damaged(error.to_string())),
            checkpoint => checkpoint?,
        };
        let manifest = checkpoint.manifest();
        if manifest.run_hash == info.run_hash {
            return Ok(Existing::Good);
        }
        Err(StoreError::StepTaken {
            step: info.step,
            path: self.dir.clone(),
            have: manifest.run_hash.clone(),
            wanted: info.run_hash.clone(),
        })
    }

    fn check_space(&self, plans: &[FilePlan<'_>], info: &CommitInfo) -> Result<()> {
        let bytes = planned_bytes(plans, info);
        let need_bytes = bytes.saturating_add(bytes / 10);
        let free_bytes =
            retry(|| self.fs.free_bytes(&self.dir)).at("ask free space of", &self.dir)?;
        if free_bytes < need_bytes {
            let path = self.dir.clone();
            return Err(StoreError::NoSpace { path, need_bytes, free_bytes });
        }
        Ok(())
    }

    /// Removes what crashed commits and prunes left behind.
    fn reclaim(&self) -> Result<()> {
        let fs = self.fs.as_ref();
        for entry in retry(|| fs.list(&self.dir)).at("list", &self.dir)? {
            if entry.is_dir && entry.name.starts_with("step-") && entry.name.contains(TEMP_MARK) {
                let path = self.dir.join(&entry.name);
                remove_tree(fs, &path).at("remove the unfinished", &path)?;
            }
        }
        Ok(())
    }

    fn open_verified(&self, step: u64) -> Result<Checkpoint> {
        let checkpoint = Checkpoint::open(self.fs.as_ref(), &self.step_path(step), step)?;
        checkpoint.verify()?;
        Ok(checkpoint)
    }

    fn sync(&self, folder: &Path) -> Result<()> {
        retry(|| self.fs.sync_dir(folder)).at("fsync the folder", folder)
    }

    fn step_path(&self, step: u64) -> PathBuf {
        self.dir.join(format!("step-{step:08}"))
    }

    fn temp_path(&self, step: u64) -> PathBuf {
        self.dir.join(format!("step-{step:08}{TEMP_MARK}{}", nonce()))
    }
}

enum Existing {
    Absent,
    Good,
    Damaged(String),
}

/// The step of a folder's name; only the spelling that `step_path` gives counts.
fn parse_step(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (format!("step-{step:08}") == name).then_some(step)
}
