//! NVIDIA GPUs as the planner sees them: no driver is asked.

use crate::kernels::{Chip, make};
use aerogel_graph::{Build, NodeId, Op};
use aerogel_lower::{Call, LowerError, claims};
use aerogel_machine::{ALIGN, Claim, Machine, Sight, Target};

/// Offers kernels for all ops, with the regions that all devices share.
pub struct CudaTarget {
    machine: Machine,
    chip: Chip,
    name: String,
}

impl CudaTarget {
    /// For a machine, whose memory and rates the predictions are made of, and its instructions.
    pub fn new(machine: Machine, chip: Chip) -> CudaTarget {
        CudaTarget { machine, name: format!("cuda {}", chip.architecture), chip }
    }
}

impl Target for CudaTarget {
    fn name(&self) -> &str {
        &self.name
    }

    fn claims(&self, sight: &Sight<'_>, node: NodeId) -> Result<Vec<Claim>, String> {
        claims(sight, node, &self.machine, |calls: &[Call]| -> Result<u64, LowerError> {
            let mut bytes = 0;
            for call in calls {
                // Where values will lie is not known yet, so there must be room for the forms that
                // count on aligned addresses and for those that do not.
                let elements = |v| sight.graph.ty(v).dtype.bytes() as u64;
                let none: Vec<u64> = call.operands.iter().map(|o| elements(o.0)).collect();
                for align in [vec![ALIGN; none.len()], none] {
                    bytes = bytes.max(make(call, &align, self.chip)?.workspace_bytes);
                }
            }
            Ok(bytes)
        })
    }

    fn expands(&self, op: &Op) -> bool {
        // A merge is a handful of maps, which fuse with their neighbours.
        matches!(op, Op::MergeAttend(_))
    }
}
