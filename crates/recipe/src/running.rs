//! How a run computes, and what watches it: `[precision]`, `[eval]`, `[sample]`, `[checkpoint]`.

use crate::choices::Compute;
use serde::Serialize;

/// Numeric formats.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Precision {
    /// Dtype of products and activations.
    pub compute: Compute,
    /// The factor on the loss in the backward, if there is one.
    pub loss_scale: Option<LossScale>,
}

/// How the loss is scaled for the backward.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LossScale {
    /// The factor of the first step.
    pub initial: f64,
    /// Steps without overflow after which it doubles; 0: it never changes.
    pub interval: u64,
}

/// Evaluation on held-out data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Eval {
    /// Steps between two evaluations; 0 evaluates only at the end.
    pub every: u64,
    /// Sequences of an evaluation; 0 takes all.
    pub sequences: u64,
}

/// Drawing from the model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Samples to draw.
    pub count: usize,
    /// Tokens of a sample; a whole image for images.
    pub tokens: usize,
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f64,
    /// Draw out of the likeliest so many tokens; 0 draws out of all.
    pub top_k: usize,
    /// Text that every sample continues.
    pub prompt: Option<String>,
    /// Seed of the draws.
    pub seed: u64,
    /// Steps between two sets of samples; 0 samples only at the end.
    pub every: u64,
}

/// Saving.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Checkpoint {
    /// Steps between two checkpoints; 0 keeps only the end.
    pub every: u64,
    /// Newest checkpoints to keep.
    pub keep: u64,
}
