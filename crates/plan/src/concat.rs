//! Parts of concatenations that cannot be written in place get a copy that can.

use crate::error::PlanError;
use crate::layout::{part_axes, wholes, windows};
use aerogel_graph::ops::View;
use aerogel_graph::{Build, Expr, Graph, Op, Type};
use std::collections::HashMap;

/// The graph with an identity map before each part of a concatenation that lies in an input, in a
/// state, or in the output of a concatenation already. No concatenation along the outermost axis
/// is a kernel then: whoever makes a part writes it where it belongs.
///
/// Integers stay as they are: a map would round large ones.
pub(crate) fn copied(g: Graph) -> Result<Graph, PlanError> {
    let views = windows(&g);
    let mut wanted: HashMap<usize, Vec<bool>> = HashMap::new();
    for whole in wholes(&g, &views) {
        let is_float = g.ty(g.node(whole.node).outs[0]).dtype.is_float();
        if is_float && whole.roots.contains(&None) {
            let copies = whole.roots.iter().map(Option::is_none).collect();
            wanted.insert(whole.node.index(), copies);
        }
    }
    if wanted.is_empty() {
        return Ok(g);
    }
    let mut next = 0;
    Ok(g.rewrite(|out, node, ins| {
        let copies = wanted.get(&next);
        next += 1;
        let (Some(copies), Op::View(View::Concat { axes, into })) = (copies, &node.op) else {
            return Ok(None);
        };
        let whole = g.ty(node.outs[0]);
        let mut parts = ins.to_vec();
        for (i, part) in parts.iter_mut().enumerate().filter(|(i, _)| copies[*i]) {
            let ty = Type::new(whole.dtype, part_axes(whole, *into, axes[i]));
            *part = out.map_to(&[*part], ty, &|x: &[Expr]| x[0].clone())?;
        }
        out.emit(node.op.clone(), &parts).map(Some)
    })?)
}
