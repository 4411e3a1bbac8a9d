//! The graphs of a recipe, after each pass.

use crate::error::TrainError;
use crate::layout::Layout;
use crate::plan_rank::trained;
use crate::sections::Sections;
use crate::setup::{self, Workspace};
use aerogel_graph::{Build, Def, Graph, Node, Op, Phase, Role, ValueId};
use aerogel_models as models;
use aerogel_recipe::Recipe;

/// Runs the passes of a recipe and shows `observer` the graph after each of them, with its name, in
/// the order in which they run; then those of all sections. Passes that the recipe does not ask
/// for are left out. The data need not be prepared.
///
/// # Errors
/// The model cannot be built, or a pass refuses the graph.
pub fn explain(
    recipe: &Recipe,
    workspace: &Workspace,
    observer: &mut dyn FnMut(&str, &Graph),
) -> Result<(), TrainError> {
    let model = setup::model(recipe, setup::vocabulary(recipe, workspace)?);
    let forward = models::train_graph(&model, recipe.train.batch)?;
    observer("forward", &forward);
    Sections::observed(recipe, &model, &Layout::of(recipe), forward, None, observer)?;
    Ok(())
}

/// A graph in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GraphFacts {
    /// Ops.
    pub nodes: usize,
    /// Inputs, states and results of ops.
    pub values: usize,
    /// Work.
    pub flops: u64,
    /// Trained numbers, of one rank where ranks cut them.
    pub parameters: u64,
    /// Activations that the forward leaves to the backward, bytes; what is a view of another value
    /// counts as that value, and what is made of parameters alone does not count.
    pub kept_bytes: u64,
    /// Ops in which ranks exchange bytes.
    pub collectives: usize,
}

impl GraphFacts {
    /// Counts.
    pub fn of(g: &Graph) -> GraphFacts {
        let flops = |n: &Node| n.op.flops(g.axes(), &g.in_types(n), &g.out_types(n));
        let is_message = |op: &Op| matches!(op, Op::Collective(c) if c.kind_name() != "keep");
        GraphFacts {
            nodes: g.nodes().len(),
            values: g.values().len(),
            flops: g.nodes().iter().map(flops).sum(),
            parameters: trained(g).values().sum(),
            kept_bytes: kept_bytes(g),
            collectives: g.nodes().iter().filter(|n| is_message(&n.op)).count(),
        }
    }
}

fn kept_bytes(g: &Graph) -> u64 {
    let mut of_data = vec![false; g.values().len()];
    for input in g.inputs() {
        of_data[input.value.index()] = true;
    }
    let saved = g.states().iter().filter(|s| s.role == Role::Saved);
    let mut bytes: u64 = saved.map(|s| g.ty(s.value).bytes(g.axes())).sum();
    let mut kept = vec![false; g.values().len()];
    for node in g.nodes() {
        let made_of_data = node.ins.iter().any(|v| of_data[v.index()]);
        node.outs.iter().for_each(|v| of_data[v.index()] = made_of_data);
        if node.phase == Phase::Backward {
            node.ins.iter().for_each(|v| kept[source(g, *v).index()] = true);
        }
    }
    for node in g.nodes().iter().filter(|n| n.phase == Phase::Forward) {
        let read = node.outs.iter().filter(|v| kept[v.index()] && of_data[v.index()]);
        bytes += read.map(|v| g.ty(*v).bytes(g.axes())).sum::<u64>();
    }
    bytes
}

/// What a view is a view of.
fn source(g: &Graph, mut v: ValueId) -> ValueId {
    while let Def::Node(n, _) = g.value(v).def {
        let node = g.node(n);
        if !matches!(node.op, Op::View(_)) || node.ins.len() != 1 || node.phase != Phase::Forward {
            break;
        }
        v = node.ins[0];
    }
    v
}
