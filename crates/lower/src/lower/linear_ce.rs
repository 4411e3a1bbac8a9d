//! The output layer in its three forms: losses, log-sum-exps of a piece, gradients.

use crate::operand::Operand;
use crate::source::Source;
use crate::spec::{Call, LinearCeSpec, Spec};
use aerogel_graph::{AxisId, Build, Node, ValueId, ops};

/// The output layer: all outputs are asked for by whoever fills in their operands.
struct Layer<'a> {
    s: &'a Source<'a>,
    /// Axes of x without the contracted one, then vocabulary and width.
    space: Vec<AxisId>,
    spec: LinearCeSpec,
    values: Vec<ValueId>,
}

impl<'a> Layer<'a> {
    fn new(s: &'a Source<'a>, [embed, vocab]: [AxisId; 2], node: &Node) -> Layer<'a> {
        let axes = s.graph.axes();
        let tokens = s.graph.ty(node.ins[0]).axes.iter().copied().filter(|&a| a != embed);
        let space: Vec<AxisId> = tokens.chain([vocab, embed]).collect();
        let input = |i: usize| s.operand(node.ins[i], &space);
        let spec = LinearCeSpec {
            rows: s.sizes(&space[..space.len() - 2]),
            vocab: axes.size(vocab),
            first_row: s.first_row(vocab),
            all_rows: axes[vocab].global_size(),
            width: axes.size(embed),
            x: input(0),
            w: input(1),
            targets: input(2),
            weights: None,
            given: None,
            ce: None,
            lse: None,
            hit: None,
            dx: None,
            dw: None,
        };
        Layer { s, space, spec, values: node.ins[..3].to_vec() }
    }

    /// A further operand, in the kernel's order.
    fn also(&mut self, v: ValueId) -> Option<Operand> {
        self.values.push(v);
        Some(self.s.operand(v, &self.space))
    }

    fn call(self) -> Call {
        Call::new(Spec::LinearCe(self.spec), self.values)
    }
}

pub(super) fn linear_ce(s: &Source<'_>, op: &ops::LinearCe, node: &Node) -> Call {
    let mut layer = Layer::new(s, [op.embed, op.vocab], node);
    layer.spec.weights = layer.also(node.ins[3]);
    layer.spec.ce = layer.also(node.outs[0]);
    if op.grad {
        layer.spec.dx = layer.also(node.outs[1]);
        layer.spec.dw = layer.also(node.outs[2]);
    }
    layer.call()
}

pub(super) fn linear_lse(s: &Source<'_>, op: &ops::LinearLse, node: &Node) -> Call {
    let mut layer = Layer::new(s, [op.embed, op.vocab], node);
    layer.spec.lse = layer.also(node.outs[0]);
    layer.spec.hit = layer.also(node.outs[1]);
    layer.call()
}

pub(super) fn linear_ce_grad(s: &Source<'_>, op: &ops::LinearCeGrad, node: &Node) -> Call {
    let mut layer = Layer::new(s, [op.embed, op.vocab], node);
    layer.spec.weights = layer.also(node.ins[3]);
    layer.spec.given = layer.also(node.ins[4]);
    layer.spec.dx = layer.also(node.outs[0]);
    layer.spec.dw = layer.also(node.outs[1]);
    layer.call()
}
