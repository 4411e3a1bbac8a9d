//! How long steps take, by marks in the stream between them.

use crate::context::Context;
use crate::error::CudaError;
use crate::handles::Event;
use aerogel_machine::{Program, Timing};

/// Times of all steps since timing began.
pub(super) struct Timers {
    /// Calls and nanoseconds, by section and step.
    steps: Vec<Vec<(u64, u64)>>,
}

/// A run of a section under way.
pub(super) struct Lap {
    start: Event,
    /// What ended at each mark.
    ends: Vec<(u32, Event)>,
}

impl Lap {
    pub fn end(&mut self, context: &Context, step: u32) -> Result<(), CudaError> {
        self.ends.push((step, context.mark()?));
        Ok(())
    }
}

impl Timers {
    pub fn new(program: &Program) -> Timers {
        let none = |steps: usize| vec![(0, 0); steps];
        Timers { steps: program.sections.iter().map(|s| none(s.steps.len())).collect() }
    }

    pub fn start(&self, context: &Context) -> Result<Lap, CudaError> {
        Ok(Lap { start: context.mark()?, ends: vec![] })
    }

    /// Waits for the run and adds its times.
    pub fn add(&mut self, section: usize, lap: Lap) -> Result<(), CudaError> {
        let (mut from, mut last) = (&lap.start, None);
        for (step, end) in &lap.ends {
            let (calls, nanoseconds) = &mut self.steps[section][*step as usize];
            // A step may be several launches.
            *calls += u64::from(last != Some(*step));
            *nanoseconds += (from.seconds_to(end)? * 1e9) as u64;
            (from, last) = (end, Some(*step));
        }
        Ok(())
    }

    pub fn list(&self) -> Vec<Timing> {
        let mut list = vec![];
        for (section, steps) in self.steps.iter().enumerate() {
            for (step, &(calls, nanoseconds)) in steps.iter().enumerate() {
                if calls > 0 {
                    list.push(Timing { section, step, calls, nanoseconds });
                }
            }
        }
        list
    }
}
