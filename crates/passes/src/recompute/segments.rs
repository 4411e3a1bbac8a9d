//! The chain in a graph: one segment for each block, found by its scope `h.N`, and one for all that
//! follows the last block. Where there are no such scopes, or they do not stand one after another,
//! the whole forward is one segment.

use super::chain::{Segment, Variant};
use crate::scope::layer_of;
use aerogel_graph::ops::View;
use aerogel_graph::{Build, Def, Graph, NodeId, Op, Phase, ValueId};
use std::collections::BTreeSet;
use std::ops::Range;

/// How the caller measures a value, in bytes.
pub(super) type Measure<'a> = &'a dyn Fn(&Graph, ValueId) -> u64;

/// A graph with its gradient, as a chain.
pub(super) struct Segments {
    /// One for each segment.
    pub chain: Vec<Segment>,
    /// How many of them are blocks: all, or all but the last.
    pub blocks: usize,
    /// The nodes of each.
    pub spans: Vec<Range<usize>>,
    /// The segment whose backward each node after the forward belongs to; by node.
    pub backward_of: Vec<usize>,
    /// What each segment hands to the next one.
    pub outputs: Vec<Vec<ValueId>>,
    /// What the backward of each reads beside its input; outputs of it too.
    pub saved: Vec<Vec<ValueId>>,
    /// What the lean variant keeps of `saved`, or instead of it.
    pub lean: Vec<Vec<ValueId>>,
    /// By value: it is there from where it is defined to the end, whatever the schedule.
    pub always: Vec<bool>,
    /// Bytes of the activations among those.
    pub always_bytes: u64,
}

/// The number of nodes before the first that is no forward node.
pub(super) fn forward_count(g: &Graph) -> usize {
    g.nodes().iter().position(|n| n.phase != Phase::Forward).unwrap_or(g.nodes().len())
}

/// Values that are made of states alone by maps and views: parameters in the compute dtype. They
/// are no activations.
pub(super) fn parameters_alone(g: &Graph) -> Vec<bool> {
    let mut alone: Vec<bool> = g.values().iter().map(|v| matches!(v.def, Def::State(_))).collect();
    for node in g.nodes() {
        let plain = matches!(node.op, Op::Map(_) | Op::View(_)) && !node.ins.is_empty();
        if plain && node.ins.iter().all(|v| alone[v.index()]) {
            node.outs.iter().for_each(|v| alone[v.index()] = true);
        }
    }
    alone
}

/// Nodes, in order, that compute `wanted` from what is `there`.
pub(super) fn again(
    g: &Graph,
    wanted: &[ValueId],
    there: &dyn Fn(ValueId) -> bool,
) -> BTreeSet<NodeId> {
    let mut nodes = BTreeSet::new();
    let mut open: Vec<ValueId> = wanted.to_vec();
    while let Some(v) = open.pop() {
        let Def::Node(n, _) = g.value(v).def else { continue };
        if !there(v) && nodes.insert(n) {
            open.extend(&g.node(n).ins);
        }
    }
    nodes
}

/// FLOPs of nodes.
pub(super) fn flops(g: &Graph, nodes: impl IntoIterator<Item = NodeId>) -> u64 {
    let of = |n: NodeId| {
        let node = g.node(n);
        node.op.flops(g.axes(), &g.in_types(node), &g.out_types(node))
    };
    nodes.into_iter().map(of).sum()
}

/// Bytes of values, where a split, a merge and a rename are the same bytes as what they show.
pub(super) fn bytes_of<'a>(
    g: &Graph,
    values: impl IntoIterator<Item = &'a ValueId>,
    bytes: Measure<'_>,
) -> u64 {
    let roots: BTreeSet<ValueId> = values.into_iter().map(|v| root(g, *v)).collect();
    roots.into_iter().map(|v| bytes(g, v)).sum()
}

fn root(g: &Graph, mut v: ValueId) -> ValueId {
    while let Def::Node(n, _) = g.value(v).def {
        match g.node(n).op {
            Op::View(View::Split { .. } | View::Merge { .. } | View::Rename { .. }) => {
                v = g.node(n).ins[0];
            }
            _ => break,
        }
    }
    v
}

/// Finds the chain.
pub(super) fn segments(g: &Graph, bytes: Measure<'_>) -> Segments {
    let forward = forward_count(g);
    let whole = || (std::iter::once(0..forward).collect(), vec![0; g.nodes().len()], 1);
    let (spans, backward_of, blocks) = blocks(g, forward).unwrap_or_else(whole);
    let n = spans.len();
    let mut found = Segments {
        chain: vec![],
        blocks,
        spans,
        backward_of,
        outputs: vec![vec![]; n],
        saved: vec![vec![]; n],
        lean: vec![vec![]; n],
        always: vec![],
        always_bytes: 0,
    };
    found.borders(g, forward, bytes);
    for i in 0..n {
        found.lean[i] = found.lean_of(g, i, bytes);
        let segment = found.segment(g, i, bytes);
        found.chain.push(segment);
    }
    found
}

/// Forward values by who reads them.
#[derive(Default)]
struct Readers {
    /// The forward of the next segment.
    next: BTreeSet<ValueId>,
    /// The backward of the own segment.
    own: BTreeSet<ValueId>,
    /// Anybody else, the backward of the next segment left out where its forward reads it too.
    far: BTreeSet<ValueId>,
}

type Spans = (Vec<Range<usize>>, Vec<usize>, usize);

/// Spans of the blocks and of what follows them, and the segment of each backward node.
fn blocks(g: &Graph, forward: usize) -> Option<Spans> {
    let mut starts: Vec<usize> = vec![];
    let mut end = 0;
    for (n, node) in g.nodes()[..forward].iter().enumerate() {
        let Some(block) = layer_of(&node.scope) else { continue };
        end = n + 1;
        match starts.len() {
            new if block == new => starts.push(n),
            all if block + 1 == all => {}
            _ => return None,
        }
    }
    let blocks = starts.len();
    if blocks == 0 {
        return None;
    }
    starts.push(end);
    let mut spans: Vec<_> = starts.windows(2).map(|w| w[0]..w[1]).collect();
    if end < forward {
        spans.push(end..forward);
    }
    // The backward goes from the last segment to the first; what comes after the first node of a
    // block, whatever its scope, is in that block or in an earlier one.
    let mut at = spans.len() - 1;
    let mut backward_of = vec![at; g.nodes().len()];
    for (n, node) in g.nodes().iter().enumerate().skip(forward) {
        at = layer_of(&node.scope).filter(|&b| b < at).unwrap_or(at);
        backward_of[n] = at;
    }
    Some((spans, backward_of, blocks))
}

impl Segments {
    /// Outputs and saved values of all segments, and what is always there.
    fn borders(&mut self, g: &Graph, forward: usize, bytes: Measure<'_>) {
        let mut home: Vec<Option<usize>> = vec![None; g.values().len()];
        for (i, span) in self.spans.iter().enumerate() {
            let outs = g.nodes()[span.clone()].iter().flat_map(|node| &node.outs);
            outs.for_each(|v| home[v.index()] = Some(i));
        }
        let alone = parameters_alone(g);
        let mut always = self.pinned(g, &home, &alone);
        let Readers { next, own, far } = self.readers(g, forward, &home, &alone);
        far.iter().for_each(|v| always[v.index()] = true);
        let read = far.iter().chain(&next).chain(&own).filter(|v| always[v.index()]);
        self.always_bytes = bytes_of(g, read, bytes);
        for (set, lists) in [(&next, &mut self.outputs), (&own, &mut self.saved)] {
            for v in set.iter().filter(|v| !always[v.index()]) {
                if let Some(i) = home[v.index()] {
                    lists[i].push(*v);
                }
            }
        }
        self.always = always;
    }

    /// Values that are there whoever reads them: of no segment, parameters, ends of the graph, and
    /// what `linear_ce` gives.
    fn pinned(&self, g: &Graph, home: &[Option<usize>], alone: &[bool]) -> Vec<bool> {
        let mut pinned: Vec<bool> =
            home.iter().zip(alone).map(|(home, alone)| home.is_none() || *alone).collect();
        g.outputs.iter().for_each(|(_, v)| pinned[v.index()] = true);
        g.assigns.iter().for_each(|(_, v)| pinned[v.index()] = true);
        // After the blocks nothing runs again in any case, and gradients need not stay so long.
        for span in &self.spans[..self.blocks] {
            let nodes = g.nodes()[span.clone()].iter();
            let losses = nodes.filter(|node| matches!(node.op, Op::LinearCe(_)));
            losses.flat_map(|node| &node.outs).for_each(|v| pinned[v.index()] = true);
        }
        pinned
    }

    fn readers(
        &self,
        g: &Graph,
        forward: usize,
        home: &[Option<usize>],
        alone: &[bool],
    ) -> Readers {
        let mut readers = Readers::default();
        let Readers { next, own, far } = &mut readers;
        for (n, node) in g.nodes().iter().enumerate() {
            let reader = match n < forward {
                true => node.outs.first().and_then(|v| home[v.index()]),
                false => Some(self.backward_of[n]),
            };
            // What precedes the blocks reads nothing of them.
            let Some(reader) = reader else { continue };
            for v in node.ins.iter().filter(|v| !alone[v.index()]) {
                if !matches!(g.value(*v).def, Def::Node(made, _) if made.index() < forward) {
                    continue;
                }
                let steps = home[v.index()].and_then(|from| reader.checked_sub(from));
                match (steps, n < forward) {
                    (Some(0), true) => false,
                    (Some(0), false) => own.insert(*v),
                    (Some(1), true) => next.insert(*v),
                    (Some(1), false) if next.contains(v) => false,
                    _ => far.insert(*v),
                };
            }
        }
        readers
    }

    /// Whether a value is there when a segment has its input and nothing else.
    fn given(&self, i: usize, v: ValueId) -> bool {
        self.always[v.index()] || (i > 0 && self.outputs[i - 1].contains(&v))
    }

    fn segment(&self, g: &Graph, i: usize, bytes: Measure<'_>) -> Segment {
        let (outputs, saved, lean) = (&self.outputs[i], &self.saved[i], &self.lean[i]);
        let cost = |wanted: &[ValueId], there: &[ValueId]| {
            flops(g, again(g, wanted, &|v| self.given(i, v) || there.contains(&v)))
        };
        let inner =
            |values: &[ValueId]| bytes_of(g, values.iter().filter(|v| !outputs.contains(v)), bytes);
        let with = |values: &[ValueId]| [outputs, values].concat();
        let all =
            Variant { bytes: inner(saved), again_flops: cost(&with(saved), &[]), extra_flops: 0 };
        let reads_output = saved.iter().any(|v| outputs.contains(v));
        let there = if reads_output { with(lean) } else { lean.clone() };
        let lean = Variant {
            bytes: inner(lean),
            again_flops: cost(&with(lean), &[]),
            extra_flops: cost(saved, &there),
        };
        Segment {
            forward_flops: cost(outputs, &[]),
            replay_flops: cost(saved, &[]),
            boundary_bytes: bytes_of(g, outputs, bytes),
            reads_output,
            all,
            lean: (i < self.blocks && lean.bytes < all.bytes).then_some(lean),
        }
    }

    /// The saved values, without those that maps, norms and views make again of fewer bytes.
    fn lean_of(&self, g: &Graph, i: usize, bytes: Measure<'_>) -> Vec<ValueId> {
        let mut kept: BTreeSet<ValueId> = self.saved[i].iter().copied().collect();
        for v in self.saved[i].iter().rev().filter(|v| !self.outputs[i].contains(v)) {
            let Some(sources) = self.sources(g, i, *v, &kept, bytes) else { continue };
            if bytes_of(g, &sources, bytes) < bytes(g, root(g, *v)) {
                kept.remove(v);
                kept.extend(sources);
            }
        }
        kept.into_iter().collect()
    }

    /// The values to keep, beside those that are, so that `v` can be made again by cheap ops.
    fn sources(
        &self,
        g: &Graph,
        i: usize,
        v: ValueId,
        kept: &BTreeSet<ValueId>,
        bytes: Measure<'_>,
    ) -> Option<BTreeSet<ValueId>> {
        let Def::Node(n, _) = g.value(v).def else { return None };
        if !matches!(g.node(n).op, Op::Map(_) | Op::Norm(_) | Op::View(_)) {
            return None;
        }
        let mut sources = BTreeSet::new();
        for &from in &g.node(n).ins {
            if self.given(i, from) || kept.contains(&from) {
                continue;
            }
            match self.sources(g, i, from, kept, bytes) {
                Some(s) if bytes_of(g, &s, bytes) < bytes(g, root(g, from)) => sources.extend(s),
                // The output is gone when the backward comes.
                _ if self.outputs[i].contains(&from) => return None,
                _ => _ = sources.insert(from),
            }
        }
        Some(sources)
    }
}
