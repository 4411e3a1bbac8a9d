//! A rank's part of a pipeline: its actions in their order, and the messages between stages.

use crate::error::TrainError;
use crate::plan::RunPlan;
use aerogel_graph::Clock;
use aerogel_machine::{Device, DeviceError, Program};
use aerogel_passes::pipeline::{Action, Message, Pass};
use aerogel_passes::section_of;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// A message of this rank, as the sections at both of its ends know it.
struct Line {
    name: String,
    tag: u64,
    /// The rank at the other end; this one where both stages are here.
    peer: usize,
    bytes: usize,
}

/// A section of an action, and what it gets and gives.
struct Work {
    section: usize,
    receives: Vec<Line>,
    sends: Vec<Line>,
}

/// One action, ready to run.
struct Ready {
    action: Action,
    work: usize,
    slot: u32,
}

/// A state that another stage reads, or that another stage updates.
struct Copied {
    state: String,
    bytes: usize,
    tag: u64,
    /// The rank at the other end.
    peer: usize,
    /// Whether it is updated here and goes there.
    goes: bool,
}

/// A rank's actions of one step, and those that score a batch.
pub(crate) struct Pipe {
    actions: Vec<Ready>,
    works: Vec<Work>,
    /// The sections that score, in the order of the stages.
    scores: Vec<Work>,
    copied: Vec<Copied>,
    mail: Mail,
}

/// Bytes on their way.
struct Mail {
    /// Messages between two stages of this rank, by tag.
    kept: HashMap<u64, VecDeque<Vec<u8>>>,
    buffer: Vec<u8>,
}

/// Writes what a section reads of the data of a micro-batch.
pub(crate) type WriteInputs<'a> =
    dyn FnMut(&mut dyn Device, usize, u64) -> Result<(), TrainError> + 'a;

impl Pipe {
    /// `None` where there is no pipeline.
    pub fn new(plan: &RunPlan, rank: usize) -> Option<Pipe> {
        let schedule = plan.schedule.as_ref()?;
        let axis = plan.layout.pipe?;
        let place = plan.mesh.place(rank);
        let stage = usize::from(place.0[axis as usize]);
        // The rank that has a virtual stage, with the same place along all other axes.
        let peer = |virtual_stage: usize| {
            let mut there = place;
            there.0[axis as usize] = schedule.place(virtual_stage).0 as u16;
            plan.mesh.rank(there)
        };
        let program = plan.program(rank);
        let lines = Lines { messages: &plan.messages, first_tag: 0, peer: &peer };
        let mut pipe = Pipe {
            actions: vec![],
            works: vec![],
            scores: vec![],
            copied: copied(plan, program, rank, stage, &peer),
            mail: Mail { kept: HashMap::new(), buffer: vec![] },
        };
        let mut names: Vec<(usize, Pass, String)> = vec![];
        for action in &schedule.actions[stage] {
            let micros = plan.layout.micro_batches;
            let part = section_of(action.micro, micros, plan.layout.order);
            let name = match action.pass {
                Pass::Forward => format!("forward.{}", action.chunk),
                _ => format!("backward.{}.{part}", action.chunk),
            };
            let key = (schedule.stage(stage, action.chunk), action.pass, name);
            let work = names.iter().position(|n| *n == key).unwrap_or_else(|| {
                pipe.works.push(lines.work(program, key.0, key.1, &key.2));
                names.push(key);
                names.len() - 1
            });
            let slot = action.micro % schedule.slots(stage, action.chunk);
            pipe.actions.push(Ready { action: *action, work, slot: slot as u32 });
        }
        let first_tag = (plan.messages.len() + plan.replicas.len()) as u64;
        let lines = Lines { messages: &plan.eval_messages, first_tag, peer: &peer };
        for chunk in 0..schedule.chunks {
            let own = schedule.stage(stage, chunk);
            let work = lines.work(program, own, Pass::Forward, &format!("eval.{chunk}"));
            pipe.scores.push(work);
        }
        Some(pipe)
    }

    /// Runs the actions of one step.
    pub fn run(
        &mut self,
        device: &mut dyn Device,
        clock: &dyn Fn(u64) -> Clock,
        inputs: &mut WriteInputs<'_>,
    ) -> Result<(), TrainError> {
        for ready in &self.actions {
            let work = &self.works[ready.work];
            let micro = ready.action.micro as u64;
            self.mail.receive(device, work, micro)?;
            inputs(device, work.section, micro)?;
            device.run(work.section, clock(micro), ready.slot)?;
            self.mail.send(device, work, micro)?;
        }
        Ok(())
    }

    /// Scores a batch through all stages; gives the section that ran last here.
    pub fn score(
        &mut self,
        device: &mut dyn Device,
        inputs: &mut WriteInputs<'_>,
    ) -> Result<usize, TrainError> {
        for work in &self.scores {
            self.mail.receive(device, work, 0)?;
            inputs(device, work.section, 0)?;
            device.run(work.section, Clock::default(), 0)?;
            self.mail.send(device, work, 0)?;
        }
        Ok(self.scores[self.scores.len() - 1].section)
    }

    /// Brings states that this rank reads and another updates up to date.
    pub fn renew(&mut self, device: &mut dyn Device) -> Result<(), TrainError> {
        let buffer = &mut self.mail.buffer;
        for c in &self.copied {
            buffer.resize(c.bytes, 0);
            let site = format!("copy of `{}`", c.state);
            if c.goes {
                device.read_state(&c.state, 0, buffer)?;
                device.ties().send(c.peer, c.tag, &site, buffer).map_err(DeviceError::from)?;
            } else {
                device.ties().receive(c.peer, c.tag, &site, buffer).map_err(DeviceError::from)?;
                device.write_state(&c.state, 0, buffer)?;
            }
        }
        Ok(())
    }
}

impl Line {
    fn site(&self, what: &str, micro: u64) -> String {
        format!("{what} of `{}` for micro-batch {micro}", self.name)
    }
}

impl Mail {
    fn receive(
        &mut self,
        device: &mut dyn Device,
        work: &Work,
        micro: u64,
    ) -> Result<(), TrainError> {
        for line in &work.receives {
            self.buffer.resize(line.bytes, 0);
            if line.peer == device.ties().rank() {
                let kept = self.kept.get_mut(&line.tag).and_then(VecDeque::pop_front);
                self.buffer = kept.unwrap_or_default();
            } else {
                let site = line.site("receive", micro);
                device
                    .ties()
                    .receive(line.peer, line.tag, &site, &mut self.buffer)
                    .map_err(DeviceError::from)?;
            }
            let name = format!("receive.{}", line.name);
            device.write_input(work.section, &name, &self.buffer)?;
        }
        Ok(())
    }

    fn send(&mut self, device: &mut dyn Device, work: &Work, micro: u64) -> Result<(), TrainError> {
        for line in &work.sends {
            self.buffer.resize(line.bytes, 0);
            let name = format!("send.{}", line.name);
            device.read_output(work.section, &name, &mut self.buffer)?;
            if line.peer == device.ties().rank() {
                self.kept.entry(line.tag).or_default().push_back(self.buffer.clone());
            } else {
                let site = line.site("send", micro);
                device
                    .ties()
                    .send(line.peer, line.tag, &site, &self.buffer)
                    .map_err(DeviceError::from)?;
            }
        }
        Ok(())
    }
}

/// What is needed to find the messages of a section.
struct Lines<'a> {
    messages: &'a [Message],
    first_tag: u64,
    /// The rank of a virtual stage.
    peer: &'a dyn Fn(usize) -> usize,
}

impl Lines<'_> {
    fn work(&self, program: &Program, own: usize, pass: Pass, name: &str) -> Work {
        let section = program.section(name).expect("the plan has all sections");
        let line = |(i, m): (usize, &Message), other: usize| Line {
            name: m.name.clone(),
            tag: self.first_tag + i as u64,
            peer: (self.peer)(other),
            bytes: m.bytes as usize,
        };
        let all = || self.messages.iter().enumerate();
        let to = all().filter(|(_, m)| m.to == (own, pass));
        let from = all().filter(|(_, m)| m.from == (own, pass));
        Work {
            section,
            receives: to.map(|m| line(m, m.1.from.0)).collect(),
            sends: from.map(|m| line(m, m.1.to.0)).collect(),
        }
    }
}

/// The states of a rank that have copies elsewhere, or are copies.
fn copied(
    plan: &RunPlan,
    program: &Arc<Program>,
    rank: usize,
    stage: usize,
    peer: &dyn Fn(usize) -> usize,
) -> Vec<Copied> {
    let schedule = plan.schedule.as_ref();
    let stage_of = |v: usize| schedule.map_or(0, |s| s.place(v).0);
    let mut list: Vec<Copied> = vec![];
    for (i, r) in plan.replicas.iter().enumerate() {
        let (owner, user) = (stage_of(r.owner), stage_of(r.user));
        if owner == user || (owner != stage && user != stage) {
            continue;
        }
        let Some(slot) = program.state(&r.state) else { continue };
        let (tag, bytes) = ((plan.messages.len() + i) as u64, slot.bytes as usize);
        let goes = owner == stage;
        let peer = peer(if goes { r.user } else { r.owner });
        // A user of several chunks is sent one copy.
        let twin = |c: &Copied| c.state == r.state && c.peer == peer && c.goes == goes;
        if !list.iter().any(twin) {
            list.push(Copied { state: r.state.clone(), bytes, tag, peer, goes });
        }
    }
    debug_assert!(list.iter().all(|c| c.peer != rank), "a rank copies nothing to itself");
    list
}
