//! One rank of a plan: where it stands in the mesh, what it holds, what it sends, and when it runs.

#[cfg(test)]
mod tests;

use crate::error::TrainError;
use crate::plan::RunPlan;
use crate::setup::{self, Workspace};
use aerogel_graph::{Build, Graph, Mesh, Role};
use aerogel_machine::Program;
use aerogel_passes::layer_of;
use aerogel_passes::pipeline::{Kind, Schedule, Seconds, Timeline, timeline};
use aerogel_plan::Report;
use aerogel_recipe::Recipe;
use std::collections::BTreeMap;
use std::ops::Range;

/// What there is to say of one rank.
pub struct RankPlan<'a> {
    /// The rank.
    pub rank: usize,
    /// All ranks.
    pub mesh: Mesh,
    /// The axes of the mesh, outermost first.
    pub axes: Vec<MeshAxis>,
    /// What ranks that share a batch deal out among them (ZeRO).
    pub zero: Zero,
    /// Memory, work and time of the rank.
    pub report: &'a Report,
    /// The stages of the pipeline that were planned: all, or the rank's alone.
    pub stages: Vec<StagePlan<'a>>,
    /// What the rank exchanges with others in one step, by kind and mesh axes.
    pub communication: Vec<Traffic>,
    /// The pipeline that the rank is in.
    pub pipeline: Option<PipelinePlan>,
}

/// An axis of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshAxis {
    /// Its name.
    pub name: String,
    /// Ranks along it.
    pub ranks: usize,
    /// Where the rank stands along it.
    pub position: usize,
    /// What it cuts, as the lists of `parallel.shard` are named.
    pub cuts: Vec<&'static str>,
}

/// What is dealt out over ranks that share a batch (Rajbhandari et al., ZeRO, 2020).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zero {
    /// 0 to 3.
    pub stage: u8,
    /// The same in words, with the mesh axes.
    pub words: String,
}

/// One stage of the pipeline; all of the model where there is none.
pub struct StagePlan<'a> {
    /// Its number, which is the position along the pipeline's mesh axis.
    pub stage: usize,
    /// Its layers, by chunk.
    pub layers: Vec<Range<usize>>,
    /// Trained numbers that a rank of it computes with, gathered from others perhaps.
    pub parameters: u64,
    /// Micro-batches that it keeps activations of at most, by chunk.
    pub slots: Vec<usize>,
    /// Memory, work and time of one rank of it.
    pub report: &'a Report,
}

/// Messages of one kind over the same mesh axes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// `all_reduce`, `all_gather`, `reduce_scatter`; `send` and `receive` between stages.
    pub kind: &'static str,
    /// The mesh axes along which the ranks that take part differ.
    pub over: Vec<String>,
    /// How many in one step.
    pub calls: u64,
    /// What the rank sends in one step, and of collectives receives as well; with `receive`, what
    /// it receives.
    pub wire_bytes: u64,
}

/// The pipeline, in time.
pub struct PipelinePlan {
    /// Name of the schedule.
    pub schedule: String,
    /// Micro-batches that a rank keeps activations of at most, by stage and chunk.
    pub slots: Vec<Vec<usize>>,
    /// When each action starts and ends, by the predicted seconds of its section.
    pub timeline: Timeline,
    /// Whether one stage alone was planned, and its seconds stand for those of all.
    pub is_uniform: bool,
}

impl RankPlan<'_> {
    /// Whether all stages were planned.
    pub fn is_whole(&self) -> bool {
        self.pipeline.as_ref().is_none_or(|p| !p.is_uniform)
    }
}

impl StagePlan<'_> {
    /// Its layers for people: `0–3`, or `0, 4` where it has several chunks.
    pub fn layers_text(&self) -> String {
        let range = |r: &Range<usize>| match r.len() {
            0 => "none".to_owned(),
            1 => r.start.to_string(),
            _ => format!("{}–{}", r.start, r.end - 1),
        };
        self.layers.iter().map(range).collect::<Vec<_>>().join(", ")
    }
}

impl RunPlan {
    /// The plan of one rank, of a recipe whose data may not be prepared yet.
    ///
    /// # Errors
    /// The mesh has no such rank; otherwise as [`RunPlan::of`].
    pub fn of_workspace_rank(
        recipe: &Recipe,
        workspace: &Workspace,
        rank: usize,
    ) -> Result<RunPlan, TrainError> {
        check_rank(rank, recipe.parallel.ranks())?;
        RunPlan::of_rank(recipe, setup::vocabulary(recipe, workspace)?, rank)
    }

    /// What there is to say of one rank.
    ///
    /// # Errors
    /// The mesh has no such rank.
    pub fn rank_plan(&self, rank: usize) -> Result<RankPlan<'_>, TrainError> {
        check_rank(rank, self.mesh.ranks())?;
        Ok(RankPlan {
            rank,
            mesh: self.mesh.clone(),
            axes: self.axes(rank),
            zero: self.zero(),
            report: &self.stage(rank).report,
            stages: self.stage_plans(rank),
            communication: self.communication(rank),
            pipeline: self.schedule.as_ref().map(|s| self.pipeline(s)).transpose()?,
        })
    }

    fn axes(&self, rank: usize) -> Vec<MeshAxis> {
        let layout = &self.layout;
        let shards = &layout.shards;
        let place = self.mesh.place(rank);
        let axis = |(i, (name, ranks)): (usize, &(String, usize))| {
            let m = i as u8;
            let tensor = layout.tensor.filter(|t| t.axis == m);
            let is = |cuts: fn(&crate::layout::Tensor) -> bool| tensor.as_ref().is_some_and(cuts);
            let cuts = [
                ("batch", shards.batch.contains(&m)),
                ("heads", is(|t| t.heads)),
                ("mlp", is(|t| t.mlp)),
                ("vocab", is(|t| t.vocab)),
                ("seq", is(|t| t.seq)),
                ("layers", layout.pipe == Some(m)),
                ("optimizer", shards.optimizer.contains(&m)),
                ("gradients", shards.gradients.contains(&m)),
                ("parameters", shards.parameters.contains(&m)),
            ];
            let cuts = cuts.into_iter().filter_map(|(name, cut)| cut.then_some(name)).collect();
            MeshAxis { name: name.clone(), ranks: *ranks, position: place.0[i].into(), cuts }
        };
        self.mesh.0.iter().enumerate().map(axis).collect()
    }

    fn zero(&self) -> Zero {
        let shards = &self.layout.shards;
        let lists = [
            ("the optimizer's memory", &shards.optimizer),
            ("gradients", &shards.gradients),
            ("parameters", &shards.parameters),
        ];
        let names = |over: &[u8]| -> Vec<String> {
            over.iter().map(|&m| self.mesh.0[usize::from(m)].0.clone()).collect()
        };
        let cut = lists.iter().filter(|(_, over)| !over.is_empty());
        let words: Vec<String> =
            cut.map(|(what, over)| format!("{what} cut over {}", names(over).join(", "))).collect();
        let stage = words.len() as u8;
        let copies = &shards.batch[..shards.batch.len() - shards.optimizer.len()];
        let words = match (stage, copies) {
            (0, []) => "one data rank, which has all".to_owned(),
            (0, _) => "not used: every data rank has all parameters, gradients and states".into(),
            (_, []) => words.join(", "),
            (_, _) => {
                format!("{}, with copies over {}", words.join(", "), names(copies).join(", "))
            }
        };
        Zero { stage, words }
    }

    fn stage_plans(&self, rank: usize) -> Vec<StagePlan<'_>> {
        let own = self.layout.stage(rank);
        let all = self.schedule.as_ref().map_or(1, Schedule::stages);
        let numbers = if self.stages.len() == all { 0..all } else { own..own + 1 };
        numbers
            .zip(&self.stages)
            .map(|(stage, planned)| StagePlan {
                stage,
                layers: match &self.schedule {
                    None => std::iter::once(0..self.model.layers).collect(),
                    Some(s) => (0..s.chunks).map(|c| layers(&planned.program, c)).collect(),
                },
                parameters: parameters(&planned.program),
                slots: self.schedule.as_ref().map_or(vec![], |s| s.slots[stage].clone()),
                report: &planned.report,
            })
            .collect()
    }

    fn communication(&self, rank: usize) -> Vec<Traffic> {
        let mut sums = Sums::default();
        for section in self.stage(rank).report.sections.iter().filter(|s| s.calls > 0) {
            // To keep a piece of what all have moves nothing.
            for m in section.messages.iter().filter(|m| m.kind != "keep") {
                sums.add(m.kind, &m.over, section.calls, m.wire_bytes);
            }
        }
        if let (Some(schedule), Some(pipe)) = (&self.schedule, self.layout.pipe) {
            let over = [self.mesh.0[usize::from(pipe)].0.clone()];
            let own = self.layout.stage(rank);
            let mut between = |from: usize, to: usize, calls: usize, bytes: u64| {
                let (from, to) = (schedule.place(from).0, schedule.place(to).0);
                if from == own && to != own {
                    sums.add("send", &over, calls as u64, bytes);
                } else if to == own && from != own {
                    sums.add("receive", &over, calls as u64, bytes);
                }
            };
            for m in &self.messages {
                between(m.from.0, m.to.0, schedule.micros, m.bytes);
            }
            let mut copied = vec![];
            for r in &self.replicas {
                let key = (&r.state, schedule.place(r.owner).0, schedule.place(r.user).0);
                // Several chunks of a rank share one copy.
                if copied.contains(&key) {
                    continue;
                }
                copied.push(key);
                let slot = self.program(rank).state(&r.state);
                between(r.owner, r.user, 1, slot.map_or(0, |s| s.bytes));
            }
        }
        sums.list()
    }

    fn pipeline(&self, schedule: &Schedule) -> Result<PipelinePlan, TrainError> {
        let stages = 0..schedule.virtual_stages();
        let of = |stage: usize, pass: &str| {
            let (rank, chunk) = schedule.place(stage);
            let prefix = format!("{pass}.{chunk}");
            let report = &self.stages[rank.min(self.stages.len() - 1)].report;
            let is_part = |name: &str| {
                name.strip_prefix(&prefix).is_some_and(|r| r.is_empty() || r.starts_with('.'))
            };
            let parts = report.sections.iter().filter(|s| is_part(&s.name));
            let seconds: f64 = parts.map(|s| s.seconds * s.calls as f64).sum();
            seconds / schedule.micros as f64
        };
        let seconds = Seconds {
            forward: stages.clone().map(|s| of(s, "forward")).collect(),
            backward: stages.map(|s| of(s, "backward")).collect(),
            weights: vec![],
            message: 0.0,
        };
        Ok(PipelinePlan {
            schedule: match self.layout.schedule {
                Kind::Interleaved { .. } => "interleaved".to_owned(),
                kind => kind.to_string(),
            },
            slots: schedule.slots.clone(),
            timeline: timeline(schedule, &seconds)?,
            is_uniform: self.stages.len() < schedule.stages(),
        })
    }
}

fn check_rank(rank: usize, ranks: usize) -> Result<(), TrainError> {
    if rank < ranks {
        return Ok(());
    }
    let last = ranks - 1;
    let is_one = ranks == 1;
    Err(TrainError::Contradiction {
        what: format!("there is no rank {rank}: the mesh has {ranks}, counted from 0"),
        advice: match is_one {
            true => "ask for rank 0, or for more ranks with --ranks or parallel.mesh".to_owned(),
            false => format!("ask for a rank from 0 to {last}"),
        },
    })
}

/// Traffic by kind and axes.
#[derive(Default)]
struct Sums(BTreeMap<(&'static str, Vec<String>), (u64, u64)>);

impl Sums {
    fn add(&mut self, kind: &'static str, over: &[String], calls: u64, bytes: u64) {
        let sum = self.0.entry((kind, over.to_vec())).or_default();
        *sum = (sum.0 + calls, sum.1 + calls * bytes);
    }

    fn list(self) -> Vec<Traffic> {
        let one = |((kind, over), (calls, wire_bytes))| Traffic { kind, over, calls, wire_bytes };
        self.0.into_iter().map(one).collect()
    }
}

/// The layers of a chunk, by the scopes of its forward.
fn layers(program: &Program, chunk: usize) -> Range<usize> {
    let Some(section) = program.section(&format!("forward.{chunk}")) else { return 0..0 };
    let nodes = program.sections[section].graph.nodes().iter();
    let numbers = || nodes.clone().filter_map(|n| layer_of(&n.scope));
    let first = numbers().min().unwrap_or(0);
    first..numbers().max().map_or(first, |last| last + 1)
}

/// Trained numbers that the sections of a step read, each once.
fn parameters(program: &Program) -> u64 {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for section in &program.sections {
        counts.extend(trained(&section.graph));
    }
    counts.values().sum()
}

/// Names and sizes of the trained tensors that a graph has, or has a copy of.
pub(crate) fn trained(g: &Graph) -> BTreeMap<&str, u64> {
    let mut counts = BTreeMap::new();
    for s in g.states().iter().filter(|s| matches!(s.role, Role::Parameter | Role::Weights)) {
        if s.parts.is_empty() {
            counts.insert(s.name.as_str(), g.axes().count(&g.ty(s.value).axes) as u64);
        }
        for p in &s.parts {
            // Copies are named after their dtype and what they are copies of.
            let prefix = format!("{}.", g.ty(s.value).dtype);
            let name = p.name.strip_prefix(&prefix).unwrap_or(&p.name);
            counts.insert(name, g.axes().count(&p.axes) as u64);
        }
    }
    counts
}
