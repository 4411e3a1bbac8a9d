//! NVIDIA GPUs as the planner sees them: no driver is asked.

use crate::kernels::{Chip, make};
use aerogel_graph::{Build, NodeId, Op, Place};
use aerogel_lower::{LowerError, Source, lower, regions};
use aerogel_machine::{ALIGN, Claim, Machine, Sight, Sums, Target};

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

    fn claim(&self, sight: &Sight<'_>, nodes: &[NodeId]) -> Result<Claim, LowerError> {
        let g = sight.graph;
        // What a kernel needs is the same on all ranks: any place will do.
        let place = Place::default();
        let (uses, strides) = (sight.uses, sight.strides);
        let calls = lower(&Source { graph: g, uses, strides, place }, nodes)?;
        let mut workspace_bytes = 0;
        for call in &calls {
            // Where values will lie is not known yet, so there must be room for the forms that
            // count on aligned addresses and for those that do not.
            let elements = |v| g.ty(v).dtype.bytes() as u64;
            let none: Vec<u64> = call.operands.iter().map(|o| elements(o.0)).collect();
            for align in [vec![ALIGN; none.len()], none] {
                let kernel = make(call, &align, self.chip)?;
                workspace_bytes = workspace_bytes.max(kernel.workspace_bytes);
            }
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
            workspace_bytes,
            in_place: regions::in_place(sight, nodes),
            sums: Sums::Fixed,
            nanoseconds,
        })
    }
}

impl Target for CudaTarget {
    fn name(&self) -> &str {
        &self.name
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
