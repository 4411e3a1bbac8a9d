//! What a rank holds of a bucket: parameters, their copies, moments.

use super::config::{Optimizer, Share, UpdateConfig};
use crate::bucket::Bucket;
use aerogel_graph::{AxisId, Build, DType, Graph, OpError, Role, StateId, ValueId};

/// What the optimizer remembers of one bucket.
#[derive(Clone, Copy)]
pub(crate) struct Moments {
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
            used.then(|| held(g, b, &name, axis, DType::F32, Role::Optimizer, &prefix)).transpose()
        };
        Ok(Moments { m: declare(m, "m")?, v: declare(v, "v")? })
    }
}

/// A bucket's parameters in f32, and their copy in the compute dtype if there is one.
#[derive(Clone, Copy)]
pub(crate) struct Master {
    id: StateId,
    /// What this rank holds.
    value: ValueId,
    copy: Option<(StateId, DType)>,
}

/// A state over a piece of a bucket: the graph's, if it has it already, as a section does that
/// reads the parameters as well.
fn held(
    g: &mut Graph,
    b: &Bucket,
    name: &str,
    axis: AxisId,
    dtype: DType,
    role: Role,
    prefix: &str,
) -> Result<(StateId, ValueId), OpError> {
    match g.find_state(name) {
        Some(id) => Ok((id, g.states()[id.index()].value)),
        None => b.declare(g, name, axis, dtype, role, prefix),
    }
}

impl Master {
    /// Declares what this rank holds.
    pub fn declare(g: &mut Graph, b: &Bucket, share: &Share<'_>) -> Result<Master, OpError> {
        let shards = &share.buckets.shards;
        let whole = b.axis(g)?;
        let axis = shards.piece(g, whole, Master::cut(b, share))?;
        let (id, value) = held(g, b, &b.name, axis, DType::F32, Role::Parameter, "")?;
        let copy = b.copy.map(|dtype| {
            let axis = shards.piece(g, whole, &shards.parameters)?;
            let (name, prefix) = (b.copy_name(dtype), format!("{dtype}."));
            Ok((held(g, b, &name, axis, dtype, Role::Weights, &prefix)?.0, dtype))
        });
        Ok(Master { id, value, copy: copy.transpose()? })
    }

    /// The mesh axes over which it is cut.
    fn cut<'a>(b: &Bucket, share: &Share<'a>) -> &'a [u8] {
        let shards = &share.buckets.shards;
        if b.copy.is_some() { &shards.optimizer } else { &shards.parameters }
    }

    /// The piece that is updated here, of what this rank holds.
    pub fn piece(&self, g: &mut Graph, b: &Bucket, share: &Share<'_>) -> Result<ValueId, OpError> {
        let shards = &share.buckets.shards;
        let whole = b.axis(g)?;
        shards.keep(g, self.value, whole, &shards.optimizer, Master::cut(b, share))
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
        let Some((copy, dtype)) = self.copy else { return Ok(()) };
        let shards = &share.buckets.shards;
        let whole = b.axis(g)?;
        let narrow = g.cast(new, dtype, DType::F32)?;
        let all = shards.gather(g, narrow, whole, &shards.optimizer, &shards.parameters)?;
        g.assign(copy, all)
    }
}
