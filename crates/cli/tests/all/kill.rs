//! SIGKILL at any instant loses nothing that was committed, and changes no number.

use super::bin::{Place, SMALL};
use aerogel_store::{RealFs, RunDir};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Kills of one test; `AEROGEL_KILLS` asks for another number.
const KILLS: usize = 100;

/// A run of about a second with all that a run writes.
const RUN: &[&str] = &[
    "train.steps=120",
    "train.batch=4",
    "train.micro_batch=2",
    "model.dropout=0.1",
    "eval.every=40",
    "eval.sequences=2",
    "sample.count=1",
    "sample.tokens=4",
    "sample.every=30",
    "checkpoint.keep=4",
    "parallel.threads=2",
];

/// Draws from a seed (Knuth's MMIX).
struct Draw(u64);

impl Draw {
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn start(place: &Place, runs: &str, every: &str) -> Child {
    let args = [&["train", "small.toml", "--quiet", "--runs", runs, every], RUN].concat();
    place.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Lets a run go on for a while, then kills it; whether it ended before, and well.
fn kill_after(mut child: Child, delay: Duration) -> bool {
    std::thread::sleep(delay);
    if let Some(status) = child.try_wait().unwrap() {
        assert!(status.success(), "{status}");
        return true;
    }
    child.kill().unwrap();
    // It may have come to its end in between.
    child.wait().unwrap().success()
}

fn folders(runs: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(runs) else { return vec![] };
    entries.map(|e| e.unwrap().path()).collect()
}

/// Reads every committed checkpoint to the last byte; gives their number.
fn verify(runs: &Path) -> usize {
    let mut count = 0;
    for folder in folders(runs) {
        let checkpoints = RunDir::new(Arc::new(RealFs), &folder).checkpoints();
        for step in checkpoints.list().unwrap() {
            let checkpoint = checkpoints.open(step).and_then(|c| c.verify().map(|()| c));
            let checkpoint = checkpoint.unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
            assert_eq!(checkpoint.step(), step);
            count += 1;
        }
    }
    count
}

/// The numbers of a log without times, and the hash of the parameters at its end.
fn numbers(folder: &Path) -> (Vec<Value>, Value) {
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let done = lines.iter().rfind(|v| v["event"] == "done").expect("the run is done");
    let end = serde_json::json!([done["parameters_hash"], done["loss_bits"], done["eval_bits"]]);
    let told =
        lines.iter().filter(|v| ["step", "eval", "sample"].contains(&v["event"].as_str().unwrap()));
    let timeless = told.cloned().map(|mut value| {
        let object = value.as_object_mut().unwrap();
        for name in ["seconds", "tokens_per_second", "resident_bytes", "eta_seconds"] {
            object.remove(name);
        }
        value
    });
    (timeless.collect(), end)
}

/// Files and folders of a run whose names no finished work has.
fn unfinished(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.contains("tmp") || name.starts_with('.') {
            found.push(entry.path());
        } else if entry.file_type().unwrap().is_dir() {
            found.extend(unfinished(&entry.path()));
        }
    }
    found
}

#[test]
fn a_killed_run_ends_as_one_that_was_not() {
    let place = Place::small();
    place.write("small.toml", SMALL);
    let started = Instant::now();
    assert!(start(&place, "whole", "checkpoint.every=5").wait().unwrap().success());
    let whole_time = started.elapsed();
    let wanted = numbers(&place.path("whole/small"));
    assert_eq!(wanted.0.iter().filter(|v| v["event"] == "step").count(), 120);

    let kills = std::env::var("AEROGEL_KILLS").map_or(KILLS, |n| n.parse().unwrap());
    let runs = place.path("runs");
    let mut draw = Draw(11);
    let (mut killed, mut ended, mut verified) = (0, 0, 0);
    while killed < kills {
        // Every other time a checkpoint follows each step, so that most kills fall into one.
        let every = ["checkpoint.every=5", "checkpoint.every=1"][killed % 2];
        let delay = whole_time.mul_f64(0.7 * draw.share());
        match kill_after(start(&place, "runs", every), delay) {
            true => ended += 1,
            false => killed += 1,
        }
        verified += verify(&runs);
    }
    println!("{killed} kills, {ended} runs ended between them, {verified} checkpoints verified");
    assert!(verified > kills);
    // One that was killed in its last moments is not finished: this ends it, or begins another.
    assert!(start(&place, "runs", "checkpoint.every=5").wait().unwrap().success());
    verify(&runs);
    let folders = folders(&runs);
    // A run whose record was written may be killed on its way out: no fewer, perhaps more.
    assert!(folders.len() > ended, "the last run is one more");
    for folder in folders {
        assert_eq!(numbers(&folder), wanted, "{}", folder.display());
        assert_eq!(unfinished(&folder), Vec::<PathBuf>::new());
    }
}
