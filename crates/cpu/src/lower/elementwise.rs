//! Maps and reductions as tile programs; permutations and views that move bytes as copies.

use super::{Call, Source};
use crate::compile::{Compiler, along, dtype, operand};
use crate::kernel::{KernelError, Operand};
use crate::kernels::copy::{Copy, Fill};
use crate::kernels::map::Map;
use crate::kernels::reduce::{Fold, Reduce};
use aerogel_graph::ops::{self, View};
use aerogel_graph::{AxisId, Build, Node, NodeId, Op, ValueId};

/// A chain of maps, and the reduction at its end if there is one.
pub(super) fn region(s: &Source<'_>, nodes: &[NodeId]) -> Result<Call, KernelError> {
    let g = s.graph;
    let last = g.node(nodes[nodes.len() - 1]);
    let reduce = match &last.op {
        Op::Reduce(op) => Some(op),
        _ => None,
    };
    let first = g.node(nodes[0]);
    let space = match reduce {
        Some(_) => g.ty(last.ins[0]).axes.clone(),
        None => g.ty(first.outs[0]).axes.clone(),
    };
    let mut compiler = Compiler::new(g, s.strides, s.place, &space);
    for n in nodes {
        let node = g.node(*n);
        if let Op::Map(map) = &node.op {
            compiler.map(node, map);
        }
    }
    if let Some(op) = reduce {
        let value = compiler.value(last.ins[0]);
        let (program, inputs, _, draws) = compiler.finish();
        let reduced: Vec<bool> = space.iter().map(|a| op.over.contains(a)).collect();
        let fold = if op.fold == ops::Fold::Sum { Fold::Sum } else { Fold::Max };
        let out = operand(g, s.strides, last.outs[0], &space);
        let kernel = Reduce::new(&program, value, &reduced, &out, fold)?;
        let mut call = Call::new(kernel, inputs.into_iter().chain([last.outs[0]]));
        call.draws = draws;
        return Ok(call);
    }
    s.uses.exports(g, nodes).into_iter().for_each(|v| compiler.store(v));
    let (program, inputs, outputs, draws) = compiler.finish();
    let mut call = Call::new(Map::new(&program)?, inputs.into_iter().chain(outputs));
    call.draws = draws;
    Ok(call)
}

/// The same elements with the axes in another order.
pub(super) fn permutation(s: &Source<'_>, node: &Node) -> Result<Call, KernelError> {
    let space = &s.graph.ty(node.outs[0]).axes;
    let sizes = s.graph.axes().sizes(space);
    let (from, to) = (node.ins[0], node.outs[0]);
    let reads = operand(s.graph, s.strides, from, space);
    let writes = operand(s.graph, s.strides, to, space);
    copy(&sizes, Some(reads), writes, vec![(from, 0), (to, 0)])
}

/// Copies a value's elements, or writes zeros.
fn copy(
    sizes: &[usize],
    from: Option<Operand>,
    to: Operand,
    operands: Vec<(ValueId, isize)>,
) -> Result<Call, KernelError> {
    let call = match from {
        Some(from) => Call::new(Copy::new(sizes, &from, &to)?, []),
        None => Call::new(Fill::new(sizes, &to, 0.0)?, []),
    };
    Ok(Call { operands, ..call })
}

/// A view that has to move bytes: copies of its parts into the output.
pub(super) fn view(s: &Source<'_>, op: &View, node: &Node) -> Result<Vec<Call>, KernelError> {
    let g = s.graph;
    let out = node.outs[0];
    let at = |into: AxisId, n: usize| along(g, s.strides, out, &[into])[0] * n as isize;
    // Copies input `i` whole; `renamed` says what each of its axes is in the output.
    let part = |i: usize, first: isize, renamed: &dyn Fn(AxisId) -> Stride| {
        let from = node.ins[i];
        let space = &g.ty(from).axes;
        let strides = space.iter().map(|&a| renamed(a).of(s, out)).collect::<Vec<_>>();
        let to = Operand { dtype: dtype(g.ty(out).dtype), strides };
        let reads = operand(g, s.strides, from, space);
        copy(&g.axes().sizes(space), Some(reads), to, vec![(from, 0), (out, first)])
    };
    match op {
        View::Rename { from, to } => Ok(vec![part(0, 0, &|a| Stride::swap(a, *from, *to))?]),
        View::Slice { .. } => {
            let reason = "a slice is a window and moves nothing".to_owned();
            Err(KernelError::Unsupported { kernel: "view", what: reason })
        }
        View::Split { axis, into } => Ok(vec![part(0, 0, &|a| match a == *axis {
            true => Stride { axis: into[into.len() - 1], times: 1 },
            false => Stride { axis: a, times: 1 },
        })?]),
        View::Merge { axes, into } => {
            Ok(vec![part(0, 0, &|a| match axes.iter().position(|&m| m == a) {
                Some(p) => Stride { axis: *into, times: g.axes().count(&axes[p + 1..]) },
                None => Stride { axis: a, times: 1 },
            })?])
        }
        View::Pad { axis, before, into } => {
            let sizes = g.axes().sizes(&g.ty(out).axes);
            let all = operand(g, s.strides, out, &g.ty(out).axes);
            let zeros = copy(&sizes, None, all, vec![(out, 0)])?;
            let window = part(0, at(*into, *before), &|a| Stride::swap(a, *axis, *into))?;
            Ok(vec![zeros, window])
        }
        View::Concat { axes, into } => {
            let mut start = 0;
            let mut calls = vec![];
            for (i, &axis) in axes.iter().enumerate() {
                calls.push(part(i, at(*into, start), &|a| Stride::swap(a, axis, *into))?);
                start += g.axes().size(axis);
            }
            Ok(calls)
        }
    }
}

/// A multiple of the output's stride along an axis.
struct Stride {
    axis: AxisId,
    times: usize,
}

impl Stride {
    fn swap(axis: AxisId, from: AxisId, to: AxisId) -> Stride {
        Stride { axis: if axis == from { to } else { axis }, times: 1 }
    }

    fn of(&self, s: &Source<'_>, out: ValueId) -> isize {
        along(s.graph, s.strides, out, &[self.axis])[0] * self.times as isize
    }
}
