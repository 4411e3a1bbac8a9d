//! merge: nodes that compute the same become one (common subexpression elimination).
//!
//! Gradient rules work op by op, so that they repeat each other: the gradient of an activation
//! function is made once for the product before it and once more for the bias. Nodes are merged
//! within one scope of one phase only. A forward value that the backward would rather make again
//! is not kept for it, and no value gets readers in another layer, which may be another stage. Run
//! it before passes that clone on purpose: recomputation, chunks.

use crate::PassError;
use aerogel_graph::{Build, Graph, Node, Op, Phase, ValueId};
use std::collections::HashMap;
use std::sync::Arc;

/// What equal nodes have in common beside the op itself.
type Key = (Arc<str>, Phase, &'static str, Vec<ValueId>);

/// The graph without nodes that repeat an earlier one: the same op with the same attributes over
/// the same inputs, of the same scope and phase. Maps that draw from the same stream over the same
/// axes draw the same numbers, and are equal. Numbers are those of the whole graph, to the bit.
///
/// # Errors
/// None for a verified graph.
pub fn merge(g: &Graph) -> Result<Graph, PassError> {
    let mut seen: HashMap<Key, Vec<(Op, Vec<ValueId>)>> = HashMap::new();
    Ok(g.rewrite(|out, node, ins| {
        let alike = seen.entry(key(node, ins)).or_default();
        let same = alike.iter().find(|(op, _)| is_same(out, op, &node.op));
        if let Some((_, outs)) = same {
            return Ok(Some(outs.clone()));
        }
        let outs = out.emit(node.op.clone(), ins)?;
        alike.push((node.op.clone(), outs.clone()));
        Ok(Some(outs))
    })?)
}

fn key(node: &Node, ins: &[ValueId]) -> Key {
    (node.scope.clone(), node.phase, node.op.name(), ins.to_vec())
}

/// Equal, constants to the sign of a zero, which the text shows and `==` does not.
fn is_same(g: &Graph, a: &Op, b: &Op) -> bool {
    a == b && a.attrs(g.axes()) == b.attrs(g.axes())
}
