//! The CPU as the planner sees it.

use crate::kernel::KernelError;
use crate::make::{BlockLists, make};
use aerogel_graph::{NodeId, Op};
use aerogel_lower::{Call, claims};
use aerogel_machine::{Claim, Machine, Sight, Target};

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
}

impl Target for CpuTarget {
    fn name(&self) -> &str {
        "cpu"
    }

    fn claims(&self, sight: &Sight<'_>, node: NodeId) -> Result<Vec<Claim>, String> {
        claims(sight, node, &self.machine, |calls: &[Call]| -> Result<u64, KernelError> {
            let mut bytes = 0;
            for call in calls {
                let kernel = make(&call.spec, &self.lists)?;
                bytes = bytes.max(kernel.scratch_bytes(self.machine.threads));
            }
            Ok(bytes as u64)
        })
    }

    fn expands(&self, op: &Op) -> bool {
        // A merge is a handful of maps, which fuse with their neighbours.
        matches!(op, Op::MergeAttend(_))
    }
}
