//! Which parameters share a bucket, and where in it they lie.

use crate::shards::Shards;
use aerogel_graph::{
    AxisId, AxisList, Build, DType, Graph, Init, Node, NodeId, Op, OpError, ParamClass, Part, Role,
    State, StateId, Type, ValueId,
};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

pub(super) const PASS: &str = "bucket";

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
    /// The dtype of the copy that the model reads in its place, if it does.
    pub copy: Option<DType>,
    /// The mesh axis over which gradients are still to be summed after the backward.
    pub partial: Option<u8>,
    /// Whether all ranks along the tensor axis have the same.
    pub replicated: bool,
    /// Whether several layers read its one parameter.
    pub shared: bool,
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
    /// Deals the parameters of a graph (the training step's, after `backward`) into buckets, of
    /// as many elements as `shards`, which names axes of its mesh, can cut.
    pub fn of(g: &Graph, shards: &Shards, partials: &Partials) -> Buckets {
        let readers = Readers::of(g);
        let mut list: Vec<Bucket> = vec![];
        let mut keys: HashMap<Key, usize> = HashMap::new();
        for state in g.states().iter().filter(|s| s.role == Role::Parameter) {
            let cut = g.ty(state.value).axes.iter().any(|&a| !g.axes()[a].cuts.is_empty());
            let shared = readers.layers(state.value).len() > 1;
            let group = if shared { &state.name } else { layer(&state.name) };
            let key = Key {
                group: group.to_owned(),
                shared,
                decays: state.class.is_some_and(ParamClass::decays),
                copy: readers.cast(state.value),
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

    /// The positions of a parameter's bucket, and of the tensor in it.
    pub(super) fn find(&self, parameter: &str) -> Option<(usize, usize)> {
        self.list.iter().enumerate().find_map(|(i, b)| {
            b.tensors.iter().position(|t| t.name == parameter).map(|tensor| (i, tensor))
        })
    }
}

/// Who reads a parameter.
struct Readers<'a> {
    g: &'a Graph,
    lists: Vec<Vec<NodeId>>,
}

impl<'a> Readers<'a> {
    fn of(g: &'a Graph) -> Self {
        Readers { g, lists: g.readers() }
    }

    fn nodes(&self, v: ValueId) -> impl Iterator<Item = &'a Node> {
        self.lists[v.index()].iter().map(|n| self.g.node(*n))
    }

    /// The dtype of the one copy of 16 bits that is all that the model reads of it.
    fn cast(&self, v: ValueId) -> Option<DType> {
        let mut casts = self.nodes(v).map(weight_cast);
        let first = casts.next()??;
        casts.all(|cast| cast == Some(first)).then_some(first)
    }

    /// The layers that read it, or its copy: the cast stands where the first of them is.
    fn layers(&self, v: ValueId) -> BTreeSet<&'a str> {
        let mut layers = BTreeSet::new();
        for node in self.nodes(v) {
            match weight_cast(node).is_some() {
                true => layers.extend(self.nodes(node.outs[0]).map(|n| layer(&n.scope))),
                false => _ = layers.insert(layer(&node.scope)),
            }
        }
        layers.remove("");
        layers
    }
}

/// Parameters of equal keys share a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    group: String,
    shared: bool,
    decays: bool,
    copy: Option<DType>,
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
            copy: self.copy,
            partial: partials.axis.filter(|_| self.partial),
            replicated: !self.cut,
            shared: self.shared,
        }
    }
}

impl Bucket {
    fn push(&mut self, g: &Graph, state: &State) {
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

    /// Name of the state that holds the parameters in the copy's dtype.
    pub fn copy_name(&self, dtype: DType) -> String {
        format!("{}.{dtype}", self.name)
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
            let (class, init) = match role {
                Role::Parameter => (t.class, t.init),
                _ => (None, Init::Constant(0.0)),
            };
            parts.push(Part {
                name: format!("{prefix}{}", t.name),
                class,
                init,
                axes: axes.collect::<Result<AxisList, _>>()?,
                first: t.first,
            });
        }
        g.set_parts(name, parts)?;
        Ok((StateId(g.states().len() as u32 - 1), value))
    }
}

/// The compute dtype, if a node is the cast of a master to it.
pub(super) fn weight_cast(node: &Node) -> Option<DType> {
    match &node.op {
        Op::Map(m) if m.cotangent.is_some() && node.ins.len() == 1 => Some(m.out.dtype),
        _ => None,
    }
    .filter(|dtype| dtype.is_half())
}
