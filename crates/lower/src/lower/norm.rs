//! Norms and their gradients, with the maps after them as epilogue.

use super::epilogue::Epilogue;
use crate::source::Source;
use crate::spec::{Call, NormGradSpec, NormSpec, Normalisation, Output, Spec};
use aerogel_graph::{AxisId, Build, Node, NodeId, ValueId, ops};

/// The axes with the normalised one innermost, which is how rows are walked.
fn norm_space(s: &Source<'_>, x: ValueId, axis: AxisId) -> Vec<AxisId> {
    let others = s.graph.ty(x).axes.iter().copied().filter(|&a| a != axis);
    others.chain([axis]).collect()
}

fn normalisation(
    s: &Source<'_>,
    op: &ops::Norm,
    space: &[AxisId],
    gain: Option<ValueId>,
) -> Normalisation {
    Normalisation {
        sizes: s.sizes(space),
        center: op.center,
        eps: op.eps as f32,
        gain: gain.map(|v| s.operand(v, space)),
    }
}

/// The call of what `make` gives for the node alone, or with the rest of the region as its
/// epilogue. Its operands are those that it reads by rows, the finished rows where no epilogue
/// takes them, the others; then those of the epilogue.
fn call(
    s: &Source<'_>,
    nodes: &[NodeId],
    space: &[AxisId],
    rows: &[ValueId],
    others: impl IntoIterator<Item = Option<ValueId>>,
    make: impl FnOnce(Output) -> Spec,
) -> Call {
    let rows = rows.iter().copied();
    let others = others.into_iter().flatten();
    if nodes.len() == 1 {
        let finished = s.graph.node(nodes[0]).outs[0];
        let spec = make(Output::Store(s.operand(finished, space)));
        return Call::new(spec, rows.chain([finished]).chain(others));
    }
    let epilogue = Epilogue::new(s, nodes, space);
    let spec = make(Output::Epilogue(epilogue.program));
    let operands = rows.chain(others).chain(epilogue.operands);
    Call { draws: epilogue.draws, ..Call::new(spec, operands) }
}

/// A norm alone, or with the rest of the region as its epilogue.
pub(super) fn norm(s: &Source<'_>, op: &ops::Norm, node: &Node, nodes: &[NodeId]) -> Call {
    let x = node.ins[0];
    let gain = op.gain.then(|| node.ins[1]);
    let bias = op.bias.then(|| node.ins[1 + usize::from(op.gain)]);
    let space = norm_space(s, x, op.axis);
    call(s, nodes, &space, &[x], [gain, bias], |output| {
        Spec::Norm(NormSpec {
            norm: normalisation(s, op, &space, gain),
            x: s.operand(x, &space),
            bias: bias.map(|v| s.operand(v, &space)),
            output,
        })
    })
}

/// The gradient of a norm alone, or with the rest of the region as its epilogue.
pub(super) fn norm_grad(s: &Source<'_>, op: &ops::NormGrad, node: &Node, nodes: &[NodeId]) -> Call {
    let (x, dy) = (node.ins[0], node.ins[node.ins.len() - 1]);
    let gain = op.norm.gain.then(|| node.ins[1]);
    let dgain = op.norm.gain.then(|| node.outs[1]);
    let dbias = op.norm.bias.then(|| node.outs[1 + usize::from(op.norm.gain)]);
    let space = norm_space(s, x, op.norm.axis);
    let step = |v: ValueId| s.along(v, &[op.norm.axis])[0];
    call(s, nodes, &space, &[x, dy], [gain, dgain, dbias], |output| {
        Spec::NormGrad(NormGradSpec {
            norm: normalisation(s, &op.norm, &space, gain),
            x: s.operand(x, &space),
            dy: s.operand(dy, &space),
            output,
            dgain: dgain.map(step),
            dbias: dbias.map(step),
        })
    })
}
