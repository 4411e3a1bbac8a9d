//! Clocks of a device's steps: made when timing is asked for, so that a step allocates nothing.

use aerogel_machine::{Program, Timing};
use std::time::Instant;

/// One clock for each step of each section.
pub(crate) struct Timers {
    sections: Vec<Vec<Timer>>,
}

#[derive(Clone, Copy, Default)]
struct Timer {
    calls: u64,
    nanoseconds: u64,
}

/// A run of a section: every step's time begins where the one before it ended.
pub(crate) struct Lap<'a> {
    timers: &'a mut [Timer],
    last: Option<usize>,
    since: Instant,
}

impl Timers {
    pub fn new(program: &Program) -> Timers {
        let of = |steps: usize| vec![Timer::default(); steps];
        Timers { sections: program.sections.iter().map(|s| of(s.steps.len())).collect() }
    }

    pub fn start(&mut self, section: usize) -> Lap<'_> {
        Lap { timers: &mut self.sections[section], last: None, since: Instant::now() }
    }

    /// The steps that ran.
    pub fn list(&self) -> Vec<Timing> {
        let all = self.sections.iter().enumerate().flat_map(|(section, timers)| {
            timers.iter().enumerate().map(move |(step, t)| {
                let (calls, nanoseconds) = (t.calls, t.nanoseconds);
                Timing { section, step, calls, nanoseconds }
            })
        });
        all.filter(|t| t.calls > 0).collect()
    }
}

impl Lap<'_> {
    /// A kernel of this step is done; a step of several kernels counts as one call.
    pub fn end(&mut self, step: usize) {
        let now = Instant::now();
        let timer = &mut self.timers[step];
        timer.nanoseconds += now.duration_since(self.since).as_nanos() as u64;
        if self.last != Some(step) {
            timer.calls += 1;
        }
        (self.last, self.since) = (Some(step), now);
    }
}
