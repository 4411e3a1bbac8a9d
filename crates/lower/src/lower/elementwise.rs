//! Maps and reductions as programs; permutations and views that move bytes as copies.

use crate::compile::Compiler;
use crate::error::LowerError;
use crate::operand::Operand;
use crate::source::Source;
use crate::spec::{Call, CopySpec, FillSpec, ReduceSpec, Spec};
use aerogel_graph::ops::View;
use aerogel_graph::{AxisId, Build, Node, NodeId, Op, ValueId};

/// A chain of maps, and the reduction at its end if there is one.
pub(super) fn region(s: &Source<'_>, nodes: &[NodeId]) -> Call {
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
    let mut compiler = Compiler::new(s, &space);
    for n in nodes {
        let node = g.node(*n);
        if let Op::Map(map) = &node.op {
            compiler.map(node, map);
        }
    }
    if let Some(op) = reduce {
        let value = compiler.value(last.ins[0]);
        let (program, inputs, _, draws) = compiler.finish();
        let reduced = space.iter().map(|a| op.over.contains(a)).collect();
        let output = s.operand(last.outs[0], &space);
        let spec = ReduceSpec { program, value, reduced, output, fold: op.fold };
        let operands = inputs.into_iter().chain([last.outs[0]]);
        return Call { draws, ..Call::new(Spec::Reduce(spec), operands) };
    }
    s.uses.exports(g, nodes).into_iter().for_each(|v| compiler.store(v));
    let (program, inputs, outputs, draws) = compiler.finish();
    Call { draws, ..Call::new(Spec::Map(program), inputs.into_iter().chain(outputs)) }
}

/// The same elements with the axes in another order.
pub(super) fn permutation(s: &Source<'_>, node: &Node) -> Call {
    let space = &s.graph.ty(node.outs[0]).axes;
    let (from, to) = (node.ins[0], node.outs[0]);
    copy(s.sizes(space), s.operand(from, space), s.operand(to, space), [(from, 0), (to, 0)])
}

fn copy(sizes: Vec<usize>, from: Operand, to: Operand, operands: [(ValueId, isize); 2]) -> Call {
    let call = Call::new(Spec::Copy(CopySpec { sizes, from, to }), []);
    Call { operands: operands.to_vec(), ..call }
}

/// A view that has to move bytes: copies of its parts into the output.
pub(super) fn view(s: &Source<'_>, op: &View, node: &Node) -> Result<Vec<Call>, LowerError> {
    let g = s.graph;
    let out = node.outs[0];
    let at = |into: AxisId, n: usize| s.along(out, &[into])[0] * n as isize;
    // Copies input `i` whole; `renamed` says what each of its axes is in the output.
    let part = |i: usize, first: isize, renamed: &dyn Fn(AxisId) -> Stride| {
        let from = node.ins[i];
        let space = &g.ty(from).axes;
        let strides = space.iter().map(|&a| renamed(a).of(s, out)).collect::<Vec<_>>();
        let (reads, to) = (s.operand(from, space), s.with(out, strides));
        copy(s.sizes(space), reads, to, [(from, 0), (out, first)])
    };
    match op {
        View::Rename { from, to } => Ok(vec![part(0, 0, &|a| Stride::swap(a, *from, *to))]),
        View::Slice { .. } => {
            Err(LowerError::unsupported("view", "a slice is a window and moves nothing"))
        }
        View::Split { axis, into } => Ok(vec![part(0, 0, &|a| match a == *axis {
            true => Stride { axis: into[into.len() - 1], times: 1 },
            false => Stride { axis: a, times: 1 },
        })]),
        View::Merge { axes, into } => {
            Ok(vec![part(0, 0, &|a| match axes.iter().position(|&m| m == a) {
                Some(p) => Stride { axis: *into, times: g.axes().count(&axes[p + 1..]) },
                None => Stride { axis: a, times: 1 },
            })])
        }
        View::Pad { axis, before, into } => {
            let all = &g.ty(out).axes;
            let zeros = FillSpec { sizes: s.sizes(all), to: s.operand(out, all), value: 0.0 };
            let window = part(0, at(*into, *before), &|a| Stride::swap(a, *axis, *into));
            Ok(vec![Call::new(Spec::Fill(zeros), [out]), window])
        }
        View::Concat { axes, into } => {
            let mut start = 0;
            let mut calls = vec![];
            for (i, &axis) in axes.iter().enumerate() {
                calls.push(part(i, at(*into, start), &|a| Stride::swap(a, axis, *into)));
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
        s.along(out, &[self.axis])[0] * self.times as isize
    }
}
