//! The reference interpreter: runs a graph node by node, in f64, with each op's own reference.

use crate::graph::{Def, Graph};
use crate::ops::{Build, RefSite};
use crate::random::Clock;
use crate::tensor::Tensor;
use crate::types::{Type, ValueId};
use std::collections::HashMap;

/// Whether values are rounded to their declared dtypes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Real numbers throughout: gradient checks.
    Exact,
    /// Inputs, states and each node's outputs are rounded to their dtype: what kernels are held to.
    Declared,
}

/// Tensors by name: inputs and states.
pub type Env = HashMap<String, Tensor>;

/// What a run gives.
#[derive(Debug)]
pub struct Run {
    /// Every value, by id.
    pub values: Vec<Tensor>,
    /// Outputs by name.
    pub outputs: Env,
    /// New values of states by name.
    pub assigned: Env,
}

/// An input or a state has no tensor, or one of other axes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is {wanted}, got {got}")]
pub struct EnvError {
    /// Input or state.
    pub name: String,
    /// Its type.
    pub wanted: String,
    /// What the environment has.
    pub got: String,
}

/// Runs the graph once.
///
/// # Errors
/// The environment lacks an input or a state, or has one of other axes.
///
/// # Panics
/// An id is beyond its table: the interpreter is the reference of tests, and data is checked where
/// it is read.
pub fn interpret(g: &Graph, env: &Env, clock: Clock, mode: Rounding) -> Result<Run, EnvError> {
    let mut values: Vec<Option<Tensor>> = vec![None; g.values().len()];
    for (id, value) in g.values().iter().enumerate() {
        let name = match value.def {
            Def::Input(i) => &g.inputs()[i as usize].name,
            Def::State(s) => &g.states()[s.index()].name,
            Def::Node(..) => continue,
        };
        values[id] = Some(declared(given(g, env, name, &value.ty)?, &value.ty, mode));
    }
    for node in g.nodes() {
        let outs = g.out_types(node);
        let ins: Vec<&Tensor> = node
            .ins
            .iter()
            .map(|v| values[v.index()].as_ref().expect("nodes are in topological order"))
            .collect();
        let site = RefSite { axes: g.axes(), clock, outs: &outs };
        let results = node.op.reference(&site, &ins);
        for ((&v, ty), tensor) in node.outs.iter().zip(&outs).zip(results) {
            values[v.index()] = Some(declared(tensor, ty, mode));
        }
    }
    let values: Vec<Tensor> =
        values.into_iter().map(|v| v.expect("every value is defined")).collect();
    let get = |v: ValueId| values[v.index()].clone();
    let outputs = g.outputs.iter().map(|(n, v)| (n.clone(), get(*v))).collect();
    let assigned =
        g.assigns.iter().map(|(s, v)| (g.states()[s.index()].name.clone(), get(*v))).collect();
    Ok(Run { values, outputs, assigned })
}

fn declared(mut tensor: Tensor, ty: &Type, mode: Rounding) -> Tensor {
    if mode == Rounding::Declared {
        tensor.data.iter_mut().for_each(|x| *x = ty.dtype.round(*x));
    }
    tensor
}

fn given(g: &Graph, env: &Env, name: &str, ty: &Type) -> Result<Tensor, EnvError> {
    let error = |got: String| EnvError { name: name.to_owned(), wanted: ty.show(g.axes()), got };
    let tensor = env.get(name).ok_or_else(|| error("nothing".to_owned()))?;
    if tensor.axes != ty.axes || tensor.sizes != g.axes().sizes(&ty.axes) {
        return Err(error(format!("[{}]", g.axes().names(&tensor.axes))));
    }
    Ok(tensor.clone())
}
