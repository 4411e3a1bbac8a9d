//! Operands that have to lie in a certain way get a copy that does.

use crate::error::PlanError;
use crate::layout::{View, is_row_major, part_axes, wholes, windows};
use aerogel_graph::ops::{Map, View as ViewOp};
use aerogel_graph::{Build, Def, Expr, Graph, Op, Type, ValueId};
use std::collections::HashMap;

/// The copies that a node's inputs need, by position: for each the op that makes it.
type Wanted = Vec<Option<Op>>;

/// The graph with identity maps before parts of concatenations and operands of collectives that do
/// not lie as they should. No concatenation along the outermost axis is a kernel then: whoever
/// makes a part writes it where it belongs. No collective sees gaps.
///
/// # Errors
/// None for a verified graph.
pub(crate) fn copied(g: Graph) -> Result<Graph, PlanError> {
    let views = windows(&g);
    let mut wanted: HashMap<usize, Wanted> = parts(&g, &views);
    for (n, node) in g.nodes().iter().enumerate() {
        if matches!(node.op, Op::Collective(_)) && !is_message(&g, &views, node.ins[0]) {
            wanted.insert(n, vec![Some(identity(g.ty(node.ins[0]).clone()))]);
        }
    }
    if wanted.is_empty() {
        return Ok(g);
    }
    let mut next = 0;
    Ok(g.rewrite(|out, node, ins| {
        let copies = wanted.get(&next);
        next += 1;
        let Some(copies) = copies else { return Ok(None) };
        let mut ins = ins.to_vec();
        for (v, copy) in ins.iter_mut().zip(copies) {
            if let Some(copy) = copy {
                let reads = if is_constant(copy) { vec![] } else { vec![*v] };
                *v = out.emit(copy.clone(), &reads)?[0];
            }
        }
        out.emit(node.op.clone(), &ins).map(Some)
    })?)
}

fn identity(out: Type) -> Op {
    Map { expr: Expr::In(0), out, cotangent: None }.into()
}

fn is_constant(op: &Op) -> bool {
    matches!(op, Op::Map(Map { expr: Expr::Const(_), .. }))
}

/// Parts of concatenations that lie in an input, in a state, or in the output of a concatenation
/// already. Integers stay as they are: a map would round large ones.
fn parts(g: &Graph, views: &[View]) -> HashMap<usize, Wanted> {
    let mut wanted = HashMap::new();
    for whole in wholes(g, views) {
        let node = g.node(whole.node);
        let out = g.ty(node.outs[0]);
        let Op::View(ViewOp::Concat { axes, into }) = &node.op else { continue };
        if !out.dtype.is_float() || !whole.roots.contains(&None) {
            continue;
        }
        let copy = |i: usize| {
            if whole.roots[i].is_some() {
                return None;
            }
            let ty = Type::new(out.dtype, part_axes(out, *into, axes[i]));
            match g.op_of(node.ins[i]) {
                // Made again: a copy would keep the whole that got the first one alive.
                Some(Op::Map(Map { expr: expr @ Expr::Const(_), .. })) => {
                    Some(Map { expr: expr.clone(), out: ty, cotangent: None }.into())
                }
                _ => Some(identity(ty)),
            }
        };
        wanted.insert(whole.node.index(), (0..axes.len()).map(copy).collect());
    }
    wanted
}

/// Whether a collective can read the value as it lies: without gaps, and in the same place for
/// every micro-batch.
fn is_message(g: &Graph, views: &[View], v: ValueId) -> bool {
    let view = &views[v.index()];
    let moves = matches!(g.value(view.root).def, Def::State(s) if is_multiple(g, s));
    !moves && is_row_major(g.axes(), &g.ty(v).axes, &view.strides)
}

/// Whether there are several copies of a state, and which one is meant depends on the run.
pub(crate) fn is_multiple(g: &Graph, state: aerogel_graph::StateId) -> bool {
    g.states()[state.index()].copies > 1
}
