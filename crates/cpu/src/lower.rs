//! From a claimed region to prepared kernels and the values that they work on.

mod attention;
mod contraction;
mod elementwise;
mod epilogue;
mod norm;
mod whole;

pub(crate) use attention::BlockLists;

use crate::compile::{Draws, Strides};
use crate::kernel::{Kernel, KernelError};
use aerogel_graph::{Graph, NodeId, Op, Place, ValueId};
use aerogel_machine::Uses;

/// One kernel of a region, and where its operands are.
pub(crate) struct Call {
    pub kernel: Box<dyn Kernel>,
    /// Value and first element of each operand, in the kernel's order.
    pub operands: Vec<(ValueId, isize)>,
    /// Where random draws begin.
    pub draws: Draws,
    /// The scalar input that holds the position of the first query, for decoding.
    pub position: Option<ValueId>,
    /// Nothing to do where the first two operands are in one place.
    pub idle_in_place: bool,
}

impl Call {
    fn new(kernel: impl Kernel + 'static, operands: impl IntoIterator<Item = ValueId>) -> Call {
        Call {
            kernel: Box::new(kernel),
            operands: operands.into_iter().map(|v| (v, 0)).collect(),
            draws: Draws::default(),
            position: None,
            idle_in_place: false,
        }
    }
}

/// What lowering looks at.
pub(crate) struct Source<'a> {
    pub graph: &'a Graph,
    pub uses: &'a Uses,
    pub strides: &'a Strides,
    pub lists: &'a BlockLists,
    /// Where this rank is in the mesh: a kernel's tables follow it, its scratch must not.
    pub place: Place,
}

/// The kernels of a region, run one after another.
pub(crate) fn lower(s: &Source<'_>, nodes: &[NodeId]) -> Result<Vec<Call>, KernelError> {
    let node = s.graph.node(nodes[0]);
    match &node.op {
        Op::Einsum(op) if node.ins.len() == 2 => {
            Ok(vec![contraction::contraction(s, op, node, nodes)?])
        }
        Op::Einsum(_) => Ok(vec![elementwise::permutation(s, node)?]),
        Op::Map(_) | Op::Reduce(_) => Ok(vec![elementwise::region(s, nodes)?]),
        Op::View(op) => elementwise::view(s, op, node),
        Op::Norm(op) => Ok(vec![norm::norm(s, op, node, nodes)?]),
        Op::NormGrad(op) => Ok(vec![norm::norm_grad(s, op, node, nodes)?]),
        Op::Attend(op) => Ok(vec![attention::attend(s, op, node)?]),
        Op::AttendGrad(op) => Ok(vec![attention::attend_grad(s, op, node)?]),
        Op::Gather(op) => Ok(vec![whole::gather(s, op, node)?]),
        Op::Scatter(op) => whole::scatter(s, op, node),
        Op::LinearCe(op) => Ok(vec![whole::linear_ce(s, op, node)?]),
        Op::LinearLse(op) => Ok(vec![whole::linear_lse(s, op, node)?]),
        Op::LinearCeGrad(op) => Ok(vec![whole::linear_ce_grad(s, op, node)?]),
        Op::Collective(_) => Err(KernelError::Unsupported {
            kernel: "collective",
            what: "is run by the device itself".to_owned(),
        }),
        Op::MergeAttend(_) => Err(KernelError::Unsupported {
            kernel: "merge_attend",
            what: "is expanded into maps before planning".to_owned(),
        }),
    }
}

/// The name of a region's kernel, for reports.
pub(crate) fn name(g: &Graph, nodes: &[NodeId]) -> &'static str {
    let last = nodes.last().map(|n| &g.node(*n).op);
    match (&g.node(nodes[0]).op, nodes.len(), last) {
        (Op::Einsum(_), 1, _) => "einsum",
        (Op::Einsum(_), ..) => "einsum+map",
        (Op::Norm(_), 2.., _) => "norm+map",
        (Op::NormGrad(_), 2.., _) => "norm_grad+map",
        (Op::Map(_), _, Some(Op::Reduce(_))) => "map+reduce",
        (op, ..) => op.name(),
    }
}
