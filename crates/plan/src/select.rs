//! Selection: a target claims regions of the graph until every node belongs to one.

use crate::error::PlanError;
use crate::layout::Layout;
use aerogel_graph::{Build, Graph, NodeId, Op};
use aerogel_machine::{Claim, Machine, Sight, Sums, Target, Uses};

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

/// A collective alone: the device runs it, whatever kernels a target has.
fn collective(g: &Graph, n: NodeId, machine: &Machine) -> Option<Claim> {
    let node = g.node(n);
    let Op::Collective(op) = &node.op else { return None };
    // What crosses between ranks; at least, what is written here.
    let wire = op.wire_bytes(g.axes(), g.ty(node.ins[0]));
    let bytes = wire.max(g.ty(node.outs[0]).bytes(g.axes()));
    Some(Claim {
        kernel: op.kind_name(),
        nodes: vec![n],
        workspace_bytes: 0,
        in_place: vec![],
        sums: Sums::Fixed,
        nanoseconds: machine.launch_nanoseconds + 1e9 * bytes as f64 / machine.bytes_per_second,
    })
}

/// Claims collectives; then asks the target from the first node on, and takes its best offer that
/// can be scheduled.
pub(crate) fn select(
    g: &Graph,
    layout: &Layout,
    target: &dyn Target,
    machine: &Machine,
    section: &str,
) -> Result<Selected, PlanError> {
    let uses = Uses::new(g);
    let mut taken: Vec<bool> =
        (0..g.nodes().len() as u32).map(|n| layout.is_idle(NodeId(n))).collect();
    let strides = layout.strides();
    let nodes = (0..g.nodes().len() as u32).map(NodeId);
    let mut claims: Vec<Claim> = nodes.filter_map(|n| collective(g, n, machine)).collect();
    claims.iter().for_each(|c| taken[c.nodes[0].index()] = true);
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
