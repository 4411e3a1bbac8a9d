//! The feed: sequences of the data as the inputs of a section, for any position of the run.

use crate::error::TrainError;
use aerogel_data::{Sampler, Tokens};
use aerogel_graph::random;

/// Tokens, targets and weights of one micro-batch.
pub(crate) struct Feed<'a> {
    from: Origin<'a>,
    shifts_inside: bool,
    context: usize,
    sequence: Vec<u32>,
    tokens: Vec<u32>,
    targets: Vec<u32>,
    weights: Vec<f32>,
}

/// Where sequences come from.
enum Origin<'a> {
    Data {
        split: &'a Tokens,
        sampler: Sampler,
    },
    /// Tokens below this number, drawn by position: for measurements.
    Random {
        vocab: u32,
    },
}

/// The inputs of a section, as bytes by name.
pub(crate) type Inputs<'a> = [(&'static str, &'a [u8]); 3];

impl<'a> Feed<'a> {
    pub fn new(
        split: &'a Tokens,
        sampler: Sampler,
        sequences: usize,
        context: usize,
        shifts_inside: bool,
    ) -> Feed<'a> {
        let tokens = sampler.sequence_tokens();
        Feed::of(Origin::Data { split, sampler }, tokens, sequences, context, shifts_inside)
    }

    /// Sequences that are drawn and not read.
    pub fn random(vocab: u32, sequences: usize, context: usize, shifts_inside: bool) -> Feed<'a> {
        let tokens = context + usize::from(!shifts_inside);
        Feed::of(Origin::Random { vocab }, tokens, sequences, context, shifts_inside)
    }

    fn of(
        from: Origin<'a>,
        sequence_tokens: usize,
        sequences: usize,
        context: usize,
        shifts_inside: bool,
    ) -> Feed<'a> {
        let count = sequences * context;
        Feed {
            from,
            sequence: vec![0; sequence_tokens],
            shifts_inside,
            context,
            tokens: vec![0; count],
            targets: vec![0; count],
            weights: vec![1.0; count],
        }
    }

    /// Reads the sequences from `position` on; those from `end` on count for nothing.
    pub fn read(&mut self, position: u64, end: u64) -> Result<Inputs<'_>, TrainError> {
        let t = self.context;
        for row in 0..self.tokens.len() / t {
            let at = position + row as u64;
            let window = row * t..(row + 1) * t;
            let weights = &mut self.weights[window.clone()];
            if at >= end {
                weights.fill(0.0);
                continue;
            }
            weights.fill(1.0);
            match &self.from {
                Origin::Data { split, sampler } => {
                    sampler.read(split, at, &mut self.sequence)?;
                }
                Origin::Random { vocab } => {
                    for (i, token) in (0..).zip(&mut self.sequence) {
                        let draw = f64::from(random::uniform(0, 0, at, i));
                        *token = (draw * f64::from(*vocab)) as u32;
                    }
                }
            }
            let (tokens, targets) =
                (&mut self.tokens[window.clone()], &mut self.targets[window.clone()]);
            tokens.copy_from_slice(&self.sequence[..t]);
            if self.shifts_inside {
                targets.copy_from_slice(&self.sequence[..t]);
            } else if self.sequence.len() > t {
                targets.copy_from_slice(&self.sequence[1..=t]);
            } else {
                // An image: the last byte has no successor, so it is no target's input.
                targets[..t - 1].copy_from_slice(&self.sequence[1..]);
                self.weights[row * t + t - 1] = 0.0;
            }
        }
        Ok([
            ("tokens", bytemuck::cast_slice(&self.tokens)),
            ("targets", bytemuck::cast_slice(&self.targets)),
            ("weights", bytemuck::cast_slice(&self.weights)),
        ])
    }
}
