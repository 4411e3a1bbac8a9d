//! Evaluation: the mean loss over held-out sequences, in order.

use crate::error::TrainError;
use crate::feed::{Feed, Inputs};
use crate::pipe::Pipe;
use crate::session::Session;
use crate::step::{give, scalar};
use aerogel_data::{Dataset, Sampler, Tokens};
use aerogel_graph::Clock;
use aerogel_machine::{Device, Program};
use aerogel_models::shifts_inside;
use aerogel_passes::pipeline::Schedule;
use std::time::Instant;

/// What held-out data costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Which split.
    pub split: String,
    /// Bits a token.
    pub bits_per_token: f64,
    /// Bits a byte of text, or a dimension (byte) of an image, or a token where bytes are unknown.
    pub bits: f64,
    /// What `bits` is counted for: `byte`, `dimension` or `token`.
    pub unit: &'static str,
    /// e to the loss a token.
    pub perplexity: f64,
    /// Tokens scored.
    pub tokens: u64,
    /// Wall time.
    pub seconds: f64,
}

/// Scores the first `sequences` of a split (0: all of them).
///
/// # Errors
/// The split is not there or too short, or the device failed.
pub fn evaluate(
    session: &mut Session,
    data: &Dataset,
    split: &str,
    sequences: u64,
) -> Result<Evaluation, TrainError> {
    let started = Instant::now();
    let tokens = data.split(split)?;
    let sampler = Sampler::in_order(tokens, session.plan.model.context)?;
    let available = sampler.sequences();
    let end = if sequences == 0 { available } else { sequences.min(available) };
    let mut scored = score(session, tokens, end)?;
    // In the order of the data, whoever scored what: the sum does not depend on the ranks.
    scored.sort_by_key(|s| s.position);
    let loss: f64 = scored.iter().map(|s| s.loss).sum();
    let count: f64 = scored.iter().map(|s| s.tokens).sum();
    let nats = loss / count;
    let bits_per_token = nats / std::f64::consts::LN_2;
    let index = data.index();
    let held = index.splits.get(split);
    let bytes = held.and_then(|s| s.bytes.map(|b| (b, s.tokens)));
    let (unit, bits) = match (index.image, bytes) {
        (Some(_), _) => ("dimension", bits_per_token),
        (None, Some((bytes, tokens))) if bytes > 0 => {
            ("byte", bits_per_token * tokens as f64 / bytes as f64)
        }
        _ => ("token", bits_per_token),
    };
    Ok(Evaluation {
        split: split.to_owned(),
        bits_per_token,
        bits,
        unit,
        perplexity: nats.exp(),
        tokens: count as u64,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// One batch, scored.
struct Scored {
    position: u64,
    loss: f64,
    tokens: f64,
}

/// Scores sequences up to `end`: the ranks that share a batch take turns.
fn score(session: &mut Session, tokens: &Tokens, end: u64) -> Result<Vec<Scored>, TrainError> {
    let plan = &session.plan;
    let batch = plan.eval_batch as u64;
    let shifts = shifts_inside(plan.model.family);
    let context = plan.model.context;
    let mut feeds = (0..session.ranks.len())
        .map(|rank| {
            let sampler = Sampler::in_order(tokens, context)?;
            let feed = Feed::new(tokens, sampler, batch as usize, context, shifts);
            Ok((feed, Pipe::new(plan, rank)))
        })
        .collect::<Result<Vec<_>, TrainError>>()?;
    let scored = session.each_with(&mut feeds, |plan, rank, device, (feed, pipe)| {
        let shards = &plan.layout.shards;
        let turns = shards.pieces(&shards.batch) as u64;
        let stages = plan.schedule.as_ref().map_or(1, Schedule::stages);
        let has_loss = plan.layout.stage(rank) + 1 == stages;
        let turn = plan.mesh.member(plan.mesh.place(rank), &shards.batch) as u64;
        // Everybody runs as often, since ranks may need each other's weights.
        let rounds = end.div_ceil(batch * turns);
        let mut mine = vec![];
        for round in 0..rounds {
            let position = (round * turns + turn) * batch;
            let inputs = feed.read(position, end)?;
            let section = forward(plan.program(rank), pipe, device, &inputs)?;
            if has_loss {
                let [loss, tokens] = [
                    f64::from(scalar(device, section, "loss")?),
                    f64::from(scalar(device, section, "tokens")?),
                ];
                mine.push(Scored { position, loss, tokens });
            }
        }
        Ok(mine)
    })?;
    // Ranks that work on the same batch have the same numbers: one of them counts.
    let counts = |rank: &usize| {
        let place = session.plan.mesh.place(*rank);
        session.plan.layout.tensor.is_none_or(|t| place.0[t.axis as usize] == 0)
    };
    let ranks = scored.into_iter().enumerate().filter(|(rank, _)| counts(rank));
    Ok(ranks.flat_map(|(_, mine)| mine).filter(|s| s.position < end).collect())
}

/// Runs one batch forward; gives the section that ran last.
fn forward(
    program: &Program,
    pipe: &mut Option<Pipe>,
    device: &mut dyn Device,
    inputs: &Inputs<'_>,
) -> Result<usize, TrainError> {
    let write = |device: &mut dyn Device, section| give(program, device, section, inputs);
    if let Some(pipe) = pipe {
        return pipe.score(device, &mut |device, section, _| write(device, section));
    }
    let section = program.section("eval").expect("the plan has all sections");
    write(device, section)?;
    device.run(section, Clock::default(), 0)?;
    Ok(section)
}
