//! Recording a section: its steps on their lanes, as [`deal`] says.

use super::CudaDevice;
use super::lanes::{LANES, Turn, deal};
use super::reach::works;
use crate::context::Context;
use crate::error::CudaError;
use crate::handles::{Event, Graph};
use aerogel_machine::{Program, Section};

/// Streams and marks that recordings use, made once.
pub(super) struct Lanes {
    /// The GPU's own stream first.
    streams: Vec<Context>,
    /// Where a recording begins, and where a lane has come to its end.
    ends: [Event; 2],
    /// Where steps end that others wait for, as many as one section needs.
    marks: Vec<Event>,
    /// The turns of each section's steps.
    sections: Vec<Vec<Plan>>,
}

/// A step's turn.
struct Plan {
    lane: usize,
    /// Marks that it follows.
    after: Vec<usize>,
    /// The mark of its end, if a step of another lane follows it.
    mark: Option<usize>,
}

impl Lanes {
    /// For the sections of a program.
    pub fn new(program: &Program, context: &Context) -> Result<Lanes, CudaError> {
        let turns = |s: &Section| match works(program, s) {
            Some(list) => deal(&list),
            None => vec![Turn::default(); s.steps.len()],
        };
        let sections: Vec<Vec<Plan>> = program.sections.iter().map(|s| plan(&turns(s))).collect();
        let mut streams = vec![context.clone()];
        for _ in 1..LANES {
            streams.push(context.branch()?);
        }
        let marks = |list: &Vec<Plan>| list.iter().filter(|p| p.mark.is_some()).count();
        let most = sections.iter().map(marks).max().unwrap_or(0);
        let marks = (0..most).map(|_| context.order()).collect::<Result<_, CudaError>>()?;
        Ok(Lanes { streams, ends: [context.order()?, context.order()?], marks, sections })
    }
}

/// Turns with numbers for the steps that others follow.
fn plan(turns: &[Turn]) -> Vec<Plan> {
    let mut marks: Vec<Option<usize>> = vec![None; turns.len()];
    turns.iter().flat_map(|t| &t.after).for_each(|step| marks[*step] = Some(0));
    marks.iter_mut().flatten().zip(0..).for_each(|(mark, number)| *mark = number);
    let after = |turn: &Turn| turn.after.iter().filter_map(|step| marks[*step]).collect();
    let list = turns.iter().zip(&marks);
    list.map(|(turn, &mark)| Plan { lane: turn.lane, after: after(turn), mark }).collect()
}

impl CudaDevice {
    /// The graph of a section, for one copy.
    pub(super) fn record(&self, section: usize, copy: u32) -> Result<Graph, CudaError> {
        self.context.capture(|| self.enqueue_all(section, copy))
    }

    /// Enqueues a section, every step on its lane. All lanes begin where the section does, and the
    /// section's own stream ends after all of them.
    fn enqueue_all(&self, section: usize, copy: u32) -> Result<(), CudaError> {
        let Lanes { streams, ends: [begin, end], marks, sections } = &self.lanes;
        let mut used = [false; LANES];
        let mut list = self.sections[section].iter().peekable();
        if sections[section].iter().any(|plan| plan.lane > 0) {
            self.context.record(begin)?;
        }
        for (step, plan) in (0..).zip(&sections[section]) {
            let stream = &streams[plan.lane];
            if plan.lane > 0 && !used[plan.lane] {
                stream.follow(begin)?;
                used[plan.lane] = true;
            }
            plan.after.iter().try_for_each(|mark| stream.follow(&marks[*mark]))?;
            while let Some((_, prepared)) = list.next_if(|(own, _)| *own == step) {
                self.enqueue(stream, prepared, copy)?;
            }
            if let Some(mark) = plan.mark {
                stream.record(&marks[mark])?;
            }
        }
        for (stream, _) in streams.iter().zip(used).filter(|(_, used)| *used) {
            stream.record(end)?;
            self.context.follow(end)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_others_follow_have_marks() {
        let turn = |lane, after: &[usize]| Turn { lane, after: after.to_vec() };
        let list = [turn(0, &[]), turn(1, &[]), turn(2, &[1]), turn(0, &[2, 1]), turn(0, &[])];
        let plans = plan(&list);
        let marks: Vec<Option<usize>> = plans.iter().map(|p| p.mark).collect();
        assert_eq!(marks, [None, Some(0), Some(1), None, None]);
        assert_eq!((&plans[2].after, &plans[3].after), (&vec![0], &vec![1, 0]));
    }
}
