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

use crate::PassError;
use crate::bucket::{Bucket, Buckets};
use crate::shards::{Shards, all_reduce, exchange};
use aerogel_graph::ops::Exchange;
use aerogel_graph::{
    AxisId, Build, DType, Expr, Graph, Init, OpError, Phase, Role, StateId, Type, ValueId,
};

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

    fn list(&self) -> impl Iterator<Item = (usize, &'a Bucket)> {
        self.buckets.list.iter().enumerate().filter(|(i, _)| self.owned[*i])
    }
}

/// The update section over the axes of `like` (any section of the step will do).
///
/// Reads the input `rate` f32[] and the states `sum.0.*` of [`accumulate`](crate::accumulate);
/// sums gradients over the ranks over which they are not summed yet, and updates this rank's pieces
/// of the buckets. Declares the optimizer's states `optimizer.m.BUCKET`, `optimizer.v.BUCKET` (as
/// the rule needs them) and `optimizer.applied` f32[], the number of steps that were applied.
/// Outputs, all f32[] and equal on all ranks: `loss` (nats a token), `grad_norm` (before clipping),
/// `tokens`, `finite` (1 or 0).
///
/// # Errors
/// There are no parameters, or a number of the configuration is out of range.
pub fn update(like: &Graph, share: &Share<'_>, config: &UpdateConfig) -> Result<Graph, PassError> {
    check(config)?;
    if share.buckets.list.is_empty() {
        return Err(PassError::NoParameters);
    }
    let mut g = like.bare();
    g.set_mesh(share.buckets.shards.mesh.clone());
    g.phase(Phase::Update);
    let rate = g.input("rate", DType::F32, &[])?;
    let mut masters = vec![];
    for (_, b) in share.list() {
        masters.push(Master::declare(&mut g, b, share)?);
    }
    let mut moments = vec![];
    for (_, b) in share.list() {
        moments.push(Moments::declare(&mut g, b, share, config)?);
    }
    let applied = g.state("optimizer.applied", scalar(), Role::Optimizer, None, ZERO)?;
    let applied = (StateId(g.states().len() as u32 - 1), applied);
    let (loss, tokens) = totals(&mut g, share)?;
    let inverse = scalar_map(&mut g, &[tokens], &|v| v[0].recip())?;
    let mut owned = vec![];
    for (((_, b), master), moments) in share.list().zip(masters).zip(moments) {
        g.at(&b.scope, Phase::Update);
        let grad = gradient(&mut g, b, share)?;
        owned.push(Owned { bucket: b, grad, master, moments });
    }
    let squares = squares(&mut g, share, &owned, inverse)?;
    let scalars = scalars(&mut g, config, squares, [rate, applied.1, loss, tokens, inverse])?;
    for o in &owned {
        g.at(&o.bucket.scope, Phase::Update);
        o.step(&mut g, share, config, &scalars)?;
    }
    g.at(&"".into(), Phase::Update);
    let count = scalar_map(&mut g, &[scalars.finite, applied.1], &|v| {
        v[0].clone().select(&v[1] + 1.0, &v[1])
    })?;
    g.assign(applied.0, count)?;
    g.at(&"".into(), Phase::Forward);
    Ok(g)
}

/// The section that makes the compute copies from the masters, for a run that has just loaded
/// them; `None` where nothing is copied.
///
/// # Errors
/// None for buckets of a graph.
pub fn copies(like: &Graph, share: &Share<'_>) -> Result<Option<Graph>, PassError> {
    if share.list().all(|(_, b)| !b.narrow) {
        return Ok(None);
    }
    let mut g = like.bare();
    g.set_mesh(share.buckets.shards.mesh.clone());
    for (_, b) in share.list() {
        g.at(&b.scope, Phase::Update);
        let master = Master::declare(&mut g, b, share)?;
        master.write_copy(&mut g, b, share, master.value)?;
    }
    g.at(&"".into(), Phase::Forward);
    Ok(Some(g.pruned()?))
}

fn check(config: &UpdateConfig) -> Result<(), PassError> {
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
    Ok(())
}

const ZERO: Init = Init::Constant(0.0);

fn scalar() -> Type {
    Type::new(DType::F32, [])
}

fn scalar_map(
    g: &mut Graph,
    ins: &[ValueId],
    f: &dyn Fn(&[Expr]) -> Expr,
) -> Result<ValueId, OpError> {
    g.map_to(ins, scalar(), f)
}

/// The mesh axes over which gradients are summed here, outermost first.
fn above<'a>(share: &Share<'a>) -> &'a [u8] {
    let shards = &share.buckets.shards;
    &shards.batch[..shards.batch.len() - shards.gradients.len()]
}

/// Loss and tokens of the global batch.
fn totals(g: &mut Graph, share: &Share<'_>) -> Result<(ValueId, ValueId), OpError> {
    let shards = &share.buckets.shards;
    let mut total = |name: &str| {
        let mut v = match share.has_loss {
            true => g.state(&format!("sum.0.{name}"), scalar(), Role::Accumulator, None, ZERO)?,
            false => g.constant(0.0, scalar())?,
        };
        v = shards.sum(g, v, above(share))?;
        // One stage has them; zeros of the others change nothing.
        share.pipe.map_or(Ok(v), |m| all_reduce(g, v, m))
    };
    Ok((total("loss")?, total("tokens")?))
}

/// This rank's piece of a bucket's gradient, summed over the global batch.
fn gradient(g: &mut Graph, b: &Bucket, share: &Share<'_>) -> Result<ValueId, OpError> {
    let shards = &share.buckets.shards;
    let whole = b.axis(g)?;
    let axis = shards.piece(g, whole, &shards.gradients)?;
    let name = format!("sum.0.grad.{}", b.name);
    let ty = Type::new(DType::F32, [axis]);
    let mut v = g.state(&name, ty, Role::Accumulator, None, ZERO)?;
    v = shards.scatter(g, v, whole, &shards.optimizer, &shards.gradients)?;
    let rest = shards.batch.len() - shards.optimizer.len();
    v = shards.sum(g, v, &shards.batch[..rest])?;
    b.partial.map_or(Ok(v), |m| all_reduce(g, v, m))
}

/// The sum of squares of the mean gradient over all buckets of all ranks.
///
/// Each chunk is summed by itself, then the chunks of a bucket, then the buckets, each in order:
/// so the number of pieces, and which stage has which bucket, changes no bit.
fn squares(
    g: &mut Graph,
    share: &Share<'_>,
    owned: &[Owned<'_>],
    inverse: ValueId,
) -> Result<ValueId, OpError> {
    let shards = &share.buckets.shards;
    let mut chunks = vec![];
    for o in owned {
        g.at(&o.bucket.scope, Phase::Update);
        chunks.push(o.chunks(g, share, inverse)?);
    }
    g.at(&"".into(), Phase::Update);
    let chunks = together(g, shards, &chunks)?;
    let one = g.storage_axis("one", 1)?;
    let mut totals: Vec<Option<ValueId>> = vec![None; share.owned.len()];
    for ((i, b), v) in share.list().zip(chunks) {
        let all = g.ty(v).axes[0];
        let own = g.storage_axis(&format!("chunks.{}", b.name), b.chunks)?;
        let v = g.slice(v, all, 0, own)?;
        let v = g.split(v, own, &[one, own])?;
        totals[i] = Some(g.sum(v, &[own])?);
    }
    let mut list = vec![];
    for total in totals {
        list.push(match total {
            Some(v) => v,
            None => g.constant(0.0, Type::new(DType::F32, [one]))?,
        });
    }
    let axis = g.storage_axis("buckets", list.len())?;
    let mut v = match list.as_slice() {
        [single] => g.rename(*single, one, axis)?,
        list => g.concat(list, &vec![one; list.len()], axis)?,
    };
    for m in [share.tensor, share.pipe].into_iter().flatten() {
        v = all_reduce(g, v, m)?;
    }
    g.sum(v, &[axis])
}

/// Sums of chunks of all pieces of each bucket, from those of this rank's pieces: one message.
fn together(g: &mut Graph, shards: &Shards, own: &[ValueId]) -> Result<Vec<ValueId>, OpError> {
    let ranks = shards.pieces(&shards.optimizer);
    if ranks == 1 || own.is_empty() {
        return Ok(own.to_vec());
    }
    let axes: Vec<AxisId> = own.iter().map(|v| g.ty(*v).axes[0]).collect();
    let sizes: Vec<usize> = axes.iter().map(|&a| g.axes().size(a)).collect();
    let length: usize = sizes.iter().sum();
    let mut axis = g.storage_axis("squares", length)?;
    let mut v = match own {
        [single] => g.rename(*single, axes[0], axis)?,
        own => g.concat(own, &axes, axis)?,
    };
    for &m in &shards.optimizer {
        let (name, size) = shards.mesh.0[m as usize].clone();
        let name = format!("{}*{name}", g.axes()[axis].name);
        let into = g.storage_axis(&name, g.axes().size(axis) * size)?;
        v = exchange(g, v, Exchange::AllGather { axis, into }, m)?;
        axis = into;
    }
    let (rank, each) = (g.storage_axis("pieces", ranks)?, g.storage_axis("squares", length)?);
    let v = g.split(v, axis, &[rank, each])?;
    let mut start = 0;
    let mut lists = vec![];
    for size in sizes {
        let piece = g.storage_axis(&format!("squares.{size}"), size)?;
        let whole = g.storage_axis(&format!("squares.{}", size * ranks), size * ranks)?;
        let slice = g.slice(v, each, start, piece)?;
        lists.push(g.merge(slice, &[rank, piece], whole)?);
        start += size;
    }
    Ok(lists)
}

/// Numbers that all tensors share.
struct Scalars {
    /// 1 where the step is to be applied.
    finite: ValueId,
    /// What a summed gradient is multiplied by: one over the tokens, times the clipping.
    factor: ValueId,
    /// What the direction is multiplied by: the rate, for Adam over its first bias correction.
    step: ValueId,
    /// Adam: one over the root of the second bias correction.
    root: Option<ValueId>,
    /// AdamW: rate times decay.
    decay: Option<ValueId>,
}

fn scalars(
    g: &mut Graph,
    config: &UpdateConfig,
    total: ValueId,
    [rate, applied, loss, tokens, share]: [ValueId; 5],
) -> Result<Scalars, OpError> {
    let norm = scalar_map(g, &[total], &|v| v[0].sqrt())?;
    let mean = scalar_map(g, &[loss, tokens], &|v| &v[0] / &v[1])?;
    let finite = scalar_map(g, &[norm, mean], &|v| is_finite(&v[0]) * is_finite(&v[1]))?;
    g.output("loss", mean);
    g.output("grad_norm", norm);
    g.output("tokens", tokens);
    g.output("finite", finite);
    let factor = match config.clip {
        0.0 => share,
        clip => scalar_map(g, &[share, norm], &|v| {
            &v[0] * (Expr::Const(clip) / (&v[1] + 1e-6)).min(1.0)
        })?,
    };
    let (step, root) = match config.kind {
        Optimizer::Adam { beta1, beta2, .. } | Optimizer::AdamW { beta1, beta2, .. } => {
            let step = scalar_map(g, &[rate, applied], &|v| &v[0] / correction(beta1, &v[1]))?;
            (step, Some(scalar_map(g, &[applied], &|v| correction(beta2, &v[0]).rsqrt())?))
        }
        _ => (rate, None),
    };
    let decay = match config.kind {
        Optimizer::AdamW { .. } if config.weight_decay > 0.0 => {
            Some(scalar_map(g, &[rate], &|v| &v[0] * config.weight_decay)?)
        }
        _ => None,
    };
    Ok(Scalars { finite, factor, step, root, decay })
}

/// 1 for every number but the infinities and NaN, for which x - x is no number.
#[allow(clippy::eq_op)] // of floats: that is the test
fn is_finite(x: &Expr) -> Expr {
    (x - x).equals(0.0)
}

/// 1 - beta^t for the step after `applied` ones, as 2u / (1 + u) with u = tanh(-t ln(beta) / 2):
/// 1 minus a power loses its digits in f32 where beta is close to 1.
fn correction(beta: f64, applied: &Expr) -> Expr {
    if beta == 0.0 {
        return Expr::Const(1.0);
    }
    let u = ((applied + 1.0) * (-0.5 * beta.ln())).tanh();
    2.0 * &u / (1.0 + u)
}

/// What the optimizer remembers of one bucket.
#[derive(Clone, Copy)]
struct Moments {
    /// First moment, or the last change.
    m: Option<(StateId, ValueId)>,
    /// Second moment.
    v: Option<(StateId, ValueId)>,
}

impl Moments {
    fn declare(
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
struct Master {
    id: StateId,
    /// The piece that is updated here.
    value: ValueId,
    copy: Option<StateId>,
}

impl Master {
    fn declare(g: &mut Graph, b: &Bucket, share: &Share<'_>) -> Result<Master, OpError> {
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
    fn write(
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

    fn write_copy(
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

/// One bucket of this rank, and what belongs to it.
struct Owned<'a> {
    bucket: &'a Bucket,
    /// This rank's piece of the summed gradient.
    grad: ValueId,
    master: Master,
    moments: Moments,
}

impl Owned<'_> {
    /// The sum of squares of the mean gradient in each chunk of this rank's piece.
    fn chunks(
        &self,
        g: &mut Graph,
        share: &Share<'_>,
        inverse: ValueId,
    ) -> Result<ValueId, OpError> {
        let ty = g.ty(self.grad).clone();
        let (axis, chunk) = (ty.axes[0], self.bucket.chunk);
        let count = g.axes().size(axis) / chunk;
        // What all ranks along the tensor axis have alike is summed over them and counted once.
        let alike = match share.tensor {
            Some(m) if self.bucket.replicated => share.buckets.shards.mesh.size(m),
            _ => 1,
        };
        let square = g.map_to(&[self.grad, inverse], ty, &|v| {
            let x = &v[0] * &v[1];
            let square = &x * &x;
            if alike > 1 { square * (1.0 / alike as f64) } else { square }
        })?;
        let many = g.storage_axis(&format!("chunks.{count}"), count)?;
        let lane = g.storage_axis(&format!("chunk.{chunk}"), chunk)?;
        let square = g.split(square, axis, &[many, lane])?;
        g.sum(square, &[lane])
    }

    /// New moments and the new parameter: one map each, over the parameter's own axes.
    fn step(
        &self,
        g: &mut Graph,
        share: &Share<'_>,
        config: &UpdateConfig,
        s: &Scalars,
    ) -> Result<(), OpError> {
        let new = self.applied(g, config, s)?;
        self.master.write(g, self.bucket, share, new)
    }

    /// Assigns new moments; gives the new parameters.
    fn applied(
        &self,
        g: &mut Graph,
        config: &UpdateConfig,
        s: &Scalars,
    ) -> Result<ValueId, OpError> {
        let decoupled = matches!(config.kind, Optimizer::AdamW { .. });
        let l2 = if self.bucket.decays && !decoupled { config.weight_decay } else { 0.0 };
        // The gradient is written out where it is read: no buffer for it, and no second rounding.
        let mut ins = vec![self.grad, s.factor];
        if l2 > 0.0 {
            ins.push(self.master.value);
        }
        let gradient = move |x: &[Expr]| match l2 {
            0.0 => &x[0] * &x[1],
            l2 => &x[0] * &x[1] + l2 * &x[2],
        };
        let gate = |g: &mut Graph, state, ins: &[ValueId], f: &dyn Fn(&Expr, &[Expr]) -> Expr| {
            gated(g, s.finite, state, ins, f)
        };
        let master = self.master.value;
        let step = |g: &mut Graph, ins: &[ValueId], f: &dyn Fn(&Expr, &[Expr]) -> Expr| {
            selected(g, s.finite, master, ins, f)
        };
        match config.kind {
            Optimizer::Sgd { momentum } => {
                if let Some(m) = self.moments.m {
                    let m = gate(g, m, &ins, &|m, x| momentum * m + gradient(x))?;
                    return step(g, &[s.step, m], &|p, x| p - &x[0] * &x[1]);
                }
                ins.insert(0, s.step);
                step(g, &ins, &|p, x| p - &x[0] * gradient(&x[1..]))
            }
            Optimizer::RmsProp { alpha, epsilon, momentum } => {
                let v = self.moments.v.expect("RMSprop declares a second moment");
                let v = gate(g, v, &ins, &|v, x| mean_square(alpha, v, &gradient(x)))?;
                ins.insert(0, v);
                let direction = |x: &[Expr]| gradient(&x[1..]) / (x[0].sqrt() + epsilon);
                if let Some(m) = self.moments.m {
                    let m = gate(g, m, &ins, &|m, x| momentum * m + direction(x))?;
                    return step(g, &[s.step, m], &|p, x| p - &x[0] * &x[1]);
                }
                ins.insert(0, s.step);
                step(g, &ins, &|p, x| p - &x[0] * direction(&x[1..]))
            }
            Optimizer::Adam { beta1, beta2, epsilon }
            | Optimizer::AdamW { beta1, beta2, epsilon } => {
                let (m, v) = (self.moments.m, self.moments.v);
                let m = m.expect("Adam declares a first moment");
                let v = v.expect("Adam declares a second moment");
                let m = gate(g, m, &ins, &|m, x| beta1 * m + (1.0 - beta1) * gradient(x))?;
                let v = gate(g, v, &ins, &|v, x| mean_square(beta2, v, &gradient(x)))?;
                let root = s.root.expect("Adam corrects its second moment");
                let mut ins = vec![m, v, s.step, root];
                ins.extend(s.decay.filter(|_| self.bucket.decays));
                step(g, &ins, &|p, x| {
                    let change = &x[2] * &x[0] / (x[1].sqrt() * &x[3] + epsilon);
                    match x.get(4) {
                        Some(decay) => p - (decay * p + change),
                        None => p - change,
                    }
                })
            }
        }
    }
}

/// The running mean of squares with one more term.
fn mean_square(keep: f64, old: &Expr, x: &Expr) -> Expr {
    keep * old + (1.0 - keep) * (x * x)
}

/// Assigns a state `f` of its old value and of `ins` where the step is finite; gives the new value.
fn gated(
    g: &mut Graph,
    finite: ValueId,
    (id, old): (StateId, ValueId),
    ins: &[ValueId],
    f: &dyn Fn(&Expr, &[Expr]) -> Expr,
) -> Result<ValueId, OpError> {
    let new = selected(g, finite, old, ins, f)?;
    g.assign(id, new)?;
    Ok(new)
}

/// `f` of an old value and of `ins` where the step is finite, else the old value.
fn selected(
    g: &mut Graph,
    finite: ValueId,
    old: ValueId,
    ins: &[ValueId],
    f: &dyn Fn(&Expr, &[Expr]) -> Expr,
) -> Result<ValueId, OpError> {
    let ty = g.ty(old).clone();
    let args: Vec<ValueId> = [finite, old].into_iter().chain(ins.iter().copied()).collect();
    g.map_to(&args, ty, &|v| v[0].clone().select(f(&v[1], &v[2..]), &v[1]))
}
