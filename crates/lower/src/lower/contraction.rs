//! Contractions, with the maps after them as epilogue or the sum of an operand beside them, alone
//! or several that have an operand in common.

use super::epilogue::Epilogue;
use crate::draws::Draws;
use crate::regions;
use crate::source::Source;
use crate::spec::{Axis, Call, Contraction, OperandSums, Products, Role, Spec};
use aerogel_graph::ops::Einsum;
use aerogel_graph::{AxisId, Build, DType, Node, NodeId, Op, ValueId};

/// The product alone, with the region's sum of an operand, or with the rest of the region as its
/// epilogue.
pub(super) fn product(s: &Source<'_>, op: &Einsum, node: &Node, nodes: &[NodeId]) -> Call {
    let made = contraction(s, op, node, [node.ins[0], node.ins[1]], nodes);
    Call { draws: made.draws, ..Call::new(Spec::Product(made.spec), made.operands) }
}

/// The members of a region, each as it would be alone but for the order of its factors.
pub(super) fn products(s: &Source<'_>, members: &[Vec<NodeId>]) -> Call {
    let g = s.graph;
    let each = members.iter().filter_map(|nodes| {
        let node = nodes.iter().map(|n| g.node(*n)).find(|node| regions::is_product(node))?;
        let Op::Einsum(op) = &node.op else { return None };
        Some((op, node, nodes))
    });
    let each: Vec<_> = each.collect();
    let in_all = |v: &ValueId| each.iter().all(|(_, node, _)| node.ins.contains(v));
    let first = &each[0].1.ins;
    let common = first.iter().position(in_all).unwrap_or(0);
    let (mut list, mut operands) = (vec![], vec![]);
    for (op, node, nodes) in each {
        let turned = node.ins[common] != first[common];
        let factors = if turned { [1, 0] } else { [0, 1] };
        let made = contraction(s, op, node, factors.map(|i| node.ins[i]), nodes);
        list.push(made.spec);
        operands.extend(made.operands);
    }
    Call::new(Spec::Products(Products { common, members: list }), operands)
}

/// The sum of the region's contractions, with the maps behind it.
pub(super) fn summed(s: &Source<'_>, nodes: &[NodeId]) -> Call {
    let g = s.graph;
    let ops = nodes.iter().map(|n| g.node(*n));
    let terms: Vec<(&Node, &Einsum)> = ops
        .filter(|node| regions::is_product(node))
        .filter_map(|node| if let Op::Einsum(op) = &node.op { Some((node, op)) } else { None })
        .collect();
    let (first, out) = terms[0];
    let reads = |n: &&NodeId| g.node(**n).ins.contains(&first.outs[0]);
    let sum = nodes.iter().find(reads).map_or(first.outs[0], |n| g.node(*n).outs[0]);
    let sides = regions::sides(g, first, &out.out.axes);
    let (mut list, mut operands) = (vec![], vec![]);
    for (node, op) in &terms {
        let turned = regions::sides(g, node, &out.out.axes) != sides;
        let [a, b] = if turned { [1, 0] } else { [0, 1] }.map(|i| node.ins[i]);
        let mut labels: Vec<AxisId> = out.out.axes.to_vec();
        labels.extend(op.contracted(&g.in_types(node)));
        list.push(plain(s, &labels, [a, b, sum]));
        operands.extend([a, b]);
    }
    let Some(last) = list.last_mut() else { unreachable!("a region has contractions") };
    let epilogue = Epilogue::after(s, sum, nodes, &space(last, &out.out.axes));
    last.epilogue = Some(epilogue.program);
    last.c = DType::F32;
    operands.extend(epilogue.operands);
    Call { draws: epilogue.draws, ..Call::new(Spec::Summed(list), operands) }
}

/// A contraction, and what it works on.
struct Made {
    spec: Contraction,
    operands: Vec<ValueId>,
    draws: Draws,
}

fn contraction(
    s: &Source<'_>,
    op: &Einsum,
    node: &Node,
    [a, b]: [ValueId; 2],
    nodes: &[NodeId],
) -> Made {
    let (g, c) = (s.graph, node.outs[0]);
    let mut labels: Vec<AxisId> = op.out.axes.to_vec();
    labels.extend(op.contracted(&g.in_types(node)));
    let mut spec = plain(s, &labels, [a, b, c]);
    let sum = nodes.iter().map(|n| g.node(*n)).find(|n| matches!(n.op, Op::Reduce(_)));
    if let Some(sum) = sum {
        let (factor, out) = (usize::from(sum.ins[0] != a), sum.outs[0]);
        spec.sums = Some(OperandSums { factor, output: s.operand(out, &labels) });
        return Made { spec, operands: vec![a, b, c, out], draws: Draws::default() };
    }
    if nodes.len() == 1 {
        return Made { spec, operands: vec![a, b, c], draws: Draws::default() };
    }
    let epilogue = Epilogue::new(s, nodes, &space(&spec, &labels));
    spec.epilogue = Some(epilogue.program);
    spec.c = DType::F32;
    let operands = [a, b].into_iter().chain(epilogue.operands).collect();
    Made { spec, operands, draws: epilogue.draws }
}

/// What an epilogue walks: the axes of batch, M and N, in this order of roles, out of labels in the
/// order of the contraction's axes.
fn space(spec: &Contraction, labels: &[AxisId]) -> Vec<AxisId> {
    let of = |role: Role| {
        let list = labels.iter().zip(&spec.axes).filter(move |(_, axis)| axis.role == role);
        list.map(|(label, _)| *label)
    };
    [Role::Batch, Role::M, Role::N].into_iter().flat_map(of).collect()
}

/// The contraction over these axes, and nothing more.
fn plain(s: &Source<'_>, labels: &[AxisId], [a, b, c]: [ValueId; 3]) -> Contraction {
    let g = s.graph;
    let [sa, sb, sc] = [a, b, c].map(|v| s.along(v, labels));
    let axes = labels
        .iter()
        .enumerate()
        .map(|(i, &label)| Axis {
            role: match (g.ty(a).has(label), g.ty(b).has(label), g.ty(c).has(label)) {
                (true, true, true) => Role::Batch,
                (true, true, false) => Role::K,
                (true, false, _) => Role::M,
                _ => Role::N,
            },
            size: g.axes().size(label),
            a: sa[i],
            b: sb[i],
            c: sc[i],
        })
        .collect();
    Contraction {
        axes,
        a: g.ty(a).dtype,
        b: g.ty(b).dtype,
        c: g.ty(c).dtype,
        accumulate: false,
        alpha: 1.0,
        epilogue: None,
        sums: None,
    }
}
