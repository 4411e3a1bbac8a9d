//! What the tests of whole runs share.

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
