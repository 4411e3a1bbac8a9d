//! The output layer and its cross entropy over a vocabulary that is cut (Shoeybi et al., §3): each
//! rank has the log-sum-exp of its own logits and the logits of its own targets, two numbers a
//! token, and only these are exchanged.

use super::forms::{Forms, Layout};
use aerogel_graph::ops::{Exchange, LinearCe, LinearCeGrad, LinearLse, Merge};
use aerogel_graph::{AxisId, Build, Node, Op, OpError, ValueId};

/// The vocabulary of an op whose results over a piece of it are no plain sums.
pub fn vocabulary(op: &Op) -> Option<AxisId> {
    match op {
        Op::LinearCe(op) => Some(op.vocab),
        Op::LinearLse(op) => Some(op.vocab),
        _ => None,
    }
}

/// Such a node, over the rank's piece of its vocabulary.
pub fn lower(forms: &mut Forms, node: &Node) -> Result<(), OpError> {
    let read = |&v: &ValueId| forms.whole(v, node.phase);
    let ins = node.ins.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    match &node.op {
        Op::LinearCe(op) => cross_entropy(forms, op, &ins, &node.outs),
        Op::LinearLse(op) => {
            let [lse, target] = parts(forms, op, &ins)?;
            forms.set(node.outs[0], lse, Layout::Whole);
            forms.set(node.outs[1], target, Layout::Partial);
            Ok(())
        }
        op => Err(OpError::new(op.name(), "has no vocabulary")),
    }
}

/// The log-sum-exp of all logits, and the rank's term of the target's.
fn parts(forms: &mut Forms, op: &LinearLse, ins: &[ValueId]) -> Result<[ValueId; 2], OpError> {
    let outs = forms.out.emit(op.clone().into(), &ins[..3])?;
    Ok([forms.exchange(outs[0], Exchange::AllReduce(Merge::Lse))?, outs[1]])
}

fn cross_entropy(
    forms: &mut Forms,
    op: &LinearCe,
    ins: &[ValueId],
    olds: &[ValueId],
) -> Result<(), OpError> {
    let LinearCe { embed, vocab, grad } = *op;
    let [lse, target] = parts(forms, &LinearLse { embed, vocab }, ins)?;
    let target = forms.exchange(target, Exchange::AllReduce(Merge::Sum))?;
    let ce = forms.out.map(&[lse, target, ins[3]], &|v| &v[2] * (&v[0] - &v[1]))?;
    forms.set(olds[0], ce, Layout::Whole);
    if grad {
        let ins = [ins[0], ins[1], ins[2], ins[3], lse];
        let outs = forms.out.emit(LinearCeGrad { embed, vocab }.into(), &ins)?;
        forms.set(olds[1], outs[0], Layout::Partial);
        forms.set(olds[2], outs[1], Layout::Cut);
    }
    Ok(())
}
