//! What is updated, and by which rule.

use crate::PassError;
use crate::bucket::{Bucket, Buckets};
use crate::scale::LossScale;

/// The rule by which a gradient changes a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Optimizer {
    /// Stochastic gradient descent; decay is added to the gradient.
    Sgd {
        /// Share of the last change that is kept; 0 keeps no state.
        momentum: f64,
    },
    /// RMSprop (Hinton), without centring; decay is added to the gradient.
    RmsProp {
        /// Share of the mean square that is kept.
        alpha: f64,
        /// Added to the root mean square.
        epsilon: f64,
        /// Share of the last change that is kept; 0 keeps no state.
        momentum: f64,
    },
    /// Adam (Kingma and Ba, 2015); decay is added to the gradient.
    Adam {
        /// Share of the mean that is kept.
        beta1: f64,
        /// Share of the mean square that is kept.
        beta2: f64,
        /// Added to the root mean square.
        epsilon: f64,
    },
    /// Adam with decoupled decay.
    AdamW {
        /// Share of the mean that is kept.
        beta1: f64,
        /// Share of the mean square that is kept.
        beta2: f64,
        /// Added to the root mean square.
        epsilon: f64,
    },
}

/// What the update does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateConfig {
    /// The rule.
    pub kind: Optimizer,
    /// Weight decay, by the rate for AdamW and in the gradient for the others.
    pub weight_decay: f64,
    /// Largest global norm of the gradient; 0 leaves it as it is.
    pub clip: f64,
    /// What [`scale`](crate::scale()) multiplied the loss by, if it did.
    pub scale: Option<LossScale>,
}

/// The part of the model and of the mesh that a rank updates.
pub struct Share<'a> {
    /// All buckets of the model.
    pub buckets: &'a Buckets,
    /// Which of them this rank updates; the others belong to other stages of a pipeline.
    pub owned: Vec<bool>,
    /// Whether this rank's stage has the loss.
    pub has_loss: bool,
    /// The mesh axis of tensor parallelism.
    pub tensor: Option<u8>,
    /// The mesh axis of the pipeline's stages.
    pub pipe: Option<u8>,
}

impl<'a> Share<'a> {
    /// All of a model.
    pub fn whole(buckets: &'a Buckets) -> Share<'a> {
        let owned = vec![true; buckets.list.len()];
        Share { buckets, owned, has_loss: true, tensor: None, pipe: None }
    }

    /// The buckets that are updated here, and their positions.
    pub(crate) fn list(&self) -> impl Iterator<Item = (usize, &'a Bucket)> {
        self.buckets.list.iter().enumerate().filter(|(i, _)| self.owned.get(*i) == Some(&true))
    }
}

pub(crate) fn check(config: &UpdateConfig) -> Result<(), PassError> {
    let fail = |what, wanted, got| Err(PassError::OutOfRange { what, wanted, got });
    let share = |what, x: f64| match x {
        x if (0.0..1.0).contains(&x) => Ok(()),
        x => fail(what, "at least 0 and below 1", x),
    };
    let positive = |what, x: f64| match x {
        x if x > 0.0 && x.is_finite() => Ok(()),
        x => fail(what, "above 0", x),
    };
    match config.kind {
        Optimizer::Sgd { momentum } => share("momentum", momentum)?,
        Optimizer::RmsProp { alpha, epsilon, momentum } => {
            share("alpha", alpha)?;
            share("momentum", momentum)?;
            positive("epsilon", epsilon)?;
        }
        Optimizer::Adam { beta1, beta2, epsilon } | Optimizer::AdamW { beta1, beta2, epsilon } => {
            share("beta1", beta1)?;
            share("beta2", beta2)?;
            positive("epsilon", epsilon)?;
        }
    }
    for (what, x) in [("weight_decay", config.weight_decay), ("clip", config.clip)] {
        if !(x >= 0.0 && x.is_finite()) {
            return fail(what, "at least 0", x);
        }
    }
    config.scale.as_ref().map_or(Ok(()), LossScale::check)
}
