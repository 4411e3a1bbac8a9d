//! inside: the optimizer's step inside the backward, bucket by bucket (Lv et al., Full Parameter
//! Fine-tuning for Large Language Models with Limited Resources, 2023, for SGD; the equations here
//! are those of any optimizer of [`update`](crate::update)).
//!
//! Each bucket is updated directly after the node that completes its gradient, so that the gradient
//! is gone before the next one is whole: a step needs room for the largest bucket's gradient, and
//! not for all. What the update of all buckets at once knows is not known here: the global norm, so
//! there is no clipping, and whether loss and norm are finite, so a step is applied whatever they
//! are. Both are measured on the way and told at the end. The number of tokens is summed before
//! the first update.
//!
//! Numbers are those of a step that accumulates one micro-batch and updates without clipping, to
//! the bit, as long as they are finite.

use crate::PassError;
use crate::scalar::{ZERO, scalar_map, scalar_state};
use crate::update::config::{Share, UpdateConfig, check};
use crate::update::held::{Master, Moments};
use crate::update::norm::{chunks, squares};
use crate::update::rules::{Owned, Scalars, measured, scalars};
use crate::update::{APPLIED, summed, total};
use aerogel_graph::{Build, Cutter, DType, Def, Graph, OpError, Phase, ValueId};
use std::collections::HashMap;

const PASS: &str = "inside";

/// The one section of a step, from the graph of a rank's one micro-batch over buckets, as
/// [`backward`](crate::backward), [`cut`](crate::cut) and
/// [`Buckets::apply`](crate::Buckets::apply) give it, with outputs `loss`, `tokens` and
/// `grad.BUCKET`.
///
/// Reads the input `rate` f32[] as well. Declares what [`update`](crate::update) does, but no
/// accumulators, and has its outputs: `loss`, `grad_norm`, `tokens`, `finite`, all f32[].
///
/// # Errors
/// The gradient is to be clipped, there are several micro-batches or stages, layers share a
/// parameter, an output is missing, or as for `update`.
pub fn inside(micro: &Graph, share: &Share<'_>, config: &UpdateConfig) -> Result<Graph, PassError> {
    check(config)?;
    share.buckets.shards.check()?;
    if share.buckets.list.is_empty() {
        return Err(PassError::NoParameters);
    }
    if let Some(reason) = reason_against(micro, share, config) {
        return Err(PassError::Inside { reason });
    }
    let mut work = Work::new(micro, share, config)?;
    let rate = work.g.input("rate", DType::F32, &[])?;
    let applied = scalar_state(&mut work.g, APPLIED, ZERO)?;
    // How many tokens there are is needed first, and known from the inputs.
    let tokens = work.output("tokens")?;
    work.up_to(tokens)?;
    let tokens = work.total(tokens)?;
    let inverse = scalar_map(&mut work.g, &[tokens], &|v| v[0].recip())?;
    let scalars = scalars(&mut work.g, config, [rate, applied.1, inverse], None)?;
    let lists = work.updates(inverse, &scalars)?;
    let loss = work.total(work.output("loss")?)?;
    let mut g = work.finish()?;
    let squares = squares(&mut g, share, &lists)?;
    measured(&mut g, squares, [loss, tokens])?;
    let count = scalar_map(&mut g, &[applied.1], &|v| &v[0] + 1.0)?;
    g.assign(applied.0, count)?;
    g.at(&"".into(), Phase::Forward);
    Ok(g.pruned()?)
}

/// Why the step cannot be made inside the backward.
fn reason_against(micro: &Graph, share: &Share<'_>, config: &UpdateConfig) -> Option<String> {
    if config.clip > 0.0 {
        let clip = config.clip;
        return Some(format!(
            "clipping to {clip} needs the norm of all gradients before the first update; set clip \
             to 0"
        ));
    }
    if config.scale.is_some() {
        return Some(
            "a loss scale has to see all gradients before the first update; use none".to_owned(),
        );
    }
    let in_time =
        |(_, a): (_, &aerogel_graph::Axis)| a.cuts.iter().find(|c| c.by == Cutter::Time).copied();
    if let Some(cut) = micro.axes().iter().find_map(in_time) {
        return Some(format!(
            "a rank runs {} micro-batches, and their gradients have to be summed before the \
             update; use one",
            cut.pieces
        ));
    }
    if share.pipe.is_some() || !share.has_loss || share.list().count() < share.buckets.list.len() {
        return Some(
            "a stage of a pipeline has several micro-batches in flight; use no pipeline".to_owned(),
        );
    }
    let (_, bucket) = share.list().find(|(_, b)| b.shared)?;
    let shared = &bucket.tensors.first()?.name;
    Some(format!(
        "several layers share `{shared}`, whose gradient is not complete before the last of them; \
         untie it"
    ))
}

/// A micro-batch that becomes a step.
struct Work<'a> {
    micro: &'a Graph,
    share: &'a Share<'a>,
    config: &'a UpdateConfig,
    g: Graph,
    moved: Vec<Option<ValueId>>,
    done: Vec<bool>,
    /// What is held of each bucket, in the order of the share's list.
    held: Vec<(Master, Moments)>,
}

impl<'a> Work<'a> {
    fn new(
        micro: &'a Graph,
        share: &'a Share<'a>,
        config: &'a UpdateConfig,
    ) -> Result<Self, PassError> {
        let (mut g, moved) = micro.header();
        g.set_mesh(share.buckets.shards.mesh.clone());
        let mut held = vec![];
        for (_, b) in share.list() {
            held.push((
                Master::declare(&mut g, b, share)?,
                Moments::declare(&mut g, b, share, config)?,
            ));
        }
        let done = vec![false; micro.nodes().len()];
        Ok(Work { micro, share, config, g, moved, done, held })
    }

    /// An output of the micro-batch.
    fn output(&self, name: &str) -> Result<ValueId, PassError> {
        let missing = || PassError::MissingOutput { pass: PASS, name: name.to_owned() };
        self.micro.find_output(name).ok_or_else(missing)
    }

    fn moved(&self, v: ValueId) -> Result<ValueId, OpError> {
        let lost = || OpError::new(PASS, "a value is read before it is made");
        self.moved[v.index()].ok_or_else(lost)
    }

    /// The sum over ranks of a number of the micro-batch.
    fn total(&mut self, v: ValueId) -> Result<ValueId, PassError> {
        self.g.at(&"".into(), Phase::Update);
        let v = self.moved(v)?;
        Ok(total(&mut self.g, v, self.share)?)
    }

    /// A node of the micro-batch, unless it is there.
    fn node(&mut self, n: usize) -> Result<(), OpError> {
        if std::mem::replace(&mut self.done[n], true) {
            return Ok(());
        }
        let node = &self.micro.nodes()[n];
        let ins = node.ins.iter().map(|&v| self.moved(v)).collect::<Result<Vec<_>, _>>()?;
        self.g.at(&node.scope, node.phase);
        let outs = self.g.emit(node.op.clone(), &ins)?;
        for (old, new) in node.outs.iter().zip(outs) {
            self.moved[old.index()] = Some(new);
        }
        Ok(())
    }

    /// A value of the micro-batch, and what it is made of.
    fn up_to(&mut self, v: ValueId) -> Result<(), OpError> {
        let mut needed = vec![false; self.micro.values().len()];
        needed[v.index()] = true;
        let mut nodes = vec![];
        for (n, node) in self.micro.nodes().iter().enumerate().rev() {
            if node.outs.iter().any(|v| needed[v.index()]) {
                node.ins.iter().for_each(|v| needed[v.index()] = true);
                nodes.push(n);
            }
        }
        nodes.into_iter().rev().try_for_each(|n| self.node(n))
    }

    /// All other nodes, and behind each gradient's last one the update of its bucket. Gives the
    /// sums of squares of each bucket's gradient.
    fn updates(&mut self, inverse: ValueId, scalars: &Scalars) -> Result<Vec<ValueId>, PassError> {
        let mut gradients: HashMap<usize, Vec<usize>> = HashMap::new();
        for (at, (_, b)) in self.share.list().enumerate() {
            let name = format!("grad.{}", b.name);
            let Def::Node(n, _) = self.micro.value(self.output(&name)?).def else {
                return Err(OpError::new(PASS, format!("`{name}` is not computed")).into());
            };
            gradients.entry(n.index()).or_default().push(at);
        }
        let mut lists = vec![None; self.held.len()];
        for n in 0..self.micro.nodes().len() {
            self.node(n)?;
            for &at in gradients.get(&n).into_iter().flatten() {
                lists[at] = Some(self.update(at, inverse, scalars)?);
            }
        }
        Ok(lists.into_iter().flatten().collect())
    }

    /// Updates the bucket at a place of the share's list.
    fn update(
        &mut self,
        at: usize,
        inverse: ValueId,
        scalars: &Scalars,
    ) -> Result<ValueId, PassError> {
        let (share, (master, moments)) = (self.share, self.held[at]);
        let Some((_, b)) = share.list().nth(at) else { return Err(PassError::NoParameters) };
        let grad = self.moved(self.output(&format!("grad.{}", b.name))?)?;
        let g = &mut self.g;
        g.at(&b.scope, Phase::Update);
        let grad = summed(g, grad, b, share)?;
        let list = chunks(g, b, share, [grad, inverse])?;
        let piece = master.piece(g, b, share)?;
        let owned = Owned { decays: b.decays, grad, master: piece, moments };
        let new = owned.applied(g, self.config, scalars)?;
        master.write(g, b, share, new)?;
        Ok(list)
    }

    /// The graph, with the outputs and assignments that are no sums over the batch.
    fn finish(mut self) -> Result<Graph, PassError> {
        for (name, v) in &self.micro.outputs {
            if !crate::shards::is_sum(name) {
                let v = self.moved(*v)?;
                self.g.output(name, v);
            }
        }
        for (state, v) in &self.micro.assigns {
            self.g.assign(*state, self.moved(*v)?)?;
        }
        Ok(self.g)
    }
}
