//! Reverse-mode differentiation, as a function on graphs: the gradient is more graph.

use crate::expr::Expr;
use crate::graph::{Def, Graph, Node, Phase};
use crate::ops::{Build, GradSite, Op, OpError};
use crate::types::{DType, NodeId, Type, ValueId};

/// Appends the gradient of a scalar with respect to values; `None` where it does not depend on one.
///
/// Only cotangents on a path from `wrt` to `of` are built. Contributions to one value are added in
/// one node, the last reader's first, so the order of sums is a fact of the graph. A cotangent has
/// its value's dtype, or what the defining op says (a cast of a master weight takes f32, and so
/// does a view of it); its axes are the value's, perhaps in another order. Nodes are appended in
/// phase `Backward`, at the scope of the node that they differentiate; what follows is appended
/// where it was before.
///
/// # Errors
/// `of` is not a scalar, or an op on the path has no gradient.
pub fn gradients(
    g: &mut Graph,
    of: ValueId,
    wrt: &[ValueId],
) -> Result<Vec<Option<ValueId>>, OpError> {
    if !g.ty(of).axes.is_empty() {
        let got = g.ty(of).show(g.axes());
        return Err(OpError::new("gradients", format!("wants a scalar, got {got}")));
    }
    let forward = g.nodes().len();
    let needed = depends_on(g, wrt);
    let mut pending: Vec<Vec<ValueId>> = vec![vec![]; g.values().len()];
    let (scope, phase) = g.cursor();
    g.at(&"".into(), Phase::Backward);
    let one = g.constant(1.0, Type::new(DType::F32, []))?;
    pending[of.index()].push(one);
    let mut total: Vec<Option<ValueId>> = vec![None; g.values().len()];
    for n in (0..forward).rev() {
        let node = g.nodes()[n].clone();
        if !node.outs.iter().any(|v| needed[v.index()]) {
            continue;
        }
        g.at(&node.scope, Phase::Backward);
        let douts = node
            .outs
            .iter()
            .map(|v| sum_up(g, *v, &pending[v.index()]))
            .collect::<Result<Vec<_>, _>>()?;
        node.outs.iter().zip(&douts).for_each(|(v, d)| total[v.index()] = *d);
        let wanted = node.ins.iter().any(|v| needed[v.index()]);
        if !wanted || douts.iter().all(Option::is_none) {
            continue;
        }
        for (v, d) in node.ins.iter().zip(cotangents(g, NodeId(n as u32), &node, &douts, &needed)?)
        {
            pending[v.index()].extend(d.filter(|_| needed[v.index()]));
        }
    }
    let result = wrt
        .iter()
        .map(|v| match g.value(*v).def {
            Def::Node(..) => Ok(total[v.index()]),
            _ => sum_up(g, *v, &pending[v.index()]),
        })
        .collect();
    g.at(&scope, phase);
    result
}

fn cotangents(
    g: &mut Graph,
    id: NodeId,
    node: &Node,
    douts: &[Option<ValueId>],
    needed: &[bool],
) -> Result<Vec<Option<ValueId>>, OpError> {
    let wanted: Vec<bool> = node.ins.iter().map(|v| needed[v.index()]).collect();
    let dtypes: Vec<DType> = node.ins.iter().map(|v| cotangent_dtype(g, *v)).collect();
    let site = GradSite {
        node: id,
        ins: &node.ins,
        outs: &node.outs,
        douts,
        wanted: &wanted,
        dtypes: &dtypes,
    };
    let found = node.op.grad(&site, g).map_err(|mut e| {
        e.scope = node.scope.to_string();
        e
    })?;
    found
        .into_iter()
        .zip(dtypes)
        .map(|(d, dtype)| d.map(|d| typed(g, d, dtype)).transpose())
        .collect()
}

/// The cotangent in the dtype that its value wants: some rules hand on what they were given.
fn typed(g: &mut Graph, d: ValueId, dtype: DType) -> Result<ValueId, OpError> {
    if g.ty(d).dtype == dtype {
        return Ok(d);
    }
    let out = Type { dtype, axes: g.ty(d).axes.clone() };
    g.map_to(&[d], out, &|v| v[0].clone())
}

/// A view of a cast is the same elements: it takes its cotangent as the cast does.
fn cotangent_dtype(g: &Graph, v: ValueId) -> DType {
    let Def::Node(n, _) = g.value(v).def else { return g.ty(v).dtype };
    let node = g.node(n);
    match &node.op {
        Op::View(_) => cotangent_dtype(g, node.ins[0]),
        op => op.cotangent_dtype().unwrap_or(g.ty(v).dtype),
    }
}

/// Which values depend on one of `wrt` (and carry gradients).
fn depends_on(g: &Graph, wrt: &[ValueId]) -> Vec<bool> {
    let mut needed = vec![false; g.values().len()];
    wrt.iter().for_each(|v| needed[v.index()] = true);
    for node in g.nodes() {
        if node.ins.iter().any(|v| needed[v.index()]) {
            for v in &node.outs {
                needed[v.index()] = g.ty(*v).dtype.is_float();
            }
        }
    }
    needed
}

/// One value for all contributions; the sum is taken in f32 and rounded once.
fn sum_up(g: &mut Graph, of: ValueId, parts: &[ValueId]) -> Result<Option<ValueId>, OpError> {
    match parts {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        _ => {
            let out = Type::new(cotangent_dtype(g, of), g.ty(of).axes.iter().copied());
            let sum = |v: &[Expr]| v[1..].iter().fold(v[0].clone(), |s, t| s + t);
            g.map_to(parts, out, &sum).map(Some)
        }
    }
}
