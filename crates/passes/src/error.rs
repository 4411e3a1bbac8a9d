//! What a pass can refuse.

use aerogel_graph::OpError;
use aerogel_graph::verify::VerifyError;

/// A pass cannot do what is asked of this graph.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PassError {
    /// An op refused its inputs.
    #[error(transparent)]
    Op(#[from] OpError),
    /// The rewritten graph is not one: an axis that was cut is merged into another, say.
    #[error("{pass}: {source}")]
    Verify {
        /// The pass.
        pass: &'static str,
        /// What the verifier found.
        source: VerifyError,
    },
    /// The graph lacks an output that the pass reads.
    #[error("{pass}: the graph has no output `{name}`; declare it")]
    MissingOutput {
        /// The pass.
        pass: &'static str,
        /// The output.
        name: String,
    },
    /// The loss does not depend on a parameter.
    #[error("backward: the loss does not depend on parameter `{parameter}`; remove it or use it")]
    NoGradient {
        /// The parameter.
        parameter: String,
    },
    /// The pass comes too late.
    #[error(
        "precision: node {node} at `{scope}` is no forward node; run precision before backward"
    )]
    NotForward {
        /// Position of the node.
        node: usize,
        /// Its scope.
        scope: String,
    },
    /// A state or a sum has the axis that is cut, so that it differs between micro-batches.
    #[error("tile: `{name}` has axis `batch`; states and sums over micro-batches must not")]
    OverBatch {
        /// State or output.
        name: String,
    },
    /// A sum over micro-batches must be a float that is kept in full.
    #[error("tile: output `{name}` is {got}, and sums over micro-batches need f32")]
    NotF32 {
        /// The output.
        name: String,
        /// Its type.
        got: String,
    },
    /// An axis cannot lie over the ranks as it is asked to.
    #[error("partition{}{}: {reason}", named(" of axis", axis), named(" at", scope))]
    Layout {
        /// The axis, of the graph or of the mesh.
        axis: String,
        /// Scope of the node or name of the state where that shows, if it is one of them.
        scope: String,
        /// Why, and what to do.
        reason: String,
    },
    /// There is nothing to update.
    #[error("update: the graph declares no parameter")]
    NoParameters,
    /// An optimizer's number is out of range.
    #[error("update: {what} must be {wanted}, got {got}")]
    OutOfRange {
        /// The number.
        what: &'static str,
        /// Its range.
        wanted: &'static str,
        /// What was asked for.
        got: f64,
    },
}

/// ` word name` in quotes; nothing for no name.
fn named(word: &str, name: &str) -> String {
    if name.is_empty() { String::new() } else { format!("{word} `{name}`") }
}
