//! Real processes: a second writer is refused, a killed one costs nothing.

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use aerogel_store::{RealFs, RunDir, StoreError};

use super::common::*;

const FOLDER: &str = "AEROGEL_STORE_TEST_FOLDER";

/// Not a test of its own: the process that the tests below start. It commits step after step, and
/// says so, until it is killed.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let dir = RunDir::new(Arc::new(RealFs), &folder);
    let _lock = dir.lock().unwrap();
    let checkpoints = real(Path::new(&folder));
    let first = checkpoints.latest().unwrap().checkpoint.map_or(1, |c| c.step() + 1);
    println!("\nlocked");
    for step in first.. {
        commit(&checkpoints, step).unwrap();
        println!("\ncommitted {step}");
        checkpoints.prune(3).unwrap();
    }
}

/// A child that is killed with the test, and its output once it holds the lock.
struct Writer(Child, Lines<BufReader<ChildStdout>>);

impl Writer {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "all::kill::child", "--nocapture"])
            .env(FOLDER, folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.by_ref().any(|line| line.unwrap() == "locked"));
        Self(child, lines)
    }

    /// The next step that it acknowledges, while it lives or from what it had said before it died.
    fn next_step(&mut self) -> Option<u64> {
        let mut lines = self.1.by_ref().map_while(|line| line.ok());
        lines.find_map(|line| line.strip_prefix("committed ")?.parse().ok())
    }

    /// Kills it with SIGKILL; returns the last step that it acknowledged since `next_step`.
    fn kill(mut self) -> Option<u64> {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        std::iter::from_fn(|| self.next_step()).last()
    }
}

#[test]
fn a_second_process_is_refused_by_pid_until_the_first_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::start(dir.path());
    let run = RunDir::new(Arc::new(RealFs), dir.path());
    let error = run.lock().err().unwrap();
    assert!(matches!(error, StoreError::Locked { pid: Some(pid), .. } if pid == writer.0.id()));
    assert!(error.to_string().contains(&format!("process {}", writer.0.id())), "{error}");
    writer.kill();
    run.lock().unwrap();
}

#[test]
fn a_kill_costs_no_checkpoint_and_leaves_no_orphan() {
    let dir = tempfile::tempdir().unwrap();
    let mut numbers = Numbers(7);
    let mut acknowledged = 0;
    for _ in 0..20 {
        let mut writer = Writer::start(dir.path());
        // Between 0 and 2 commits, and then somewhere within the next.
        for _ in 0..numbers.below(3) {
            acknowledged = writer.next_step().unwrap();
        }
        std::thread::sleep(Duration::from_micros(numbers.below(20_000)));
        acknowledged = writer.kill().unwrap_or(acknowledged);
        let checkpoints = real(dir.path());
        let latest = checkpoints.latest().unwrap();
        assert!(latest.skipped.is_empty(), "{:?}", latest.skipped);
        let step = latest.checkpoint.as_ref().map_or(0, |c| c.step());
        assert!(step >= acknowledged, "{step} of {acknowledged}");
        for step in checkpoints.list().unwrap() {
            assert_contents(&checkpoints.open(step).unwrap());
        }
    }
    assert!(acknowledged >= 10, "the kills came before the work: {acknowledged}");
    let checkpoints = real(dir.path());
    commit(&checkpoints, acknowledged + 2).unwrap();
    for entry in std::fs::read_dir(dir.path().join("checkpoints")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.contains("tmp"), "{name}");
    }
}
