//! Where a region runs: where its last node stands, if whoever reads it comes after that; else
//! where its first one stands, if all that it reads is there by then.
//!
//! Regions are claimed by ascending first node, each with a place by this rule, and run in the
//! order of their places. A reader then runs after whoever writes: if it runs at its last node,
//! because the node that reads stands after the writer's place; if at its first, because it has
//! looked where all that it reads is written, and what nobody had claimed counted as not written.

use crate::layout::Layout;
use aerogel_graph::{Def, Graph, NodeId, ValueId};
use aerogel_machine::Uses;

/// The places of the regions that have been claimed.
pub(crate) struct Order<'a> {
    graph: &'a Graph,
    layout: &'a Layout,
    uses: &'a Uses,
    /// For each node that belongs to a region: the node at whose place the region runs.
    places: Vec<Option<NodeId>>,
}

impl<'a> Order<'a> {
    /// With nothing claimed.
    pub fn new(graph: &'a Graph, layout: &'a Layout, uses: &'a Uses) -> Order<'a> {
        Order { graph, layout, uses, places: vec![None; graph.nodes().len()] }
    }

    /// Whether a node has to run and no region has it yet.
    pub fn is_free(&self, n: NodeId) -> bool {
        self.places[n.index()].is_none() && !self.layout.is_idle(n)
    }

    /// Makes the nodes a region that runs at a place.
    pub fn claim(&mut self, nodes: &[NodeId], place: NodeId) {
        nodes.iter().for_each(|n| self.places[n.index()] = Some(place));
    }

    /// Where ascending nodes can run as one region; `None` where they cannot.
    pub fn place(&self, nodes: &[NodeId]) -> Option<NodeId> {
        let (&first, &last) = (nodes.first()?, nodes.last()?);
        if !self.is_read_before(nodes, last) {
            return Some(last);
        }
        // What the backward computes from kept values alone must not be computed and kept instead.
        let phase = self.graph.node(first).phase;
        let together = nodes.iter().all(|n| self.graph.node(*n).phase == phase);
        (together && self.finds_its_operands(nodes, first)).then_some(first)
    }

    /// Whether someone outside of the nodes reads them and stands before `place`. Views count: what
    /// is read through them may be read as soon as they stand there.
    fn is_read_before(&self, nodes: &[NodeId], place: NodeId) -> bool {
        let early = |r: &NodeId| *r < place && nodes.binary_search(r).is_err();
        let mut outs = nodes.iter().flat_map(|n| &self.graph.node(*n).outs);
        outs.any(|v| self.uses.readers(*v).iter().any(early))
    }

    /// Whether all that the nodes read from outside is written before `place`.
    fn finds_its_operands(&self, nodes: &[NodeId], place: NodeId) -> bool {
        let inside = |v: ValueId| match self.graph.value(v).def {
            Def::Node(d, _) => nodes.binary_search(&d).is_ok(),
            _ => false,
        };
        let mut ins = nodes.iter().flat_map(|n| &self.graph.node(*n).ins);
        ins.all(|v| inside(*v) || self.is_written_before(*v, place))
    }

    /// Whether a value is there at `place`, as far as regions have been claimed.
    fn is_written_before(&self, v: ValueId, place: NodeId) -> bool {
        let Def::Node(d, _) = self.graph.value(v).def else { return true };
        if self.layout.is_idle(d) {
            // Wherever it stands, it is there when what it is a view of is.
            return self.graph.node(d).ins.iter().all(|v| self.is_written_before(*v, place));
        }
        self.places[d.index()].is_some_and(|p| p < place)
    }
}
