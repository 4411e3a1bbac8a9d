//! What the tests of whole runs share.

use aerogel_graph::Graph;
use aerogel_passes::{
    Buckets, Compute, Order, Partials, Shards, Share, UpdateConfig, accumulate, backward, copies,
    cut, precision, update,
};
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
    let step = backward(&precision(forward, compute).unwrap()).unwrap();
    let shards = Shards::default();
    let buckets = Buckets::of(&step, &shards, &Partials::default());
    let micro = cut(&buckets.apply(&step).unwrap(), &shards, micro_batches).unwrap();
    let share = Share::whole(&buckets);
    let mut sections = accumulate(&micro, micro_batches, Order::Tree).unwrap();
    sections.push(("update".to_owned(), update(&micro, &share, config).unwrap()));
    let copies = copies(&micro, &share).unwrap();
    sections.extend(copies.map(|g| ("weights".to_owned(), g)));
    sections.into_iter().map(|(name, graph)| Ask { name, graph, calls: 1 }).collect()
}
