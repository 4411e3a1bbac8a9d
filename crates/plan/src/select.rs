//! Selection: a target claims regions of the graph until every node belongs to one.

use crate::error::PlanError;
use crate::layout::Layout;
use crate::order::Order;
use aerogel_graph::{Build, Graph, NodeId, Op};
use aerogel_machine::{Claim, Machine, Sight, Sums, Target, Uses};

/// The claims, in the order in which they run, and who reads what.
pub(crate) struct Selected {
    /// Each after those whose values it reads.
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
/// has a place in the order.
pub(crate) fn select(
    g: &Graph,
    layout: &Layout,
    target: &dyn Target,
    machine: &Machine,
    section: &str,
) -> Result<Selected, PlanError> {
    let uses = Uses::new(g);
    let strides = layout.strides();
    let mut order = Order::new(g, layout, &uses);
    let mut claims: Vec<(NodeId, Claim)> = vec![];
    let nodes = || (0..g.nodes().len() as u32).map(NodeId);
    for n in nodes() {
        if let Some(claim) = collective(g, n, machine) {
            order.claim(&claim.nodes, n);
            claims.push((n, claim));
        }
    }
    for n in nodes() {
        if !order.is_free(n) {
            continue;
        }
        let offers = {
            let free = |id: NodeId| order.is_free(id);
            let runs = |nodes: &[NodeId]| order.place(nodes).is_some();
            let sight =
                Sight { graph: g, uses: &uses, strides: &strides, free: &free, runs: &runs };
            target.claims(&sight, n)
        };
        let placed = |c: Claim| {
            let sound = c.nodes.first() == Some(&n)
                && c.nodes.is_sorted()
                && c.nodes.iter().all(|id| order.is_free(*id));
            let place = if sound { order.place(&c.nodes) } else { None };
            place.map(|place| (place, c))
        };
        let (claim, reason) = match offers {
            Ok(offers) => (offers.into_iter().find_map(placed), "no offer has a place".to_owned()),
            Err(reason) => (None, reason),
        };
        let Some((place, claim)) = claim else {
            let node = g.node(n);
            return Err(PlanError::NoKernel {
                target: target.name().to_owned(),
                op: node.op.name().to_owned(),
                scope: node.scope.to_string(),
                section: section.to_owned(),
                reason,
            });
        };
        order.claim(&claim.nodes, place);
        claims.push((place, claim));
    }
    claims.sort_by_key(|c| c.0);
    let claims = claims.into_iter().map(|c| c.1).collect();
    Ok(Selected { claims, uses })
}
