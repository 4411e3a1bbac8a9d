//! The maps of a region after its first node, as a program over that node's finished values.

use super::Source;
use crate::compile::{Compiler, Draws};
use crate::kernels::tile::Program;
use aerogel_graph::{AxisId, NodeId, Op, ValueId};

/// A program, and what it works on.
pub(super) struct Epilogue {
    pub program: Program,
    /// What the program reads, then what it writes.
    pub operands: Vec<ValueId>,
    pub draws: Draws,
}

impl Epilogue {
    /// Of a region over `space`. The first node's other outputs are its own to write.
    pub fn new(s: &Source<'_>, nodes: &[NodeId], space: &[AxisId]) -> Epilogue {
        let g = s.graph;
        let (finished, others) =
            g.node(nodes[0]).outs.split_first().expect("an op has at least one output");
        let mut compiler = Compiler::new(g, s.strides, s.place, space);
        compiler.product(*finished);
        for n in &nodes[1..] {
            let node = g.node(*n);
            if let Op::Map(map) = &node.op {
                compiler.map(node, map);
            }
        }
        let exports = s.uses.exports(g, nodes).into_iter().filter(|v| !others.contains(v));
        exports.for_each(|v| compiler.store(v));
        let (program, inputs, outputs, draws) = compiler.finish();
        Epilogue { program, operands: [inputs, outputs].concat(), draws }
    }
}
