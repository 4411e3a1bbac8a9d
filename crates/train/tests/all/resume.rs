//! A run that is cut anywhere and continued gives the bits of the run that was not.

use crate::common::Log;
use aerogel_data::NoProgress;
use aerogel_recipe::Recipe;
use aerogel_store::{Resume, StoreError};
use aerogel_train::{Event, Exit, Options, Outcome, Sink, TrainError, Workspace, train};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const STEPS: u64 = 40;

/// Forty steps of two micro-batches with dropout, and a checkpoint after every other.
const REST: &str = r#"
[data]
kind = "text"
paths = ["*.txt"]
validation = 0.2
[optimizer]
learning_rate = 3e-3
weight_decay = 0.05
[schedule]
warmup = 5
[train]
steps = 40
batch = 6
micro_batch = 2
seed = 3
[eval]
every = 10
sequences = 3
[sample]
count = 1
tokens = 8
every = 20
[checkpoint]
every = 2
keep = 100
[tiny]
"#;

const SPARSE: &str = r#"
[model]
family = "sparse_transformer"
layers = 2
heads = 2
embed = 16
context = 32
dropout = 0.2
embed_dropout = 0.1
attention = "strided"
stride = 8
"#;

const GPT2: &str = r#"
[model]
family = "gpt2"
layers = 2
heads = 2
embed = 16
context = 32
dropout = 0.2
embed_dropout = 0.1
attention = "dense"
"#;

fn recipe(model: &str, overrides: &[&str]) -> Recipe {
    let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
    Recipe::parse(&format!("{model}{REST}"), "cut.toml", Path::new(""), &overrides, true).unwrap()
}

/// Keeps all events, and asks the run to stop after a step.
struct StopAfter {
    step: u64,
    stop: Arc<AtomicBool>,
    log: Log,
}

impl Sink for StopAfter {
    fn event(&mut self, event: &Event) -> Result<(), TrainError> {
        if matches!(event, Event::Step { step, .. } if *step == self.step) {
            self.stop.store(true, Ordering::Relaxed);
        }
        self.log.event(event)
    }
}

/// A finished or stopped run.
struct Ran {
    outcome: Result<Outcome, TrainError>,
    events: Vec<Event>,
}

impl Ran {
    fn ok(&self) -> &Outcome {
        self.outcome.as_ref().unwrap_or_else(|e| panic!("{e}"))
    }

    /// Step, and the bits of loss, gradient norm and learning rate.
    fn steps(&self) -> Vec<(u64, [u64; 3])> {
        let bits = |e: &Event| match e {
            Event::Step { step, loss_bits, learning_rate, grad_norm, .. } => {
                Some((*step, [*loss_bits, *grad_norm, *learning_rate].map(f64::to_bits)))
            }
            _ => None,
        };
        self.events.iter().filter_map(bits).collect()
    }

    /// The hash of the parameters, and the bits of the last loss and evaluation.
    fn end(&self) -> (String, u64, u64) {
        let end = |e: &Event| match e {
            Event::Done { parameters_hash, loss_bits, eval_bits, .. } => {
                Some((parameters_hash.clone(), loss_bits.to_bits(), eval_bits.unwrap().to_bits()))
            }
            _ => None,
        };
        self.events.iter().find_map(end).expect("the run is done")
    }

    fn warnings(&self) -> Vec<&str> {
        let mut texts = vec![];
        for e in &self.events {
            if let Event::Warning { message, .. } = e {
                texts.push(message.as_str());
            }
        }
        texts
    }
}

/// Trains until done, or until after a step.
fn run(recipe: &Recipe, workspace: &Workspace, resume: Resume, stop_after: Option<u64>) -> Ran {
    let stop = Arc::new(AtomicBool::new(false));
    let (workspace, ties) = (workspace.clone(), None);
    let options = Options { workspace, resume, stop: stop.clone(), ties };
    let mut sink = StopAfter { step: stop_after.unwrap_or(u64::MAX), stop, log: Log::default() };
    let outcome = train(recipe, &options, &mut NoProgress, &mut sink);
    Ran { outcome, events: sink.log.0 }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// What the log says of the numbers: steps, evaluations and samples without their times.
fn numbers(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let told = lines.filter(|v| ["step", "eval", "sample"].contains(&v["event"].as_str().unwrap()));
    told.map(|mut value| {
        let object = value.as_object_mut().unwrap();
        for name in ["seconds", "tokens_per_second", "resident_bytes", "eta_seconds"] {
            object.remove(name);
        }
        value
    })
    .collect()
}

/// The files of a checkpoint that hold tensors.
fn tensor_files(run: &Path, step: u64) -> Vec<PathBuf> {
    let folder = run.join(format!("checkpoints/step-{step:08}"));
    let files = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path());
    files.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect()
}

fn every_checkpoint_continues(model: &str) {
    let dir = tempfile::tempdir().unwrap();
    let base = Workspace::under(&dir.path().join("base"));
    let recipe = recipe(model, &["parallel.threads=2"]);
    let whole = run(&recipe, &base, Resume::Auto, None);
    let (wanted, end) = (whole.steps(), whole.end());
    assert_eq!(wanted.len() as u64, STEPS);
    assert!(wanted.windows(2).all(|w| w[0].1 != w[1].1), "every step has its own numbers");
    let log = numbers(&whole.ok().folder);
    for step in (2..=STEPS).step_by(2) {
        let runs = dir.path().join(format!("from-{step}"));
        copy(&base.runs, &runs);
        let cut = Workspace { runs, data: base.data.clone() };
        let ran = run(&recipe, &cut, Resume::Step(step), None);
        assert_eq!(ran.ok().exit, Exit::Done);
        // The steps after it are set aside, which is told; the last step has none.
        let warnings = ran.warnings();
        assert_eq!(warnings.len(), usize::from(step < STEPS), "{warnings:?}");
        assert!(warnings.iter().all(|w| w.contains("were set aside")), "{warnings:?}");
        assert!(
            matches!(ran.events[0], Event::Start { step: at, resumed: true, .. } if at == step)
        );
        assert_eq!(ran.steps(), wanted[step as usize..], "from {step}");
        assert_eq!(ran.end(), end, "from {step}");
        assert_eq!(numbers(&ran.ok().folder), log, "from {step}");
    }
}

#[test]
fn the_sparse_transformer_continues_from_every_checkpoint() {
    every_checkpoint_continues(SPARSE);
}

#[test]
fn gpt2_continues_from_every_checkpoint() {
    every_checkpoint_continues(GPT2);
}

#[test]
fn threads_change_no_bit() {
    for model in [SPARSE, GPT2] {
        let runs = ["1", "2", "3"].map(|threads| {
            let dir = tempfile::tempdir().unwrap();
            let threads = format!("parallel.threads={threads}");
            let overrides = [&threads, "checkpoint.every=0", "train.steps=12", "sample.every=0"];
            let ran =
                run(&recipe(model, &overrides), &Workspace::under(dir.path()), Resume::Auto, None);
            (ran.steps(), ran.end())
        });
        assert_eq!(runs[0].0.len(), 12);
        assert_eq!(runs[0], runs[1]);
        assert_eq!(runs[0], runs[2]);
    }
}

#[test]
fn a_stopped_run_continues_on_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(SPARSE, &["checkpoint.every=7", "checkpoint.keep=2"]);
    let whole = run(&recipe, &Workspace::under(&dir.path().join("whole")), Resume::Auto, None);
    let cut = Workspace::under(&dir.path().join("cut"));
    let mut ran = run(&recipe, &cut, Resume::Auto, Some(5));
    for stop_after in [Some(20), Some(21), Some(39), None] {
        let stopped = ran.ok();
        assert_eq!(stopped.exit, Exit::Resumable);
        assert!(matches!(ran.events.last(), Some(Event::Stopped { .. })));
        let at = stopped.step;
        ran = run(&recipe, &cut, Resume::Auto, stop_after);
        assert!(matches!(ran.events[0], Event::Start { step, resumed: true, .. } if step == at));
        assert_eq!(ran.ok().step, stop_after.unwrap_or(STEPS));
    }
    assert_eq!(ran.end(), whole.end());
    assert_eq!(numbers(&ran.ok().folder), numbers(&whole.ok().folder));
}

#[test]
fn a_run_stopped_before_its_first_step_continues() {
    let dir = tempfile::tempdir().unwrap();
    let workspace = Workspace::under(dir.path());
    let recipe = recipe(SPARSE, &["train.steps=3", "schedule.warmup=1"]);
    let stop = Arc::new(AtomicBool::new(true));
    let resume = Resume::Auto;
    let options = Options { workspace: workspace.clone(), resume, stop, ties: None };
    let outcome = train(&recipe, &options, &mut NoProgress, &mut Log::default()).unwrap();
    assert_eq!((outcome.exit, outcome.step), (Exit::Resumable, 0));
    let ran = run(&recipe, &workspace, Resume::Auto, None);
    assert_eq!((ran.ok().exit, ran.ok().step), (Exit::Done, 3));
    let evaluated = |v: &&Value| v["event"] == "eval" && v["step"] == 0;
    assert_eq!(numbers(&outcome.folder).iter().filter(evaluated).count(), 1);
}

/// Nothing keeps the first step waiting: before it one batch is scored, later all that was asked.
#[test]
fn before_the_first_step_one_batch_is_scored() {
    let scored = |changes: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let short = ["train.steps=1", "schedule.warmup=0", "train.batch=2"];
        let recipe = recipe(SPARSE, &[&short[..], changes].concat());
        let ran = run(&recipe, &Workspace::under(dir.path()), Resume::Auto, None);
        let tokens = ran.events.iter().filter_map(|e| match e {
            Event::Eval { step, tokens, .. } => Some((*step, *tokens)),
            _ => None,
        });
        tokens.collect::<Vec<_>>()
    };
    assert_eq!(scored(&["eval.sequences=5"]), [(0, 2 * 32), (1, 5 * 32)]);
    assert_eq!(scored(&["eval.sequences=1"]), [(0, 32), (1, 32)]);
    let all = scored(&["eval.sequences=0"]);
    assert_eq!(all[0], (0, 2 * 32));
    assert!(all[1].1 > 5 * 32, "{all:?}");
}

#[test]
fn auto_starts_beside_a_finished_run_and_refuses_another_recipe() {
    let dir = tempfile::tempdir().unwrap();
    let workspace = Workspace::under(dir.path());
    let short = ["train.steps=4", "schedule.warmup=1", "sample.every=0"];
    let first = run(&recipe(SPARSE, &short), &workspace, Resume::Auto, None);
    let second = run(&recipe(SPARSE, &short), &workspace, Resume::Auto, Some(2));
    assert!(first.ok().folder.ends_with("cut-tiny"));
    assert!(second.ok().folder.ends_with("cut-tiny-2"));
    let before = std::fs::read(second.ok().folder.join("metrics.jsonl")).unwrap();

    let other = recipe(SPARSE, &[&short[..], &["optimizer.learning_rate=1e-3"]].concat());
    let refused = run(&other, &workspace, Resume::Auto, None);
    let error = refused.outcome.unwrap_err();
    assert!(matches!(error, TrainError::Store(StoreError::WrongRun { .. })), "{error}");
    assert_eq!(error.exit(), Exit::Recipe);
    assert_eq!(std::fs::read(second.ok().folder.join("metrics.jsonl")).unwrap(), before);

    let third = run(&other, &workspace, Resume::Never, None);
    assert!(third.ok().folder.ends_with("cut-tiny-3"));
    let continued = run(&recipe(SPARSE, &short), &workspace, Resume::Auto, None);
    assert!(continued.ok().folder.ends_with("cut-tiny-2"));
    assert_eq!(continued.end(), first.end());
}

#[test]
fn a_damaged_checkpoint_is_skipped_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(GPT2, &["sample.every=0"]);
    let whole = run(&recipe, &Workspace::under(&dir.path().join("whole")), Resume::Auto, None);
    let cut = Workspace::under(&dir.path().join("cut"));
    let stopped = run(&recipe, &cut, Resume::Auto, Some(17));
    let folder = &stopped.ok().folder;
    let files = tensor_files(folder, 17);
    assert!(!files.is_empty());
    for file in files {
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, bytes).unwrap();
    }
    let ran = run(&recipe, &cut, Resume::Auto, None);
    assert!(matches!(ran.events[0], Event::Start { step: 16, resumed: true, .. }));
    let warnings = ran.warnings();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("checkpoint 17 is damaged"), "{}", warnings[0]);
    assert_eq!(ran.end(), whole.end());
    assert_eq!(numbers(folder), numbers(&whole.ok().folder));
}

/// The scale and the skipped steps, as the log has them.
fn scales(ran: &Ran) -> Vec<(f64, u64)> {
    let of = |e: &Event| match e {
        Event::Step { loss_scale, skipped, .. } => Some((loss_scale.unwrap(), skipped.unwrap())),
        _ => None,
    };
    ran.events.iter().filter_map(of).collect()
}

/// In f16 a scale of 2^30 overflows every gradient: steps are skipped, counted and told until it
/// has halved enough, and a run that is cut among them ends as one that is not.
#[test]
fn f16_finds_its_scale_and_continues_with_it() {
    for model in [SPARSE, GPT2] {
        let dir = tempfile::tempdir().unwrap();
        let keys = [
            "precision.compute=f16",
            "precision.loss_scale=1073741824.0",
            "precision.loss_scale_interval=6",
            "sample.every=0",
        ];
        let recipe = recipe(model, &keys);
        let whole = run(&recipe, &Workspace::under(&dir.path().join("whole")), Resume::Auto, None);
        let told = scales(&whole);
        assert_eq!((told.len() as u64, told[0].0), (STEPS, 2f64.powi(30)));
        for (a, b) in told.iter().zip(&told[1..]) {
            assert!([0.5, 1.0, 2.0].contains(&(b.0 / a.0)) && b.1 - a.1 <= 1, "{a:?} {b:?}");
        }
        let skipped = told.last().unwrap().1;
        assert!((5..35).contains(&skipped), "{told:?}");
        assert!(told.windows(2).any(|w| w[1].0 == 2.0 * w[0].0), "it doubles: {told:?}");
        let warned = whole.warnings().iter().filter(|w| w.contains("update was skipped")).count();
        assert_eq!(warned as u64, skipped);
        let losses: Vec<f64> = whole.steps().iter().map(|s| f64::from_bits(s.1[0])).collect();
        assert!(losses[STEPS as usize - 1] < losses[0] - 0.2, "{losses:?}");

        let cut = Workspace::under(&dir.path().join("cut"));
        let mut ran = run(&recipe, &cut, Resume::Auto, Some(3));
        let mut all = scales(&ran);
        for stop_after in [Some(22), None] {
            ran = run(&recipe, &cut, Resume::Auto, stop_after);
            all.extend(scales(&ran));
        }
        assert_eq!((all, ran.end()), (told, whole.end()));
        assert_eq!(numbers(&ran.ok().folder), numbers(&whole.ok().folder));
    }
}

/// A scale that cannot halve hides nothing: the run ends as one without a scale does.
#[test]
fn where_no_scale_helps_the_run_ends() {
    let dir = tempfile::tempdir().unwrap();
    let keys = ["precision.loss_scale=1.0", "optimizer.learning_rate=1e30", "optimizer.clip=0"];
    let ran = run(&recipe(SPARSE, &keys), &Workspace::under(dir.path()), Resume::Auto, None);
    let error = ran.outcome.unwrap_err();
    assert!(matches!(error, TrainError::NonFinite { .. }), "{error}");
}
