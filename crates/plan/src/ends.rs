//! The ends of a section: what outputs and assignments read must be there when the section is over.

use crate::error::PlanError;
use crate::layout::{View, is_row_major, windows};
use crate::operands::is_multiple;
use aerogel_graph::{Build, Def, Expr, Graph, Phase, Type, ValueId};
use std::collections::{HashMap, HashSet};

/// The graph with copies of what leaves it and could not be read in place at the end: a window with
/// gaps, which neither host nor state can take, the old value of a state that gets a new one, and a
/// state of which there are several copies.
pub(crate) fn copied(mut g: Graph) -> Result<Graph, PlanError> {
    let views = windows(&g);
    let new: HashSet<ValueId> = g.assigns.iter().map(|a| g.states()[a.0.index()].value).collect();
    let needs = |g: &Graph, v: ValueId| {
        let view: &View = &views[v.index()];
        let gone = match g.value(view.root).def {
            Def::State(s) => new.contains(&view.root) || is_multiple(g, s),
            _ => false,
        };
        gone || !is_row_major(g.axes(), &g.ty(v).axes, &view.strides)
    };
    let phase = g.nodes().last().map_or(Phase::Forward, |n| n.phase);
    g.at(&"copy".into(), phase);
    let mut copies: HashMap<ValueId, ValueId> = HashMap::new();
    let mut copy = |g: &mut Graph, v: ValueId| -> Result<ValueId, PlanError> {
        if !needs(g, v) {
            return Ok(v);
        }
        if let Some(&known) = copies.get(&v) {
            return Ok(known);
        }
        let out = Type::clone(g.ty(v));
        let made = g.map_to(&[v], out, &|x: &[Expr]| x[0].clone())?;
        copies.insert(v, made);
        Ok(made)
    };
    for i in 0..g.outputs.len() {
        let v = g.outputs[i].1;
        g.outputs[i].1 = copy(&mut g, v)?;
    }
    for i in 0..g.assigns.len() {
        let v = g.assigns[i].1;
        g.assigns[i].1 = copy(&mut g, v)?;
    }
    Ok(g)
}
