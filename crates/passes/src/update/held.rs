//! What a rank holds of a bucket: parameters, their copies, moments.

use super::config::{Optimizer, Share, UpdateConfig};
use crate::bucket::Bucket;
use aerogel_graph::{Build, DType, Graph, OpError, Role, StateId, ValueId};

/// What the optimizer remembers of one bucket.
#[derive(Clone, Copy)]
pub(super) struct Moments {
    /// First moment, or the last change.
    pub m: Option<(StateId, ValueId)>,
    /// Second moment.
    pub v: Option<(StateId, ValueId)>,
}

impl Moments {
    /// Declares the states that the rule needs.
    pub fn declare(
        g: &mut Graph,
        b: &Bucket,
        share: &Share<'_>,
        config: &UpdateConfig,
    ) -> Result<Self, OpError> {
        let (m, v) = match config.kind {
            Optimizer::Sgd { momentum } => (momentum > 0.0, false),
            Optimizer::RmsProp { momentum, .. } => (momentum > 0.0, true),
            Optimizer::Adam { .. } | Optimizer::AdamW { .. } => (true, true),
        };
        let shards = &share.buckets.shards;
        let whole = b.axis(g)?;
        let axis = shards.piece(g, whole, &shards.optimizer)?;
        let mut declare = |used: bool, letter: &str| {
            let prefix = format!("optimizer.{letter}.");
            let name = format!("{prefix}{}", b.name);
            used.then(|| b.declare(g, &name, axis, DType::F32, Role::Optimizer, &prefix))
                .transpose()
        };
        Ok(Moments { m: declare(m, "m")?, v: declare(v, "v")? })
    }
}

/// A bucket's parameters in f32, and their copy in the compute dtype if there is one.
#[derive(Clone, Copy)]
pub(super) struct Master {
    pub id: StateId,
    /// The piece that is updated here.
    pub value: ValueId,
    pub copy: Option<StateId>,
}

impl Master {
    /// Declares what this rank holds; the piece that it updates is kept of it.
    pub fn declare(g: &mut Graph, b: &Bucket, share: &Share<'_>) -> Result<Master, OpError> {
        let shards = &share.buckets.shards;
        let whole = b.axis(g)?;
        let held = if b.narrow { &shards.optimizer } else { &shards.parameters };
        let axis = shards.piece(g, whole, held)?;
        let (id, value) = b.declare(g, &b.name, axis, DType::F32, Role::Parameter, "")?;
        let value = shards.keep(g, value, whole, &shards.optimizer, held)?;
        let copy = b.narrow.then(|| {
            let axis = shards.piece(g, whole, &shards.parameters)?;
            b.declare(g, &b.copy_name(), axis, DType::Bf16, Role::Weights, "bf16.")
        });
        Ok(Master { id, value, copy: copy.transpose()?.map(|c| c.0) })
    }

    /// Assigns the new value of this rank's piece, and what ranks hold of it.
    pub fn write(
        &self,
        g: &mut Graph,
        b: &Bucket,
        share: &Share<'_>,
        new: ValueId,
    ) -> Result<(), OpError> {
        if self.copy.is_some() {
            g.assign(self.id, new)?;
            return self.write_copy(g, b, share, new);
        }
        let shards = &share.buckets.shards;
        let whole = b.axis(g)?;
        let all = shards.gather(g, new, whole, &shards.optimizer, &shards.parameters)?;
        g.assign(self.id, all)
    }

    /// Assigns the copy, if there is one, from the new value of this rank's piece.
    pub fn write_copy(
        &self,
        g: &mut Graph,
        b: &Bucket,
        share: &Share<'_>,
        new: ValueId,
    ) -> Result<(), OpError> {
        let Some(copy) = self.copy else { return Ok(()) };
        let shards = &share.buckets.shards;
        let whole = b.axis(g)?;
        let narrow = g.cast(new, DType::Bf16, DType::F32)?;
        let all = shards.gather(g, narrow, whole, &shards.optimizer, &shards.parameters)?;
        g.assign(copy, all)
    }
}
