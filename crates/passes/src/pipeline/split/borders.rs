//! Recomputation ends at the borders of stages.

use crate::PassError;
use aerogel_graph::{Build, Graph, NodeId, Phase, ValueId};
use std::collections::HashMap;

/// Where the backward of one stage reads what that of another has computed again, it now reads the
/// original. The forward of that stage was sent it, as a rule; the clone would come too late, for
/// backwards go down the chain.
pub fn originals_across(g: &Graph, stage_of: &dyn Fn(&str) -> usize) -> Result<Graph, PassError> {
    let original = originals(g);
    let mut maker = vec![None; g.values().len()];
    let mut moved: HashMap<ValueId, ValueId> = HashMap::new();
    let result = g.rewrite(|out, node, ins| {
        let stage = stage_of(&node.scope);
        let mut ins = ins.to_vec();
        for (new, old) in ins.iter_mut().zip(&node.ins) {
            let other = maker[old.index()].is_some_and(|maker| maker != stage);
            if other && let Some(v) = moved.get(&original[old.index()]) {
                *new = *v;
            }
        }
        let outs = out.emit(node.op.clone(), &ins)?;
        for (old, new) in node.outs.iter().zip(&outs) {
            maker[old.index()] = Some(stage);
            moved.insert(*old, *new);
        }
        Ok(Some(outs))
    })?;
    Ok(result.pruned()?)
}

/// For each value the one that the forward made of the same operands by the same op, which is the
/// same to the bit, or else itself.
fn originals(g: &Graph) -> Vec<ValueId> {
    let mut original: Vec<ValueId> = (0..g.values().len() as u32).map(ValueId).collect();
    let mut forward: HashMap<Vec<ValueId>, Vec<NodeId>> = HashMap::new();
    for (n, node) in (0..).map(NodeId).zip(g.nodes()) {
        let ins: Vec<ValueId> = node.ins.iter().map(|v| original[v.index()]).collect();
        if node.phase == Phase::Forward {
            forward.entry(ins).or_default().push(n);
            continue;
        }
        let same = |n: &&NodeId| g.node(**n).op == node.op;
        if let Some(first) = forward.get(&ins).and_then(|list| list.iter().find(same)) {
            for (v, first) in node.outs.iter().zip(&g.node(*first).outs) {
                original[v.index()] = *first;
            }
        }
    }
    original
}
