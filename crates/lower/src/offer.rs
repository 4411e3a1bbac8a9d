//! What a target offers: the largest region that its kernels run.

use crate::error::LowerError;
use crate::lower::lower;
use crate::regions;
use crate::source::Source;
use crate::spec::{Call, Spec};
use aerogel_graph::{Build, Graph, NodeId, Place};
use aerogel_machine::{Claim, Machine, Sight, Sums};
use std::fmt::Display;

/// The offer for regions whose lowest node is this one: the first candidate that `workspace_bytes`
/// has kernels for, of all that can run. It is given the calls of a region, and says how much
/// scratch their kernels need, one after another.
///
/// # Errors
/// Why there is no kernel even for the node alone.
pub fn claims<E: Display + From<LowerError>>(
    sight: &Sight<'_>,
    node: NodeId,
    machine: &Machine,
    workspace_bytes: impl Fn(&[Call]) -> Result<u64, E>,
) -> Result<Vec<Claim>, String> {
    let mut reason = String::new();
    for candidate in regions::candidates(sight, node) {
        if !(sight.runs)(&candidate) {
            continue;
        }
        match claim(sight, &candidate, machine, &workspace_bytes) {
            Ok(claim) => return Ok(vec![claim]),
            Err(e) => reason = e.to_string(),
        }
    }
    Err(reason)
}

fn claim<E: From<LowerError>>(
    sight: &Sight<'_>,
    nodes: &[NodeId],
    machine: &Machine,
    workspace_bytes: impl Fn(&[Call]) -> Result<u64, E>,
) -> Result<Claim, E> {
    let g = sight.graph;
    // What a kernel needs is the same on all ranks: any place will do.
    let place = Place::default();
    let (uses, strides) = (sight.uses, sight.strides);
    let calls = lower(&Source { graph: g, uses, strides, place }, nodes)?;
    let workspace_bytes = workspace_bytes(&calls)?;
    let once = common_bytes(g, &calls);
    let mut products = 0;
    let nanoseconds = nodes
        .iter()
        .map(|n| {
            let node = g.node(*n);
            let mut cost = node.op.cost(g.axes(), &g.in_types(node), &g.out_types(node));
            if regions::is_product(node) {
                products += 1;
                cost.bytes -= if products > 1 { once.min(cost.bytes) } else { 0 };
            }
            machine.nanoseconds(cost)
        })
        .sum();
    Ok(Claim {
        kernel: regions::kernel_name(g, nodes),
        nodes: nodes.to_vec(),
        workspace_bytes,
        in_place: regions::in_place(sight, nodes),
        sums: Sums::Fixed,
        nanoseconds,
    })
}

/// Bytes of what products have in common, which is read once.
fn common_bytes(g: &Graph, calls: &[Call]) -> u64 {
    match calls {
        [Call { spec: Spec::Products(products), operands, .. }] => {
            g.ty(operands[products.common].0).bytes(g.axes())
        }
        _ => 0,
    }
}
