//! A graph by a schedule: the forward as it is, and before each backward node the clones of forward
//! nodes that it needs and the schedule has dropped.

use super::chain::{Action, Keep, keeps_output};
use super::segments::{Segments, again};
use aerogel_graph::{Build, Graph, Node, OpError, Phase, ValueId};

/// The graph in which the actions happen. Clones stand where they are first needed, in phase
/// `Backward`, at the scope of their original, so that they draw the same random numbers.
pub(super) fn rewritten(
    g: &Graph,
    segments: &Segments,
    forward: usize,
    actions: &[Action],
) -> Result<Graph, OpError> {
    let mut run = Run {
        g,
        segments,
        original: vec![None; g.values().len()],
        there: vec![None; g.values().len()],
        kept: vec![None; segments.chain.len()],
        actions: actions.iter(),
    };
    let mut n = 0;
    g.rewrite(|out, node, ins| {
        n += 1;
        if n <= forward {
            return run.forward_node(out, node, ins).map(Some);
        }
        run.backward_node(out, node, ins, segments.backward_of[n - 1]).map(Some)
    })
}

struct Run<'a> {
    g: &'a Graph,
    segments: &'a Segments,
    /// The new graph's form of a value, as its own node computed it.
    original: Vec<Option<ValueId>>,
    /// The form that is there now, of values that are not always there.
    there: Vec<Option<ValueId>>,
    /// How each segment last ran forward.
    kept: Vec<Option<Keep>>,
    actions: std::slice::Iter<'a, Action>,
}

impl Run<'_> {
    fn forward_node(
        &mut self,
        out: &mut Graph,
        node: &Node,
        ins: &[ValueId],
    ) -> Result<Vec<ValueId>, OpError> {
        let outs = out.emit(node.op.clone(), ins)?;
        // Inputs and states are seen here first.
        for (old, new) in node.ins.iter().zip(ins).chain(node.outs.iter().zip(&outs)) {
            self.original[old.index()] = Some(*new);
        }
        Ok(outs)
    }

    fn backward_node(
        &mut self,
        out: &mut Graph,
        node: &Node,
        ins: &[ValueId],
        segment: usize,
    ) -> Result<Vec<ValueId>, OpError> {
        while self.actions.as_slice().first().is_some_and(|a| *a != Action::Backward { segment }) {
            if let Some(action) = self.actions.next() {
                self.act(out, *action)?;
            }
        }
        let mut ins = ins.to_vec();
        for (old, new) in node.ins.iter().zip(&mut ins) {
            if !self.segments.always[old.index()] {
                self.provide(out, &[*old])?;
                *new = self.now(*old)?;
            }
        }
        out.at(&node.scope, node.phase);
        out.emit(node.op.clone(), &ins)
    }

    /// What an action leaves; a replay is done as its backward asks.
    fn act(&mut self, out: &mut Graph, action: Action) -> Result<(), OpError> {
        match action {
            Action::Forward { segment, keep } => self.forward(out, segment, keep),
            Action::Replay { .. } => Ok(()),
            Action::Backward { segment } => {
                self.drop_all(segment);
                if segment > 0 {
                    let before = segment - 1;
                    let reads = self.segments.chain[before].reads_output;
                    if !keeps_output(reads, self.kept[before]) {
                        self.drop_outputs(before);
                    }
                }
                Ok(())
            }
        }
    }

    fn forward(&mut self, out: &mut Graph, i: usize, keep: Keep) -> Result<(), OpError> {
        let inner: &[ValueId] = match keep {
            Keep::Nothing | Keep::Boundary => &[],
            Keep::Lean => &self.segments.lean[i],
            Keep::All => &self.segments.saved[i],
        };
        let stays = [&self.segments.outputs[i], inner].concat();
        if self.kept[i].is_some() {
            self.provide(out, &stays)?;
        } else {
            stays.iter().for_each(|v| self.there[v.index()] = self.original[v.index()]);
        }
        let values: Vec<_> = stays.iter().map(|v| (*v, self.there[v.index()])).collect();
        self.drop_all(i);
        values.into_iter().for_each(|(v, now)| self.there[v.index()] = now);
        if i > 0 && self.kept[i - 1] == Some(Keep::Nothing) {
            self.drop_outputs(i - 1);
        }
        self.kept[i] = Some(keep);
        Ok(())
    }

    fn drop_all(&mut self, i: usize) {
        for node in &self.g.nodes()[self.segments.spans[i].clone()] {
            node.outs.iter().for_each(|v| self.there[v.index()] = None);
        }
    }

    fn drop_outputs(&mut self, i: usize) {
        self.segments.outputs[i].iter().for_each(|v| self.there[v.index()] = None);
    }

    /// The new graph's form of a value that is there.
    fn now(&self, v: ValueId) -> Result<ValueId, OpError> {
        let at = v.index();
        let found = if self.segments.always[at] { self.original[at] } else { self.there[at] };
        found.ok_or_else(|| OpError::new("recompute", "a value is read before it is computed"))
    }

    /// Clones what computes `wanted` from what is there.
    fn provide(&mut self, out: &mut Graph, wanted: &[ValueId]) -> Result<(), OpError> {
        let is_there =
            |v: ValueId| self.segments.always[v.index()] || self.there[v.index()].is_some();
        for n in again(self.g, wanted, &is_there) {
            let node = self.g.node(n);
            let ins = node.ins.iter().map(|v| self.now(*v)).collect::<Result<Vec<_>, _>>()?;
            out.at(&node.scope, Phase::Backward);
            let outs = out.emit(node.op.clone(), &ins)?;
            for (old, new) in node.outs.iter().zip(outs) {
                // What was kept of a node with several outputs stays what it is.
                self.there[old.index()].get_or_insert(new);
            }
        }
        Ok(())
    }
}
