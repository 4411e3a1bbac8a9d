//! The reference interpreter: runs a graph node by node, in f64, with each op's own reference.

use crate::graph::{Def, Graph, Node};
use crate::ops::{Build, Op, RefSite};
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
    let mut values = given_values(g, env, mode)?;
    for node in g.nodes() {
        step(g, node, &mut values, clock, mode);
    }
    Ok(finished(g, values))
}

/// Runs the graph on all ranks of its mesh in lockstep, one environment a rank.
///
/// # Errors
/// As [`interpret`].
///
/// # Panics
/// As [`interpret`]; there are not as many environments as ranks.
pub fn interpret_mesh(
    g: &Graph,
    envs: &[Env],
    clock: Clock,
    mode: Rounding,
) -> Result<Vec<Run>, EnvError> {
    let mesh = &g.axes().mesh;
    assert_eq!(mesh.ranks(), envs.len(), "one environment a rank");
    let mut ranks =
        envs.iter().map(|env| given_values(g, env, mode)).collect::<Result<Vec<_>, _>>()?;
    for node in g.nodes() {
        let Op::Collective(op) = &node.op else {
            for (rank, values) in ranks.iter_mut().enumerate() {
                step(g, node, values, Clock { place: mesh.place(rank), ..clock }, mode);
            }
            continue;
        };
        let (from, to) = (node.ins[0], node.outs[0]);
        let results: Vec<Tensor> = (0..ranks.len())
            .map(|rank| {
                let group = mesh.group(rank, &op.over);
                let ins: Vec<&Tensor> = group.iter().map(|&r| value(&ranks[r], from)).collect();
                let out = op.reference_of(g.axes(), op.member(mesh, mesh.place(rank)), &ins);
                declared(out, g.ty(to), mode)
            })
            .collect();
        for (values, result) in ranks.iter_mut().zip(results) {
            values[to.index()] = Some(result);
        }
    }
    Ok(ranks.into_iter().map(|values| finished(g, values)).collect())
}

/// The values of one rank, as far as they are known.
type Values = Vec<Option<Tensor>>;

fn value(values: &Values, v: ValueId) -> &Tensor {
    values[v.index()].as_ref().expect("nodes are in topological order")
}

fn given_values(g: &Graph, env: &Env, mode: Rounding) -> Result<Values, EnvError> {
    let mut values: Values = vec![None; g.values().len()];
    for (id, value) in g.values().iter().enumerate() {
        let name = match value.def {
            Def::Input(i) => &g.inputs()[i as usize].name,
            Def::State(s) => &g.states()[s.index()].name,
            Def::Node(..) => continue,
        };
        values[id] = Some(declared(given(g, env, name, &value.ty)?, &value.ty, mode));
    }
    Ok(values)
}

fn step(g: &Graph, node: &Node, values: &mut Values, clock: Clock, mode: Rounding) {
    let outs = g.out_types(node);
    let ins: Vec<&Tensor> = node.ins.iter().map(|&v| value(values, v)).collect();
    let site = RefSite { axes: g.axes(), clock, outs: &outs };
    let results = node.op.reference(&site, &ins);
    for ((&v, ty), tensor) in node.outs.iter().zip(&outs).zip(results) {
        values[v.index()] = Some(declared(tensor, ty, mode));
    }
}

fn finished(g: &Graph, values: Values) -> Run {
    let values: Vec<Tensor> =
        values.into_iter().map(|v| v.expect("every value is defined")).collect();
    let get = |v: ValueId| values[v.index()].clone();
    let outputs = g.outputs.iter().map(|(n, v)| (n.clone(), get(*v))).collect();
    let assigned =
        g.assigns.iter().map(|(s, v)| (g.states()[s.index()].name.clone(), get(*v))).collect();
    Run { values, outputs, assigned }
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
