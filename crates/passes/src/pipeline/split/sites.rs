//! Where each value is made: in which section of which stage.

use crate::PassError;
use crate::pipeline::schedule::Pass;
use aerogel_graph::ops::View;
use aerogel_graph::{Build, Def, Graph, Node, Op, Phase, ValueId};

/// A virtual stage, and its forward or its backward.
pub type Section = (usize, Pass);

/// Whether a value of one section can reach another within a micro-batch.
fn reaches(from: Section, to: Section) -> bool {
    match (from.1, to.1) {
        (Pass::Forward, Pass::Forward) => from.0 <= to.0,
        (Pass::Forward, Pass::Backward) => true,
        (Pass::Backward, Pass::Backward) => from.0 >= to.0,
        _ => false,
    }
}

/// What a view shows that is the same elements, or some of them, without a copy.
pub fn shown(g: &Graph, v: ValueId) -> Option<ValueId> {
    let Def::Node(n, _) = g.value(v).def else { return None };
    let node = g.node(n);
    let costs_nothing = matches!(
        node.op,
        Op::View(
            View::Split { .. } | View::Merge { .. } | View::Rename { .. } | View::Slice { .. }
        )
    );
    costs_nothing.then(|| node.ins[0])
}

/// The section of a stage that has the graph's outputs: its last one. A graph without gradients, as
/// evaluation has it, has forwards alone.
pub fn last_pass(g: &Graph) -> Pass {
    let trains = g.nodes().iter().any(|node| node.phase == Phase::Backward);
    if trains { Pass::Backward } else { Pass::Forward }
}

/// For each value the section that makes it; `None` for what every section has or makes for itself:
/// inputs, states, and what views, casts and collectives make of them alone. A view is where its
/// source is.
pub fn sites(
    g: &Graph,
    stage_of: &dyn Fn(&str) -> usize,
    stages: usize,
) -> Result<Vec<Option<Section>>, PassError> {
    let mut made: Vec<Option<Section>> = vec![None; g.values().len()];
    let mut filled = vec![[false; 2]; stages];
    let last = finishing(g);
    for (n, node) in g.nodes().iter().enumerate() {
        if node.ins.iter().all(|v| made[v.index()].is_none()) && made_again(node) {
            continue;
        }
        let site = match shown(g, node.outs[0]) {
            Some(source) => made[source.index()],
            None => {
                let own = own_stage(node, stage_of, stages)?;
                let site = site(g, node, own, last[n], &made)?;
                filled[site.0][site.1 as usize] = true;
                Some(site)
            }
        };
        node.outs.iter().for_each(|v| made[v.index()] = site);
    }
    let passes = if last_pass(g) == Pass::Backward { 2 } else { 1 };
    for (stage, filled) in filled.into_iter().enumerate() {
        for (filled, section) in filled.into_iter().zip(["forward", "backward"]).take(passes) {
            if !filled {
                return Err(PassError::EmptyStage { stage, section });
            }
        }
    }
    Ok(made)
}

/// Ops that are made again in each section, rather than their results kept, if all that they read
/// is there anyway. A gathered weight is too large to keep, and a constant too small.
fn made_again(node: &Node) -> bool {
    match &node.op {
        Op::View(_) | Op::Collective(_) => true,
        Op::Map(map) => map.cotangent.is_some() || node.ins.is_empty(),
        _ => false,
    }
}

/// Nodes behind the last contraction or reduction of a gradient: the sums, casts, concatenations
/// and collectives that bring it to its output. They may span many layers, or stand nowhere.
fn finishing(g: &Graph) -> Vec<bool> {
    let readers = g.readers();
    let mut last = vec![false; g.nodes().len()];
    for (n, node) in g.nodes().iter().enumerate().rev() {
        let moves = matches!(node.op, Op::View(_) | Op::Map(_) | Op::Collective(_));
        let mut behind = node.outs.iter().flat_map(|v| &readers[v.index()]);
        last[n] = moves && behind.all(|reader| last[reader.index()]);
    }
    last
}

fn own_stage(
    node: &Node,
    stage_of: &dyn Fn(&str) -> usize,
    stages: usize,
) -> Result<usize, PassError> {
    let stage = stage_of(&node.scope);
    if stage < stages {
        return Ok(stage);
    }
    Err(PassError::NoSuchStage { scope: node.scope.to_string(), stage, stages })
}

fn site(
    g: &Graph,
    node: &Node,
    own: usize,
    finishing: bool,
    made: &[Option<Section>],
) -> Result<Section, PassError> {
    let site = match node.phase {
        Phase::Forward => (own, Pass::Forward),
        Phase::Backward => (backward_stage(g, node, own, finishing, made), Pass::Backward),
        Phase::Update => {
            let what = format!("{} at `{}` is of the update", node.op.name(), node.scope);
            return Err(PassError::NotAMicroBatch { what });
        }
    };
    for v in &node.ins {
        if let Some(from) = made[v.index()].filter(|from| !reaches(*from, site)) {
            let name = |(stage, pass): Section| match pass {
                Pass::Forward => format!("the forward of stage {stage}"),
                _ => format!("the backward of stage {stage}"),
            };
            let (maker, reader) = (name(from), name(site));
            return Err(PassError::ReadsAhead { scope: node.scope.to_string(), reader, maker });
        }
    }
    Ok(site)
}

/// Scopes are not all there is to it: autodiff sums the terms of a cotangent where the value was
/// made, and what finishes a gradient of several layers has the scope of none.
fn backward_stage(
    g: &Graph,
    node: &Node,
    own: usize,
    finishing: bool,
    made: &[Option<Section>],
) -> usize {
    let sites = || node.ins.iter().filter_map(|v| made[v.index()]);
    let nearest_of = |pass| sites().filter(move |s| s.1 == pass).map(|s| s.0).min();
    let behind = nearest_of(Pass::Backward);
    if let Some(stage) = behind.filter(|stage| finishing && *stage < own) {
        return stage;
    }
    let Some(nearest) = behind.into_iter().chain(nearest_of(Pass::Forward)).min() else {
        return own;
    };
    let bytes = |v: &ValueId| g.value(*v).ty.bytes(g.axes());
    let smaller = bytes(&node.outs[0]) < node.ins.iter().map(bytes).sum();
    let sum = matches!(node.op, Op::Map(_)) && sites().count() == node.ins.len();
    if sum && smaller { nearest.max(own) } else { own }
}
