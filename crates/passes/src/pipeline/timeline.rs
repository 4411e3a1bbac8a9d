//! When each action of a schedule starts and ends, and how long ranks have nothing to do.

use super::check::check;
use super::error::PipelineError;
use super::schedule::{Action, Pass, Schedule};

/// How long actions take, in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Seconds {
    /// One forward, by virtual stage.
    pub forward: Vec<f64>,
    /// One backward, by virtual stage; where the schedule splits off the weights, without them.
    pub backward: Vec<f64>,
    /// One action of the weights, by virtual stage; read only where a stage has them, and may be
    /// empty if none has.
    pub weights: Vec<f64>,
    /// From the end of an action until another rank has what it sent. A rank sends while it
    /// computes; what it hands to itself takes no time.
    pub message: f64,
}

impl Seconds {
    /// All `stages` virtual stages alike, messages in no time. `backward` is the whole backward.
    pub fn uniform(stages: usize, forward: f64, backward: f64) -> Self {
        let all = |seconds| vec![seconds; stages];
        Self { forward: all(forward), backward: all(backward), weights: Vec::new(), message: 0.0 }
    }

    fn of(&self, pass: Pass, stage: usize) -> f64 {
        match pass {
            Pass::Forward => self.forward[stage],
            Pass::Backward => self.backward[stage],
            Pass::Weights => self.weights[stage],
        }
    }
}

/// An action in time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// The action.
    pub action: Action,
    /// Its virtual stage.
    pub stage: usize,
    /// When it starts, after the start of the step.
    pub start_seconds: f64,
    /// When it ends.
    pub end_seconds: f64,
}

/// A schedule in time.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeline {
    /// For each rank its actions, in the order of its list and of time.
    pub ranks: Vec<Vec<Span>>,
    /// The end of the last action.
    pub total_seconds: f64,
    /// For each rank how much of the total it has nothing to do.
    pub idle_seconds: Vec<f64>,
    /// The bubble: what all ranks idle as a share of their time, 0 to 1.
    ///
    /// If all stages take the same time and messages none, then with p stages, m micro-batches and
    /// v chunks it is (p - 1) / (m + p - 1) for GPipe and 1F1B and (p - 1) / (v m + p - 1) for the
    /// interleaved schedule. The papers on the latter two give the idle time as a share of the
    /// rest instead, (p - 1) / (v m).
    pub bubble: f64,
}

/// Simulates a schedule: each rank starts an action when it has ended the one before and has
/// received what it needs.
///
/// # Errors
/// The schedule cannot be run, `seconds` does not have one entry for each virtual stage, or an
/// entry is negative or not finite.
pub fn timeline(schedule: &Schedule, seconds: &Seconds) -> Result<Timeline, PipelineError> {
    let order = check(schedule)?;
    check_seconds(schedule, seconds)?;
    let stages = schedule.stages();
    let place = |stage: usize, action: Action| {
        (stage * schedule.micros + action.micro) * 3 + action.pass as usize
    };
    let mut ends = vec![0.0_f64; schedule.virtual_stages() * schedule.micros * 3];
    let mut ranks: Vec<Vec<Span>> = vec![Vec::new(); stages];
    for (rank, action) in order {
        let stage = schedule.stage(rank, action.chunk);
        let free = ranks[rank].last().map_or(0.0, |span| span.end_seconds);
        let received = schedule.source(rank, action).map_or(0.0, |(sender, sent)| {
            let message = if sender == rank { 0.0 } else { seconds.message };
            ends[place(schedule.stage(sender, sent.chunk), sent)] + message
        });
        let start_seconds = free.max(received);
        let end_seconds = start_seconds + seconds.of(action.pass, stage);
        ends[place(stage, action)] = end_seconds;
        ranks[rank].push(Span { action, stage, start_seconds, end_seconds });
    }
    let total_seconds = ends.iter().copied().fold(0.0, f64::max);
    let idle = |spans: &Vec<Span>| {
        let busy: f64 = spans.iter().map(|span| seconds.of(span.action.pass, span.stage)).sum();
        (total_seconds - busy).max(0.0)
    };
    let idle_seconds: Vec<f64> = ranks.iter().map(idle).collect();
    let all = total_seconds * stages as f64;
    let bubble = if all > 0.0 { idle_seconds.iter().sum::<f64>() / all } else { 0.0 };
    Ok(Timeline { ranks, total_seconds, idle_seconds, bubble })
}

fn check_seconds(schedule: &Schedule, seconds: &Seconds) -> Result<(), PipelineError> {
    let wanted = schedule.virtual_stages();
    let splits = schedule.actions.iter().flatten().any(|action| action.pass == Pass::Weights);
    for (what, list, read) in [
        ("seconds of the forward", &seconds.forward, true),
        ("seconds of the backward", &seconds.backward, true),
        ("seconds of the weights", &seconds.weights, splits),
    ] {
        if list.len() != wanted && (read || !list.is_empty()) {
            return Err(PipelineError::Length { what, wanted, got: list.len() });
        }
    }
    let lists = [("F", &seconds.forward), ("B", &seconds.backward), ("W", &seconds.weights)];
    let named = lists.into_iter().flat_map(|(pass, list)| {
        list.iter().enumerate().map(move |(i, s)| (format!("{pass} of virtual stage {i}"), *s))
    });
    let message = std::iter::once(("a message".to_owned(), seconds.message));
    match named.chain(message).find(|(_, s)| !s.is_finite() || *s < 0.0) {
        Some((what, got)) => Err(PipelineError::NotADuration { what, got }),
        None => Ok(()),
    }
}
