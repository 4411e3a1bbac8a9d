//! From sections (graphs) to a program: regions, order, and one byte offset for every value.
//!
//! The one function to know is [`plan`]: it needs a [`Target`](aerogel_machine::Target), which has
//! no driver, so what it says is what a device will do, to the byte, before anything runs.
//! What only rearranges memory costs nothing where placement can say it: views are windows, the
//! parts of a concatenation are written where the whole lies, new values of states in their slots.
//! Invariant: the crate imports no backend, and every program that it gives has passed the checker
//! of [`check`], which knows nothing of how slots were chosen. Tests are in `tests/`.

pub mod check;
mod ends;
mod error;
mod layout;
mod live;
mod operands;
mod order;
mod place;
mod report;
mod select;
mod states;
mod stores;

pub use error::PlanError;
pub use place::pack;
pub use report::{Kind, Kinds, Message, Moment, Report, SectionReport, Share};

use aerogel_graph::{Build, Graph, StateId, ValueId};
use aerogel_machine::{ALIGN, Machine, Program, Section, Slot, Step, Target};
use layout::Layout;
use states::States;

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
    let asks = each(asks, |ask| {
        let graph = ask.graph.expanded(|node| target.expands(&node.op))?.pruned()?;
        Ok(Ask { graph: ends::copied(operands::copied(graph)?)?, ..ask })
    })?;
    let states = States::place(&asks)?;
    let sections = each(asks.iter().collect(), |ask| plan_section(ask, &states, target, machine))?;
    let (sections, lives): (Vec<Section>, Vec<live::Live>) = sections.into_iter().unzip();
    let end = lives.iter().map(|l| l.end_bytes).max().unwrap_or(0).max(states.end_bytes);
    let mut program = Program {
        sections,
        states: states.slots,
        arena_bytes: end.next_multiple_of(ALIGN),
        hash: String::new(),
    };
    program.hash = hash(&program);
    each(program.sections.iter().collect(), |section| check::section(section, &program))?;
    let calls: Vec<u64> = asks.iter().map(|a| a.calls).collect();
    let mut report = report::report(&program, &lives, &calls, machine);
    report.planning_seconds = started.elapsed().as_secs_f64();
    Ok(Plan { program, report })
}

/// Works on all sections at once, each on its own thread; results in their order.
fn each<T: Send, U: Send>(
    items: Vec<T>,
    work: impl Fn(T) -> Result<U, PlanError> + Sync,
) -> Result<Vec<U>, PlanError> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = items.into_iter().map(|t| scope.spawn(move || work(t))).collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

fn plan_section(
    ask: &Ask,
    states: &States,
    target: &dyn Target,
    machine: &Machine,
) -> Result<(Section, live::Live), PlanError> {
    let g = &ask.graph;
    let layout = Layout::of(g);
    let selected = select::select(g, &layout, target, machine, &ask.name)?;
    let mut live = live::live(g, &layout, &selected);
    let offsets = place::place(&mut live, states.transient_base(g), |id: StateId| {
        states.offset(&g.states()[id.index()].name)
    });
    let slots = (0..g.values().len())
        .map(|v| {
            let view = layout.view(ValueId(v as u32));
            let offset = offsets[view.root.index()]?;
            let bytes = (view.first * g.ty(view.root).dtype.bytes()) as u64;
            Some(Slot { offset: offset + bytes, strides: view.strides.clone() })
        })
        .collect();
    let steps = live.steps(&selected);
    let section = Section { name: ask.name.clone(), graph: g.clone(), slots, steps };
    Ok((section, live))
}

/// Of all that decides what is run where; what a step is predicted to cost does not.
fn hash(program: &Program) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: String| {
        hasher.update(text.as_bytes());
    };
    add(format!("{}\n", program.arena_bytes));
    for s in &program.states {
        add(format!("{} {} {} {:?}\n", s.name, s.offset, s.dtype, s.axes));
    }
    for s in &program.sections {
        add(format!("{} {:?}\n", s.name, s.axes()));
        for node in s.graph.nodes() {
            add(format!("{:?} {:?} {:?}\n", node.op, node.ins, node.outs));
        }
        for (value, slot) in s.graph.values().iter().zip(&s.slots) {
            add(format!("{:?} {slot:?}\n", value.ty));
        }
        for step in &s.steps {
            add(match step {
                Step::Kernel { claim, workspace } => format!(
                    "{} {:?} {workspace} {} {:?}\n",
                    claim.kernel, claim.nodes, claim.workspace_bytes, claim.sums
                ),
                Step::Assign { from, to } => format!("{from:?} {to:?}\n"),
            });
        }
    }
    hasher.finalize().to_hex()[..16].to_owned()
}
