//! The feed: sequences of the data as the inputs of a section, for any position of the run.

use crate::error::TrainError;
use aerogel_data::{Sampler, Tokens};

/// Tokens, targets and weights of one micro-batch.
pub(crate) struct Feed<'a> {
    split: &'a Tokens,
    sampler: Sampler,
    shifts_inside: bool,
    context: usize,
    sequence: Vec<u32>,
    tokens: Vec<u32>,
    targets: Vec<u32>,
    weights: Vec<f32>,
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
        let count = sequences * context;
        Feed {
            sequence: vec![0; sampler.sequence_tokens()],
            split,
            sampler,
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
            self.sampler.read(self.split, at, &mut self.sequence)?;
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
