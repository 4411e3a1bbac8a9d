//! Power loss at every instant: the newest acknowledged checkpoint always loads.

use std::path::Path;
use std::sync::Arc;

use aerogel_store::testing::{Crash, CrashFs, Crashes, Fault, FaultFs};
use aerogel_store::{Checkpoints, MetricsWriter, Result};
use aerogel_store::{Entry, Fs, FsFile, FsRead, TryLock, cut_back, write_atomic};

use super::common::*;

const DIR: &str = "/runs/r";

/// Five commits, each acknowledged, with pruning to two between them.
fn history(fs: Arc<dyn Fs>, log: &CrashFs) {
    let checkpoints = open(fs, Path::new(DIR));
    for step in 1..=5 {
        commit(&checkpoints, step).unwrap();
        log.acknowledge(step);
        checkpoints.prune(2).unwrap();
    }
}

/// What must hold after a crash: the newest acknowledged step or a newer one loads, nothing that
/// is visible is damaged, and the next commit goes through and leaves no temporary folder.
fn check(crash: &Crash, go_on: bool) -> Result<(), String> {
    let checkpoints = open(Arc::new(crash.fs.clone()), Path::new(DIR));
    let latest = checkpoints.latest().map_err(|e| e.to_string())?;
    let step = latest.checkpoint.as_ref().map(aerogel_store::Checkpoint::step);
    if !latest.skipped.is_empty() || step < crash.acknowledged {
        return Err(format!("latest {step:?}, skipped {:?}", latest.skipped));
    }
    for step in checkpoints.list().map_err(|e| e.to_string())? {
        let checkpoint = checkpoints.open(step).map_err(|e| e.to_string())?;
        checkpoint.verify().map_err(|e| e.to_string())?;
        assert_contents(&checkpoint);
    }
    if go_on {
        commit(&checkpoints, 6).map_err(|e| e.to_string())?;
        let names = crash.fs.list(&Path::new(DIR).join("checkpoints")).unwrap();
        if names.iter().any(|entry| entry.name.contains("tmp")) {
            return Err(format!("orphans in {names:?}"));
        }
    }
    Ok(())
}

#[test]
fn no_power_loss_costs_an_acknowledged_checkpoint() {
    let fs = CrashFs::default();
    history(Arc::new(fs.clone()), &fs);
    let mut visited = 0;
    let states = Crashes::of(&fs, 60).for_each(|crash| {
        visited += 1;
        check(&crash, visited % 7 == 0).unwrap_or_else(|e| panic!("{}: {e}", crash.description));
    });
    assert!(states >= 2_000, "only {states} states");
}

#[test]
fn replacing_a_damaged_step_is_safe_at_every_instant() {
    let real = CrashFs::default();
    let checkpoints = open(Arc::new(real.clone()), Path::new(DIR));
    for step in [1, 2] {
        commit(&checkpoints, step).unwrap();
    }
    let folder = Path::new(DIR).join("checkpoints/step-00000002");
    real.remove_file(&folder.join("tensors-00001.safetensors")).unwrap();
    real.sync_dir(&folder).unwrap();
    let before = real.changes();
    commit(&checkpoints, 2).unwrap();
    assert!(real.changes() > before);
    real.acknowledge(2);
    let mut acknowledged = 0;
    Crashes::of(&real, 20).for_each(|crash| {
        let checkpoints = open(Arc::new(crash.fs.clone()), Path::new(DIR));
        let Some(mark) = crash.acknowledged else { return };
        acknowledged += 1;
        assert_eq!(checkpoints.latest().unwrap().checkpoint.unwrap().step(), mark);
    });
    assert!(acknowledged > 0);
}

/// A first process fails at operation `at` of committing `step`; a second one, which sees all that
/// the first left in memory, goes on with `then`, and the power fails. Returns whether `at` was
/// within the commit, and whether the step was there although the commit had failed.
fn fail_then(step: u64, at: usize, then: impl Fn(&Checkpoints, &CrashFs)) -> (bool, bool) {
    let memory = CrashFs::default();
    let faulty = FaultFs::new(Arc::new(memory.clone()));
    let first = open(Arc::new(faulty.clone()), Path::new(DIR));
    for step in 1..step {
        commit(&first, step).unwrap();
        memory.acknowledge(step);
    }
    faulty.arm(at, Fault::Io);
    let failed = commit(&first, step).is_err();
    let second = open(Arc::new(memory.clone()), Path::new(DIR));
    let visible = second.list().unwrap().contains(&step);
    then(&second, &memory);
    Crashes::of(&memory, 3).for_each(|crash| {
        check(&crash, false).unwrap_or_else(|e| panic!("{at}: {}: {e}", crash.description));
    });
    (failed, failed && visible)
}

#[test]
fn a_repeated_commit_is_durable_whatever_the_first_left() {
    for step in [1, 3] {
        let again = |checkpoints: &Checkpoints, memory: &CrashFs| {
            commit(checkpoints, step).unwrap();
            memory.acknowledge(step);
        };
        let outcomes = (0..).map(|at| fail_then(step, at, again)).take_while(|(failed, _)| *failed);
        let outcomes: Vec<_> = outcomes.collect();
        assert!(outcomes.len() > 20);
        assert_eq!(outcomes.last(), Some(&(true, true)), "the last fsync comes after the rename");
    }
}

#[test]
fn a_prune_after_a_failed_commit_costs_nothing() {
    let prune = |checkpoints: &Checkpoints, _: &CrashFs| drop(checkpoints.prune(1).unwrap());
    let outcomes: Vec<_> =
        (0..).map(|at| fail_then(3, at, prune)).take_while(|(failed, _)| *failed).collect();
    assert!(outcomes.iter().any(|(_, visible)| *visible));
}

/// Leaves out one kind of fsync: the checks above must then find a state that breaks.
struct Forgetful {
    inner: CrashFs,
    files: bool,
    folders: bool,
}

struct NoSync(Box<dyn FsFile>);

impl FsFile for NoSync {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }
    fn sync(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Fs for Forgetful {
    fn create(&self, path: &Path) -> std::io::Result<Box<dyn FsFile>> {
        let file = self.inner.create(path)?;
        Ok(if self.files { Box::new(NoSync(file)) } else { file })
    }
    fn sync_dir(&self, path: &Path) -> std::io::Result<()> {
        if self.folders { Ok(()) } else { self.inner.sync_dir(path) }
    }
    fn create_dir(&self, path: &Path) -> std::io::Result<()> {
        self.inner.create_dir(path)
    }
    fn append(&self, path: &Path) -> std::io::Result<Box<dyn FsFile>> {
        self.inner.append(path)
    }
    fn open(&self, path: &Path) -> std::io::Result<Box<dyn FsRead>> {
        self.inner.open(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> std::io::Result<()> {
        self.inner.remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> std::io::Result<()> {
        self.inner.remove_dir(path)
    }
    fn list(&self, path: &Path) -> std::io::Result<Vec<Entry>> {
        self.inner.list(path)
    }
    fn free_bytes(&self, path: &Path) -> std::io::Result<u64> {
        self.inner.free_bytes(path)
    }
    fn try_lock(&self, path: &Path, note: &str) -> std::io::Result<TryLock> {
        self.inner.try_lock(path, note)
    }
}

#[test]
fn the_crash_states_notice_a_missing_fsync() {
    for (files, folders) in [(true, false), (false, true)] {
        let inner = CrashFs::default();
        history(Arc::new(Forgetful { inner: inner.clone(), files, folders }), &inner);
        let mut broken = 0;
        Crashes::of(&inner, 20)
            .for_each(|crash| broken += u32::from(check(&crash, false).is_err()));
        assert!(broken > 0, "files {files}, folders {folders}: no crash state shows it");
    }
}

#[test]
fn an_atomic_write_is_old_or_new() {
    let fs = CrashFs::default();
    let path = Path::new("/run.json");
    let texts = [vec![b'a'; 5000], vec![b'b'; 9000]];
    for (mark, text) in texts.iter().enumerate() {
        write_atomic(&fs, path, text).unwrap();
        fs.acknowledge(mark as u64);
    }
    let states = Crashes::of(&fs, 1000).for_each(|crash| {
        let got = crash.fs.contents(path).ok();
        let at_least = crash.acknowledged.map_or(0, |mark| mark as usize);
        let known = got.as_ref().map(|text| texts.iter().position(|t| t == text));
        match known {
            None => assert_eq!(crash.acknowledged, None, "{}", crash.description),
            Some(version) => assert!(version >= Some(at_least), "{}", crash.description),
        }
    });
    assert!(states > 40, "only {states} states");
}

#[test]
fn metrics_survive_with_the_checkpoint_that_follows_them() {
    let fs = CrashFs::default();
    let path = Path::new("/metrics.jsonl");
    let mut writer = MetricsWriter::open(&fs, path).unwrap();
    let line = |step: u64| serde_json::json!({ "v": 1, "step": step, "pad": "x".repeat(700) });
    for step in 1..=6 {
        writer.push(&line(step)).unwrap();
        if step % 3 == 0 {
            writer.sync().unwrap();
            fs.acknowledge(step);
        }
    }
    Crashes::of(&fs, 200).for_each(|crash| {
        let Some(mark) = crash.acknowledged else { return };
        cut_back(&crash.fs, path, mark).unwrap();
        let text = String::from_utf8(crash.fs.contents(path).unwrap()).unwrap();
        let wanted: String = (1..=mark).map(|step| format!("{}\n", line(step))).collect();
        assert_eq!(text, wanted, "{}", crash.description);
    });
}
