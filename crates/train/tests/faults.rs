//! Ranks that stop, die, skip or repeat a collective: every run ends soon, says who and where, and
//! leaves its last checkpoint as it was. A binary of its own, for it counts the process's threads.

#[path = "compose/case.rs"]
mod case;

use aerogel_comm::faults::{Fault, Faulty, Hold};
use aerogel_machine::{CommError, DeviceError};
use aerogel_store::{RealFs, RunDir};
use aerogel_train::{Exit, Ties, TrainError};
use case::{Place, SPARSE};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const FAULTS: u64 = 100;

fn random(seed: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, |d| d.count())
}

/// Ties in which one rank fails at its n-th exchange; what a stuck rank waits for, and what was
/// said when it did not come back.
fn faulty(rank: usize, at: u64, kind: u64) -> (Ties, Arc<Mutex<Vec<String>>>) {
    let hold = Hold::new();
    let told = Arc::new(Mutex::new(vec![]));
    let mut ties = Ties::new(Duration::from_millis(600));
    let (release, said) = (hold.clone(), told.clone());
    ties.on_hang = Arc::new(move |message| {
        said.lock().unwrap().push(message.to_owned());
        release.release();
    });
    ties.wrap = Some(Arc::new(move |r, tie| {
        if r != rank {
            return Arc::from(tie);
        }
        let fault = match kind {
            0 => Fault::Stop(hold.clone()),
            1 => Fault::Die,
            2 => Fault::Panic,
            3 => Fault::Skip,
            _ => Fault::Duplicate,
        };
        Arc::new(Faulty::new(tie, at, fault))
    }));
    (ties, told)
}

/// Whether the error is about that rank, and where it stood.
fn names(error: &TrainError, rank: usize) -> bool {
    let text = error.to_string();
    let site = text.contains("section") || matches!(error, TrainError::Panicked { .. });
    text.contains(&format!("rank {rank}")) && site
}

#[test]
fn a_hundred_faults_end_soon_and_are_named() {
    // Ranks have no names; what they say when they are made to panic is expected.
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name().is_some() {
            default(info);
        }
    }));
    let place = Place::new();
    let keys = [
        "train.steps=40",
        "train.micro_batch=1",
        "eval.every=0",
        "checkpoint.every=1",
        "checkpoint.keep=2",
        "model.layers=2",
        "parallel.mesh={data=4}",
        "parallel.preset=zero3",
    ];
    let recipe = place.recipe(SPARSE, &keys).unwrap();
    let before = threads();
    for n in 0..FAULTS {
        let (rank, kind) = (random(n) as usize % 4, n % 5);
        let at = 20 + random(n + 1000) % 150;
        let (ties, told) = faulty(rank, at, kind);
        let runs = format!("fault-{n}");
        let started = Instant::now();
        let error = place.run(&runs, &recipe, Some(ties)).expect_err(&runs);
        let seconds = started.elapsed().as_secs_f64();
        assert!(seconds < 5.0, "{runs}: {seconds} s for {error}");
        assert!(names(&error, rank), "{runs}, kind {kind}, rank {rank} at {at}: {error}");
        match kind {
            0 => assert_eq!(error.exit(), Exit::Hang, "{error}"),
            1 => assert_eq!(error.exit(), Exit::PeerLost, "{error}"),
            // Who skips the last one of a step is waited for; who repeats it waits.
            3 | 4 => assert!(matches!(error.exit(), Exit::PeerLost | Exit::Hang), "{error}"),
            _ => assert_eq!(error.exit(), Exit::Bug, "{error}"),
        }
        assert_eq!(told.lock().unwrap().len(), usize::from(kind == 0), "{runs}");
        let run = RunDir::new(Arc::new(RealFs), place.path().join(&runs).join("case"));
        if let Some(checkpoint) = run.checkpoints().latest().unwrap().checkpoint {
            checkpoint.verify().unwrap();
        }
        std::fs::remove_dir_all(place.path().join(&runs)).unwrap();
    }
    assert!(threads() <= before, "{} threads, {before} before", threads());
    let silent =
        TrainError::Device(DeviceError::Comm(CommError::Stopped { rank: 0, cause: String::new() }));
    assert_eq!(silent.exit(), Exit::PeerLost);
}
