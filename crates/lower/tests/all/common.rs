//! Graphs whose values lie row-major.

use aerogel_graph::{Build, Graph, NodeId, Place, ValueId};
use aerogel_lower::{Call, LowerError, Source, lower, regions};
use aerogel_machine::{Sight, Slot, Uses};
use smallvec::SmallVec;

fn strides(g: &Graph) -> Vec<SmallVec<[isize; 6]>> {
    let row_major = |v: &aerogel_graph::Value| Slot::contiguous(0, g.axes(), &v.ty.axes).strides;
    g.values().iter().map(row_major).collect()
}

pub fn nodes(list: &[u32]) -> Vec<NodeId> {
    list.iter().map(|n| NodeId(*n)).collect()
}

/// The calls of a region on a rank.
pub fn try_lower(g: &Graph, region: &[u32], place: Place) -> Result<Vec<Call>, LowerError> {
    let (uses, strides) = (Uses::new(g), strides(g));
    lower(&Source { graph: g, uses: &uses, strides: &strides, place }, &nodes(region))
}

/// The calls of a region on the first rank.
pub fn lowered(g: &Graph, region: &[u32]) -> Vec<Call> {
    try_lower(g, region, Place::default()).unwrap()
}

/// What a target would offer first for a node.
pub struct Offer {
    pub kernel: &'static str,
    pub nodes: Vec<NodeId>,
    pub in_place: Vec<(ValueId, ValueId)>,
}

impl Offer {
    /// With all nodes free, and all that can run together allowed to.
    pub fn new(g: &Graph, node: u32) -> Offer {
        let (uses, strides) = (Uses::new(g), strides(g));
        let (free, runs) = (&|_| true, &|_: &[_]| true);
        let sight = Sight { graph: g, uses: &uses, strides: &strides, free, runs };
        let mut candidates = regions::candidates(&sight, NodeId(node));
        assert_eq!(candidates.last(), Some(&nodes(&[node])));
        let nodes = candidates.swap_remove(0);
        let in_place = regions::in_place(&sight, &nodes);
        Offer { kernel: regions::kernel_name(g, &nodes), nodes, in_place }
    }
}
