//! Graphs from graphs: node by node, without what nobody needs, in primitive ops.

use crate::graph::{Def, Graph, Input, Node, Phase, State};
use crate::ops::{Build, OpError};
use crate::types::ValueId;

/// What a rewrite does with a node.
pub type Rewritten = Result<Option<Vec<ValueId>>, OpError>;

impl Graph {
    /// An empty graph with the same axes.
    pub fn bare(&self) -> Graph {
        let mut out = Graph::new();
        out.axes = self.axes.clone();
        out
    }

    /// The same inputs, states and axes without nodes; and where each old value went.
    pub fn header(&self) -> (Graph, Vec<Option<ValueId>>) {
        let mut out = self.bare();
        let mut moved = vec![None; self.values().len()];
        for (old, value) in self.values().iter().enumerate() {
            match value.def {
                Def::Input(i) => {
                    let id = out.push(value.ty.clone(), value.def);
                    let name = self.inputs[i as usize].name.clone();
                    out.inputs.push(Input { name, value: id });
                    moved[old] = Some(id);
                }
                Def::State(s) => {
                    let id = out.push(value.ty.clone(), value.def);
                    out.states.push(State { value: id, ..self.states[s.index()].clone() });
                    moved[old] = Some(id);
                }
                Def::Node(..) => {}
            }
        }
        (out, moved)
    }

    /// The graph again, node by node. `f` gets the new graph, the old node and its inputs in the
    /// new graph, and answers with the values that stand for the node's outputs, or with `None`
    /// for the node as it is.
    ///
    /// # Errors
    /// Those of `f`, and of nodes that no longer fit.
    pub fn rewrite(
        &self,
        f: impl FnMut(&mut Graph, &Node, &[ValueId]) -> Rewritten,
    ) -> Result<Graph, OpError> {
        self.rebuilt(&vec![true; self.nodes().len()], f)
    }

    /// `rewrite` of the nodes that are kept; the others are gone, with all that they read.
    fn rebuilt(
        &self,
        keep: &[bool],
        mut f: impl FnMut(&mut Graph, &Node, &[ValueId]) -> Rewritten,
    ) -> Result<Graph, OpError> {
        let (mut out, mut moved) = self.header();
        let find = |moved: &[Option<ValueId>], v: ValueId| {
            moved[v.index()]
                .ok_or_else(|| OpError::new("rewrite", "a value was dropped but is read"))
        };
        for (node, _) in self.nodes().iter().zip(keep).filter(|(_, keep)| **keep) {
            let ins = node.ins.iter().map(|&v| find(&moved, v)).collect::<Result<Vec<_>, _>>()?;
            out.at(&node.scope, node.phase);
            let outs = match f(&mut out, node, &ins)? {
                Some(outs) => outs,
                None => out.emit(node.op.clone(), &ins)?,
            };
            for (old, new) in node.outs.iter().zip(outs) {
                moved[old.index()] = Some(new);
            }
        }
        for (name, v) in &self.outputs {
            let v = find(&moved, *v)?;
            out.outputs.push((name.clone(), v));
        }
        for (state, v) in &self.assigns {
            out.assign(*state, find(&moved, *v)?)?;
        }
        out.at(&"".into(), Phase::Forward);
        Ok(out)
    }

    /// The graph without nodes that no output or assignment needs.
    ///
    /// # Errors
    /// None for a verified graph.
    pub fn pruned(&self) -> Result<Graph, OpError> {
        let mut live = vec![false; self.values().len()];
        let roots = self.outputs.iter().map(|o| o.1).chain(self.assigns.iter().map(|a| a.1));
        roots.for_each(|v| live[v.index()] = true);
        let mut keep = vec![false; self.nodes().len()];
        for (n, node) in self.nodes().iter().enumerate().rev() {
            keep[n] = node.outs.iter().any(|v| live[v.index()]);
            if keep[n] {
                node.ins.iter().for_each(|v| live[v.index()] = true);
            }
        }
        self.rebuilt(&keep, |_, _, _| Ok(None))
    }

    /// Coarse ops (attend, norm, linear_ce, ...) in primitive ones, where `which` says so.
    ///
    /// # Errors
    /// None for a verified graph.
    pub fn expanded(&self, which: impl Fn(&Node) -> bool) -> Result<Graph, OpError> {
        self.rewrite(|out, node, ins| if which(node) { node.op.expand(ins, out) } else { Ok(None) })
    }
}
