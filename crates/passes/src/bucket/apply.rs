//! Buckets in place of the parameters of a graph.

use super::layout::{Bucket, Buckets, PASS, weight_cast};
use crate::PassError;
use crate::shards::is_sum;
use aerogel_graph::{Build, DType, Def, Graph, Node, OpError, Phase, Role, StateId, Type, ValueId};
use std::collections::HashMap;

impl Buckets {
    /// The graph with buckets in place of parameters, and with one gradient a bucket, cut and
    /// summed over the ranks that `gradients` names, in place of one a parameter.
    ///
    /// # Errors
    /// A parameter is not in a bucket, or is not read as the training step reads it; there are
    /// gradients of some parameters of a bucket and not of others; the shards contradict each
    /// other.
    pub fn apply(&self, g: &Graph) -> Result<Graph, PassError> {
        self.shards.check()?;
        let mut work = Work::new(self, g)?;
        for node in g.nodes() {
            work.node(node)?;
        }
        work.finish()
    }
}

/// An empty graph over the same axes that knows the ranks.
fn with_mesh(old: &Graph, buckets: &Buckets) -> Graph {
    let mut g = old.bare();
    g.set_mesh(buckets.shards.mesh.clone());
    g
}

/// A graph that is being rewritten.
struct Work<'a> {
    buckets: &'a Buckets,
    old: &'a Graph,
    g: Graph,
    /// Where old values went.
    moved: Vec<Option<ValueId>>,
    /// Which parameter an old value is: bucket, and the tensor's position in it.
    parameter: HashMap<ValueId, (usize, usize)>,
    /// What the model reads of a bucket: a piece, perhaps.
    pieces: Vec<ValueId>,
    /// The whole of it, by bucket and phase.
    wholes: HashMap<(usize, Phase), ValueId>,
    /// A tensor of it, by bucket, tensor and phase.
    views: HashMap<(usize, usize, Phase), ValueId>,
    /// Bucket and tensor of an old gradient.
    gradient: HashMap<ValueId, Vec<(usize, usize)>>,
    /// New gradients, by bucket and tensor.
    grads: Vec<Vec<Option<ValueId>>>,
    /// The summed gradients.
    outputs: Vec<(String, ValueId)>,
}

impl<'a> Work<'a> {
    fn new(buckets: &'a Buckets, old: &'a Graph) -> Result<Self, PassError> {
        let mut work = Work {
            buckets,
            old,
            g: with_mesh(old, buckets),
            moved: vec![None; old.values().len()],
            parameter: HashMap::new(),
            pieces: vec![],
            wholes: HashMap::new(),
            views: HashMap::new(),
            gradient: HashMap::new(),
            grads: buckets.list.iter().map(|b| vec![None; b.tensors.len()]).collect(),
            outputs: vec![],
        };
        for bucket in &buckets.list {
            let piece = work.declare(bucket)?;
            work.pieces.push(piece);
        }
        work.header()?;
        for (name, v) in &old.outputs {
            if let Some(name) = name.strip_prefix("grad.") {
                let at = work.place(name)?;
                work.gradient.entry(*v).or_default().push(at);
            }
        }
        Ok(work)
    }

    /// The state that the model reads.
    fn declare(&mut self, bucket: &Bucket) -> Result<ValueId, OpError> {
        let shards = &self.buckets.shards;
        let whole = bucket.axis(&mut self.g)?;
        let axis = shards.piece(&mut self.g, whole, &shards.parameters)?;
        let (name, dtype, role, prefix) = match bucket.copy {
            Some(dtype) => (bucket.copy_name(dtype), dtype, Role::Weights, format!("{dtype}.")),
            None => (bucket.name.clone(), DType::F32, Role::Parameter, String::new()),
        };
        Ok(bucket.declare(&mut self.g, &name, axis, dtype, role, &prefix)?.1)
    }

    fn place(&self, parameter: &str) -> Result<(usize, usize), PassError> {
        let missing = || PassError::Bucket { parameter: parameter.to_owned() };
        self.buckets.find(parameter).ok_or_else(missing)
    }

    /// Inputs and the states that are no parameters.
    fn header(&mut self) -> Result<(), PassError> {
        for input in self.old.inputs() {
            let ty = self.old.ty(input.value);
            let new = self.g.input(&input.name, ty.dtype, &ty.axes)?;
            self.moved[input.value.index()] = Some(new);
        }
        for state in self.old.states() {
            if state.role == Role::Parameter {
                let at = self.place(&state.name)?;
                self.parameter.insert(state.value, at);
                continue;
            }
            let ty = self.old.ty(state.value).clone();
            let new = self.g.state(&state.name, ty, state.role, state.class, state.init)?;
            if !state.parts.is_empty() {
                self.g.set_parts(&state.name, state.parts.clone())?;
            }
            self.g.set_copies(StateId(self.g.states().len() as u32 - 1), state.copies);
            self.moved[state.value.index()] = Some(new);
        }
        Ok(())
    }

    fn node(&mut self, node: &Node) -> Result<(), PassError> {
        if let [v] = node.ins.as_slice()
            && let Some(&(bucket, tensor)) = self.parameter.get(v)
            && self.buckets.list[bucket].copy.is_some()
            && weight_cast(node).is_some()
        {
            // The copy takes the cast's place.
            self.g.at(&node.scope, node.phase);
            let view = self.view(bucket, tensor, node.phase)?;
            self.moved[node.outs[0].index()] = Some(view);
            return Ok(());
        }
        let mut ins = vec![];
        for v in &node.ins {
            ins.push(self.value(*v, node)?);
        }
        self.g.at(&node.scope, node.phase);
        let outs = self.g.emit(node.op.clone(), &ins)?;
        for (old, new) in node.outs.iter().zip(outs) {
            self.moved[old.index()] = Some(new);
            for (bucket, tensor) in self.gradient.get(old).cloned().unwrap_or_default() {
                self.grads[bucket][tensor] = Some(new);
                self.close(bucket)?;
            }
        }
        Ok(())
    }

    /// An old value's place in the new graph, for a reader.
    fn value(&mut self, v: ValueId, reader: &Node) -> Result<ValueId, PassError> {
        let Some(&(bucket, tensor)) = self.parameter.get(&v) else {
            let lost = || OpError::new(PASS, "a value is read before it is made");
            // A weight's copy is gathered again in the backward.
            if let Def::Node(n, _) = self.old.value(v).def
                && let [from] = self.old.node(n).ins.as_slice()
                && let Some(&(bucket, tensor)) = self.parameter.get(from)
                && self.buckets.list[bucket].copy.is_some()
            {
                self.g.at(&reader.scope, reader.phase);
                return Ok(self.view(bucket, tensor, reader.phase)?);
            }
            return Ok(self.moved[v.index()].ok_or_else(lost)?);
        };
        if self.buckets.list[bucket].copy.is_some() {
            let parameter = self.buckets.list[bucket].tensors[tensor].name.clone();
            return Err(PassError::Bucket { parameter });
        }
        self.g.at(&reader.scope, reader.phase);
        Ok(self.view(bucket, tensor, reader.phase)?)
    }

    /// A tensor of a bucket, for readers in a phase.
    fn view(&mut self, bucket: usize, tensor: usize, phase: Phase) -> Result<ValueId, OpError> {
        if let Some(&known) = self.views.get(&(bucket, tensor, phase)) {
            return Ok(known);
        }
        let whole = self.whole(bucket, phase)?;
        let b = &self.buckets.list[bucket];
        let t = &b.tensors[tensor];
        let axis = b.axis(&mut self.g)?;
        let flat = self.g.storage_axis(&format!("flat.{}", t.name), t.count)?;
        let slice = self.g.slice(whole, axis, t.first, flat)?;
        let axes = t.axes.iter().map(|a| self.g.axes().find(a)).collect::<Option<Vec<_>>>();
        let axes = axes.ok_or_else(|| OpError::new(PASS, "an axis is missing"))?;
        let view = match axes.as_slice() {
            [] => self.g.sum(slice, &[flat])?,
            axes => self.g.split(slice, flat, axes)?,
        };
        self.views.insert((bucket, tensor, phase), view);
        Ok(view)
    }

    /// All of a bucket, gathered where ranks have pieces of it.
    fn whole(&mut self, bucket: usize, phase: Phase) -> Result<ValueId, OpError> {
        if let Some(&known) = self.wholes.get(&(bucket, phase)) {
            return Ok(known);
        }
        let shards = &self.buckets.shards;
        let b = &self.buckets.list[bucket];
        let whole = b.axis(&mut self.g)?;
        let value =
            shards.gather(&mut self.g, self.pieces[bucket], whole, &shards.parameters, &[])?;
        self.wholes.insert((bucket, phase), value);
        Ok(value)
    }

    /// Once all gradients of a bucket are there: one value of them, summed over the ranks that
    /// `gradients` names.
    fn close(&mut self, bucket: usize) -> Result<(), OpError> {
        let Some(grads) = self.grads[bucket].iter().copied().collect::<Option<Vec<ValueId>>>()
        else {
            return Ok(());
        };
        let b = &self.buckets.list[bucket];
        self.g.at(&b.scope, Phase::Backward);
        let g = &mut self.g;
        let (mut parts, mut axes, mut end) = (vec![], vec![], 0);
        let zeros = |g: &mut Graph, count: usize, parts: &mut Vec<_>, axes: &mut Vec<_>| {
            if count == 0 {
                return Ok(());
            }
            let axis = g.storage_axis(&format!("zeros.{count}"), count)?;
            parts.push(g.constant(0.0, Type::new(DType::F32, [axis]))?);
            axes.push(axis);
            Ok::<(), OpError>(())
        };
        for (t, grad) in b.tensors.iter().zip(grads) {
            zeros(g, t.first - end, &mut parts, &mut axes)?;
            let flat = g.storage_axis(&format!("flat.{}", t.name), t.count)?;
            let list = g.ty(grad).axes.clone();
            parts.push(match list.as_slice() {
                [] => g.map_to(&[grad], Type::new(DType::F32, [flat]), &|v| v[0].clone())?,
                list => g.merge(grad, list, flat)?,
            });
            axes.push(flat);
            end = t.first + t.count;
        }
        zeros(g, b.elements - end, &mut parts, &mut axes)?;
        let whole = b.axis(g)?;
        let all = match parts.as_slice() {
            [one] => g.rename(*one, axes[0], whole)?,
            parts => g.concat(parts, &axes, whole)?,
        };
        let shards = &self.buckets.shards;
        let sum = shards.scatter(g, all, whole, &shards.gradients, &[])?;
        self.outputs.push((format!("grad.{}", b.name), sum));
        Ok(())
    }

    fn finish(mut self) -> Result<Graph, PassError> {
        self.all_or_none()?;
        let shards = &self.buckets.shards;
        let trains = !self.outputs.is_empty();
        for (name, v) in &self.old.outputs {
            if name.starts_with("grad.") {
                continue;
            }
            let lost = || OpError::new(PASS, format!("output `{name}` is a parameter"));
            let mut v = self.moved[v.index()].ok_or_else(lost)?;
            if trains && is_sum(name) {
                if let Def::Node(made, _) = self.g.value(v).def {
                    let scope = self.g.node(made).scope.clone();
                    self.g.at(&scope, Phase::Backward);
                }
                v = shards.sum(&mut self.g, v, &shards.gradients)?;
            }
            self.g.output(name, v);
        }
        for (name, v) in std::mem::take(&mut self.outputs) {
            self.g.output(&name, v);
        }
        for (state, v) in &self.old.assigns {
            let name = &self.old.states()[state.index()].name;
            let lost = || {
                OpError::new(
                    PASS,
                    format!(
                        "`{name}` is assigned, or assigned to, a \
                parameter, which the update alone does"
                    ),
                )
            };
            let new = self.g.find_state(name).ok_or_else(lost)?;
            let v = self.moved[v.index()].ok_or_else(lost)?;
            self.g.assign(new, v)?;
        }
        self.g.at(&"".into(), Phase::Forward);
        Ok(self.g)
    }

    /// Refuses a bucket of which some tensors have gradients and others have none.
    fn all_or_none(&self) -> Result<(), PassError> {
        for (b, grads) in self.buckets.list.iter().zip(&self.grads) {
            if grads.iter().all(Option::is_none) {
                continue;
            }
            if let Some((t, _)) = b.tensors.iter().zip(grads).find(|(_, g)| g.is_none()) {
                let name = format!("grad.{}", t.name);
                return Err(PassError::MissingOutput { pass: PASS, name });
            }
        }
        Ok(())
    }
}
