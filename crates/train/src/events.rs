//! Events: what a run tells, one JSON object a line. `metrics.jsonl` and `--json` are this stream.

use crate::error::TrainError;
use serde::Serialize;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs)] // the fields say their units in their names
pub enum Event {
    /// The program is loaded and the first step is next.
    Start {
        step: u64,
        run: String,
        resumed: bool,
        steps: u64,
        parameters: u64,
        tokens_per_step: u64,
        flops_per_step: u64,
        planned_bytes: u64,
        allocated_bytes: u64,
        library_bytes: u64,
        device: String,
        ranks: usize,
        threads: usize,
        run_hash: String,
        plan_hash: String,
    },
    /// An update was applied, or, with a loss scale, skipped, as `skipped` counts them. The loss is
    /// that of the weights before it.
    Step {
        step: u64,
        loss_bits: f64,
        learning_rate: f64,
        grad_norm: f64,
        tokens: u64,
        seconds: f64,
        tokens_per_second: f64,
        resident_bytes: u64,
        eta_seconds: f64,
        #[serde(skip_serializing_if = "Option::is_none")]
        loss_scale: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        skipped: Option<u64>,
    },
    /// Held-out data was scored.
    Eval {
        step: u64,
        split: String,
        bits: f64,
        unit: &'static str,
        bits_per_token: f64,
        perplexity: f64,
        tokens: u64,
        seconds: f64,
    },
    /// Samples were drawn.
    Sample { step: u64, file: Option<String>, text: Vec<String>, seconds: f64 },
    /// A checkpoint was committed.
    Checkpoint { step: u64, checkpoint_bytes: u64, seconds: f64 },
    /// Something that a user should know.
    Warning { step: u64, message: String },
    /// The run was asked to stop, and can be resumed.
    Stopped { step: u64 },
    /// The run failed; what was committed before is good.
    Failed { step: u64, message: String, exit_code: u8 },
    /// The run is complete.
    Done {
        step: u64,
        loss_bits: f64,
        eval_bits: Option<f64>,
        parameters_hash: String,
        seconds: f64,
        report: Option<String>,
    },
}

/// An event as it is written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line<'a> {
    /// Version of the stream.
    pub v: u32,
    /// The event.
    #[serde(flatten)]
    pub event: &'a Event,
}

impl Event {
    /// The line that stands for the event.
    pub fn line(&self) -> Line<'_> {
        Line { v: 1, event: self }
    }
}

/// Who is told.
pub trait Sink {
    /// Takes an event.
    ///
    /// # Errors
    /// It could not be shown or written.
    fn event(&mut self, event: &Event) -> Result<(), TrainError>;
}

/// The process's resident memory, where the system tells; else 0.
pub(crate) fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
