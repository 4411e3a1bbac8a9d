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
    /// A graph of the run reads a parameter as the training step does not.
    #[error(
        "bucket: the training step has no parameter `{parameter}`, or reads a copy of it in \
         another dtype"
    )]
    Bucket {
        /// The parameter.
        parameter: String,
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
    /// A node cannot run on pieces of the sequence.
    #[error("chunk: `{op}` at `{scope}` cannot run on a piece of `seq`: {reason}")]
    Chunk {
        /// The op.
        op: &'static str,
        /// Its scope.
        scope: String,
        /// Why.
        reason: &'static str,
    },
    /// What is to run in pieces is not there.
    #[error("chunk: the graph has no scope `{scope}` to run in pieces; ask for 1 piece")]
    NoScope {
        /// The scope.
        scope: &'static str,
    },
    /// The update cannot stand inside the backward.
    #[error("inside: the update does not fit into the backward: {reason}")]
    Inside {
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
    /// The graph is more than the step of one micro-batch.
    #[error("split: {what}; split the graph of one micro-batch, as `backward` gives it")]
    NotAMicroBatch {
        /// What is too much.
        what: String,
    },
    /// Every stage needs room for the micro-batches that it has in flight.
    #[error("split: {stages} stages need one positive number of slots each, got {got:?}")]
    Slots {
        /// Virtual stages.
        stages: usize,
        /// The numbers.
        got: Vec<u32>,
    },
    /// A node belongs to no stage.
    #[error(
        "split: `{scope}` is of stage {stage}, and the last of {stages} stages is counted {}; \
         give its layers to a stage",
        stages.saturating_sub(1)
    )]
    NoSuchStage {
        /// The node's scope.
        scope: String,
        /// What was said.
        stage: usize,
        /// Virtual stages.
        stages: usize,
    },
    /// A stage has nothing to do.
    #[error("split: the {section} of stage {stage} has no node; use fewer stages")]
    EmptyStage {
        /// The virtual stage.
        stage: usize,
        /// Forward or backward.
        section: &'static str,
    },
    /// A stage would wait for one that waits for it.
    #[error(
        "split: `{scope}`, in {reader}, reads what {maker} makes, which runs later; deal out the \
         layers in the order in which they run"
    )]
    ReadsAhead {
        /// The reading node's scope.
        scope: String,
        /// Its section.
        reader: String,
        /// The section of what it reads.
        maker: String,
    },
}

/// ` word name` in quotes; nothing for no name.
fn named(word: &str, name: &str) -> String {
    if name.is_empty() { String::new() } else { format!("{word} `{name}`") }
}
