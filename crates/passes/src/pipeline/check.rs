//! Whether a schedule can be run, whoever wrote it.
//!
//! Nothing here knows how the published schedules are made: the rules are those of the chain of
//! stages alone.

use super::error::{Defect, PipelineError};
use super::schedule::{Action, Pass, Schedule};

/// Checks a schedule and returns its actions, with their ranks, in an order in which one worker
/// could run them all.
///
/// A schedule can be run if
/// - each rank's list has forward and backward of each of its chunks and every micro-batch exactly
///   once, and for each chunk the weights of all micro-batches once or of none;
/// - each stage takes the micro-batches in ascending order in each pass, a micro-batch's backward
///   after its forward and its weights after its backward;
/// - no two micro-batches in flight share a slot, as [`Schedule::slots`] deals them out;
/// - ranks that run their lists from the top, wait for what they receive and buffer what they send
///   come to the end. As waiting is all that can stop them, this does not depend on time: if one
///   order comes to the end, then all do.
///
/// # Errors
/// [`PipelineError::Invalid`] names rank, action and [`Defect`]; [`PipelineError::Zero`] and
/// [`PipelineError::Length`] say that the schedule has not the shape of one.
pub fn check(schedule: &Schedule) -> Result<Vec<(usize, Action)>, PipelineError> {
    check_shape(schedule)?;
    for (rank, list) in schedule.actions.iter().enumerate() {
        let invalid = |(action, defect)| PipelineError::Invalid { rank, action, defect };
        check_counts(schedule, list).map_err(invalid)?;
        check_order(list, &schedule.slots[rank]).map_err(invalid)?;
    }
    run(schedule)
}

fn check_shape(schedule: &Schedule) -> Result<(), PipelineError> {
    let counts = [
        ("stages", schedule.stages()),
        ("chunks", schedule.chunks),
        ("micro-batches", schedule.micros),
    ];
    if let Some((what, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
        return Err(PipelineError::Zero { what });
    }
    let ranks = ("slots by rank", schedule.stages(), schedule.slots.len());
    let chunks = schedule.slots.iter().map(|of| ("slots by chunk", schedule.chunks, of.len()));
    for (what, wanted, got) in std::iter::once(ranks).chain(chunks) {
        if wanted != got {
            return Err(PipelineError::Length { what, wanted, got });
        }
    }
    Ok(())
}

/// Everything is there, once.
fn check_counts(schedule: &Schedule, list: &[Action]) -> Result<(), (Action, Defect)> {
    let (chunks, micros) = (schedule.chunks, schedule.micros);
    let mut counts = vec![[0_usize; 3]; chunks * micros];
    for action in list {
        if action.chunk >= chunks || action.micro >= micros {
            return Err((*action, Defect::Unknown { chunks, micros }));
        }
        counts[action.chunk * micros + action.micro][action.pass as usize] += 1;
    }
    for chunk in 0..chunks {
        let of_chunk = &counts[chunk * micros..][..micros];
        let splits = of_chunk.iter().any(|count| count[Pass::Weights as usize] > 0);
        for (micro, count) in of_chunk.iter().enumerate() {
            for pass in [Pass::Forward, Pass::Backward, Pass::Weights] {
                let action = Action { pass, chunk, micro };
                match count[pass as usize] {
                    0 if pass != Pass::Weights || splits => return Err((action, Defect::Missing)),
                    0 | 1 => {}
                    count => return Err((action, Defect::Repeated { count })),
                }
            }
        }
    }
    Ok(())
}

/// What a stage has done so far.
#[derive(Default)]
struct Progress {
    /// Micro-batches done, by pass.
    done: [usize; 3],
    /// The micro-batch in each slot.
    holders: Vec<Option<usize>>,
    splits: bool,
}

/// Each stage by itself does things in a possible order, and has room for them.
fn check_order(list: &[Action], slots: &[usize]) -> Result<(), (Action, Defect)> {
    let mut stages: Vec<Progress> =
        slots.iter().map(|n| Progress { holders: vec![None; *n], ..Progress::default() }).collect();
    for action in list.iter().filter(|action| action.pass == Pass::Weights) {
        stages[action.chunk].splits = true;
    }
    for action in list {
        let Action { pass, chunk, micro } = *action;
        let stage = &mut stages[chunk];
        let wanted = stage.done[pass as usize];
        if micro != wanted {
            return Err((*action, Defect::OutOfOrder { wanted }));
        }
        let before = match pass {
            Pass::Forward => None,
            Pass::Backward => Some(Pass::Forward),
            Pass::Weights => Some(Pass::Backward),
        };
        if let Some(before) = before.filter(|before| stage.done[*before as usize] <= micro) {
            let first = Action { pass: before, ..*action };
            return Err((*action, Defect::Before { first }));
        }
        stage.done[pass as usize] += 1;
        let slots = stage.holders.len();
        let last = if stage.splits { Pass::Weights } else { Pass::Backward };
        if pass == Pass::Forward {
            // With no slot at all, nobody else is to blame.
            let holder = if slots == 0 { Some(micro) } else { stage.holders[micro % slots] };
            if let Some(holder) = holder {
                return Err((*action, Defect::SlotInUse { slots, holder }));
            }
            stage.holders[micro % slots] = Some(micro);
        } else if pass == last {
            stage.holders[micro % slots] = None;
        }
    }
    Ok(())
}

/// Runs the lists, one action of each rank in turn, as far as they go.
fn run(schedule: &Schedule) -> Result<Vec<(usize, Action)>, PipelineError> {
    let stages = schedule.stages();
    // As micro-batches are taken in ascending order, a count tells what is done.
    let mut done = vec![[0_usize; 3]; schedule.virtual_stages()];
    let mut next = vec![0_usize; stages];
    let mut order = Vec::with_capacity(schedule.actions.iter().map(Vec::len).sum());
    loop {
        let before = order.len();
        for rank in 0..stages {
            let Some(action) = schedule.actions[rank].get(next[rank]) else { continue };
            let waits = schedule.source(rank, *action).is_some_and(|(sender, awaited)| {
                let from = schedule.stage(sender, awaited.chunk);
                done[from][awaited.pass as usize] <= awaited.micro
            });
            if !waits {
                done[schedule.stage(rank, action.chunk)][action.pass as usize] += 1;
                next[rank] += 1;
                order.push((rank, *action));
            }
        }
        if order.len() == before {
            break;
        }
    }
    // Every list has all actions, so an awaited one that is not done lies at or behind the one at
    // which its rank stopped.
    let stopped = |rank: usize| schedule.actions[rank].get(next[rank]).copied();
    for rank in 0..stages {
        if let Some(action) = stopped(rank)
            && let Some((sender, awaited)) = schedule.source(rank, action)
            && let Some(blocked) = stopped(sender)
        {
            let defect = Defect::Deadlock { awaited, sender, blocked };
            return Err(PipelineError::Invalid { rank, action, defect });
        }
    }
    Ok(order)
}
