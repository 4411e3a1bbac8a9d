//! Targets: what a backend would do with a region of a graph, and at what price.

use aerogel_graph::{Def, Graph, NodeId, Op, ValueId};
use smallvec::SmallVec;

/// The order in which a kernel adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sums {
    /// The same on every run, for any number of threads.
    Fixed,
    /// As threads arrive.
    Atomic,
}

/// An offer to run some nodes as one kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// The nodes, ascending. Every value that someone outside reads is written.
    pub nodes: Vec<NodeId>,
    /// Scratch that the kernel needs while it runs.
    pub workspace_bytes: u64,
    /// Pairs (read, written) such that the written value may lie where the read one lay.
    pub in_place: Vec<(ValueId, ValueId)>,
    /// Order of sums.
    pub sums: Sums,
    /// Predicted time.
    pub nanoseconds: f64,
}

/// Who reads what, worked out once for a graph.
pub struct Uses {
    readers: Vec<Vec<NodeId>>,
    wanted: Vec<bool>,
}

impl Uses {
    /// Of a graph.
    pub fn new(g: &Graph) -> Uses {
        let mut wanted = vec![false; g.values().len()];
        let ends = g.outputs.iter().map(|o| o.1).chain(g.assigns.iter().map(|a| a.1));
        ends.for_each(|v| wanted[v.index()] = true);
        Uses { readers: g.readers(), wanted }
    }

    /// The nodes that read a value, ascending.
    pub fn readers(&self, v: ValueId) -> &[NodeId] {
        &self.readers[v.index()]
    }

    /// Whether the value leaves the section, as an output or as a state's new value.
    pub fn leaves(&self, v: ValueId) -> bool {
        self.wanted[v.index()]
    }

    /// The values of a region that are written to memory: those that something outside of it
    /// reads, and those that nobody reads (a kernel of several results writes them all).
    pub fn exports(&self, g: &Graph, nodes: &[NodeId]) -> Vec<ValueId> {
        let outside = |v: &ValueId| {
            let readers = self.readers(*v);
            self.leaves(*v)
                || readers.is_empty()
                || readers.iter().any(|r| nodes.binary_search(r).is_err())
        };
        nodes.iter().flat_map(|n| g.node(*n).outs.clone()).filter(outside).collect()
    }

    /// The values that a region reads from outside, once each, in order of first use.
    pub fn imports(&self, g: &Graph, nodes: &[NodeId]) -> Vec<ValueId> {
        let mut list: Vec<ValueId> = vec![];
        for n in nodes {
            for &v in &g.node(*n).ins {
                let inside =
                    matches!(g.value(v).def, Def::Node(d, _) if nodes.binary_search(&d).is_ok());
                if !inside && !list.contains(&v) {
                    list.push(v);
                }
            }
        }
        list
    }
}

/// What a target sees when it is asked for offers.
pub struct Sight<'a> {
    /// The section.
    pub graph: &'a Graph,
    /// Who reads what.
    pub uses: &'a Uses,
    /// Strides of every value, by id, in elements along its axes: values that are windows of
    /// others have those of the window.
    pub strides: &'a [SmallVec<[isize; 6]>],
    /// Whether nobody has claimed a node yet.
    pub free: &'a dyn Fn(NodeId) -> bool,
    /// Whether ascending nodes can run as one kernel: some place lies after all that writes what
    /// they read, and before all that reads what they write.
    pub runs: &'a dyn Fn(&[NodeId]) -> bool,
}

/// A backend as the planner sees it: pure, and without a driver.
pub trait Target: Send + Sync {
    /// `cpu`, `cuda`, ...
    fn name(&self) -> &str;

    /// Offers for regions whose lowest node is `node`, best first. Every op that
    /// [`Target::expands`] leaves as it is must get at least one offer for the node alone; a view
    /// that moves no bytes is never asked for.
    ///
    /// # Errors
    /// Why there is no offer.
    fn claims(&self, sight: &Sight<'_>, node: NodeId) -> Result<Vec<Claim>, String>;

    /// Whether the planner should hand over the op in primitive ops.
    fn expands(&self, op: &Op) -> bool;
}
