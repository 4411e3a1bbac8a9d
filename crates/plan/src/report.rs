//! The report of a plan: bytes by kind, what is alive at the peak, work and predicted time.

use crate::live::{Live, Owner, Piece};
use aerogel_graph::ops::View;
use aerogel_graph::{Build, Def, Graph, Node, NodeId, Op, Phase, Role, ValueId};
use aerogel_machine::{Machine, Program, Section, Step};
use serde::Serialize;

/// What bytes are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Weights that products read.
    Parameters,
    /// f32 copies of weights that are computed with in a smaller dtype.
    Master,
    /// Gradients of parameters.
    Gradients,
    /// The optimizer's memory.
    Optimizer,
    /// Values between the model's ops, and their cotangents.
    Activations,
    /// Activations that wait for their backward section, of all micro-batches in flight.
    InFlight,
    /// Scratch of kernels, and values of the update.
    Workspace,
    /// Inputs and outputs of sections; keys and values of decoding.
    Data,
    /// Holes: alignment, and what placement could not use at the peak.
    Holes,
}

/// Bytes by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // the fields are the variants of `Kind`
pub struct Kinds {
    pub parameters_bytes: u64,
    pub master_bytes: u64,
    pub gradients_bytes: u64,
    pub optimizer_bytes: u64,
    pub activations_bytes: u64,
    pub in_flight_bytes: u64,
    pub workspace_bytes: u64,
    pub data_bytes: u64,
    pub holes_bytes: u64,
}

impl Kinds {
    /// How many kinds there are; holes are the last.
    pub const COUNT: usize = 9;

    /// Names and bytes, in the order of the fields.
    pub fn list(&self) -> [(&'static str, u64); Self::COUNT] {
        [
            ("parameters", self.parameters_bytes),
            ("master", self.master_bytes),
            ("gradients", self.gradients_bytes),
            ("optimizer", self.optimizer_bytes),
            ("activations", self.activations_bytes),
            ("activations in flight", self.in_flight_bytes),
            ("workspace", self.workspace_bytes),
            ("data", self.data_bytes),
            ("holes", self.holes_bytes),
        ]
    }

    /// The sum.
    pub fn total(&self) -> u64 {
        self.list().iter().map(|k| k.1).sum()
    }

    fn of(&mut self, kind: Kind) -> &mut u64 {
        match kind {
            Kind::Parameters => &mut self.parameters_bytes,
            Kind::Master => &mut self.master_bytes,
            Kind::Gradients => &mut self.gradients_bytes,
            Kind::Optimizer => &mut self.optimizer_bytes,
            Kind::Activations => &mut self.activations_bytes,
            Kind::InFlight => &mut self.in_flight_bytes,
            Kind::Workspace => &mut self.workspace_bytes,
            Kind::Data => &mut self.data_bytes,
            Kind::Holes => &mut self.holes_bytes,
        }
    }
}

/// A value that is alive at the peak.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// Op and scope of its producer, or the input's name.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
    /// Its size.
    pub bytes: u64,
}

/// Transient memory while one step of a section runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Moment {
    /// Kernel and scope.
    pub step: String,
    /// What is alive.
    pub alive: Kinds,
}

/// One section.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SectionReport {
    /// `micro.last`, `update`, ...
    pub name: String,
    /// Runs in one training step.
    pub calls: u64,
    /// Steps of the section.
    pub kernels: usize,
    /// Work of one run.
    pub flops: u64,
    /// Predicted time of one run.
    pub seconds: f64,
    /// Transient bytes as placed.
    pub transient_bytes: u64,
    /// The most that is alive at once: no placement can need less.
    pub largest_live_bytes: u64,
    /// Memory over the section, step by step.
    pub timeline: Vec<Moment>,
    /// What ranks exchange, in order.
    pub messages: Vec<Message>,
}

/// A collective that a section runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    /// Position among the steps.
    pub step: usize,
    /// `all_reduce`, `all_gather`, ...
    pub kind: &'static str,
    /// The mesh axes along which the members of a group differ, outermost first.
    pub over: Vec<String>,
    /// What a rank brings.
    pub input_bytes: u64,
    /// What a rank leaves with.
    pub output_bytes: u64,
    /// What a rank sends to others, and receives from them, in a ring.
    pub wire_bytes: u64,
    /// Place in the model.
    pub scope: String,
}

/// What there is to say of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Bytes of the one arena.
    pub total_bytes: u64,
    /// The same by kind, at the peak.
    pub kinds: Kinds,
    /// Bytes that outlive sections.
    pub state_bytes: u64,
    /// Section of the peak.
    pub peak_section: String,
    /// Step of the peak: kernel and scope.
    pub peak_step: String,
    /// Position of that step.
    pub peak_index: usize,
    /// The largest values alive there.
    pub peak_values: Vec<Share>,
    /// Work of a training step.
    pub flops_per_step: u64,
    /// Predicted time of a training step.
    pub seconds: f64,
    /// The sections.
    pub sections: Vec<SectionReport>,
    /// Time that planning took.
    pub planning_seconds: f64,
}

pub(crate) fn report(
    program: &Program,
    lives: &[Live],
    calls: &[u64],
    machine: &Machine,
) -> Report {
    let mut kinds = Kinds::default();
    let cast = program.sections.iter().any(|s| casts_weights(&s.graph));
    // Caches are transient: the sections that have them count them.
    for s in program.states.iter().filter(|s| s.role != Role::Cache) {
        *kinds.of(state_kind(s.role, cast)) += u64::from(s.copies) * s.bytes;
    }
    let state_bytes = kinds.total();
    let sections: Vec<SectionReport> = program
        .sections
        .iter()
        .zip(lives)
        .zip(calls)
        .map(|((s, live), &calls)| section_report(s, live, calls, machine))
        .collect();
    let top = (0..sections.len()).max_by_key(|&i| sections[i].largest_live_bytes).unwrap_or(0);
    let (peak_index, moment) = sections[top]
        .timeline
        .iter()
        .enumerate()
        .max_by_key(|(_, m)| m.alive.total())
        .map_or((0, None), |(i, m)| (i, Some(m)));
    if let Some(m) = moment {
        for kind in KINDS {
            *kinds.of(kind) += *m.alive.clone().of(kind);
        }
    }
    kinds.holes_bytes = program.arena_bytes.saturating_sub(kinds.total());
    Report {
        total_bytes: program.arena_bytes,
        kinds,
        state_bytes,
        peak_section: program.sections[top].name.clone(),
        peak_step: moment.map_or(String::new(), |m| m.step.clone()),
        peak_index,
        peak_values: peak_values(&program.sections[top], &lives[top], peak_index),
        flops_per_step: sections.iter().map(|s| s.flops * s.calls).sum(),
        seconds: sections.iter().map(|s| s.seconds * s.calls as f64).sum(),
        sections,
        planning_seconds: 0.0,
    }
}

/// All kinds.
const KINDS: [Kind; Kinds::COUNT] = [
    Kind::Parameters,
    Kind::Master,
    Kind::Gradients,
    Kind::Optimizer,
    Kind::Activations,
    Kind::InFlight,
    Kind::Workspace,
    Kind::Data,
    Kind::Holes,
];

fn state_kind(role: Role, cast: bool) -> Kind {
    match role {
        Role::Parameter if cast => Kind::Master,
        Role::Parameter => Kind::Parameters,
        Role::Optimizer => Kind::Optimizer,
        Role::Accumulator => Kind::Gradients,
        Role::Cache => Kind::Data,
        Role::Weights => Kind::Parameters,
        Role::Saved => Kind::InFlight,
    }
}

/// Whether products read casts of the parameters and not the parameters themselves.
fn casts_weights(g: &Graph) -> bool {
    g.nodes().iter().any(|n| is_weight_cast(g, n.outs[0]))
}

fn is_weight_cast(g: &Graph, v: ValueId) -> bool {
    let Def::Node(n, _) = g.value(v).def else { return false };
    let node = g.node(n);
    let from_state = |v: &ValueId| matches!(g.value(*v).def, Def::State(_));
    matches!(&node.op, Op::Map(m) if m.cotangent.is_some())
        && node.ins.iter().all(from_state)
        && g.ty(v).dtype.is_half()
}

fn value_kind(g: &Graph, live: &Live, v: ValueId) -> Kind {
    let Def::Node(n, _) = g.value(v).def else { return Kind::Data };
    if g.outputs.iter().any(|o| o.1 == v) {
        return Kind::Data;
    }
    if is_weight_cast(g, v) {
        return Kind::Parameters;
    }
    match g.node(n).phase {
        Phase::Update => Kind::Workspace,
        _ if g.assigns.iter().any(|a| live.roots[a.1.index()] == v) => Kind::Gradients,
        Phase::Backward if is_bucket(g, n, v) => Kind::Gradients,
        _ => Kind::Activations,
    }
}

/// Whether a value is joined of several into storage: a bucket of gradients.
fn is_bucket(g: &Graph, node: NodeId, v: ValueId) -> bool {
    let stored = g.ty(v).axes.iter().all(|&a| g.axes()[a].storage);
    matches!(g.node(node).op, Op::View(View::Concat { .. })) && stored
}

fn piece_kind(g: &Graph, live: &Live, piece: &Piece) -> Kind {
    match piece.owner {
        Owner::Value(v) => value_kind(g, live, v),
        Owner::Workspace(_) => Kind::Workspace,
    }
}

fn section_report(s: &Section, live: &Live, calls: u64, machine: &Machine) -> SectionReport {
    let caches = s.graph.states().iter().filter(|x| x.role == Role::Cache);
    let data_bytes = caches.map(|x| s.graph.ty(x.value).bytes(s.axes())).sum();
    let mut alive = vec![Kinds { data_bytes, ..Kinds::default() }; live.steps + 1];
    for piece in &live.pieces {
        let kind = piece_kind(&s.graph, live, piece);
        for moment in &mut alive[piece.from..=piece.to.min(live.steps)] {
            *moment.of(kind) += piece.bytes.next_multiple_of(aerogel_machine::ALIGN);
        }
    }
    alive.truncate(live.steps.max(1));
    let (mut flops, mut nanoseconds) = (0, 0.0);
    let mut names = vec![];
    for step in &s.steps {
        match step {
            Step::Kernel { claim, .. } => {
                let mut scope = "";
                for n in &claim.nodes {
                    let node = s.graph.node(*n);
                    scope = &node.scope;
                    flops +=
                        node.op.flops(s.axes(), &s.graph.in_types(node), &s.graph.out_types(node));
                }
                nanoseconds += claim.nanoseconds;
                names.push(format!("{} {scope}", claim.kernel));
            }
            Step::Assign { to, .. } => {
                nanoseconds += machine.launch_nanoseconds;
                names.push(format!("copy {}", s.graph.states()[to.index()].name));
            }
        }
    }
    let largest = alive.iter().map(Kinds::total).max().unwrap_or(0);
    let base = live.pieces.iter().map(|p| p.offset).min().unwrap_or(live.end_bytes);
    SectionReport {
        name: s.name.clone(),
        calls,
        kernels: s.steps.len(),
        flops,
        seconds: nanoseconds * 1e-9,
        transient_bytes: live.end_bytes.saturating_sub(base) + data_bytes,
        largest_live_bytes: largest,
        timeline: names
            .into_iter()
            .zip(alive)
            .map(|(step, alive)| Moment { step, alive })
            .collect(),
        messages: messages(s),
    }
}

fn messages(s: &Section) -> Vec<Message> {
    let g = &s.graph;
    let message = |(step, node): (usize, &Node)| {
        let Op::Collective(op) = &node.op else { return None };
        let name = |m: &u8| g.axes().mesh.0[usize::from(*m)].0.clone();
        let bytes = |v: ValueId| g.ty(v).bytes(g.axes());
        Some(Message {
            step,
            kind: op.kind_name(),
            over: op.over.iter().map(name).collect(),
            input_bytes: bytes(node.ins[0]),
            output_bytes: bytes(node.outs[0]),
            wire_bytes: op.wire_bytes(g.axes(), g.ty(node.ins[0])),
            scope: node.scope.to_string(),
        })
    };
    let node = |(i, step): (usize, &_)| match step {
        Step::Kernel { claim, .. } => Some((i, g.node(claim.nodes[0]))),
        Step::Assign { .. } => None,
    };
    s.steps.iter().enumerate().filter_map(node).filter_map(message).collect()
}

fn peak_values(s: &Section, live: &Live, at: usize) -> Vec<Share> {
    let g = &s.graph;
    let alive = live.pieces.iter().filter(|p| p.from <= at && at <= p.to);
    let mut shares: Vec<Share> = alive
        .map(|p| {
            let name = match p.owner {
                Owner::Value(v) => match g.value(v).def {
                    Def::Input(i) => g.inputs()[i as usize].name.clone(),
                    Def::Node(n, _) => {
                        let node = g.node(n);
                        let name = match node.op {
                            Op::View(View::Concat { .. }) => "concat",
                            _ => node.op.name(),
                        };
                        format!("{} {name} {}", node.scope, g.ty(v).show(g.axes()))
                    }
                    Def::State(_) => String::new(),
                },
                Owner::Workspace(_) => "workspace of the kernel".to_owned(),
            };
            Share { name, kind: piece_kind(g, live, p), bytes: p.bytes }
        })
        .collect();
    shares.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.name.cmp(&b.name)));
    shares.truncate(12);
    shares
}
