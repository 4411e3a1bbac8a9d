//! One training step of one rank: its micro-batches, then the update.

use crate::error::TrainError;
use crate::feed::{Feed, Inputs};
use crate::pipe::Pipe;
use crate::plan::RunPlan;
use aerogel_graph::{Clock, Place};
use aerogel_machine::{Device, Program};
use aerogel_passes::{LEAST_SCALE, section_of};
use std::sync::Arc;

/// What an update reports; the same on all ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Updated {
    /// Mean loss of a token, nats.
    pub loss: f32,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f32,
    /// Whether the update was applied.
    pub finite: bool,
    /// With a loss scale: the one of this step, and the steps so far that were not applied.
    pub scale: Option<(f32, u64)>,
}

impl Updated {
    /// What is not finite in a step that no smaller loss scale would mend.
    pub fn broken(&self) -> Option<&'static str> {
        let halves = |(scale, _): (f32, u64)| f64::from(scale) > LEAST_SCALE;
        match self.loss.is_finite() {
            _ if self.finite => None,
            false => Some("the loss"),
            true if self.scale.is_some_and(halves) => None,
            true => Some("the gradient norm"),
        }
    }

    /// What is told of a step that was not applied.
    pub fn skipped(&self) -> Option<String> {
        let (scale, skipped) = self.scale.filter(|_| !self.finite)?;
        Some(format!(
            "the gradient overflowed at a loss scale of {scale}, and the update was skipped \
             ({skipped} so far)"
        ))
    }
}

/// One rank's sections, looked up once, and its data.
pub(crate) struct Stepper<'a> {
    program: Arc<Program>,
    /// The sections of its micro-batches in order, where one section is a whole micro-batch and
    /// the update is another.
    micros: Vec<usize>,
    pipe: Option<Pipe>,
    /// The section that ends the step: the update, or all of the step.
    last: usize,
    /// Whether that section reads data as well.
    inside: bool,
    /// Whether it adapts a loss scale.
    scaled: bool,
    place: Place,
    micro_batch: u64,
    /// Micro-batches of all ranks in one step.
    all: u64,
    seed: u64,
    feed: Feed<'a>,
}

impl<'a> Stepper<'a> {
    pub fn new(
        plan: &RunPlan,
        rank: usize,
        feed: Feed<'a>,
        micro_batch: usize,
        seed: u64,
    ) -> Stepper<'a> {
        let program = plan.program(rank).clone();
        let layout = &plan.layout;
        let section = |name: &str| program.section(name).expect("the plan has all sections");
        let pipe = Pipe::new(plan, rank);
        let count = layout.micro_batches;
        let inside = program.section("step").is_some();
        let micros = match &pipe {
            None if !inside => {
                (0..count).map(|j| section(&section_of(j, count, layout.order))).collect()
            }
            _ => vec![],
        };
        let last = section(if inside { "step" } else { "update" });
        Stepper {
            micros,
            pipe,
            last,
            inside,
            scaled: program.sections[last].graph.find_output("loss_scale").is_some(),
            place: plan.mesh.place(rank),
            micro_batch: micro_batch as u64,
            all: (count * layout.shards.pieces(&layout.shards.batch)) as u64,
            seed,
            feed,
            program,
        }
    }

    /// Runs the step with number `index`, counted from 0.
    pub fn step(
        &mut self,
        device: &mut dyn Device,
        index: u64,
        rate: f64,
    ) -> Result<Updated, TrainError> {
        let clock = |micro| Clock { seed: self.seed, step: index, micro, place: self.place };
        let first = index * self.all;
        if let Some(pipe) = &mut self.pipe {
            let (program, feed, size, place) =
                (&self.program, &mut self.feed, self.micro_batch, self.place);
            pipe.run(device, &clock, &mut |device, section, micro| {
                let position = (first + global(program, section, micro, place)) * size;
                write_inputs(program, device, section, feed, position)
            })?;
        }
        for (micro, &section) in (0u64..).zip(&self.micros) {
            let position = first + global(&self.program, section, micro, self.place);
            let position = position * self.micro_batch;
            write_inputs(&self.program, device, section, &mut self.feed, position)?;
            device.run(section, clock(micro), 0)?;
        }
        if self.inside {
            let position = first + global(&self.program, self.last, 0, self.place);
            let position = position * self.micro_batch;
            write_inputs(&self.program, device, self.last, &mut self.feed, position)?;
        }
        device.write_input(self.last, "rate", &(rate as f32).to_le_bytes())?;
        device.run(self.last, clock(0), 0)?;
        let updated = Updated {
            loss: scalar(device, self.last, "loss")?,
            grad_norm: scalar(device, self.last, "grad_norm")?,
            finite: scalar(device, self.last, "finite")? != 0.0,
            scale: match self.scaled {
                true => Some((
                    scalar(device, self.last, "loss_scale")?,
                    scalar(device, self.last, "skipped")? as u64,
                )),
                false => None,
            },
        };
        if let Some(pipe) = &mut self.pipe {
            pipe.renew(device)?;
        }
        Ok(updated)
    }
}

/// The number of a rank's micro-batch among those of all ranks.
fn global(program: &Program, section: usize, micro: u64, place: Place) -> u64 {
    let axes = program.sections[section].axes();
    axes.find("batch").map_or(0, |a| axes[a].piece(micro, place))
}

/// Gives a section what it reads of the data.
fn write_inputs(
    program: &Program,
    device: &mut dyn Device,
    section: usize,
    feed: &mut Feed<'_>,
    position: u64,
) -> Result<(), TrainError> {
    let graph = &program.sections[section].graph;
    let wanted = |name: &str| graph.find_input(name).is_some();
    if !["tokens", "targets", "weights"].into_iter().any(wanted) {
        return Ok(());
    }
    give(program, device, section, &feed.read(position, u64::MAX)?)
}

/// Writes those inputs that a section has.
pub(crate) fn give(
    program: &Program,
    device: &mut dyn Device,
    section: usize,
    inputs: &Inputs<'_>,
) -> Result<(), TrainError> {
    let graph = &program.sections[section].graph;
    for (name, bytes) in inputs.iter().filter(|(name, _)| graph.find_input(name).is_some()) {
        device.write_input(section, name, bytes)?;
    }
    Ok(())
}

/// A number that a section gave in its last run.
pub(crate) fn scalar(device: &dyn Device, section: usize, name: &str) -> Result<f32, TrainError> {
    let mut bytes = [0u8; 4];
    device.read_output(section, name, &mut bytes)?;
    Ok(f32::from_le_bytes(bytes))
}
