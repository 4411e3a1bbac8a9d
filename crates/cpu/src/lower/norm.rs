//! Norms and their gradients, with the maps after them as epilogue.

use super::epilogue::Epilogue;
use super::{Call, Source};
use crate::compile::{along, operand};
use crate::kernel::{Kernel, KernelError};
use crate::kernels::norm::{Norm, NormGrad, NormSpec, Output};
use aerogel_graph::{AxisId, Build, Node, NodeId, ValueId, ops};

/// The axes with the normalised one innermost, which is how rows are walked.
fn norm_space(s: &Source<'_>, x: ValueId, axis: AxisId) -> Vec<AxisId> {
    let others = s.graph.ty(x).axes.iter().copied().filter(|&a| a != axis);
    others.chain([axis]).collect()
}

fn norm_spec(
    s: &Source<'_>,
    op: &ops::Norm,
    space: &[AxisId],
    gain: Option<ValueId>,
    bias: Option<ValueId>,
) -> NormSpec {
    let row = |v: ValueId| operand(s.graph, s.strides, v, space);
    NormSpec {
        sizes: s.graph.axes().sizes(space),
        center: op.center,
        eps: op.eps as f32,
        gain: gain.map(row),
        bias: bias.map(row),
    }
}

/// The call of the kernel that `make` gives for the node alone, or with the rest of the region as
/// its epilogue. Its operands are those that it reads by rows, the finished rows where no epilogue
/// takes them, the others; then those of the epilogue.
fn call<K: Kernel + 'static>(
    s: &Source<'_>,
    nodes: &[NodeId],
    space: &[AxisId],
    rows: &[ValueId],
    others: impl IntoIterator<Item = Option<ValueId>>,
    make: impl FnOnce(Output<'_>) -> Result<K, KernelError>,
) -> Result<Call, KernelError> {
    let rows = rows.iter().copied();
    let others = others.into_iter().flatten();
    if nodes.len() == 1 {
        let finished = s.graph.node(nodes[0]).outs[0];
        let kernel = make(Output::Store(&operand(s.graph, s.strides, finished, space)))?;
        return Ok(Call::new(kernel, rows.chain([finished]).chain(others)));
    }
    let epilogue = Epilogue::new(s, nodes, space);
    let kernel = make(Output::Epilogue(&epilogue.program))?;
    let operands = rows.chain(others).chain(epilogue.operands);
    Ok(Call { draws: epilogue.draws, ..Call::new(kernel, operands) })
}

/// A norm alone, or with the rest of the region as its epilogue.
pub(super) fn norm(
    s: &Source<'_>,
    op: &ops::Norm,
    node: &Node,
    nodes: &[NodeId],
) -> Result<Call, KernelError> {
    let x = node.ins[0];
    let gain = op.gain.then(|| node.ins[1]);
    let bias = op.bias.then(|| node.ins[1 + usize::from(op.gain)]);
    let space = norm_space(s, x, op.axis);
    let spec = norm_spec(s, op, &space, gain, bias);
    let reads = operand(s.graph, s.strides, x, &space);
    call(s, nodes, &space, &[x], [gain, bias], |output| Norm::new(&spec, &reads, output))
}

/// The gradient of a norm alone, or with the rest of the region as its epilogue.
pub(super) fn norm_grad(
    s: &Source<'_>,
    op: &ops::NormGrad,
    node: &Node,
    nodes: &[NodeId],
) -> Result<Call, KernelError> {
    let (x, dy) = (node.ins[0], node.ins[node.ins.len() - 1]);
    let gain = op.norm.gain.then(|| node.ins[1]);
    let dgain = op.norm.gain.then(|| node.outs[1]);
    let dbias = op.norm.bias.then(|| node.outs[1 + usize::from(op.norm.gain)]);
    let space = norm_space(s, x, op.norm.axis);
    let spec = norm_spec(s, &op.norm, &space, gain, None);
    let reads = [x, dy].map(|v| operand(s.graph, s.strides, v, &space));
    let step = |v: ValueId| along(s.graph, s.strides, v, &[op.norm.axis])[0];
    let (dgain_step, dbias_step) = (dgain.map(step), dbias.map(step));
    call(s, nodes, &space, &[x, dy], [gain, dgain, dbias], |output| {
        NormGrad::new(&spec, reads.each_ref(), output, dgain_step, dbias_step)
    })
}
