//! The CPU as the planner sees it.

use crate::kernel::KernelError;
use crate::lower::{BlockLists, Source, lower, name};
use crate::region;
use aerogel_graph::ops::ScatterMode;
use aerogel_graph::{Build, NodeId, Op, Place};
use aerogel_machine::{Claim, Machine, Sight, Sums, Target};

/// Offers kernels for all ops; regions are chains of maps with a contraction or a norm before them,
/// or a reduction after them.
pub struct CpuTarget {
    machine: Machine,
    lists: BlockLists,
}

impl CpuTarget {
    /// For a machine; its thread count sizes the workspaces.
    pub fn new(machine: Machine) -> CpuTarget {
        CpuTarget { machine, lists: BlockLists::default() }
    }

    fn claim(&self, sight: &Sight<'_>, nodes: &[NodeId]) -> Result<Claim, KernelError> {
        let g = sight.graph;
        // What a kernel needs is the same on all ranks: any place will do.
        let place = Place::default();
        let (uses, strides, lists) = (sight.uses, sight.strides, &self.lists);
        let source = Source { graph: g, uses, strides, lists, place };
        let calls = lower(&source, nodes)?;
        let bytes = calls.iter().map(|c| c.kernel.scratch_bytes(self.machine.threads)).max();
        let nanoseconds = nodes
            .iter()
            .map(|n| {
                let node = g.node(*n);
                let cost = node.op.cost(g.axes(), &g.in_types(node), &g.out_types(node));
                self.machine.nanoseconds(cost)
            })
            .sum();
        let in_place = match &g.node(nodes[0]).op {
            Op::Map(_) | Op::Einsum(_) | Op::Norm(_) | Op::NormGrad(_) => {
                region::in_place(sight, nodes)
            }
            // Rows are set in the base itself where nobody else needs it.
            Op::Scatter(op) if op.mode == ScatterMode::Set => {
                vec![(g.node(nodes[0]).ins[0], g.node(nodes[0]).outs[0])]
            }
            _ => vec![],
        };
        Ok(Claim {
            kernel: name(g, nodes),
            nodes: nodes.to_vec(),
            workspace_bytes: bytes.unwrap_or(0) as u64,
            in_place,
            sums: Sums::Fixed,
            nanoseconds,
        })
    }
}

impl Target for CpuTarget {
    fn name(&self) -> &str {
        "cpu"
    }

    fn claims(&self, sight: &Sight<'_>, node: NodeId) -> Result<Vec<Claim>, String> {
        let mut reason = String::new();
        for candidate in region::candidates(sight, node) {
            if !(sight.runs)(&candidate) {
                continue;
            }
            match self.claim(sight, &candidate) {
                Ok(claim) => return Ok(vec![claim]),
                Err(e) => reason = e.to_string(),
            }
        }
        Err(reason)
    }

    fn expands(&self, op: &Op) -> bool {
        // A merge is a handful of maps, which fuse with their neighbours.
        matches!(op, Op::MergeAttend(_))
    }
}
