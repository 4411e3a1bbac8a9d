//! update: the optimizer as a graph over the summed gradients.
//!
//! Gradients are divided by the token count of the global batch, measured, clipped by their global
//! norm, and applied. The equations are those of PyTorch's SGD, RMSprop, Adam and AdamW
//! (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019), with eps outside of the
//! root. Weight decay applies to the classes that
//! [`decay`](aerogel_graph::ParamClass::decays), whatever the optimizer.
//!
//! Every new value is a select by `finite`, never a product with it: a step whose loss or gradient
//! norm is not finite leaves parameters, moments and the count of applied steps as they were.

pub(crate) mod config;
pub(crate) mod held;
pub(crate) mod norm;
pub(crate) mod rules;

pub use config::{Optimizer, Share, UpdateConfig};

use crate::PassError;
use crate::bucket::Bucket;
use crate::scalar::{ZERO, scalar, scalar_map, scalar_state};
use crate::scale::Scale;
use crate::shards::all_reduce;
use aerogel_graph::{Build, DType, Graph, OpError, Phase, Role, Type, ValueId};
use held::{Master, Moments};
use norm::{chunks, squares};
use rules::{Owned, clipped, measured, scalars};

/// Name of the state that counts the steps that were applied.
pub(crate) const APPLIED: &str = "optimizer.applied";

/// The update section over the axes of `like` (any section of the step will do).
///
/// Reads the input `rate` f32[] and the states `sum.0.*` of [`accumulate`](crate::accumulate);
/// sums gradients over the ranks over which they are not summed yet, and updates this rank's pieces
/// of the buckets. Declares the optimizer's states `optimizer.m.BUCKET`, `optimizer.v.BUCKET` (as
/// the rule needs them) and `optimizer.applied` f32[], the number of steps that were applied.
/// Outputs, all f32[] and equal on all ranks: `loss` (nats a token), `grad_norm` (before clipping),
/// `tokens`, `finite` (1 or 0); with a loss scale also `loss_scale`, that of this step, and
/// `skipped`, the number of steps so far that were not applied.
///
/// # Errors
/// There are no parameters, a number of the configuration is out of range, or the shards contradict
/// each other.
pub fn update(like: &Graph, share: &Share<'_>, config: &UpdateConfig) -> Result<Graph, PassError> {
    config::check(config)?;
    share.buckets.shards.check()?;
    if share.buckets.list.is_empty() {
        return Err(PassError::NoParameters);
    }
    let mut g = like.bare();
    g.set_mesh(share.buckets.shards.mesh.clone());
    g.phase(Phase::Update);
    let rate = g.input("rate", DType::F32, &[])?;
    let mut masters = vec![];
    for (_, b) in share.list() {
        g.at(&b.scope, Phase::Update);
        let master = Master::declare(&mut g, b, share)?;
        masters.push((master, master.piece(&mut g, b, share)?));
    }
    let mut moments = vec![];
    for (_, b) in share.list() {
        moments.push(Moments::declare(&mut g, b, share, config)?);
    }
    let applied = scalar_state(&mut g, APPLIED, ZERO)?;
    let scale = config.scale.map(|s| Scale::declare(&mut g, s)).transpose()?;
    g.at(&"".into(), Phase::Update);
    let totals = totals(&mut g, share)?;
    let inverse = match &scale {
        Some(s) => scalar_map(&mut g, &[totals[1], s.factor], &|v| (&v[0] * &v[1]).recip())?,
        None => scalar_map(&mut g, &[totals[1]], &|v| v[0].recip())?,
    };
    let mut owned = vec![];
    for (((_, b), (_, master)), moments) in share.list().zip(&masters).zip(moments) {
        g.at(&b.scope, Phase::Update);
        let grad = gradient(&mut g, b, share)?;
        owned.push(Owned { decays: b.decays, grad, master: *master, moments });
    }
    let mut lists = vec![];
    for ((_, b), o) in share.list().zip(&owned) {
        g.at(&b.scope, Phase::Update);
        lists.push(chunks(&mut g, b, share, [o.grad, inverse])?);
    }
    let squares = squares(&mut g, share, &lists)?;
    let [norm, finite] = measured(&mut g, squares, totals)?;
    let factor = clipped(&mut g, config, [inverse, norm])?;
    let scalars = scalars(&mut g, config, [rate, applied.1, factor], Some(finite))?;
    for (((_, b), (master, _)), o) in share.list().zip(masters).zip(&owned) {
        g.at(&b.scope, Phase::Update);
        let new = o.applied(&mut g, config, &scalars)?;
        master.write(&mut g, b, share, new)?;
    }
    g.at(&"".into(), Phase::Update);
    let count =
        scalar_map(&mut g, &[finite, applied.1], &|v| v[0].clone().select(&v[1] + 1.0, &v[1]))?;
    g.assign(applied.0, count)?;
    if let Some(scale) = &scale {
        scale.adapt(&mut g, finite)?;
    }
    g.at(&"".into(), Phase::Forward);
    Ok(g)
}

/// The section that makes the compute copies from the masters, for a run that has just loaded
/// them; `None` where nothing is copied.
///
/// # Errors
/// The shards contradict each other.
pub fn copies(like: &Graph, share: &Share<'_>) -> Result<Option<Graph>, PassError> {
    share.buckets.shards.check()?;
    if share.list().all(|(_, b)| b.copy.is_none()) {
        return Ok(None);
    }
    let mut g = like.bare();
    g.set_mesh(share.buckets.shards.mesh.clone());
    for (_, b) in share.list() {
        g.at(&b.scope, Phase::Update);
        let master = Master::declare(&mut g, b, share)?;
        let piece = master.piece(&mut g, b, share)?;
        master.write_copy(&mut g, b, share, piece)?;
    }
    g.at(&"".into(), Phase::Forward);
    Ok(Some(g.pruned()?))
}

/// Loss and tokens of the global batch.
fn totals(g: &mut Graph, share: &Share<'_>) -> Result<[ValueId; 2], OpError> {
    let mut total = |name: &str| {
        let v = match share.has_loss {
            true => g.state(&format!("sum.0.{name}"), scalar(), Role::Accumulator, None, ZERO)?,
            false => g.constant(0.0, scalar())?,
        };
        total(g, v, share)
    };
    Ok([total("loss")?, total("tokens")?])
}

/// A number of this rank's part of the batch, summed over the global batch.
pub(crate) fn total(g: &mut Graph, v: ValueId, share: &Share<'_>) -> Result<ValueId, OpError> {
    let shards = &share.buckets.shards;
    let v = shards.sum(g, v, shards.above())?;
    // One stage has them; zeros of the others change nothing.
    share.pipe.map_or(Ok(v), |m| all_reduce(g, v, m))
}

/// This rank's piece of a bucket's gradient, summed over the global batch.
fn gradient(g: &mut Graph, b: &Bucket, share: &Share<'_>) -> Result<ValueId, OpError> {
    let shards = &share.buckets.shards;
    let whole = b.axis(g)?;
    let axis = shards.piece(g, whole, &shards.gradients)?;
    let name = format!("sum.0.grad.{}", b.name);
    let ty = Type::new(DType::F32, [axis]);
    let v = g.state(&name, ty, Role::Accumulator, None, ZERO)?;
    summed(g, v, b, share)
}

/// The same, from what this rank has of it after its backward.
pub(crate) fn summed(
    g: &mut Graph,
    v: ValueId,
    b: &Bucket,
    share: &Share<'_>,
) -> Result<ValueId, OpError> {
    let shards = &share.buckets.shards;
    let whole = b.axis(g)?;
    let v = shards.scatter(g, v, whole, &shards.optimizer, &shards.gradients)?;
    let rest = shards.batch.len() - shards.optimizer.len();
    let v = shards.sum(g, v, &shards.batch[..rest])?;
    b.partial.map_or(Ok(v), |m| all_reduce(g, v, m))
}
