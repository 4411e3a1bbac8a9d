//! What is sent and what is held, against the formulas of the stages.

use super::*;
use aerogel_graph::{Build, Op, Phase, Role};
use std::collections::{BTreeMap, BTreeSet};

/// Messages and bytes that a rank sends, by kind; sums of single numbers apart.
type Sent = BTreeMap<&'static str, (usize, usize)>;

fn sent(g: &Graph) -> Sent {
    let mut list = Sent::new();
    for node in g.nodes() {
        let Op::Collective(op) = &node.op else { continue };
        let ty = g.ty(node.ins[0]);
        let kind = if ty.axes.is_empty() { "scalar" } else { op.kind_name() };
        if kind == "keep" {
            assert_eq!(op.wire_bytes(g.axes(), ty), 0);
            continue;
        }
        let entry = list.entry(kind).or_default();
        entry.0 += 1;
        entry.1 += op.wire_bytes(g.axes(), ty) as usize;
    }
    list
}

/// Adds messages, unless there are none.
fn add(list: &mut Sent, kind: &'static str, messages: usize, bytes: usize) {
    if messages > 0 {
        let entry = list.entry(kind).or_default();
        *entry = (entry.0 + messages, entry.1 + bytes);
    }
}

/// Two numbers, loss and tokens, summed over mesh axes one after another.
fn add_scalars(list: &mut Sent, shards: &Shards, over: &[u8]) {
    for &m in over {
        let members = shards.mesh.size(m);
        add(list, "scalar", 2, 2 * (2 * 4 * (members - 1) / members));
    }
}

/// In how many phases of the step a bucket is read, from the graph of single parameters.
fn phases(whole: &Graph, bucket: &aerogel_passes::Bucket) -> usize {
    let readers = whole.readers();
    let mut seen = BTreeSet::new();
    for t in &bucket.tensors {
        let value = whole.states()[whole.find_state(&t.name).unwrap().index()].value;
        let mut values = vec![value];
        if bucket.copy.is_some() {
            values = readers[value.index()].iter().map(|n| whole.node(*n).outs[0]).collect();
        }
        for v in values {
            seen.extend(readers[v.index()].iter().map(|n| whole.node(*n).phase.name()));
        }
    }
    assert!(!seen.contains(Phase::Update.name()));
    seen.len()
}

fn width(b: &aerogel_passes::Bucket) -> usize {
    if b.copy.is_some() { 2 } else { 4 }
}

/// What a micro-batch sends.
fn micro(whole: &Graph, buckets: &Buckets) -> Sent {
    let s = &buckets.shards;
    let (n_g, n_p) = (s.pieces(&s.gradients), s.pieces(&s.parameters));
    let mut list = Sent::new();
    for b in &buckets.list {
        let gathers = phases(whole, b);
        let piece = b.elements / n_p * width(b);
        add(&mut list, "all_gather", gathers * s.parameters.len(), gathers * piece * (n_p - 1));
        add(&mut list, "reduce_scatter", s.gradients.len(), 4 * (b.elements - b.elements / n_g));
    }
    add_scalars(&mut list, s, &s.gradients);
    list
}

/// What an update sends.
fn at_the_end(buckets: &Buckets) -> Sent {
    let s = &buckets.shards;
    let [n_o, n_g, n_p] = [&s.optimizer, &s.gradients, &s.parameters].map(|over| s.pieces(over));
    let mut list = Sent::new();
    let mut chunks = 0;
    for b in &buckets.list {
        let [by_o, by_g, by_p] = [n_o, n_g, n_p].map(|n| b.elements / n);
        add(&mut list, "reduce_scatter", s.optimizer.len() - s.gradients.len(), 4 * (by_g - by_o));
        for &m in &s.batch[..s.batch.len() - s.optimizer.len()] {
            let members = s.mesh.size(m);
            add(&mut list, "all_reduce", 1, 2 * 4 * by_o * (members - 1) / members);
        }
        let gathers = s.optimizer.len() - s.parameters.len();
        add(&mut list, "all_gather", gathers, width(b) * (by_p - by_o));
        chunks += by_o / b.chunk;
    }
    add(&mut list, "all_gather", s.optimizer.len(), 4 * chunks * (n_o - 1));
    add_scalars(&mut list, s, &s.batch[..s.batch.len() - s.gradients.len()]);
    list
}

fn meshes() -> Vec<Shards> {
    let rows = [2, 4].iter().flat_map(|&n| [0, 1, 2, 3].map(|stage| zero(n, stage)));
    [Shards::default()].into_iter().chain(rows).chain(NODES.map(nodes)).collect()
}

fn cases() -> Vec<(Compute, Graph)> {
    let mut list = vec![];
    for family in [Family::Gpt2, Family::SparseTransformer] {
        for compute in [Compute::F32, Compute::Bf16] {
            list.push((compute, whole(family, compute)));
        }
    }
    list
}

#[test]
fn each_stage_sends_what_its_formula_says() {
    for (compute, whole) in cases() {
        for shards in meshes() {
            let step = Step::new(&whole, &shards, Order::Tree);
            let wanted = micro(&whole, &step.buckets);
            for (name, g) in &step.micros {
                assert_eq!(sent(g), wanted, "{name}, {compute:?} {shards:?}");
            }
            let wanted = at_the_end(&step.buckets);
            assert_eq!(sent(&step.update), wanted, "{compute:?} {shards:?}");
            let mut wanted = Sent::new();
            for b in step.buckets.list.iter().filter(|b| b.copy.is_some()) {
                let [o, p] =
                    [&shards.optimizer, &shards.parameters].map(|l| b.elements / shards.pieces(l));
                let messages = shards.optimizer.len() - shards.parameters.len();
                add(&mut wanted, "all_gather", messages, 2 * (p - o));
            }
            assert_eq!(step.copies.is_some(), compute == Compute::Bf16);
            let got = step.copies.as_ref().map(sent).unwrap_or_default();
            assert_eq!(got, wanted, "copies, {shards:?}");
        }
    }
}

/// The stages by name, on two ranks, in numbers of messages; and bytes of a step of both
/// micro-batches against those of copies, 2ψ: as much for stages 1 and 2, half more for 3.
#[test]
fn stages_in_short() {
    let whole = whole(Family::SparseTransformer, Compute::F32);
    let n = Buckets::of(&whole, &Shards::default(), &Partials::default()).list.len();
    let twice = |b: &Buckets| b.list.iter().map(|b| phases(&whole, b)).sum::<usize>();
    for stage in 0..=3 {
        let step = Step::new(&whole, &zero(2, stage), Order::Tree);
        let messages = |g: &Graph| {
            let sent = sent(g);
            ["all_reduce", "reduce_scatter", "all_gather", "scalar"]
                .map(|kind| sent.get(kind).map_or(0, |s| s.0))
        };
        let micro = messages(&step.micros[0].1);
        let end = messages(&step.update);
        let both = twice(&step.buckets);
        assert!(both > n && both <= 2 * n, "some are gathered twice");
        match stage {
            0 => assert_eq!((micro, end), ([0; 4], [n, 0, 0, 2])),
            1 => assert_eq!((micro, end), ([0; 4], [0, n, n + 1, 2])),
            2 => assert_eq!((micro, end), ([0, n, 0, 2], [0, 0, n + 1, 0])),
            _ => assert_eq!((micro, end), ([0, n, both, 2], [0, 0, 1, 0])),
        }
    }
    // Both layers are gathered in the forward and again in the backward.
    let buckets = Buckets::of(&whole, &Shards::default(), &Partials::default());
    let layers: Vec<_> = buckets.list.iter().filter(|b| b.scope.starts_with("h.")).collect();
    assert_eq!(layers.len(), 4);
    assert!(layers.iter().all(|b| phases(&whole, b) == 2));
}

/// A bucket's gather comes no earlier than its first reader needs it, and its sum right after its
/// last gradient: a layer at a time is in memory.
#[test]
fn layers_are_gathered_and_summed_one_by_one() {
    let whole = whole(Family::Gpt2, Compute::Bf16);
    let step = Step::new(&whole, &zero(2, 3), Order::Tree);
    let g = &step.micros[0].1;
    let of = |scope: &str, kind: &str, phase: Phase| -> Vec<usize> {
        let hit = |n: &aerogel_graph::Node| {
            let is_kind = matches!(&n.op, Op::Collective(op) if op.kind_name() == kind);
            is_kind && n.phase == phase && n.scope.starts_with(scope)
        };
        (0..g.nodes().len()).filter(|&i| hit(&g.nodes()[i])).collect()
    };
    let nodes = |scope: &str, phase: Phase| {
        let inside = |n: &aerogel_graph::Node| {
            n.scope.starts_with(scope) && n.phase == phase && !matches!(n.op, Op::Collective(_))
        };
        let list: Vec<usize> = (0..g.nodes().len()).filter(|&i| inside(&g.nodes()[i])).collect();
        (list[0], list[list.len() - 1])
    };
    for phase in [Phase::Forward, Phase::Backward] {
        for (layer, other) in [("h.0", "h.1"), ("h.1", "h.0")] {
            let (first, last) = nodes(other, phase);
            let gathers = of(layer, "all_gather", phase);
            assert_eq!(gathers.len(), 2, "matrices and vectors of {layer}");
            assert!(gathers.iter().all(|i| *i < first || *i > last), "{layer} {phase:?}");
        }
    }
    let sums = of("h.1", "reduce_scatter", Phase::Backward);
    let (first, _) = nodes("h.0", Phase::Backward);
    assert!(sums.len() == 2 && sums.iter().all(|i| *i < first), "h.1 is summed before h.0 begins");
}

/// P psi_p + G psi_g + K psi_o bytes a rank, psi being elements over the number of pieces.
#[test]
fn each_stage_holds_what_its_formula_says() {
    for (compute, whole) in cases() {
        for shards in meshes() {
            let step = Step::new(&whole, &shards, Order::Fold);
            let mut held: BTreeMap<String, usize> = BTreeMap::new();
            for g in [&step.micros[0].1, &step.update] {
                for s in g.states() {
                    held.insert(s.name.clone(), g.ty(s.value).bytes(g.axes()) as usize);
                }
            }
            let over = [&shards.parameters, &shards.gradients, &shards.optimizer];
            let pieces = over.map(|list| shards.pieces(list));
            // Loss and tokens summed, and the count of applied steps.
            let mut wanted = 3 * 4;
            for b in &step.buckets.list {
                let [psi_p, psi_g, psi_o] = pieces.map(|n| b.elements / n);
                let [p, g, k] = if b.copy.is_some() { [2, 4, 12] } else { [4, 4, 8] };
                wanted += p * psi_p + g * psi_g + k * psi_o;
            }
            let total: usize = held.values().sum();
            assert_eq!(total, wanted, "{compute:?} {shards:?}: {held:?}");
            // More levels of the tree hold more sums, and nothing else.
            let tree = Step::new(&whole, &shards, Order::Tree);
            let sums = |g: &Graph| {
                let list = g.states().iter().filter(|s| s.role == Role::Accumulator);
                list.map(|s| g.ty(s.value).bytes(g.axes())).sum::<u64>()
            };
            let levels = (usize::BITS - (tree.local - 1).leading_zeros()).max(1);
            let one = sums(&step.micros[0].1);
            assert_eq!(sums(&tree.micros[0].1), u64::from(levels) * one, "{shards:?}");
        }
    }
}
