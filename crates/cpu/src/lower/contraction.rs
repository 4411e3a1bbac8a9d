//! Contractions, with the maps after them as epilogue.

use super::epilogue::Epilogue;
use super::{Call, Source};
use crate::compile::{along, dtype};
use crate::kernel::{Dtype, KernelError};
use crate::kernels::gemm::{Axis, Contraction, Gemm, Role};
use aerogel_graph::ops::Einsum;
use aerogel_graph::{AxisId, Build, Node, NodeId};

/// The product alone, or with the rest of the region as its epilogue.
pub(super) fn contraction(
    s: &Source<'_>,
    op: &Einsum,
    node: &Node,
    nodes: &[NodeId],
) -> Result<Call, KernelError> {
    let g = s.graph;
    let (a, b, c) = (node.ins[0], node.ins[1], node.outs[0]);
    let mut labels: Vec<AxisId> = op.out.axes.to_vec();
    labels.extend(op.contracted(&g.in_types(node)));
    let strides = |v| along(g, s.strides, v, &labels);
    let (sa, sb, sc) = (strides(a), strides(b), strides(c));
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
        a: dtype(g.ty(a).dtype),
        b: dtype(g.ty(b).dtype),
        c: dtype(op.out.dtype),
        accumulate: false,
        alpha: 1.0,
        epilogue: None,
        axes,
    };
    if nodes.len() == 1 {
        return Ok(Call::new(Gemm::new(&spec)?, [a, b, c]));
    }
    // The epilogue walks the axes of batch, M and N, in this order of roles.
    let of = |role: Role| {
        let list = labels.iter().zip(&spec.axes).filter(move |(_, axis)| axis.role == role);
        list.map(|(label, _)| *label).collect::<Vec<_>>()
    };
    let space = [of(Role::Batch), of(Role::M), of(Role::N)].concat();
    let epilogue = Epilogue::new(s, nodes, &space);
    spec.epilogue = Some(epilogue.program);
    spec.c = Dtype::F32;
    let operands = [a, b].into_iter().chain(epilogue.operands);
    Ok(Call { draws: epilogue.draws, ..Call::new(Gemm::new(&spec)?, operands) })
}
