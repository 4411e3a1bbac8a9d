//! Runs that are stopped, cut, damaged, and go on.

use super::bin::{Ended, Place, damage, recipe};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Overrides that make a run of some hundred short steps, with dropout.
const LONG: &[&str] = &[
    "train.steps=300",
    "model.dropout=0.1",
    "eval.every=0",
    "sample.every=0",
    "checkpoint.every=50",
    "train.log_every=100",
];

fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
}

/// Starts a run and waits for an event of a kind; gives the rest of its output.
fn until(place: &Place, args: &[&str], event: &str) -> (Child, BufReader<impl Read + use<>>) {
    let mut child = place.command(args).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains(&format!("\"event\":\"{event}\"")) {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "the run ended before {event}");
    }
    (child, out)
}

fn finish(mut child: Child, mut out: BufReader<impl Read>) -> Ended {
    let (mut rest, mut err) = (String::new(), String::new());
    out.read_to_string(&mut rest).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    let code = child.wait().unwrap().code().unwrap_or(-1);
    Ended { code, out: rest, err, took: Duration::ZERO }
}

fn long(file: &str) -> Vec<&str> {
    [&["train", file, "--tiny", "--json"], LONG].concat()
}

#[test]
fn a_stopped_run_goes_on_to_the_same_weights() {
    let file = recipe("quick");
    let args = long(&file);
    let whole = Place::new().good(&args).event("done");
    let place = Place::new();
    for name in ["-TERM", "-INT"] {
        let (child, out) = until(&place, &args, "step");
        signal(&child, name);
        let stopped = finish(child, out);
        assert_eq!(stopped.code, 10, "{}", stopped.err);
        assert!(stopped.err.contains("the same command goes on"), "{}", stopped.err);
        let step = stopped.event("stopped")["step"].as_u64().unwrap();
        assert_eq!(stopped.event("checkpoint")["step"].as_u64(), Some(step));
        assert!(step < 300);
    }
    let resumed = place.good(&args);
    assert_eq!(resumed.event("start")["resumed"], true);
    assert_eq!(resumed.event("done")["parameters_hash"], whole["parameters_hash"]);
    assert_eq!(resumed.event("done")["eval_bits"], whole["eval_bits"]);
}

#[test]
fn a_second_signal_ends_at_once() {
    let place = Place::new();
    let file = recipe("quick");
    // One step of some seconds, so that it is at work when the second signal comes.
    let args = [
        "train",
        &file,
        "--tiny",
        "--json",
        "train.batch=16384",
        "train.micro_batch=4",
        "eval.every=0",
    ];
    let (child, out) = until(&place, &args, "eval");
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, "-TERM");
    std::thread::sleep(Duration::from_millis(100));
    signal(&child, "-TERM");
    let ended = finish(child, out);
    assert_eq!(ended.code, 143, "{}", ended.err);
    assert!(ended.err.contains("once more stops at once"), "{}", ended.err);
}

#[test]
fn preparing_can_be_stopped_and_leaves_nothing() {
    let place = Place::small();
    // Enough text that it is still at work.
    place.write("text/big.txt", &"some words to read; ".repeat(12_000_000));
    let mut child = place.command(&["prepare", "small.toml"]).spawn().unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    err.read_line(&mut line).unwrap();
    signal(&child, "-INT");
    err.read_to_string(&mut line).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(10), "{line}");
    assert!(line.contains("stopped on request"), "{line}");
    assert!(!place.path("data/small").exists());
}

#[test]
fn a_damaged_checkpoint_is_skipped_with_a_warning() {
    let place = Place::new();
    let file = recipe("quick");
    let args = ["train", &file, "--tiny", "--json"];
    let whole = place.good(&args).event("done");
    let run = "runs/quick-tiny";
    damage(&place.path(run).join("checkpoints/step-00000008/tensors-00000.safetensors"));
    let scored = place.good(&["eval", "quick-tiny", "--json"]);
    assert_eq!(scored.object()["step"], 4);
    assert!(scored.err.contains("warning: checkpoint 8 is damaged"), "{}", scored.err);
    place.unfinish(run);
    let resumed = place.good(&args);
    assert_eq!(resumed.event("start")["step"], 4);
    let warning = resumed.event("warning")["message"].to_string();
    assert!(warning.contains("checkpoint 8 is damaged and was skipped"), "{warning}");
    assert_eq!(resumed.event("done")["parameters_hash"], whole["parameters_hash"]);
}

#[test]
fn a_run_goes_on_from_a_named_step() {
    let place = Place::new();
    let file = recipe("quick");
    let args = ["train", &file, "--tiny", "--json"];
    let whole = place.good(&args).event("done");
    let resumed = place.good(&[&args[..], &["--resume", "4"]].concat());
    assert_eq!(resumed.event("start")["step"], 4);
    assert_eq!(resumed.event("done")["parameters_hash"], whole["parameters_hash"]);
    let absent = place.run(&[&args[..], &["--resume", "5"]].concat());
    assert_eq!(absent.code, 20);
    assert!(absent.err.contains("choose one of 4, 8"), "{}", absent.err);
}

#[test]
fn another_recipe_does_not_take_over_an_unfinished_run() {
    let place = Place::new();
    let file = recipe("quick");
    place.good(&["train", &file, "--tiny"]);
    place.unfinish("runs/quick-tiny");
    let args = ["train", &file, "--tiny", "optimizer.learning_rate=1e-4"];
    let refused = place.run(&args);
    assert_eq!(refused.code, 20);
    for part in ["quick-tiny-2", "--resume never", "undo the change"] {
        assert!(refused.err.contains(part), "{}", refused.err);
    }
    place.good(&[&args[..], &["--resume", "never"]].concat());
    assert!(place.path("runs/quick-tiny-2/report.html").exists());
}

#[test]
fn only_one_process_trains_in_a_run() {
    let place = Place::new();
    let file = recipe("quick");
    let args = long(&file);
    let (child, out) = until(&place, &args, "step");
    let second = place.run(&args);
    assert_eq!(second.code, 20, "{}", second.err);
    assert!(second.err.contains(&format!("process {}", child.id())), "{}", second.err);
    signal(&child, "-TERM");
    assert_eq!(finish(child, out).code, 10);
}

#[test]
fn a_reader_that_leaves_stops_the_run_in_good_order() {
    let place = Place::new();
    let file = recipe("quick");
    let args = long(&file);
    let (mut child, out) = until(&place, &args, "step");
    drop(out);
    assert_eq!(child.wait().unwrap().code(), Some(10));
    assert_eq!(place.good(&args).event("start")["resumed"], true);
}

/// From the command to the first step: some fifty times what is usual, so that only what grows with
/// a corpus, a folder of build products, or the whole of the held-out data is noticed.
#[test]
fn the_first_step_comes_soon() {
    let place = Place::new();
    let file = recipe("quick");
    place.good(&["prepare", &file]);
    let args = ["train", &file, "--json", "--resume", "never"];
    let start = || {
        let started = Instant::now();
        let (mut child, out) = until(&place, &args, "step");
        let took = started.elapsed();
        child.kill().unwrap();
        child.wait().unwrap();
        drop(out);
        took
    };
    // The fastest of a few: a machine may be busy with something else for a moment.
    let took = (0..3).map(|_| start()).min().unwrap();
    assert!(took < Duration::from_secs(5), "{took:?}");
}
