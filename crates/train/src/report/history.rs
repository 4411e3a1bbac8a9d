//! What the events say, read back from their lines.

use serde::{Deserialize, Deserializer};

/// The events of a run.
#[derive(Debug, Default)]
pub(super) struct History {
    /// The last start: a run that was continued has several.
    pub start: Option<Start>,
    /// How often the run was continued.
    pub resumed: u64,
    /// Updates, in order, each once.
    pub steps: Vec<Step>,
    /// Scores of held-out data, in order.
    pub evals: Vec<Eval>,
    /// Step and texts of samples, where they are texts.
    pub texts: Vec<(u64, Vec<String>)>,
    /// Step and message.
    pub warnings: Vec<(u64, String)>,
    /// Time of steps, evaluations, samples and checkpoints.
    pub busy_seconds: f64,
    /// Lines that are no events.
    pub unread_lines: usize,
}

/// See `Event::Start`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Start {
    pub resumed: bool,
    pub parameters: u64,
    pub tokens_per_step: u64,
    pub planned_bytes: u64,
    pub allocated_bytes: u64,
    pub library_bytes: u64,
    pub device: String,
    pub ranks: u64,
    pub threads: u64,
    pub run_hash: String,
    pub plan_hash: String,
}

/// See `Event::Step`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Step {
    pub step: u64,
    #[serde(deserialize_with = "float")]
    pub loss_bits: f64,
    #[serde(deserialize_with = "float")]
    pub learning_rate: f64,
    #[serde(deserialize_with = "float")]
    pub grad_norm: f64,
    pub tokens: u64,
    #[serde(deserialize_with = "float")]
    pub seconds: f64,
    #[serde(deserialize_with = "float")]
    pub tokens_per_second: f64,
    pub resident_bytes: u64,
    /// Steps so far that a loss scale made skip.
    pub skipped: u64,
}

/// See `Event::Eval`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Eval {
    pub step: u64,
    pub split: String,
    #[serde(deserialize_with = "float")]
    pub bits: f64,
    pub unit: String,
    #[serde(deserialize_with = "float")]
    pub bits_per_token: f64,
    #[serde(deserialize_with = "float")]
    pub perplexity: f64,
    pub tokens: u64,
    #[serde(deserialize_with = "float")]
    pub seconds: f64,
}

/// A number. JSON has none that are not finite: they were written as null.
fn float<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::NAN))
}

/// A line of the stream, as far as the page shows it.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Told {
    Start(Start),
    Step(Step),
    Eval(Eval),
    Sample {
        step: u64,
        #[serde(default)]
        text: Vec<String>,
        #[serde(default, deserialize_with = "float")]
        seconds: f64,
    },
    Checkpoint {
        #[serde(default, deserialize_with = "float")]
        seconds: f64,
    },
    Warning {
        step: u64,
        message: String,
    },
    #[serde(other)]
    Other,
}

impl History {
    /// Reads the lines of a stream. What is no event is counted and passed over.
    pub fn read(metrics: &str) -> History {
        let mut history = History::default();
        for line in metrics.lines().filter(|l| !l.trim().is_empty()) {
            match serde_json::from_str(line) {
                Ok(told) => history.add(told),
                Err(_) => history.unread_lines += 1,
            }
        }
        // A step that was done again after a crash counts as it was done last.
        history.steps.reverse();
        history.steps.sort_by_key(|s| s.step);
        history.steps.dedup_by_key(|s| s.step);
        history.evals.reverse();
        history.evals.sort_by(|a, b| (a.step, &a.split).cmp(&(b.step, &b.split)));
        history.evals.dedup_by(|a, b| (a.step, &a.split) == (b.step, &b.split));
        history
    }

    fn add(&mut self, told: Told) {
        let mut took = 0.0;
        match told {
            Told::Start(start) => {
                self.resumed += u64::from(start.resumed);
                self.start = Some(start);
            }
            Told::Step(step) => {
                took = step.seconds;
                self.steps.push(step);
            }
            Told::Eval(eval) => {
                took = eval.seconds;
                self.evals.push(eval);
            }
            Told::Sample { step, text, seconds } => {
                took = seconds;
                if !text.is_empty() {
                    self.texts.push((step, text));
                }
            }
            Told::Checkpoint { seconds } => took = seconds,
            Told::Warning { step, message } => self.warnings.push((step, message)),
            Told::Other => {}
        }
        if took.is_finite() {
            self.busy_seconds += took;
        }
    }

    /// What the loss of a token is counted for: a token of an image is a dimension.
    pub fn token_unit(&self) -> &'static str {
        match self.evals.last() {
            Some(e) if e.unit == "dimension" => "dimension",
            _ => "token",
        }
    }
}
