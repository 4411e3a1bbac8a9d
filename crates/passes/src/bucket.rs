//! bucket: parameters, gradients and the optimizer's memory in flat buckets, dealt out over ranks.
//!
//! A bucket holds the parameters of one layer that are treated alike: matrices, which decay, or
//! vectors, which do not; a parameter that several layers read has one of its own. It is one state
//! of one storage axis, so that a gather is one message and an update one kernel. Where ranks share
//! a batch, a bucket's optimizer state, gradients and parameters may each be cut into one piece a
//! rank: ZeRO stages 1, 2 and 3 (Rajbhandari et al., ZeRO: memory optimizations toward training
//! trillion parameter models, 2020), over all of those ranks or over the innermost of them (hybrid
//! sharding). A parameter that is cut is gathered before its first use in the forward and again in
//! the backward; a gradient that is cut is summed over ranks as soon as the bucket's last one is
//! made.
//!
//! With bf16 compute the f32 masters of matrices belong to the optimizer's state, and what the
//! model reads is a copy in bf16 that the update writes.

use crate::PassError;
use crate::shards::Shards;
use aerogel_graph::{
    AxisId, AxisList, Build, DType, Def, Graph, Init, Node, Op, OpError, ParamClass, Part, Phase,
    Role, StateId, Type, ValueId,
};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

const PASS: &str = "bucket";

/// Elements that are summed before a norm goes on, and on whose borders matrices are cut.
const MATRIX_CHUNK: usize = 2048;
/// The same for vectors, of which a bucket has few.
const VECTOR_CHUNK: usize = 64;
/// Every tensor starts on a cache line.
const ALIGN_ELEMENTS: usize = 16;

/// One bucket.
#[derive(Clone, Debug, PartialEq)]
pub struct Bucket {
    /// Unique name.
    pub name: String,
    /// The layer, as scope of what is done with it.
    pub scope: Arc<str>,
    /// Its parameters.
    pub tensors: Vec<BucketTensor>,
    /// Elements, zeros between and after the tensors included.
    pub elements: usize,
    /// Elements up to the end of the last tensor, in whole chunks.
    pub chunks: usize,
    /// Elements of a chunk.
    pub chunk: usize,
    /// Whether weight decay applies.
    pub decays: bool,
    /// Whether the model reads a copy in bf16.
    pub narrow: bool,
    /// The mesh axis over which gradients are still to be summed after the backward.
    pub partial: Option<u8>,
    /// Whether all ranks along the tensor axis have the same.
    pub replicated: bool,
}

/// A parameter in its bucket.
#[derive(Clone, Debug, PartialEq)]
pub struct BucketTensor {
    /// The parameter's name.
    pub name: String,
    /// What it is.
    pub class: Option<ParamClass>,
    /// Value before the first step.
    pub init: Init,
    /// Names of its axes.
    pub axes: Vec<String>,
    /// First element.
    pub first: usize,
    /// Elements.
    pub count: usize,
}

/// The buckets of a model, in the order of their first parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Buckets {
    /// All of them.
    pub list: Vec<Bucket>,
    /// How they are dealt out.
    pub shards: Shards,
}

/// Gradients that are sums over part of the ranks of one mesh axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Partials {
    /// The mesh axis of tensor parallelism, if there is one.
    pub axis: Option<u8>,
    /// The parameters whose gradients are still to be summed along it.
    pub parameters: Vec<String>,
}

/// The layer that a parameter's or a scope's name begins with.
fn layer(name: &str) -> &str {
    let mut dots = name.match_indices('.').map(|(i, _)| i);
    let end = match name.starts_with("h.") {
        true => dots.nth(1),
        false => dots.next(),
    };
    &name[..end.unwrap_or(name.len())]
}

impl Buckets {
    /// Deals the parameters of a graph (the training step's, after `backward`) into buckets.
    pub fn of(g: &Graph, shards: &Shards, partials: &Partials) -> Buckets {
        let readers = g.readers();
        let mut list: Vec<Bucket> = vec![];
        let mut keys: HashMap<Key, usize> = HashMap::new();
        for state in g.states().iter().filter(|s| s.role == Role::Parameter) {
            let nodes: Vec<&Node> =
                readers[state.value.index()].iter().map(|n| g.node(*n)).collect();
            let layers: BTreeSet<&str> = nodes.iter().map(|n| layer(&n.scope)).collect();
            let shared = layers.iter().filter(|l| !l.is_empty()).count() > 1;
            let ty = g.ty(state.value);
            let cut = ty.axes.iter().any(|&a| !g.axes()[a].cuts.is_empty());
            let key = Key {
                group: if shared { state.name.clone() } else { layer(&state.name).to_owned() },
                decays: state.class.is_some_and(ParamClass::decays),
                narrow: !nodes.is_empty() && nodes.iter().all(|n| is_weight_cast(n)),
                partial: partials.parameters.contains(&state.name),
                cut,
            };
            let at = *keys.entry(key.clone()).or_insert_with(|| {
                list.push(key.bucket(partials, &list));
                list.len() - 1
            });
            list[at].push(g, state);
        }
        let ranks = shards.pieces(&shards.optimizer);
        list.iter_mut().for_each(|b| b.finish(ranks));
        Buckets { list, shards: shards.clone() }
    }

    /// The bucket and the tensor of a parameter.
    fn find(&self, parameter: &str) -> Option<(usize, &BucketTensor)> {
        self.list
            .iter()
            .enumerate()
            .find_map(|(i, b)| b.tensors.iter().find(|t| t.name == parameter).map(|t| (i, t)))
    }

    /// The graph with buckets in place of parameters, and with one gradient a bucket, cut and
    /// summed over the ranks that `gradients` names, in place of one a parameter.
    ///
    /// # Errors
    /// A parameter is not in a bucket, or is not read as the training step reads it.
    pub fn apply(&self, g: &Graph) -> Result<Graph, PassError> {
        let mut work = Work::new(self, g)?;
        for node in g.nodes() {
            work.node(node)?;
        }
        work.finish()
    }
}

/// Parameters of equal keys share a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    group: String,
    decays: bool,
    narrow: bool,
    partial: bool,
    cut: bool,
}

impl Key {
    fn bucket(&self, partials: &Partials, others: &[Bucket]) -> Bucket {
        let kind = if self.decays { "matrices" } else { "vectors" };
        let mut name = format!("bucket.{}.{kind}", self.group);
        // Names only have to differ: one more of the same kind is rare.
        while others.iter().any(|b| b.name == name) {
            name.push('+');
        }
        Bucket {
            name,
            scope: layer(&self.group).into(),
            tensors: vec![],
            elements: 0,
            chunks: 0,
            chunk: if self.decays { MATRIX_CHUNK } else { VECTOR_CHUNK },
            decays: self.decays,
            narrow: self.narrow,
            partial: partials.axis.filter(|_| self.partial),
            replicated: !self.cut,
        }
    }
}

impl Bucket {
    fn push(&mut self, g: &Graph, state: &aerogel_graph::State) {
        let ty = g.ty(state.value);
        let count = g.axes().count(&ty.axes);
        let step = if count >= self.chunk { self.chunk } else { ALIGN_ELEMENTS };
        let first = self.elements.next_multiple_of(step);
        self.tensors.push(BucketTensor {
            name: state.name.clone(),
            class: state.class,
            init: state.init,
            axes: ty.axes.iter().map(|&a| g.axes()[a].name.clone()).collect(),
            first,
            count,
        });
        self.elements = first + count;
    }

    fn finish(&mut self, ranks: usize) {
        self.chunks = self.elements.div_ceil(self.chunk);
        self.elements = self.elements.next_multiple_of(self.chunk * ranks);
    }

    /// Name of the state that holds the parameters in bf16.
    pub fn copy_name(&self) -> String {
        format!("{}.bf16", self.name)
    }

    /// The storage axis of the whole bucket.
    pub(crate) fn axis(&self, g: &mut Graph) -> Result<AxisId, OpError> {
        g.storage_axis(&self.name, self.elements)
    }

    /// Declares a state over a piece of the bucket whose tensors are named `prefix` + name.
    pub(crate) fn declare(
        &self,
        g: &mut Graph,
        name: &str,
        axis: AxisId,
        dtype: DType,
        role: Role,
        prefix: &str,
    ) -> Result<(StateId, ValueId), OpError> {
        let value = g.state(name, Type::new(dtype, [axis]), role, None, Init::Constant(0.0))?;
        let mut parts = vec![];
        for t in &self.tensors {
            let axes = t.axes.iter().map(|a| {
                let missing = || OpError::new(PASS, format!("there is no axis `{a}`"));
                g.axes().find(a).ok_or_else(missing)
            });
            parts.push(Part {
                name: format!("{prefix}{}", t.name),
                class: t.class,
                init: if role == Role::Parameter { t.init } else { Init::Constant(0.0) },
                axes: axes.collect::<Result<AxisList, _>>()?,
                first: t.first,
            });
        }
        g.set_parts(name, parts)?;
        Ok((StateId(g.states().len() as u32 - 1), value))
    }
}

/// Whether a node is the cast of a master to the compute dtype.
fn is_weight_cast(node: &Node) -> bool {
    matches!(&node.op, Op::Map(m) if m.cotangent.is_some() && m.out.dtype == DType::Bf16)
        && node.ins.len() == 1
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
        let (name, dtype, role, prefix) = match bucket.narrow {
            true => (bucket.copy_name(), DType::Bf16, Role::Weights, "bf16."),
            false => (bucket.name.clone(), DType::F32, Role::Parameter, ""),
        };
        Ok(bucket.declare(&mut self.g, &name, axis, dtype, role, prefix)?.1)
    }

    fn place(&self, parameter: &str) -> Result<(usize, usize), PassError> {
        let missing = || PassError::Bucket { parameter: parameter.to_owned() };
        let (bucket, tensor) = self.buckets.find(parameter).ok_or_else(missing)?;
        let list = &self.buckets.list[bucket].tensors;
        let at = list.iter().position(|t| t == tensor);
        Ok((bucket, at.ok_or_else(missing)?))
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
            self.moved[state.value.index()] = Some(new);
        }
        Ok(())
    }

    fn node(&mut self, node: &Node) -> Result<(), PassError> {
        if let [v] = node.ins.as_slice()
            && let Some(&(bucket, tensor)) = self.parameter.get(v)
            && self.buckets.list[bucket].narrow
            && is_weight_cast(node)
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
                && self.buckets.list[bucket].narrow
            {
                self.g.at(&reader.scope, reader.phase);
                return Ok(self.view(bucket, tensor, reader.phase)?);
            }
            return Ok(self.moved[v.index()].ok_or_else(lost)?);
        };
        if self.buckets.list[bucket].narrow {
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
        let view = self.g.split(slice, flat, &axes)?;
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
            parts.push(g.merge(grad, &list, flat)?);
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
        let shards = &self.buckets.shards;
        let trains = !self.outputs.is_empty();
        for (name, v) in &self.old.outputs {
            if name.starts_with("grad.") {
                continue;
            }
            let lost = || OpError::new(PASS, "an output is a parameter");
            let mut v = self.moved[v.index()].ok_or_else(lost)?;
            if trains {
                self.g.at(&"head".into(), Phase::Backward);
                v = shards.sum(&mut self.g, v, &shards.gradients)?;
            }
            self.g.output(name, v);
        }
        for (name, v) in std::mem::take(&mut self.outputs) {
            self.g.output(&name, v);
        }
        for (state, v) in &self.old.assigns {
            let lost = || OpError::new(PASS, "an assigned value is a parameter");
            let name = &self.old.states()[state.index()].name;
            let new = self.g.find_state(name).ok_or_else(lost)?;
            let v = self.moved[v.index()].ok_or_else(lost)?;
            self.g.assign(new, v)?;
        }
        self.g.at(&"".into(), Phase::Forward);
        Ok(self.g)
    }
}
