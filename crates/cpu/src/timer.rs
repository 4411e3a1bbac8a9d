//! The clock of a device's steps.

use aerogel_machine::Span;
use std::time::Instant;

/// Spans since timing began.
pub(crate) struct Timers {
    origin: Instant,
    spans: Vec<Span>,
}

/// A run of a section: every step's time begins where the one before it ended.
pub(crate) struct Lap<'a> {
    section: usize,
    timers: &'a mut Timers,
    last: Option<usize>,
    since: u64,
}

impl Timers {
    pub fn new() -> Timers {
        Timers { origin: Instant::now(), spans: vec![] }
    }

    fn now(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    pub fn start(&mut self, section: usize) -> Lap<'_> {
        let since = self.now();
        Lap { section, timers: self, last: None, since }
    }

    pub fn spans(&self) -> &[Span] {
        &self.spans
    }
}

impl Lap<'_> {
    /// A kernel of this step is done; a step of several kernels is one span.
    pub fn end(&mut self, step: usize) {
        let now = self.timers.now();
        let nanoseconds = now - self.since;
        let spans = &mut self.timers.spans;
        match spans.last_mut().filter(|_| self.last == Some(step)) {
            Some(span) => span.nanoseconds += nanoseconds,
            None => {
                let (section, start_nanoseconds) = (self.section, self.since);
                spans.push(Span { section, step, start_nanoseconds, nanoseconds });
            }
        }
        (self.last, self.since) = (Some(step), now);
    }
}
