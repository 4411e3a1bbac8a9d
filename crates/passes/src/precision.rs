//! precision: which values are rounded to the compute dtype (Micikevicius et al., Mixed Precision
//! Training, 2018).
//!
//! In a dtype of 16 bits the parameters stay in f32. A master that a contraction or a gather reads
//! is cast once; the cast takes its cotangent in f32, so a gradient is never rounded on its way to
//! the optimizer. Activations between ops are of the compute dtype. Statistics, log-sum-exps,
//! losses, reductions and everything that is computed from them alone stay f32, as do the gains and
//! biases that maps and norms read.

use crate::PassError;
use aerogel_graph::ops::{Einsum, Map, View};
use aerogel_graph::{Build, DType, Def, Graph, Node, Op, OpError, Phase, Role, ValueId};
use std::collections::{HashMap, HashSet};

/// The dtype that contractions read and activations are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// Everything in f32.
    F32,
    /// bf16 with f32 masters, reductions and accumulation.
    Bf16,
    /// The same in f16, whose gradients want a [loss scale](crate::scale).
    F16,
}

impl Compute {
    /// What activations and the copies of weights are kept in.
    pub fn dtype(self) -> DType {
        match self {
            Compute::F32 => DType::F32,
            Compute::Bf16 => DType::Bf16,
            Compute::F16 => DType::F16,
        }
    }
}

/// Declares the dtypes of a forward graph in f32 for the compute dtype; f32 changes nothing.
///
/// # Errors
/// The graph has nodes of another phase: gradients follow the dtypes, so they come later.
pub fn precision(g: &Graph, compute: Compute) -> Result<Graph, PassError> {
    if let Some(node) = g.nodes().iter().position(|n| n.phase != Phase::Forward) {
        let scope = g.nodes()[node].scope.to_string();
        return Err(PassError::NotForward { node, scope });
    }
    if compute == Compute::F32 {
        return Ok(g.clone());
    }
    let narrow = wants_half(g);
    let half = compute.dtype();
    let mut pass = Pass { half, casts: HashMap::new(), masters: HashSet::new() };
    let out = g.rewrite(|out, node, ins| {
        pass.node(out, node, ins, narrow[node.outs[0].index()]).map(Some)
    })?;
    Ok(out)
}

/// Which values may have 16 bits: those that an op of activations reads, through maps and views,
/// and that nothing needs in f32.
fn wants_half(g: &Graph) -> Vec<bool> {
    let mut wanted = vec![false; g.values().len()];
    let mut pinned = vec![false; g.values().len()];
    g.outputs.iter().for_each(|(_, v)| pinned[v.index()] = true);
    g.assigns.iter().for_each(|(_, v)| pinned[v.index()] = true);
    for node in g.nodes().iter().rev() {
        let out = node.outs[0].index();
        if let Op::View(_) | Op::Map(_) = node.op {
            let (reads, holds) = (wanted[out], pinned[out] && matches!(node.op, Op::View(_)));
            for v in &node.ins {
                wanted[v.index()] |= reads;
                pinned[v.index()] |= holds;
            }
        }
        let activations = activations(&node.op);
        for (i, v) in node.ins.iter().enumerate() {
            wanted[v.index()] |= activations.contains(&i);
        }
        match node.op {
            Op::LinearCe(_) => pinned[node.ins[3].index()] = true,
            Op::MergeAttend(_) => [1, 3].iter().for_each(|&i| pinned[node.ins[i].index()] = true),
            _ => {}
        }
    }
    wanted.iter().zip(&pinned).map(|(w, p)| *w && !p).collect()
}

/// The inputs of an op that it reads in the compute dtype.
fn activations(op: &Op) -> &'static [usize] {
    match op {
        Op::Einsum(_) | Op::LinearCe(_) => &[0, 1],
        Op::Attend(_) => &[0, 1, 2],
        Op::MergeAttend(_) => &[0, 2],
        Op::Gather(_) | Op::Norm(_) => &[0],
        _ => &[],
    }
}

struct Pass {
    /// The compute dtype.
    half: DType,
    /// The form in the compute dtype of an f32 value of the new graph.
    casts: HashMap<ValueId, ValueId>,
    /// Views of parameters.
    masters: HashSet<ValueId>,
}

impl Pass {
    fn node(
        &mut self,
        out: &mut Graph,
        node: &Node,
        ins: &[ValueId],
        narrow: bool,
    ) -> Result<Vec<ValueId>, OpError> {
        let mut ins = ins.to_vec();
        let any = ins.iter().any(|v| out.ty(*v).dtype == self.half);
        match &node.op {
            Op::Map(map) => {
                let mut map = map.clone();
                if any && narrow && map.cotangent.is_none() {
                    map.out.dtype = self.half;
                }
                out.emit(Map { ..map }.into(), &ins)
            }
            Op::View(view) => {
                if any && matches!(view, View::Concat { .. }) {
                    self.cast(out, &mut ins, &(0..node.ins.len()).collect::<Vec<_>>())?;
                }
                let master = ins.iter().all(|v| self.is_master(out, *v));
                let outs = out.emit(node.op.clone(), &ins)?;
                if master {
                    self.masters.extend(&outs);
                }
                Ok(outs)
            }
            Op::Einsum(einsum) => {
                // Statistics contracted with statistics are no activation.
                let master = ins.iter().any(|v| self.is_master(out, *v));
                if !any && !master {
                    return out.emit(node.op.clone(), &ins);
                }
                self.cast(out, &mut ins, activations(&node.op))?;
                let mut ty = einsum.out.clone();
                if narrow {
                    ty.dtype = self.half;
                }
                out.emit(Einsum { out: ty }.into(), &ins)
            }
            Op::Norm(_) => out.emit(node.op.clone(), &ins),
            op => {
                self.cast(out, &mut ins, activations(op))?;
                out.emit(op.clone(), &ins)
            }
        }
    }

    fn is_master(&self, out: &Graph, v: ValueId) -> bool {
        let parameter = matches!(out.value(v).def,
            Def::State(s) if out.states()[s.index()].role == Role::Parameter);
        parameter || self.masters.contains(&v)
    }

    /// Replaces the listed operands by their forms in the compute dtype, each made once.
    fn cast(&mut self, out: &mut Graph, ins: &mut [ValueId], at: &[usize]) -> Result<(), OpError> {
        for &i in at {
            if out.ty(ins[i]).dtype != DType::F32 {
                continue;
            }
            if let Some(done) = self.casts.get(&ins[i]) {
                ins[i] = *done;
                continue;
            }
            // A master's gradient is summed and kept in f32; an activation's is an activation.
            let master = self.is_master(out, ins[i]);
            let cotangent = if master { DType::F32 } else { self.half };
            let done = out.cast(ins[i], self.half, cotangent)?;
            self.casts.insert(ins[i], done);
            ins[i] = done;
        }
        Ok(())
    }
}
