//! What leaves the section that makes it, and how: saved for the backward, or sent.

use super::sites::{Section, last_pass, shown};
use crate::pipeline::schedule::Pass;
use aerogel_graph::ops::View;
use aerogel_graph::{Build, Graph, Op, ValueId};
use std::collections::{BTreeMap, BTreeSet};
use std::iter::successors;

/// A value that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Crossing {
    /// The section that makes it.
    pub from: Section,
    /// The section that reads it.
    pub to: Section,
    /// The value.
    pub value: ValueId,
}

/// All that leaves its section.
pub struct Crossings {
    /// What is sent, in order.
    pub messages: BTreeSet<Crossing>,
    /// By stage, what its forward saves for its backward.
    pub saved: Vec<BTreeSet<ValueId>>,
    /// The graph's outputs, by the section that has them.
    pub outputs: BTreeMap<Section, Vec<(String, ValueId)>>,
}

impl Crossings {
    /// What a section is sent.
    pub fn received(&self, at: Section) -> BTreeSet<ValueId> {
        self.messages.iter().filter(|m| m.to == at).map(|m| m.value).collect()
    }

    /// What a section sends, once each.
    pub fn sent(&self, at: Section) -> BTreeSet<ValueId> {
        self.messages.iter().filter(|m| m.from == at).map(|m| m.value).collect()
    }
}

/// Decides for each value that two sections share.
pub fn crossings(g: &Graph, sites: &[Option<Section>], stages: usize) -> Crossings {
    let pass = last_pass(g);
    let mut outputs: BTreeMap<Section, Vec<(String, ValueId)>> = BTreeMap::new();
    for (name, v) in &g.outputs {
        let stage = sites[v.index()].map_or(stages - 1, |site| site.0);
        outputs.entry((stage, pass)).or_default().push((name.clone(), *v));
    }
    let wanted = wanted(g, sites, &outputs);
    let mut crossings = Crossings { messages: BTreeSet::new(), saved: vec![], outputs };
    let of = |at: Section| wanted.get(&at).map(|list| settled(g, list)).unwrap_or_default();
    for stage in 0..stages {
        let forward = (stage, Pass::Forward);
        let backward = (stage, Pass::Backward);
        let send = |to: Section| {
            move |value: ValueId| sites[value.index()].map(|from| Crossing { from, to, value })
        };
        let received = of(forward);
        crossings.messages.extend(received.iter().copied().filter_map(send(forward)));
        // The forward has what it makes and what it is sent, and all that these show.
        let at_hand = |v: &ValueId| {
            sites[v.index()] == Some(forward)
                || successors(Some(*v), |v| shown(g, *v)).any(|v| received.contains(&v))
        };
        let (saved, sent): (BTreeSet<_>, BTreeSet<_>) = of(backward).into_iter().partition(at_hand);
        crossings.messages.extend(sent.into_iter().filter_map(send(backward)));
        crossings.saved.push(saved);
    }
    crossings
}

/// What each section reads of others. Splits, merges and renames are the bytes of what they show,
/// so that stands for all of them; slices stand for themselves.
fn wanted(
    g: &Graph,
    sites: &[Option<Section>],
    outputs: &BTreeMap<Section, Vec<(String, ValueId)>>,
) -> BTreeMap<Section, BTreeSet<ValueId>> {
    let mut wanted: BTreeMap<Section, BTreeSet<ValueId>> = BTreeMap::new();
    let mut want = |at: Section, v: ValueId| {
        if sites[v.index()].is_some_and(|site| site != at) {
            wanted.entry(at).or_default().insert(whole_of(g, v));
        }
    };
    for node in g.nodes() {
        let Some(at) = sites[node.outs[0].index()] else { continue };
        if shown(g, node.outs[0]).is_none() {
            node.ins.iter().for_each(|v| want(at, *v));
        }
    }
    for (at, list) in outputs {
        list.iter().for_each(|(_, v)| want(*at, *v));
    }
    wanted
}

/// The value that a split, merge or rename shows, through all of them; a slice is one by itself.
fn whole_of(g: &Graph, v: ValueId) -> ValueId {
    let slice = |v: ValueId| matches!(g.op_of(v), Some(Op::View(View::Slice { .. })));
    let mut v = v;
    while let Some(source) = shown(g, v).filter(|_| !slice(v)) {
        v = source;
    }
    v
}

/// Slices of a value go in its stead where they are fewer bytes, and where nobody wants all of it.
fn settled(g: &Graph, wanted: &BTreeSet<ValueId>) -> BTreeSet<ValueId> {
    let sources = |v: ValueId| successors(shown(g, v), |v| shown(g, *v));
    let mut families: BTreeMap<ValueId, Vec<ValueId>> = BTreeMap::new();
    // A slice of another slice that goes anyway is made of that.
    for v in wanted.iter().filter(|v| !sources(**v).any(|s| wanted.contains(&s))) {
        families.entry(sources(*v).last().unwrap_or(*v)).or_default().push(*v);
    }
    let bytes = |v: &ValueId| g.value(*v).ty.bytes(g.axes());
    let choice = |(source, parts): (ValueId, Vec<ValueId>)| {
        if parts.iter().map(bytes).sum::<u64>() < bytes(&source) { parts } else { vec![source] }
    };
    families.into_iter().flat_map(choice).collect()
}
