//! Contractions, with the maps after them as epilogue or the sum of an operand beside them.

use super::epilogue::Epilogue;
use crate::source::Source;
use crate::spec::{Axis, Call, Contraction, OperandSums, Role, Spec};
use aerogel_graph::ops::Einsum;
use aerogel_graph::{AxisId, Build, DType, Node, NodeId, Op};

/// The product alone, with the region's sum of an operand, or with the rest of the region as its
/// epilogue.
pub(super) fn contraction(s: &Source<'_>, op: &Einsum, node: &Node, nodes: &[NodeId]) -> Call {
    let g = s.graph;
    let (a, b, c) = (node.ins[0], node.ins[1], node.outs[0]);
    let mut labels: Vec<AxisId> = op.out.axes.to_vec();
    labels.extend(op.contracted(&g.in_types(node)));
    let [sa, sb, sc] = [a, b, c].map(|v| s.along(v, &labels));
    let axes: Vec<Axis> = labels
        .iter()
        .enumerate()
        .map(|(i, &label)| Axis {
            role: match (g.ty(a).has(label), g.ty(b).has(label), op.out.has(label)) {
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
    let mut spec = Contraction {
        a: g.ty(a).dtype,
        b: g.ty(b).dtype,
        c: op.out.dtype,
        accumulate: false,
        alpha: 1.0,
        epilogue: None,
        sums: None,
        axes,
    };
    let sum = nodes.iter().map(|n| g.node(*n)).find(|n| matches!(n.op, Op::Reduce(_)));
    if let Some(sum) = sum {
        let (factor, out) = (usize::from(sum.ins[0] != a), sum.outs[0]);
        spec.sums = Some(OperandSums { factor, output: s.operand(out, &labels) });
        return Call::new(Spec::Product(spec), [a, b, c, out]);
    }
    if nodes.len() == 1 {
        return Call::new(Spec::Product(spec), [a, b, c]);
    }
    // The epilogue walks the axes of batch, M and N, in this order of roles.
    let of = |role: Role| {
        let list = labels.iter().zip(&spec.axes).filter(move |(_, axis)| axis.role == role);
        list.map(|(label, _)| *label).collect::<Vec<_>>()
    };
    let space = [of(Role::Batch), of(Role::M), of(Role::N)].concat();
    let epilogue = Epilogue::new(s, nodes, &space);
    spec.epilogue = Some(epilogue.program);
    spec.c = DType::F32;
    let operands = [a, b].into_iter().chain(epilogue.operands);
    Call { draws: epilogue.draws, ..Call::new(Spec::Product(spec), operands) }
}
