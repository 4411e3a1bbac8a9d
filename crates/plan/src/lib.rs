//! From sections (graphs) to a program: regions, order, and one byte offset for every value.
//!
//! The one function to know is [`plan`]: it needs a [`Target`](aerogel_machine::Target), which has
//! no driver, so what it says is what a device will do, to the byte, before anything runs.
//! Invariant: the crate imports no backend, and every program that it gives has passed the checker
//! of [`check`], which knows nothing of how slots were chosen. Tests are in `tests/`.

pub mod check;
mod error;
mod layout;
mod live;
mod place;
mod report;
mod select;

pub use error::PlanError;
pub use place::pack;
pub use report::{Kind, Kinds, Moment, Report, SectionReport, Share};

use aerogel_graph::{Build, Def, Graph, Op, Role, StateId};
use aerogel_machine::{ALIGN, Machine, Program, Section, Slot, StateSlot, Target};

/// A section to plan, and how often a step runs it.
pub struct Ask {
    /// `micro.last`, `update`, `eval`, ...
    pub name: String,
    /// What it computes. States of equal name are one state in all sections.
    pub graph: Graph,
    /// Runs in one training step; 0 for sections outside of it.
    pub calls: u64,
}

/// A program, and what there is to say of it.
pub struct Plan {
    /// What a device loads.
    pub program: Program,
    /// What a user reads.
    pub report: Report,
}

/// Plans all sections over one arena: states first, then a transient region that they share.
///
/// # Errors
/// Sections disagree about a state, the target has no kernel for an op, or (a bug) the checker
/// found two live values in one place.
pub fn plan(asks: Vec<Ask>, target: &dyn Target, machine: &Machine) -> Result<Plan, PlanError> {
    let started = std::time::Instant::now();
    let asks = asks
        .into_iter()
        .map(|ask| {
            let graph = ask.graph.expanded(|node| target.expands(&node.op))?.pruned()?;
            Ok(Ask { graph, ..ask })
        })
        .collect::<Result<Vec<_>, PlanError>>()?;
    let (states, base, after_caches) = place_states(&asks)?;
    let mut sections = vec![];
    let mut lives = vec![];
    let mut end = base;
    for ask in &asks {
        let caches = ask.graph.states().iter().any(|s| s.role == Role::Cache);
        let from = if caches { after_caches } else { base };
        let (section, live) = plan_section(ask, &states, from, target)?;
        end = end.max(live.end_bytes);
        sections.push(section);
        lives.push(live);
    }
    let mut program =
        Program { sections, states, arena_bytes: end.next_multiple_of(ALIGN), hash: String::new() };
    program.hash = hash(&program);
    for section in &program.sections {
        check::section(section, &program)?;
    }
    let calls: Vec<u64> = asks.iter().map(|a| a.calls).collect();
    let mut report = report::report(&program, &lives, &calls, machine);
    report.planning_seconds = started.elapsed().as_secs_f64();
    Ok(Plan { program, report })
}

/// The states of all sections, in order of first appearance; the end of those that last, and of
/// the caches after them. Caches lie in the transient region: one lives from one run of its
/// section to the next, and no longer than until another kind of section runs.
fn place_states(asks: &[Ask]) -> Result<(Vec<StateSlot>, u64, u64), PlanError> {
    let (mut states, base) = place_role(asks, vec![], 0, |role| role != Role::Cache)?;
    let end;
    (states, end) = place_role(asks, states, base, |role| role == Role::Cache)?;
    Ok((states, base, end.max(base)))
}

fn place_role(
    asks: &[Ask],
    mut states: Vec<StateSlot>,
    mut offset: u64,
    wanted: impl Fn(Role) -> bool,
) -> Result<(Vec<StateSlot>, u64), PlanError> {
    let mut known = std::collections::HashMap::new();
    for ask in asks {
        for s in ask.graph.states().iter().filter(|s| wanted(s.role)) {
            let ty = ask.graph.ty(s.value);
            let axes = ty.axes.iter().map(|&a| {
                let axis = &ask.graph.axes()[a];
                (axis.name.clone(), axis.size)
            });
            let slot = StateSlot {
                name: s.name.clone(),
                role: s.role,
                dtype: ty.dtype,
                axes: axes.collect(),
                offset,
                bytes: ty.bytes(ask.graph.axes()),
                init: s.init,
            };
            match known.get(&s.name) {
                None => {
                    known.insert(s.name.clone(), states.len());
                    offset = (offset + slot.bytes).next_multiple_of(ALIGN);
                    states.push(slot);
                }
                Some(&i) => {
                    let old: &StateSlot = &states[i];
                    if (old.dtype, &old.axes) != (slot.dtype, &slot.axes) {
                        let (name, section) = (s.name.clone(), ask.name.clone());
                        return Err(PlanError::States { name, section });
                    }
                }
            }
        }
    }
    Ok((states, offset))
}

fn plan_section(
    ask: &Ask,
    states: &[StateSlot],
    base: u64,
    target: &dyn Target,
) -> Result<(Section, live::Live), PlanError> {
    let g = &ask.graph;
    let layout = layout::layout(g);
    let selected = select::select(g, &layout, target, &ask.name)?;
    let mut live = live::live(g, &layout, &selected);
    let offsets = place::place(&mut live, base, |id: StateId| {
        let name = &g.states()[id.index()].name;
        states.iter().find(|s| s.name == *name).map_or(0, |s| s.offset)
    });
    let slots = (0..g.values().len())
        .map(|v| {
            let view = &layout[v];
            let offset = offsets[view.root.index()]?;
            let bytes = (view.first * g.ty(view.root).dtype.bytes()) as u64;
            Some(Slot { offset: offset + bytes, strides: view.strides.clone() })
        })
        .collect();
    let steps = live.steps(&selected);
    let section = Section { name: ask.name.clone(), graph: g.clone(), slots, steps };
    Ok((section, live))
}

/// Whether a node only renames memory: a view whose output is a strided window of its input.
fn moves_nothing(g: &Graph, layout: &[layout::View], node: &aerogel_graph::Node) -> bool {
    matches!(node.op, Op::View(_))
        && node
            .outs
            .iter()
            .all(|v| layout[v.index()].root != *v && matches!(g.value(*v).def, Def::Node(..)))
}

fn hash(program: &Program) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&program.arena_bytes.to_le_bytes());
    for s in &program.states {
        hasher.update(format!("{} {} {:?}\n", s.name, s.offset, s.axes).as_bytes());
    }
    for s in &program.sections {
        hasher.update(s.name.as_bytes());
        for node in s.graph.nodes() {
            hasher.update(format!("{:?}", node.op).as_bytes());
        }
        for (slot, step) in s.slots.iter().flatten().zip(&s.steps) {
            hasher.update(format!("{slot:?}{step:?}").as_bytes());
        }
    }
    hasher.finalize().to_hex()[..16].to_owned()
}
