//! The maps of a region after its first node, as a program over that node's finished values.

use crate::compile::Compiler;
use crate::draws::Draws;
use crate::program::Program;
use crate::source::Source;
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
        Epilogue::after(s, s.graph.node(nodes[0]).outs[0], nodes, space)
    }

    /// Of a region that finishes this value first, whose maps are left to compute.
    pub fn after(
        s: &Source<'_>,
        finished: ValueId,
        nodes: &[NodeId],
        space: &[AxisId],
    ) -> Epilogue {
        let g = s.graph;
        let others = &g.node(nodes[0]).outs[1..];
        let mut compiler = Compiler::new(s, space);
        compiler.product(finished);
        for n in &nodes[1..] {
            let node = g.node(*n);
            match &node.op {
                Op::Map(map) if node.outs[0] != finished => compiler.map(node, map),
                _ => {}
            }
        }
        let exports = s.uses.exports(g, nodes).into_iter().filter(|v| !others.contains(v));
        exports.for_each(|v| compiler.store(v));
        let (program, inputs, outputs, draws) = compiler.finish();
        Epilogue { program, operands: [inputs, outputs].concat(), draws }
    }
}
