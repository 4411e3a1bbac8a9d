//! Contractions, with the maps after them as epilogue.

use super::{Call, Source};
use crate::compile::{Compiler, along, dtype};
use crate::kernel::{Dtype, KernelError};
use crate::kernels::gemm::{Axis, Contraction, Gemm, Role};
use aerogel_graph::ops::Einsum;
use aerogel_graph::{AxisId, Build, Node, NodeId, Op};

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
    let mut compiler = Compiler::new(g, s.strides, s.place, &space);
    compiler.product(c);
    for n in &nodes[1..] {
        let node = g.node(*n);
        if let Op::Map(map) = &node.op {
            compiler.map(node, map);
        }
    }
    s.uses.exports(g, nodes).into_iter().for_each(|v| compiler.store(v));
    let (program, inputs, outputs, draws) = compiler.finish();
    spec.epilogue = Some(program);
    spec.c = Dtype::F32;
    let operands = [a, b].into_iter().chain(inputs).chain(outputs);
    let mut call = Call::new(Gemm::new(&spec)?, operands);
    call.draws = draws;
    Ok(call)
}
