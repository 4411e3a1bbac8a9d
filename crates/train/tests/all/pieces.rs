//! The device on pieces of axes, as one rank, one micro-batch or one chunk has them, against the
//! interpreter: ids, draws and coordinates are those of the whole.

use crate::device::is_refused;
use crate::harness::{Rng, check, check_near, fill};
use aerogel_graph::ops::{LinearCeGrad, Scatter, ScatterMode};
use aerogel_graph::tensor::for_each;
use aerogel_graph::{
    AxisId, Build, Clock, Cutter, DType, Env, Expr, Graph, Mesh, Node, Op, OpError, Tensor, Type,
    ValueId, gradients, verify::verify,
};
use aerogel_train::selftest::{cases::CASES, world::World};
use std::collections::BTreeMap;

/// The graph with one axis cut into pieces, and the data of one piece; `None` where an op needs the
/// axis whole.
fn piece_of(w: &World, label: AxisId, rng: &mut Rng) -> Option<(Graph, Env, Clock)> {
    let axis = &w.g.axes()[label];
    let pieces = if axis.size.is_multiple_of(2) { axis.size / 2 } else { axis.size };
    let pieces = if pieces == 1 { axis.size } else { pieces };
    let own = rng.below(pieces.max(1));
    let mesh = Mesh(vec![("other".to_owned(), 3), ("rank".to_owned(), pieces)]);
    let mut clock = Clock { place: mesh.place(rng.below(3) * pieces), ..w.clock };
    let mut g = w.g.clone();
    g.set_mesh(mesh);
    let by = match rng.below(4) {
        0 => Cutter::Time,
        1 => Cutter::Fixed(own),
        _ => Cutter::Mesh(1),
    };
    match by {
        Cutter::Time => clock.micro = own as u64,
        Cutter::Mesh(_) => clock.place.0[1] = own as u16,
        Cutter::Fixed(_) => {}
    }
    g.cut_axis(&axis.name, by, pieces).ok()?;
    if pieces == 1 || verify(&g).is_err() {
        return None;
    }
    let first = own * g.axes().size(label);
    let piece = |whole: &Tensor| {
        let mut out = Tensor::full(g.axes(), &whole.axes, 0.0);
        let strides = whole.strides(&whole.axes);
        let start = whole.strides(&[label])[0] * first;
        let sizes = out.sizes.clone();
        for_each(&sizes, &[&strides], |i, at| out.data[i] = whole.data[start + at[0]]);
        out
    };
    let env = w.env.iter().map(|(name, t)| (name.clone(), piece(t))).collect();
    Some((g, env, clock))
}

/// Whether a node reads a piece of the label; of tables, whether their rows or classes are cut.
fn is_cut(g: &Graph, node: &Node, label: AxisId) -> bool {
    match &node.op {
        Op::Gather(op) => op.axis == label,
        Op::Scatter(op) => op.axis == label,
        Op::LinearLse(op) => op.vocab == label,
        Op::LinearCeGrad(op) => op.vocab == label,
        _ => node.ins.iter().any(|v| g.ty(*v).has(label)),
    }
}

/// The same on a piece of each axis: of a table that ranks share, of the vocabulary, of a sequence.
#[test]
fn every_op_on_pieces() {
    let mut runs: BTreeMap<&str, usize> = BTreeMap::new();
    let mut rng = Rng(2);
    for (case, variant) in CASES.iter().flat_map(|c| (0..c.variants).map(move |v| (c, v))) {
        for seed in 10..12 {
            let mut w = World::new(seed, variant);
            let loss = (case.build)(&mut w).unwrap();
            let wrt: Vec<ValueId> = w.leaves.iter().map(|l| l.1).collect();
            let grads = gradients(&mut w.g, loss, &wrt).unwrap();
            for (i, d) in grads.iter().enumerate().filter_map(|(i, d)| Some((i, (*d)?))) {
                w.g.output(&format!("grad.{i}"), d);
            }
            let labels: Vec<AxisId> = w.g.axes().iter().map(|(id, _)| id).collect();
            for label in labels {
                let Some((g, env, clock)) = piece_of(&w, label, &mut rng) else { continue };
                if is_refused(&g) {
                    continue;
                }
                let name = &g.axes()[label].name;
                let what = format!("{} ({variant}, {seed}), a piece of {name}", case.name);
                check_near(&what, &g, &env, clock, 8.0);
                for node in g.nodes().iter().filter(|n| is_cut(&g, n, label)) {
                    *runs.entry(node.op.name()).or_default() += 1;
                }
            }
        }
    }
    // Of an embedding's rows and an output layer's classes there is more below.
    for op in ["map", "einsum", "gather", "scatter", "norm", "attend", "linear_ce", "view"] {
        assert!(runs.get(op).is_some_and(|n| *n >= 3), "{op}: {runs:?}");
    }
}

/// Draws and coordinates of a graph whose axes are cut in turn by ranks, time and fixed pieces are
/// those of the elements in the whole, in any order of the axes and side by side in one region.
#[test]
fn draws_of_pieces_are_those_of_the_whole() {
    let (mut rng, mut many) = (Rng(7), 0);
    for seed in 0..150 {
        let mut g = Graph::new();
        let mesh = [1 + rng.below(3), 1 + rng.below(3)];
        let names = ["outer", "inner"].map(str::to_owned);
        g.set_mesh(Mesh(names.into_iter().zip(mesh).collect()));
        let mut clock = Clock { seed, step: 2, ..Clock::default() };
        clock.place = g.axes().mesh.place(rng.below(mesh[0] * mesh[1]));
        let times = 1 + rng.below(3);
        clock.micro = rng.below(times) as u64;
        let mut axes = vec![];
        for name in ["a", "b", "c"] {
            let fixed = 1 + rng.below(3);
            let mut cuts = vec![
                (Cutter::Mesh(0), mesh[0]),
                (Cutter::Mesh(1), mesh[1]),
                (Cutter::Time, times),
                (Cutter::Fixed(rng.below(fixed)), fixed),
            ];
            rng.shuffle(&mut cuts);
            cuts.truncate(rng.below(5));
            many += usize::from(cuts.len() > 2);
            let pieces: usize = cuts.iter().map(|c| c.1).product();
            axes.push(g.axis(name, (1 + rng.below(6)) * pieces).unwrap());
            cuts.iter().for_each(|&(by, pieces)| g.cut_axis(name, by, pieces).unwrap());
        }
        let x = g.input("x", DType::F32, &axes).unwrap();
        let mut sum = x;
        for i in 0..3 {
            let mut order = axes.clone();
            if rng.one_in(2) {
                rng.shuffle(&mut order);
            }
            let axis = rng.pick(&axes);
            let stream = format!("drop.{}", rng.below(2));
            let y = g.map_to(&[sum], Type::new(DType::F32, order), &|v| {
                let kept = Expr::rand(&stream).lt(0.4).select(0.0, &v[0] + Expr::rand(&stream));
                kept + 0.1 * Expr::Coord(axis)
            });
            sum = y.unwrap();
            g.output(&format!("y.{i}"), sum);
        }
        verify(&g).unwrap();
        let mut env = Env::new();
        fill(&g, &mut env, &mut rng, 1);
        check(&format!("graph {seed}"), &g, &env, clock);
    }
    assert!(many > 100, "{many} axes were cut thrice");
}

/// An embedding and an output layer over a rank's rows of a table: rows by id, their gradients, the
/// log-sum-exp over the piece, the logits of targets, and the gradient for a given log-sum-exp.
fn vocabulary(rng: &mut Rng, ranks: usize) -> Result<Graph, OpError> {
    let mut g = Graph::new();
    g.set_mesh(Mesh(vec![("data".to_owned(), 2), ("tensor".to_owned(), ranks)]));
    // Now and then longer than a tile of registers or a block of a product.
    let mut size = |most: usize| {
        let most = if rng.one_in(3) { 9 * most } else { most };
        1 + rng.below(most)
    };
    let (batch, seq) = (g.axis("batch", size(4))?, g.axis("seq", size(5))?);
    let (embed, rows) = (g.axis("embed", size(12))?, size(20));
    let vocab = g.axis("vocab", rows * ranks)?;
    g.cut_axis("vocab", Cutter::Mesh(1), ranks)?;
    let dtype = rng.pick(&[DType::F32, DType::Bf16]);
    let table = if rng.one_in(3) { [embed, vocab] } else { [vocab, embed] };
    let table = g.input("table", dtype, &table)?;
    let ids = g.input("ids", DType::U32, &[batch, seq])?;
    let x = g.gather(table, vocab, ids)?;
    g.output("x", x);
    let dx = g.input("dx", dtype, &[batch, seq, embed])?;
    let out = Type::new(DType::F32, [vocab, embed]);
    let op = Scatter { axis: vocab, mode: ScatterMode::Add, out };
    let rows = g.emit(op.into(), &[ids, dx])?[0];
    g.output("rows", rows);
    let y = g.input("y", dtype, &[batch, seq, embed])?;
    let (lse, target) = g.linear_lse(y, table, ids, embed, vocab)?;
    g.output("lse", lse);
    g.output("target", target);
    let [weights, whole] = ["weights", "whole"].map(|n| g.input(n, DType::F32, &[batch, seq]));
    let op = LinearCeGrad { embed, vocab };
    let grads = g.emit(op.into(), &[y, table, ids, weights?, whole?])?;
    g.output("dy", grads[0]);
    g.output("dw", grads[1]);
    Ok(g)
}

#[test]
fn rows_and_classes_of_every_rank() {
    for seed in 0..60 {
        let mut rng = Rng(seed);
        let ranks = 1 + rng.below(4);
        let g = vocabulary(&mut rng, ranks).unwrap();
        verify(&g).unwrap();
        let mut env = Env::new();
        let rows = g.axes()[g.axes().find("vocab").unwrap()].global_size();
        fill(&g, &mut env, &mut rng, rows);
        for rank in 0..ranks {
            let place = g.axes().mesh.place(ranks + rank);
            let clock = Clock { seed, step: 1, micro: 0, place };
            check_near(&format!("seed {seed}, rank {rank} of {ranks}"), &g, &env, clock, 2.0);
        }
    }
}
