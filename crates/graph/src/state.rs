//! What a section is given, and what it keeps: inputs and states.

use crate::types::{AxisList, ValueId};

/// What a section is given from outside each time it runs: data, or a scalar such as the rate.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Unique name.
    pub name: String,
    /// Its value.
    pub value: ValueId,
}

/// What a state is for; the plan reports bytes by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A trained tensor.
    Parameter,
    /// The optimizer's memory.
    Optimizer,
    /// A sum over micro-batches; nothing of it outlives a step.
    Accumulator,
    /// Keys and values of decoding.
    Cache,
    /// Copies of parameters in the compute dtype, made by the update; no checkpoint holds them.
    Weights,
    /// An activation between the forward and the backward section of a pipeline stage.
    Saved,
}

/// What a parameter is in the model; counts and weight decay follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParamClass {
    /// A matrix.
    Weight,
    /// A vector that is added.
    Bias,
    /// Gain or bias of a norm.
    Norm,
    /// A table of tokens or positions.
    Embedding,
    /// The output layer.
    Head,
}

impl ParamClass {
    /// Whether decoupled weight decay applies: tensors of two or more axes, in the sense of the
    /// papers (a bias over head axes is one vector).
    pub fn decays(self) -> bool {
        matches!(self, ParamClass::Weight | ParamClass::Embedding | ParamClass::Head)
    }
}

/// Initial value of a state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Every element the same.
    Constant(f64),
    /// Normal with mean 0 and this standard deviation, drawn by (seed, name, element).
    Normal(f64),
}

/// A tensor that lies in a state of many: a bucket, whose own axis is flat.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Unique name, `h.0.attn.q.weight`.
    pub name: String,
    /// What the parameter is, if it is one.
    pub class: Option<ParamClass>,
    /// Value before the first step.
    pub init: Init,
    /// Its axes, outermost first; the elements lie row-major.
    pub axes: AxisList,
    /// Its first element in the whole bucket.
    pub first: usize,
}

/// A named persistent value. It is read as of section start and changed by an assignment alone.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Unique name, `h.0.attn.q.weight`.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// What the parameter is, if it is one.
    pub class: Option<ParamClass>,
    /// Value before the first step.
    pub init: Init,
    /// Its value at section start.
    pub value: ValueId,
    /// The tensors in it, if it is a bucket: ascending, with zeros between and after them.
    pub parts: Vec<Part>,
    /// How many there are of it, one for each micro-batch in flight; a section runs on one.
    pub copies: u32,
}
