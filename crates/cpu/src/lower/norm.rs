//! Norms and their gradients, with the maps after them as epilogue.

use super::epilogue::Epilogue;
use super::{Call, Source};
use crate::compile::{along, operand};
use crate::kernel::KernelError;
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

/// A norm alone, or with the rest of the region as its epilogue.
pub(super) fn norm(
    s: &Source<'_>,
    op: &ops::Norm,
    node: &Node,
    nodes: &[NodeId],
) -> Result<Call, KernelError> {
    let (x, y) = (node.ins[0], node.outs[0]);
    let gain = op.gain.then(|| node.ins[1]);
    let bias = op.bias.then(|| node.ins[1 + usize::from(op.gain)]);
    let space = norm_space(s, x, op.axis);
    let spec = norm_spec(s, op, &space, gain, bias);
    let over = |v| operand(s.graph, s.strides, v, &space);
    if nodes.len() == 1 {
        let kernel = Norm::new(&spec, &over(x), Output::Store(&over(y)))?;
        return Ok(Call::new(kernel, [Some(x), Some(y), gain, bias].into_iter().flatten()));
    }
    let epilogue = Epilogue::new(s, nodes, &space);
    let kernel = Norm::new(&spec, &over(x), Output::Epilogue(&epilogue.program))?;
    let own = [Some(x), gain, bias].into_iter().flatten();
    let draws = epilogue.draws;
    Ok(Call { draws, ..Call::new(kernel, own.chain(epilogue.operands())) })
}

/// The gradient of a norm alone, or with the rest of the region as its epilogue.
pub(super) fn norm_grad(
    s: &Source<'_>,
    op: &ops::NormGrad,
    node: &Node,
    nodes: &[NodeId],
) -> Result<Call, KernelError> {
    let (x, dy, dx) = (node.ins[0], node.ins[node.ins.len() - 1], node.outs[0]);
    let gain = op.norm.gain.then(|| node.ins[1]);
    let dgain = op.norm.gain.then(|| node.outs[1]);
    let dbias = op.norm.bias.then(|| node.outs[1 + usize::from(op.norm.gain)]);
    let space = norm_space(s, x, op.norm.axis);
    let spec = norm_spec(s, &op.norm, &space, gain, None);
    let over = |v| operand(s.graph, s.strides, v, &space);
    let row = |v: ValueId| along(s.graph, s.strides, v, &[op.norm.axis])[0];
    let (dgain_step, dbias_step) = (dgain.map(row), dbias.map(row));
    let reads = [&over(x), &over(dy)];
    if nodes.len() == 1 {
        let output = Output::Store(&over(dx));
        let kernel = NormGrad::new(&spec, reads, output, dgain_step, dbias_step)?;
        let values = [Some(x), Some(dy), Some(dx), gain, dgain, dbias];
        return Ok(Call::new(kernel, values.into_iter().flatten()));
    }
    let epilogue = Epilogue::new(s, nodes, &space);
    let output = Output::Epilogue(&epilogue.program);
    let kernel = NormGrad::new(&spec, reads, output, dgain_step, dbias_step)?;
    let own = [Some(x), Some(dy), gain, dgain, dbias].into_iter().flatten();
    let draws = epilogue.draws;
    Ok(Call { draws, ..Call::new(kernel, own.chain(epilogue.operands())) })
}
