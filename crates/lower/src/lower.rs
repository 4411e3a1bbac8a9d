//! From a claimed region to descriptions of kernels and the values that they work on.

mod attention;
mod contraction;
mod elementwise;
mod epilogue;
mod linear_ce;
mod norm;
mod rows;

use crate::error::LowerError;
use crate::regions;
use crate::source::Source;
use crate::spec::Call;
use aerogel_graph::{NodeId, Op};

/// The kernels of a region of ascending nodes, run one after another.
///
/// # Errors
/// A node in a form that no kernel runs, and those that devices or the planner take care of:
/// collectives and what targets expand.
pub fn lower(s: &Source<'_>, nodes: &[NodeId]) -> Result<Vec<Call>, LowerError> {
    let members = regions::members(s.graph, nodes);
    match members.as_slice() {
        [] => {}
        [one] => return Ok(vec![contraction::summed(s, one)]),
        several => return Ok(vec![contraction::products(s, several)]),
    }
    let mut node = s.graph.node(nodes[0]);
    if let (Op::Reduce(_), [_, product]) = (&node.op, nodes) {
        // The sum of an operand beside a product that comes after it.
        node = s.graph.node(*product);
    }
    match &node.op {
        Op::Einsum(op) if node.ins.len() == 2 => Ok(vec![contraction::product(s, op, node, nodes)]),
        Op::Einsum(_) => Ok(vec![elementwise::permutation(s, node)]),
        Op::Map(_) | Op::Reduce(_) => Ok(vec![elementwise::region(s, nodes)]),
        Op::View(op) => elementwise::view(s, op, node),
        Op::Norm(op) => Ok(vec![norm::norm(s, op, node, nodes)]),
        Op::NormGrad(op) => Ok(vec![norm::norm_grad(s, op, node, nodes)]),
        Op::Attend(op) => Ok(vec![attention::attend(s, op, node)?]),
        Op::AttendGrad(op) => Ok(vec![attention::attend_grad(s, op, node)?]),
        Op::Gather(op) => Ok(vec![rows::gather(s, op, node)?]),
        Op::Scatter(op) => rows::scatter(s, op, node),
        Op::LinearCe(op) => Ok(vec![linear_ce::linear_ce(s, op, node)]),
        Op::LinearLse(op) => Ok(vec![linear_ce::linear_lse(s, op, node)]),
        Op::LinearCeGrad(op) => Ok(vec![linear_ce::linear_ce_grad(s, op, node)]),
        Op::Collective(_) => {
            Err(LowerError::unsupported("collective", "is run by the device itself"))
        }
        Op::MergeAttend(_) => {
            Err(LowerError::unsupported("merge_attend", "is expanded into maps before planning"))
        }
    }
}
