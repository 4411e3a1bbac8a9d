//! Runs of small models with whatever keys a test sets.
#![allow(dead_code, reason = "each binary uses its part")]

use aerogel_data::NoProgress;
use aerogel_recipe::Recipe;
use aerogel_store::Resume;
use aerogel_train::{Event, Options, Sink, Ties, TrainError, Workspace, train};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The events of a run.
#[derive(Default)]
pub struct Log(pub Vec<Event>);

impl Sink for Log {
    fn event(&mut self, event: &Event) -> Result<(), TrainError> {
        self.0.push(event.clone());
        Ok(())
    }
}

/// A Sparse Transformer whose layers are strided and local by turns, with dropout.
pub const SPARSE: &str = r#"
[model]
family = "sparse_transformer"
layers = 8
heads = 4
embed = 32
mlp_ratio = 2
context = 16
attention = "strided"
stride = 4
dropout = 0.1
init = "code"
"#;

/// GPT-2: an output layer that is tied to the embedding.
pub const GPT2: &str = r#"
[model]
family = "gpt2"
layers = 8
heads = 4
embed = 32
mlp_ratio = 2
context = 16
dropout = 0.1
"#;

/// What all cases share: four micro-batches a step, each of two sequences.
const COMMON: &str = r#"
[data]
kind = "text"
paths = ["text.txt"]
validation = 0.2
[optimizer]
learning_rate = 0.01
[schedule]
warmup = 1
[train]
steps = 10
batch = 8
micro_batch = 2
[eval]
every = 5
sequences = 4
[sample]
count = 0
[checkpoint]
every = 0
[parallel]
threads = 2
"#;

/// What a run showed.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Bits a token of every step.
    pub losses: Vec<f64>,
    /// Gradient norm of every step.
    pub norms: Vec<f64>,
    /// Bits of every evaluation.
    pub evals: Vec<f64>,
    /// BLAKE3 of the parameters at the end.
    pub hash: String,
    /// Bytes as planned and as allocated, of all ranks.
    pub bytes: (u64, u64),
}

/// A folder with a text, where runs lie.
pub struct Place {
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let words = ["sparse ", "dense ", "gel ", "air ", "light ", "block ", "stride\n"];
        let text: String =
            (0..4000usize).map(|i| words[(i * i + i / 7 + i / 31) % words.len()]).collect();
        std::fs::write(dir.path().join("text.txt"), text).unwrap();
        Place { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn workspace(&self, runs: &str) -> Workspace {
        let path = self.path();
        Workspace { runs: path.join(runs), data: path.join("data") }
    }

    pub fn recipe(&self, model: &str, keys: &[&str]) -> Result<Recipe, String> {
        let text = format!("{model}{COMMON}");
        let keys: Vec<String> = keys.iter().map(|k| (*k).to_owned()).collect();
        Recipe::parse(&text, "case.toml", self.path(), &keys, false).map_err(|e| e.to_string())
    }

    /// Runs a recipe in a folder of its own.
    pub fn run(
        &self,
        runs: &str,
        recipe: &Recipe,
        ties: Option<Ties>,
    ) -> Result<Outcome, TrainError> {
        self.resume(runs, recipe, Resume::Auto, ties)
    }

    pub fn resume(
        &self,
        runs: &str,
        recipe: &Recipe,
        resume: Resume,
        ties: Option<Ties>,
    ) -> Result<Outcome, TrainError> {
        let stop = Arc::new(AtomicBool::new(false));
        let options = Options { workspace: self.workspace(runs), resume, stop, ties };
        let mut log = Log::default();
        train(recipe, &options, &mut NoProgress, &mut log)?;
        Ok(outcome(&log.0))
    }
}

fn outcome(events: &[Event]) -> Outcome {
    let mut o = Outcome {
        losses: vec![],
        norms: vec![],
        evals: vec![],
        hash: String::new(),
        bytes: (0, 0),
    };
    for e in events {
        match e {
            Event::Start { planned_bytes, allocated_bytes, .. } => {
                o.bytes = (*planned_bytes, *allocated_bytes);
            }
            Event::Step { loss_bits, grad_norm, .. } => {
                o.losses.push(*loss_bits);
                o.norms.push(*grad_norm);
            }
            Event::Eval { bits, .. } => o.evals.push(*bits),
            Event::Done { parameters_hash, .. } => o.hash = parameters_hash.clone(),
            _ => {}
        }
    }
    o
}
