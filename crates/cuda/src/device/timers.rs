//! When steps run, by marks in the stream between them.

use crate::context::Context;
use crate::error::CudaError;
use crate::handles::Event;
use aerogel_machine::Span;

/// Spans since timing began.
pub(super) struct Timers {
    origin: Event,
    spans: Vec<Span>,
}

/// A run of a section under way.
pub(super) struct Lap {
    start: Event,
    /// What ended at each mark.
    ends: Vec<(u32, Event)>,
}

impl Lap {
    pub fn end(&mut self, context: &Context, step: u32) -> Result<(), CudaError> {
        // A step of several launches is one span.
        match self.ends.last() {
            Some((last, end)) if *last == step => context.record(end),
            _ => {
                self.ends.push((step, context.mark()?));
                Ok(())
            }
        }
    }
}

impl Timers {
    pub fn new(context: &Context) -> Result<Timers, CudaError> {
        Ok(Timers { origin: context.mark()?, spans: vec![] })
    }

    pub fn start(&self, context: &Context) -> Result<Lap, CudaError> {
        Ok(Lap { start: context.mark()?, ends: vec![] })
    }

    /// Waits for the run and adds its spans.
    pub fn add(&mut self, section: usize, lap: &Lap) -> Result<(), CudaError> {
        let nanoseconds = |from: &Event, to: &Event| -> Result<u64, CudaError> {
            Ok((from.seconds_to(to)? * 1e9) as u64)
        };
        let mut from = &lap.start;
        for (step, end) in &lap.ends {
            self.spans.push(Span {
                section,
                step: *step as usize,
                start_nanoseconds: nanoseconds(&self.origin, from)?,
                nanoseconds: nanoseconds(from, end)?,
            });
            from = end;
        }
        Ok(())
    }

    pub fn spans(&self) -> &[Span] {
        &self.spans
    }
}
