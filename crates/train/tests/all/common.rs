//! What the tests of whole runs share.

use aerogel_graph::Graph;
use aerogel_passes::{Compute, UpdateConfig};
use aerogel_plan::Ask;
use aerogel_train::{Event, Sink, TrainError};

/// Keeps all events.
#[derive(Default)]
pub struct Log(pub Vec<Event>);

impl Sink for Log {
    fn event(&mut self, event: &Event) -> Result<(), TrainError> {
        self.0.push(event.clone());
        Ok(())
    }
}

/// The sections of a step on one rank, as a run makes them: micro-batches, the update, and the
/// copies that follow from loaded parameters.
pub fn step_sections(
    forward: &Graph,
    compute: Compute,
    micro_batches: usize,
    config: &UpdateConfig,
) -> Vec<Ask> {
    aerogel_train::selftest::parity::step_sections(forward, compute, micro_batches, config).unwrap()
}
