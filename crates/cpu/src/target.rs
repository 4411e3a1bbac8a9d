//! The CPU as the planner sees it.

use crate::kernel::KernelError;
use crate::make::{BlockLists, make};
use aerogel_graph::{Build, NodeId, Op, Place};
use aerogel_lower::{Source, lower, regions};
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
        let (uses, strides) = (sight.uses, sight.strides);
        let calls = lower(&Source { graph: g, uses, strides, place }, nodes)?;
        let mut bytes = 0;
        for call in &calls {
            let kernel = make(&call.spec, &self.lists)?;
            bytes = bytes.max(kernel.scratch_bytes(self.machine.threads));
        }
        let nanoseconds = nodes
            .iter()
            .map(|n| {
                let node = g.node(*n);
                let cost = node.op.cost(g.axes(), &g.in_types(node), &g.out_types(node));
                self.machine.nanoseconds(cost)
            })
            .sum();
        Ok(Claim {
            kernel: regions::kernel_name(g, nodes),
            nodes: nodes.to_vec(),
            workspace_bytes: bytes as u64,
            in_place: regions::in_place(sight, nodes),
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
        for candidate in regions::candidates(sight, node) {
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
