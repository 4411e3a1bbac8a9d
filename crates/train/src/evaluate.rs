//! Evaluation: the mean loss over held-out sequences, in order.

use crate::error::TrainError;
use crate::feed::Feed;
use crate::session::Session;
use aerogel_data::{Dataset, Sampler};
use aerogel_graph::Clock;
use aerogel_machine::Device;
use aerogel_models::shifts_inside;
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
    let model = &session.plan.model;
    let sampler = Sampler::in_order(tokens, model.context)?;
    let section = session.section("eval");
    let input = session.plan.program.sections[section].input("tokens");
    let batch = input.map_or(1, |v| {
        let s = &session.plan.program.sections[section];
        let ty = &s.graph.value(v).ty;
        s.axes().size(ty.axes[0])
    });
    let shifts = shifts_inside(model.family);
    let mut feed = Feed::new(tokens, sampler, batch, model.context, shifts);
    let end = match sequences {
        0 => feed.sequences(),
        n => n.min(feed.sequences()),
    };
    let (mut loss, mut count) = (0.0, 0.0);
    for position in (0..end).step_by(batch) {
        for (name, bytes) in feed.read(position, end)? {
            session.device.write_input(section, name, bytes)?;
        }
        session.device.run(section, Clock::default(), 0)?;
        loss += f64::from(session.scalar(section, "loss")?);
        count += f64::from(session.scalar(section, "tokens")?);
    }
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
