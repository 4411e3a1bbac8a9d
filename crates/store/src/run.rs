//! The run folder: its paths, its lock, its record, and which one a command works in.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::atomic::{is_temp_file, reclaim_files, write_atomic};
use crate::checkpoints::Checkpoints;
use crate::error::{At, Result, StoreError};
use crate::fs::{Fs, Lock, TryLock, ensure_dir, read_small, retry};

const VERSION: u64 = 1;
const RECORD: &str = "run.json";
const SAMPLES: &str = "samples";
const RECORD_LIMIT_BYTES: u64 = 1 << 20;
const NAME_LIMIT_BYTES: usize = 100;

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// It is at work, or it was killed.
    Running,
    /// It was asked to stop and can go on.
    Stopped,
    /// It has done all its steps.
    Done,
}

/// `run.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Version of this format.
    pub version: u64,
    /// The name that the user gave; the folder may be `NAME-2`.
    pub name: String,
    /// Hash of what must be equal to resume.
    pub run_hash: String,
    /// Hash of what may change between runs.
    pub plan_hash: String,
    /// How far it has come.
    pub status: RunStatus,
    /// When it was begun, in seconds since 1970.
    pub started_unix_seconds: u64,
    /// The version of aerogel that wrote this.
    pub aerogel: String,
}

impl RunRecord {
    /// The record of a run that begins now.
    pub fn begin(name: &str, run_hash: &str, plan_hash: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            version: VERSION,
            name: name.to_owned(),
            run_hash: run_hash.to_owned(),
            plan_hash: plan_hash.to_owned(),
            status: RunStatus::Running,
            started_unix_seconds: now.map_or(0, |d| d.as_secs()),
            aerogel: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// The folder of one run. It need not exist yet; [`RunDir::lock`] makes it.
#[derive(Clone)]
pub struct RunDir {
    fs: Arc<dyn Fs>,
    path: PathBuf,
}

/// Proof that this process is the only one that writes in a run folder, until it is dropped.
pub struct RunLock(#[allow(dead_code, reason = "held for its drop")] Lock);

impl RunDir {
    /// The run folder at `path`.
    pub fn new(fs: Arc<dyn Fs>, path: impl Into<PathBuf>) -> Self {
        Self { fs, path: path.into() }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The recipe as it was resolved.
    pub fn recipe(&self) -> PathBuf {
        self.path.join("recipe.toml")
    }

    /// The record, see [`RunRecord`].
    pub fn record(&self) -> PathBuf {
        self.path.join(RECORD)
    }

    /// The stream of events.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// The folder of samples.
    pub fn samples(&self) -> PathBuf {
        self.path.join(SAMPLES)
    }

    /// The report.
    pub fn report(&self) -> PathBuf {
        self.path.join("report.html")
    }

    /// The lock file.
    pub fn lock_file(&self) -> PathBuf {
        self.path.join("lock")
    }

    /// The checkpoints.
    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints::new(self.fs.clone(), self.path.join("checkpoints"))
    }

    /// Makes the folder where it is absent, takes its lock, and clears what a crash left behind.
    /// Another process may have worked here between [`resolve`] and this: read the record after it.
    ///
    /// # Errors
    /// `Locked` with the process that has it, `Io`.
    pub fn lock(&self) -> Result<RunLock> {
        let fs = self.fs.as_ref();
        ensure_dir(fs, &self.path).at("create", &self.path)?;
        let path = self.lock_file();
        match retry(|| fs.try_lock(&path, &std::process::id().to_string())).at("lock", &path)? {
            TryLock::Held(lock) => {
                reclaim_files(fs, &self.path)?;
                let entries = retry(|| fs.list(&self.path)).at("list", &self.path)?;
                if entries.iter().any(|e| e.is_dir && e.name == SAMPLES) {
                    reclaim_files(fs, &self.samples())?;
                }
                Ok(RunLock(lock))
            }
            TryLock::Busy(note) => {
                let pid = note.trim().parse().ok();
                Err(StoreError::Locked { path: self.path.clone(), pid })
            }
        }
    }

    /// Writes `run.json`, durably and at once.
    ///
    /// # Errors
    /// `Io`.
    pub fn write_record(&self, record: &RunRecord, _lock: &RunLock) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(record).expect("a record has text keys");
        text.push(b'\n');
        write_atomic(self.fs.as_ref(), &self.record(), &text)
    }

    /// Reads `run.json`; `None` where there is none.
    ///
    /// # Errors
    /// `Damaged`, `Version`, `Io`.
    pub fn read_record(&self) -> Result<Option<RunRecord>> {
        let path = self.record();
        let text = match read_small(self.fs.as_ref(), &path, RECORD_LIMIT_BYTES) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                return Err(StoreError::damaged(&path, None, error.to_string()));
            }
            text => text.at("read", &path)?,
        };
        let damaged = |e: serde_json::Error| StoreError::damaged(&path, None, e.to_string());
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(damaged)?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(got) if got > VERSION => Err(StoreError::Version { path, got, known: VERSION }),
            _ => serde_json::from_value(value).map(Some).map_err(damaged),
        }
    }
}

/// What the user asks for with `--resume`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Continue an unfinished run of the same recipe; start beside a finished one.
    Auto,
    /// Start the next free name.
    Never,
    /// Continue from this step.
    Step(u64),
}

/// Where a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At step 0, in a new folder.
    New,
    /// At the latest checkpoint of the folder, or at step 0 where it has none.
    Latest,
    /// At this checkpoint of the folder, which is there.
    Step(u64),
}

/// The folder that a command works in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// The folder's name: the run's name, or `NAME-2` and so on.
    pub folder: String,
    /// The folder's path.
    pub path: PathBuf,
    /// Where the run begins.
    pub start: Start,
}

/// Decides which folder of `runs` the run `name` with `run_hash` works in. Nothing is written.
///
/// The folders of a name are those whose record says so. `Auto` continues the newest unfinished
/// one of this `run_hash`; else the newest one decides: it is finished, and the run begins beside
/// it, or it is unfinished and of another recipe, which is an error. `Step` takes the newest folder
/// of this `run_hash` that has the checkpoint.
///
/// # Errors
/// `WrongRun`, `NoSuchStep` with the steps that are there, `NotARun`, `NameTaken`, `BadName`;
/// `Damaged` or `Version` where NAME's own record cannot be read; `Io`.
pub fn resolve(
    fs: &Arc<dyn Fs>,
    runs: &Path,
    name: &str,
    run_hash: &str,
    resume: Resume,
) -> Result<Resolution> {
    check_name(name)?;
    let family = Family::find(fs, runs, name)?;
    let choose = |folder: &str, start| Resolution {
        folder: folder.to_owned(),
        path: runs.join(folder),
        start,
    };
    let fresh = choose(&family.next_free, Start::New);
    if resume == Resume::Never || (resume == Resume::Auto && family.next_free == name) {
        return Ok(fresh);
    }
    if let Some(error) = family.blocked {
        return Err(error);
    }
    let same = || family.runs.iter().rev().filter(|(_, record)| record.run_hash == run_hash);
    let newest = family.runs.last();
    let wrong_run = |(folder, record): &(String, RunRecord)| StoreError::WrongRun {
        path: runs.join(folder),
        have: record.run_hash.clone(),
        wanted: run_hash.to_owned(),
        next_name: family.next_free.clone(),
    };
    if let Resume::Step(step) = resume {
        let mut available = Vec::new();
        for (folder, _) in same() {
            let steps = RunDir::new(fs.clone(), runs.join(folder)).checkpoints().list()?;
            if steps.contains(&step) {
                return Ok(choose(folder, Start::Step(step)));
            }
            available.extend(steps);
        }
        if let (None, Some(other)) = (same().next(), newest) {
            return Err(wrong_run(other));
        }
        available.sort_unstable();
        available.dedup();
        return Err(StoreError::NoSuchStep { step, path: runs.join(name), available });
    }
    if let Some((folder, _)) = same().find(|(_, record)| record.status != RunStatus::Done) {
        return Ok(choose(folder, Start::Latest));
    }
    match newest {
        Some(run) if run.1.status != RunStatus::Done => Err(wrong_run(run)),
        _ => Ok(fresh),
    }
}

/// The folders of one name.
struct Family {
    /// Those with a record of this name, oldest first.
    runs: Vec<(String, RunRecord)>,
    /// The name itself, or the first `NAME-N` above all that are taken.
    next_free: String,
    /// Why NAME itself cannot be continued, where it is taken by something else.
    blocked: Option<StoreError>,
}

impl Family {
    fn find(fs: &Arc<dyn Fs>, runs: &Path, name: &str) -> Result<Self> {
        let entries = match retry(|| fs.list(runs)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            entries => entries.at("list", runs)?,
        };
        let number = |entry: &str| number_in_family(entry, name);
        let mut taken: Vec<(u64, String)> =
            entries.into_iter().filter_map(|e| Some((number(&e.name)?, e.name))).collect();
        taken.sort_unstable();
        let mut family = Self { runs: Vec::new(), next_free: String::new(), blocked: None };
        let mut highest = 0;
        for (number, folder) in taken {
            let dir = RunDir::new(fs.clone(), runs.join(&folder));
            let is_name = number == 1;
            match dir.read_record() {
                Ok(Some(record)) if record.name == name => family.runs.push((folder, record)),
                // The run `foo` may have made the folder `foo-2`, which is NAME here.
                Ok(Some(record)) if is_name => {
                    let (path, owner) = (dir.path, record.name);
                    family.blocked = Some(StoreError::NameTaken { path, owner });
                }
                Ok(Some(_)) => {}
                // A crash before the first record leaves this; it holds nothing, so it is free.
                Ok(None) if is_barren(fs.as_ref(), dir.path())? => continue,
                Ok(None) if is_name => {
                    family.blocked = Some(StoreError::NotARun { path: dir.path });
                }
                Err(error) if is_name => family.blocked = Some(error),
                Ok(None) | Err(_) => {}
            }
            highest = number;
        }
        family.next_free = match highest {
            0 => name.to_owned(),
            highest => format!("{name}-{}", highest + 1),
        };
        Ok(family)
    }
}

/// 1 for `NAME`, N for `NAME-N` from 2 on, `None` for all else.
fn number_in_family(entry: &str, name: &str) -> Option<u64> {
    if entry == name {
        return Some(1);
    }
    let digits = entry.strip_prefix(name)?.strip_prefix('-')?;
    let number: u64 = digits.parse().ok()?;
    ((2..u64::MAX).contains(&number) && number.to_string() == digits).then_some(number)
}

/// Whether a folder holds at most what is written before the first record.
fn is_barren(fs: &dyn Fs, path: &Path) -> Result<bool> {
    let entries = match retry(|| fs.list(path)) {
        // A file has taken the name.
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => return Ok(false),
        entries => entries.at("list", path)?,
    };
    let early = |name: &str| ["lock", "recipe.toml"].contains(&name) || is_temp_file(name);
    Ok(entries.iter().all(|entry| !entry.is_dir && early(&entry.name)))
}

fn check_name(name: &str) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let good = !name.is_empty()
        && name.len() <= NAME_LIMIT_BYTES
        && !name.starts_with('.')
        && name.bytes().all(allowed);
    if good { Ok(()) } else { Err(StoreError::BadName { name: name.to_owned() }) }
}
