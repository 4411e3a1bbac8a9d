//! Selection: a target claims regions of the graph until every node belongs to one.

use crate::error::PlanError;
use crate::layout::Layout;
use aerogel_graph::{Graph, NodeId};
use aerogel_machine::{Claim, Sight, Target, Uses};

/// The claims, in the order in which they run, and who reads what.
pub(crate) struct Selected {
    /// Ascending by last node.
    pub claims: Vec<Claim>,
    /// Readers and leavers.
    pub uses: Uses,
}

/// Whether step `a` is over when step `b` starts.
pub(crate) fn happens_before(a: usize, b: usize) -> bool {
    a < b
}

/// Asks the target from the first node on, and takes its best offer that can be scheduled.
pub(crate) fn select(
    g: &Graph,
    layout: &Layout,
    target: &dyn Target,
    section: &str,
) -> Result<Selected, PlanError> {
    let uses = Uses::new(g);
    let mut taken: Vec<bool> =
        (0..g.nodes().len() as u32).map(|n| layout.is_idle(NodeId(n))).collect();
    let strides = layout.strides();
    let mut claims = vec![];
    for n in 0..g.nodes().len() {
        if taken[n] {
            continue;
        }
        let offers = {
            let free = |id: NodeId| !taken[id.index()];
            let sight = Sight { graph: g, uses: &uses, strides: &strides, free: &free };
            target.claims(&sight, NodeId(n as u32))
        };
        let sound = |c: &Claim| {
            c.nodes.first() == Some(&NodeId(n as u32))
                && c.nodes.is_sorted()
                && c.nodes.iter().all(|id| !taken[id.index()])
                && uses.is_schedulable(g, &c.nodes)
        };
        let (claim, reason) = match offers {
            Ok(offers) => (offers.into_iter().find(sound), "no offer can be scheduled".to_owned()),
            Err(reason) => (None, reason),
        };
        let Some(claim) = claim else {
            let node = &g.nodes()[n];
            return Err(PlanError::NoKernel {
                target: target.name().to_owned(),
                op: node.op.name().to_owned(),
                scope: node.scope.to_string(),
                section: section.to_owned(),
                reason,
            });
        };
        claim.nodes.iter().for_each(|id| taken[id.index()] = true);
        claims.push(claim);
    }
    claims.sort_by_key(|c| c.nodes.last().copied());
    Ok(Selected { claims, uses })
}
