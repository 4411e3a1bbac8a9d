//! Sampling: one position at a time, with the keys and values of earlier positions in caches.

use crate::error::TrainError;
use crate::plan::RunPlan;
use crate::session::Session;
use aerogel_graph::{Clock, Role, random};
use aerogel_machine::{Device, Program};
use aerogel_models::shifts_inside;
use std::time::Instant;

/// What to draw.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Tokens that samples begin with, one list a sample, all of one length.
    pub prefixes: Vec<Vec<u32>>,
    /// Tokens of a sample, the prefix included.
    pub tokens: usize,
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f64,
    /// Draw out of the likeliest so many tokens; 0 draws out of all.
    pub top_k: usize,
    /// Seed of the draws.
    pub seed: u64,
}

/// What was drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    /// Tokens, prefixes included.
    pub tokens: Vec<Vec<u32>>,
    /// Wall time.
    pub seconds: f64,
}

/// Draws as many samples as there are prefixes; the plan says how many go in one batch.
///
/// # Errors
/// Prefixes of different lengths or longer than the samples, samples longer than the context, or
/// the device failed.
pub fn sample(session: &mut Session, ask: &Sampling) -> Result<Samples, TrainError> {
    check(session, ask)?;
    let started = Instant::now();
    let batch = session.plan.samples;
    let mut nothing = vec![(); session.ranks.len()];
    // All ranks draw the same: each may hold weights that the others need.
    let drawn = session.each_with(&mut nothing, |plan, rank, device, ()| {
        let mut decoder = Decoder { plan, program: plan.program(rank), device };
        let mut tokens = vec![];
        for (n, prefixes) in ask.prefixes.chunks(batch).enumerate() {
            tokens.extend(decoder.draw_batch(ask, prefixes, n * batch)?);
        }
        Ok(tokens)
    })?;
    let tokens = drawn.into_iter().next().unwrap_or_default();
    Ok(Samples { tokens, seconds: started.elapsed().as_secs_f64() })
}

fn check(session: &Session, ask: &Sampling) -> Result<(), TrainError> {
    let refuse = |what: String, advice: &str| {
        Err(TrainError::Contradiction { what, advice: advice.to_owned() })
    };
    let context = session.plan.model.context;
    if ask.tokens > context {
        let what =
            format!("a sample of {} tokens is longer than the context {context}", ask.tokens);
        return refuse(what, "ask for fewer tokens");
    }
    let length = ask.prefixes.first().map_or(0, Vec::len);
    if ask.prefixes.iter().any(|p| p.len() != length) {
        return refuse("prefixes differ in length".to_owned(), "give prefixes of one length");
    }
    if length > ask.tokens {
        let what = format!("the prompt has {length} tokens, a sample {}", ask.tokens);
        return refuse(what, "shorten the prompt, or ask for more tokens");
    }
    let vocab = session.plan.model.vocab as u32;
    if ask.prefixes.iter().flatten().any(|t| *t >= vocab) {
        return refuse("the prompt has tokens outside of the vocabulary".to_owned(), "change it");
    }
    Ok(())
}

/// One rank's decoding.
struct Decoder<'a> {
    plan: &'a RunPlan,
    program: &'a Program,
    device: &'a mut dyn Device,
}

impl Decoder<'_> {
    fn draw_batch(
        &mut self,
        ask: &Sampling,
        prefixes: &[Vec<u32>],
        first: usize,
    ) -> Result<Vec<Vec<u32>>, TrainError> {
        let section =
            self.program.section("decode").expect("the plan of ranks that can decode has it");
        let (batch, vocab) = (self.plan.samples, self.plan.model.vocab);
        let shifts = shifts_inside(self.plan.model.family);
        self.clear_caches()?;
        let prefix = |row: usize| prefixes.get(row).map_or(&[][..], Vec::as_slice);
        let mut rows: Vec<Vec<u32>> = vec![Vec::with_capacity(ask.tokens); batch];
        if !shifts {
            // The model predicts the next token of something: without a prompt, of token 0.
            rows.iter_mut().enumerate().for_each(|(r, row)| {
                row.push(prefix(r).first().copied().unwrap_or(0));
            });
        }
        let mut logits = vec![0f32; batch * vocab];
        let mut order: Vec<u32> = Vec::with_capacity(vocab);
        let lag = usize::from(!shifts);
        for position in 0..ask.tokens.saturating_sub(lag) {
            // Inside, the model shifts by one: it reads the token before the one that it predicts.
            let last = |row: &Vec<u32>| row.last().copied().unwrap_or(0);
            let input: Vec<u32> = rows.iter().map(last).collect();
            self.set_position(section, position)?;
            self.device.write_input(section, "tokens", bytemuck::cast_slice(&input))?;
            self.device.run(section, Clock::default(), 0)?;
            self.device.read_output(section, "logits", bytemuck::cast_slice_mut(&mut logits))?;
            for (r, row) in rows.iter_mut().enumerate() {
                let next = match prefix(r).get(position + lag) {
                    Some(&given) => given,
                    None => {
                        let element = (first + r) as u64;
                        let stream = random::stream_id("sample");
                        let u = random::uniform(ask.seed, position as u64, stream, element);
                        draw(&logits[r * vocab..(r + 1) * vocab], ask, f64::from(u), &mut order)
                    }
                };
                row.push(next);
            }
        }
        rows.truncate(prefixes.len());
        Ok(rows)
    }

    fn clear_caches(&mut self) -> Result<(), TrainError> {
        let zeros = vec![0u8; 1 << 20];
        for state in self.program.states.iter().filter(|s| s.role == Role::Cache) {
            for start in (0..state.bytes).step_by(zeros.len()) {
                let bytes = &zeros[..(state.bytes - start).min(zeros.len() as u64) as usize];
                self.device.write_state(&state.name, start, bytes)?;
            }
        }
        Ok(())
    }

    fn set_position(&mut self, section: usize, position: usize) -> Result<(), TrainError> {
        self.device.write_input(section, "position", &(position as u32).to_le_bytes())?;
        for input in &self.plan.positions {
            let index = (position / input.stride % input.size) as u32;
            self.device.write_input(section, &input.name, &index.to_le_bytes())?;
        }
        Ok(())
    }
}

/// A token by the inverse of the cumulated probabilities, likeliest first.
fn draw(logits: &[f32], ask: &Sampling, u: f64, order: &mut Vec<u32>) -> u32 {
    order.clear();
    order.extend(0..logits.len() as u32);
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    if ask.temperature == 0.0 {
        return order[0];
    }
    if ask.top_k > 0 {
        order.truncate(ask.top_k);
    }
    let top = f64::from(logits[order[0] as usize]);
    let weight = |t: u32| ((f64::from(logits[t as usize]) - top) / ask.temperature).exp();
    let total: f64 = order.iter().map(|&t| weight(t)).sum();
    let mut left = u * total;
    for &t in order.iter() {
        left -= weight(t);
        if left < 0.0 {
            return t;
        }
    }
    order[order.len() - 1]
}
