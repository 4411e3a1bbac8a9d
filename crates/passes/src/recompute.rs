//! recompute: which activations wait for the backward, and which are computed again for it (Chen et
//! al., Training Deep Nets with Sublinear Memory Cost, 2016; Korthikanti et al., Reducing
//! Activation Recomputation in Large Transformer Models, 2022, for the selective form).
//!
//! The forward is a [chain] of residual blocks, found by their scopes `h.N`; what is before
//! the first block and after the last one is kept as it is. A policy is a schedule of that chain,
//! and the schedule is carried out with clones of forward nodes. A clone is the same op at the same
//! scope: it rounds where the original does and draws the same random numbers, so that losses and
//! gradients have the same bits whatever the policy.
//!
//! Always kept, and never cloned: parameters in the compute dtype (they are no activations),
//! outputs of the graph, outputs of `linear_ce` (it makes gradients in the forward), and values
//! with a reader beyond the next block. A graph without blocks is one segment.

pub mod chain;
mod optimum;
mod rewrite;
mod segments;

pub use optimum::{TooSmall, least_bytes, optimal};

use crate::PassError;
use aerogel_graph::{Def, Graph, NodeId, OpError, ValueId};
use chain::{Schedule, keep_all, keep_blocks, keep_lean};
use rewrite::rewritten;
use segments::{Segments, bytes_of, flops, forward_count, parameters_alone, segments};

const PASS: &str = "recompute";

/// What is computed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Nothing.
    None,
    /// Maps, norms and views of blocks, where that saves bytes; contractions, attention and all
    /// else is kept.
    Cheap,
    /// Blocks, of which only the input of every `every`-th is kept.
    Blocks {
        /// Blocks that run again together, at least 1.
        every: usize,
    },
    /// As few FLOPs as possible, with this many bytes for kept activations.
    Budget {
        /// What activations that wait for the backward, or for another run of a block, may take.
        bytes: u64,
    },
}

/// A graph with its recomputation.
#[derive(Clone, Debug, PartialEq)]
pub struct Recomputed {
    /// The graph.
    pub graph: Graph,
    /// Bytes of the forward's activations that backward nodes read.
    pub kept_bytes: u64,
    /// The most bytes of activations, kept or computed again, that the schedule holds at once.
    pub peak_bytes: u64,
    /// FLOPs of the graph beyond those without recomputation.
    pub recomputed_flops: u64,
    /// FLOPs of the forward.
    pub forward_flops: u64,
}

/// Rewrites the whole step that [`backward`](crate::backward) gives, before it is tiled. `bytes`
/// measures a value: the caller knows micro-batches and shards. A split, a merge and a rename are
/// the bytes of what they show. `Policy::None` gives the graph as it is; any other leaves out nodes
/// that nobody reads.
///
/// # Errors
/// `every` is 0, the budget is below what any schedule needs (the message says how much), or an op
/// refuses its inputs.
pub fn recompute(
    g: &Graph,
    policy: &Policy,
    bytes: &dyn Fn(&Graph, ValueId) -> u64,
) -> Result<Recomputed, PassError> {
    let found = segments(g, bytes);
    let schedule = schedule(&found, policy)?;
    let forward = forward_count(g);
    let (graph, recomputed_flops) = if *policy == Policy::None {
        (g.clone(), 0)
    } else {
        let out = rewritten(g, &found, forward, &schedule.actions)?.pruned()?;
        let more = all_flops(&out).saturating_sub(all_flops(&g.pruned()?));
        (out, more)
    };
    Ok(Recomputed {
        kept_bytes: kept_bytes(&graph, bytes),
        peak_bytes: found.always_bytes + schedule.peak_bytes,
        recomputed_flops,
        forward_flops: flops(g, (0..forward as u32).map(NodeId)),
        graph,
    })
}

/// The smallest budget that [`Policy::Budget`] can keep to, in bytes.
pub fn least_budget_bytes(g: &Graph, bytes: &dyn Fn(&Graph, ValueId) -> u64) -> u64 {
    let found = segments(g, bytes);
    found.always_bytes + least_bytes(&found.chain)
}

fn schedule(found: &Segments, policy: &Policy) -> Result<Schedule, PassError> {
    let chain = &found.chain;
    match *policy {
        Policy::None => Ok(keep_all(chain)),
        Policy::Cheap => Ok(keep_lean(chain)),
        Policy::Blocks { every: 0 } => {
            Err(OpError::new(PASS, "blocks run again in groups of at least 1, got 0").into())
        }
        Policy::Blocks { every } => Ok(keep_blocks(chain, found.blocks, every)),
        Policy::Budget { bytes } => {
            match bytes.checked_sub(found.always_bytes).map(|rest| optimal(chain, rest)) {
                Some(Ok(schedule)) => Ok(schedule),
                _ => {
                    let least_bytes = found.always_bytes + least_bytes(chain);
                    let error = TooSmall { budget_bytes: bytes, least_bytes };
                    Err(OpError::new(PASS, error.to_string()).into())
                }
            }
        }
    }
}

fn all_flops(g: &Graph) -> u64 {
    flops(g, (0..g.nodes().len() as u32).map(NodeId))
}

/// What nodes after the forward read of its activations.
fn kept_bytes(g: &Graph, bytes: &dyn Fn(&Graph, ValueId) -> u64) -> u64 {
    let (forward, alone) = (forward_count(g), parameters_alone(g));
    let activation = |v: &&ValueId| match g.value(**v).def {
        Def::Node(n, _) => n.index() < forward && !alone[v.index()],
        _ => false,
    };
    let read = g.nodes()[forward..].iter().flat_map(|node| &node.ins);
    bytes_of(g, read.filter(activation), bytes)
}
