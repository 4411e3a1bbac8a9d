//! Machine profiles: what predicted times are made from, and what devices time beside them.

use crate::program::{Section, Step};
use crate::target::Uses;
use aerogel_graph::{Build, Cost, Graph, NodeId, Op, Phase};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a machine reaches, roughly; `bench` will measure it.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// For people.
    pub name: String,
    /// Worker threads.
    pub threads: usize,
    /// Memory that a run may take.
    pub memory_bytes: u64,
    /// Sustained f32 product rate of all threads, FLOP/s.
    pub flops_per_second: f64,
    /// Sustained copy rate, bytes/s.
    pub bytes_per_second: f64,
    /// Cost of starting one kernel.
    pub launch_nanoseconds: f64,
}

impl Machine {
    /// A CPU of so many threads, with cautious figures of a server core.
    pub fn cpu(threads: usize, memory_bytes: u64) -> Machine {
        Machine {
            name: format!("cpu, {threads} threads"),
            threads,
            memory_bytes,
            flops_per_second: 100e9 * threads as f64,
            bytes_per_second: 12e9 * (threads as f64).min(4.0),
            launch_nanoseconds: 3000.0,
        }
    }

    /// An NVIDIA H100 of 80 GB (SXM), with what its kernels sustain on bf16. The threads are the
    /// host's, which feeds it.
    pub fn h100() -> Machine {
        Machine {
            name: "NVIDIA H100 80GB HBM3".to_owned(),
            threads: 1,
            memory_bytes: 85_520_809_984,
            flops_per_second: 600e12,
            bytes_per_second: 2.6e12,
            launch_nanoseconds: 2000.0,
        }
    }

    /// The roofline time of some work.
    pub fn nanoseconds(&self, cost: Cost) -> f64 {
        let compute = cost.flops as f64 / self.flops_per_second;
        let traffic = cost.bytes as f64 / self.bytes_per_second;
        self.launch_nanoseconds + 1e9 * compute.max(traffic)
    }
}

/// One run of a step of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The section, by position in the program.
    pub section: usize,
    /// The step, by position in the section.
    pub step: usize,
    /// Nanoseconds since timing began.
    pub start_nanoseconds: u64,
    /// How long it took.
    pub nanoseconds: u64,
}

/// How long one step of a section took, over all runs since timing began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The section, by position in the program.
    pub section: usize,
    /// The step, by position in the section.
    pub step: usize,
    /// Runs.
    pub calls: u64,
    /// Time of all of them.
    pub nanoseconds: u64,
}

impl Timing {
    /// The sums of spans, by section and step.
    pub fn of(spans: &[Span]) -> Vec<Timing> {
        let mut sums: BTreeMap<(usize, usize), (u64, u64)> = BTreeMap::new();
        for span in spans {
            let sum = sums.entry((span.section, span.step)).or_default();
            *sum = (sum.0 + 1, sum.1 + span.nanoseconds);
        }
        let timing =
            |((section, step), (calls, nanoseconds))| Timing { section, step, calls, nanoseconds };
        sums.into_iter().map(timing).collect()
    }
}

/// What a step of a section is for: by this a training step's time is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Contractions of two operands, with the maps that run as their epilogue and the sums of an
    /// operand beside them.
    Product,
    /// Attention.
    Attention,
    /// The output layer with its cross entropy.
    LinearCe,
    /// Norms.
    Norm,
    /// Element-wise maps, and reductions with the maps before them.
    Map,
    /// Rows taken from tables, and added to them.
    Rows,
    /// Elements that only move: permutations, views that are copied, assignments.
    Copy,
    /// Collectives.
    Exchange,
    /// The optimizer, whatever it is made of.
    Update,
}

impl Kind {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Product => "product",
            Kind::Attention => "attention",
            Kind::LinearCe => "linear_ce",
            Kind::Norm => "norm",
            Kind::Map => "map",
            Kind::Rows => "rows",
            Kind::Copy => "copy",
            Kind::Exchange => "exchange",
            Kind::Update => "update",
        }
    }

    fn of(g: &Graph, nodes: &[NodeId]) -> Kind {
        let first = g.node(nodes[0]);
        let product = |n: &NodeId| {
            let node = g.node(*n);
            matches!(node.op, Op::Einsum(_)) && node.ins.len() == 2
        };
        match &first.op {
            Op::Collective(_) => Kind::Exchange,
            _ if first.phase == Phase::Update => Kind::Update,
            _ if nodes.iter().any(product) => Kind::Product,
            Op::Attend(_) | Op::AttendGrad(_) | Op::MergeAttend(_) => Kind::Attention,
            Op::LinearCe(_) | Op::LinearCeGrad(_) | Op::LinearLse(_) => Kind::LinearCe,
            Op::Norm(_) | Op::NormGrad(_) => Kind::Norm,
            Op::Map(_) | Op::Reduce(_) => Kind::Map,
            Op::Gather(_) | Op::Scatter(_) => Kind::Rows,
            Op::View(_) | Op::Einsum(_) => Kind::Copy,
        }
    }
}

/// What one step of a section does, for the account of a device's [`Timing`]s.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    /// Name of the kernel; `assign` for a copy into a state.
    pub kernel: &'static str,
    /// What it is for.
    pub kind: Kind,
    /// Part of the step.
    pub phase: Phase,
    /// Where in the model its first node stands, as a dotted path.
    pub scope: Arc<str>,
    /// Its FLOPs, and the bytes of what it reads and writes once each: values inside of the region
    /// count for nothing, a table of which rows are taken counts its rows.
    pub cost: Cost,
}

impl Section {
    /// What each step does, in their order.
    pub fn accounts(&self) -> Vec<Account> {
        let (g, uses) = (&self.graph, Uses::new(&self.graph));
        let account = |step: &Step| match step {
            Step::Kernel { claim, .. } => {
                let first = g.node(claim.nodes[0]);
                Account {
                    kernel: claim.kernel,
                    kind: Kind::of(g, &claim.nodes),
                    phase: first.phase,
                    scope: first.scope.clone(),
                    cost: cost(g, &uses, &claim.nodes),
                }
            }
            Step::Assign { from, to } => Account {
                kernel: "assign",
                kind: Kind::Copy,
                phase: Phase::Update,
                scope: g.states()[to.index()].name.as_str().into(),
                cost: Cost { flops: 0, bytes: 2 * g.ty(*from).bytes(g.axes()) },
            },
        };
        self.steps.iter().map(account).collect()
    }
}

fn cost(g: &Graph, uses: &Uses, nodes: &[NodeId]) -> Cost {
    let mut sum = Cost::default();
    for n in nodes {
        let node = g.node(*n);
        let cost = node.op.cost(g.axes(), &g.in_types(node), &g.out_types(node));
        sum.flops += cost.flops;
        sum.bytes += match &node.op {
            // As many rows as there are indices, read from the table and written.
            Op::Gather(_) => 2 * g.out_types(node).iter().map(|t| t.bytes(g.axes())).sum::<u64>(),
            _ => cost.bytes,
        };
    }
    let ends = uses.imports(g, nodes).into_iter().chain(uses.exports(g, nodes));
    sum.bytes = sum.bytes.min(ends.map(|v| g.ty(v).bytes(g.axes())).sum());
    sum
}
