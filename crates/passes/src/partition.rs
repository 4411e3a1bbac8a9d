//! partition: a step over the ranks of a mesh axis that share each layer (tensor parallelism:
//! Shoeybi et al., Megatron-LM, 2019; norms and residuals along pieces of the sequence: Korthikanti
//! et al., Reducing Activation Recomputation in Large Transformer Models, 2022).
//!
//! A value is whole, a rank's piece of an axis that is cut, a piece of the sequence, or one of the
//! terms whose sum over ranks it is. Which of them follows from its axes and from how its node can
//! run on pieces (`Rules::sharding`); nothing is propagated globally. Heads, inner width and
//! vocabulary are cut where they stand, in parameters as well; a piece of the sequence is an axis
//! of its own, beside the whole one. Sums stay terms through what is linear, and are taken once,
//! straight into the layout that is read. Of each layer that leaves two all-reduces forward and two
//! backward, or as many gathers and reduce-scatters of the same bytes, though no rule names them:
//! gradients are taken before ranks are known.
//!
//! What is gathered is gathered again for the backward, so a rank keeps pieces in between.

mod cuts;
mod forms;
mod head;
mod linear;
mod walk;

use crate::PassError;
use aerogel_graph::{Graph, verify};
pub use cuts::Tensor;

/// A step as one rank of the mesh runs it; all ranks run the same graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Partitioned {
    /// The graph, with its mesh and collectives. Parameters that have a cut axis are pieces, and so
    /// are their gradients; other outputs are whole on every rank.
    pub graph: Graph,
    /// The outputs `grad.*` of which each rank has a term: the gradient is their sum over the ranks
    /// of the axis. It is left to be taken with that over the ranks that share the batch.
    pub partial: Vec<String>,
}

/// Cuts a graph with its backward over the ranks of one mesh axis.
///
/// Random numbers and coordinates stay those of the whole. Results differ from those of the whole
/// graph by the order of sums alone, and in bf16 by the rounding of the terms.
///
/// # Errors
/// An axis that is to be cut is missing, does not divide, reaches an op that needs it whole, or
/// meets another cut axis; heads of a piece would not have the patterns of the whole; the mesh has
/// no such axis or is not the one that the graph knows.
pub fn partition(g: &Graph, spec: &Tensor) -> Result<Partitioned, PassError> {
    let (cut, cuts) = cuts::cut(g, spec)?;
    let Some(cuts) = cuts else { return Ok(Partitioned { graph: cut, partial: vec![] }) };
    let (graph, partial) = walk::walk(&cut, cuts)?;
    verify::verify(&graph).map_err(|source| PassError::Verify { pass: "partition", source })?;
    Ok(Partitioned { graph, partial })
}
