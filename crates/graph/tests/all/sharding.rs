//! What each op says that ranks may share, held to what they then compute: every op of the table
//! and of its gradient, along every axis of its operands.

use super::cases::CASES;
use super::harness::{World, close, largest};
use aerogel_graph::ops::{RefSite, Sharding};
use aerogel_graph::tensor::for_each;
use aerogel_graph::{
    Axes, AxisId, Build, Clock, Cutter, Graph, Mesh, Node, Op, Rounding, Tensor, gradients,
    interpret,
};
use std::collections::BTreeMap;

/// The rank's piece of a tensor whose axes are whole.
fn piece(cut: &Axes, whole: &Tensor, clock: &Clock) -> Tensor {
    let mut out = Tensor::full(cut, &whole.axes, 0.0);
    let strides = whole.strides(&whole.axes);
    let first = |a: AxisId| cut[a].piece(0, clock.place) as usize * cut[a].size;
    let start: usize = whole.axes.iter().zip(&strides).map(|(&a, s)| first(a) * s).sum();
    let sizes = out.sizes.clone();
    for_each(&sizes, &[&strides], |i, at| out.data[i] = whole.data[start + at[0]]);
    out
}

/// A graph in which one axis is cut over as many ranks as it is long, or half as many.
fn shared(g: &Graph, label: AxisId) -> Option<Graph> {
    let axis = &g.axes()[label];
    let ranks = if axis.size.is_multiple_of(2) { axis.size / 2 } else { axis.size };
    let ranks = if ranks == 1 { axis.size } else { ranks };
    let mut cut = g.clone();
    cut.set_mesh(Mesh(vec![("rank".to_owned(), ranks)]));
    cut.cut_axis(&axis.name, Cutter::Mesh(0), ranks).unwrap();
    (ranks > 1).then_some(cut)
}

/// Runs one node on all ranks, and holds pieces to the whole's pieces, and sums to the whole.
fn check(g: &Graph, cut: &Graph, node: &Node, values: &[Tensor], clock: Clock, what: &str) {
    let (axes, mesh) = (cut.axes(), &cut.axes().mesh);
    let outs = cut.out_types(node);
    assert_eq!(node.op.infer(axes, &cut.in_types(node)).unwrap(), outs, "{what}");
    let run = |rank: usize| {
        let clock = Clock { place: mesh.place(rank), ..clock };
        let ins: Vec<Tensor> =
            node.ins.iter().map(|v| piece(axes, &values[v.index()], &clock)).collect();
        let site = RefSite { axes, clock, outs: &outs };
        (clock, node.op.reference(&site, &ins.iter().collect::<Vec<_>>()))
    };
    let ranks: Vec<_> = (0..mesh.ranks()).map(run).collect();
    for (i, v) in node.outs.iter().enumerate() {
        let whole = &values[v.index()];
        let tolerance = 1e-9 * largest(std::slice::from_ref(whole)).clamp(1.0, 1e9);
        if outs[i].axes.iter().any(|&a| axes[a] != g.axes()[a]) {
            for (clock, own) in &ranks {
                close(&own[i], &piece(axes, whole, clock), tolerance, what);
            }
            continue;
        }
        let mut sum = Tensor::full(axes, &whole.axes, 0.0);
        for (_, own) in &ranks {
            sum.data.iter_mut().zip(&own[i].data).for_each(|(s, x)| *s += x);
        }
        close(&sum, whole, tolerance, what);
    }
}

#[test]
fn ranks_with_pieces_compute_pieces_and_terms() {
    let mut shared_by_op: BTreeMap<&str, usize> = BTreeMap::new();
    for case in CASES {
        for (variant, seed) in (0..case.variants).flat_map(|v| (0..40).map(move |s| (v, s))) {
            let mut w = World::new(seed, variant);
            let loss = (case.build)(&mut w).unwrap();
            let wrt: Vec<_> = w.leaves.iter().map(|l| l.1).collect();
            gradients(&mut w.g, loss, &wrt).unwrap();
            let values = interpret(&w.g, &w.env, w.clock, Rounding::Exact).unwrap().values;
            let axes: Vec<AxisId> = w.g.axes().iter().map(|(id, _)| id).collect();
            for (label, cut) in axes.iter().filter_map(|&a| Some((a, shared(&w.g, a)?))) {
                for node in w.g.nodes() {
                    let all = node.ins.iter().chain(&node.outs);
                    if !all.into_iter().any(|&v| w.g.ty(v).has(label)) {
                        continue;
                    }
                    let (ins, outs) = (cut.in_types(node), cut.out_types(node));
                    if node.op.sharding(cut.axes(), &ins, &outs, label) == Sharding::Parallel {
                        let (name, op) = (&w.g.axes()[label].name, node.op.name());
                        let what = format!("{} ({variant}, {seed}): {op} along {name}", case.name);
                        check(&w.g, &cut, node, &values, w.clock, &what);
                        *shared_by_op.entry(op).or_default() += 1;
                    }
                }
            }
        }
    }
    for op in Op::NAMES.iter().filter(|op| **op != "collective") {
        assert!(shared_by_op.get(op).is_some_and(|n| *n >= 20), "{op}: {shared_by_op:?}");
    }
}
