//! One training step: the micro-batches, then the update.

use crate::error::TrainError;
use crate::feed::Feed;
use crate::session::Session;
use aerogel_graph::Clock;
use aerogel_machine::Device;
use aerogel_passes::section_of;

/// What an update reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Updated {
    /// Mean loss of a token, nats.
    pub loss: f32,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f32,
    /// Whether the update was applied.
    pub finite: bool,
}

/// The sections of a step, looked up once.
pub(crate) struct Stepper {
    micros: Vec<usize>,
    update: usize,
    micro_batch: u64,
    seed: u64,
}

impl Stepper {
    pub fn new(session: &Session, micro_batch: usize, seed: u64) -> Stepper {
        let count = session.plan.micro_batches;
        let micros = (0..count).map(|j| session.section(&section_of(j, count))).collect();
        Stepper { micros, update: session.section("update"), micro_batch: micro_batch as u64, seed }
    }

    /// Runs the step with number `index`, counted from 0.
    pub fn step(
        &self,
        session: &mut Session,
        feed: &mut Feed<'_>,
        index: u64,
        rate: f64,
    ) -> Result<Updated, TrainError> {
        let clock = |micro: u64| Clock { seed: self.seed, step: index, micro, ..Clock::default() };
        let first = index * self.micro_batch * self.micros.len() as u64;
        for (micro, &section) in (0u64..).zip(&self.micros) {
            let inputs = feed.read(first + micro * self.micro_batch, u64::MAX)?;
            for (name, bytes) in inputs {
                session.device.write_input(section, name, bytes)?;
            }
            session.device.run(section, clock(micro), 0)?;
        }
        let rate = (rate as f32).to_le_bytes();
        session.device.write_input(self.update, "rate", &rate)?;
        session.device.run(self.update, clock(0), 0)?;
        Ok(Updated {
            loss: session.scalar(self.update, "loss")?,
            grad_norm: session.scalar(self.update, "grad_norm")?,
            finite: session.scalar(self.update, "finite")? != 0.0,
        })
    }
}
