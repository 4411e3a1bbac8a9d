//! The vocabulary in pieces: the output layer's parts are the whole, and what ranks that hold a
//! piece each compute adds up to it, for the output layer and for tables.

use super::harness::{World, close};
use aerogel_graph::interpret::Run;
use aerogel_graph::ops::{LinearCeGrad, Merge, Scatter, ScatterMode};
use aerogel_graph::{
    Axes, AxisId, Build, Clock, Cutter, DType, Env, Graph, Place, Rounding, Tensor, Type, ValueId,
    gradients, interpret,
};

/// Divides into two and four pieces.
const VOCAB: usize = 12;

fn run(g: &Graph, env: &Env, clock: Clock) -> Run {
    interpret(g, env, clock, Rounding::Exact).unwrap()
}

/// The output layer in parts; the lse that the gradient takes is an input of its own.
struct Layer {
    w: World,
    axes: [AxisId; 2],
    /// x, w, targets, weights.
    ins: [ValueId; 4],
}

fn layer(seed: u64) -> Layer {
    let mut w = World::new(seed, 0);
    let (embed, vocab) = (w.axis("embed", 1, 4).unwrap(), w.g.axis("vocab", VOCAB).unwrap());
    let (batch, t) = (w.axis("batch", 1, 3).unwrap(), w.axis("t", 1, 3).unwrap());
    let x = w.leaf("x", &[batch, t, embed]).unwrap();
    let m = w.leaf("w", &[vocab, embed]).unwrap();
    let targets = w.ids("targets", &[t, batch], VOCAB).unwrap();
    let weights = w.noise("weights", &[t, batch]).unwrap();
    Layer { w, axes: [embed, vocab], ins: [x, m, targets, weights] }
}

impl Layer {
    /// ce, dx and dw of the fused op under a sum.
    fn fused(&self) -> [Tensor; 3] {
        let (mut g, [x, m, targets, weights]) = (self.w.g.clone(), self.ins);
        let ce = g.linear_ce(x, m, targets, weights, self.axes[0], self.axes[1]).unwrap();
        let loss = g.sum(ce, &g.ty(ce).axes.clone()).unwrap();
        let grads = gradients(&mut g, loss, &[x, m]).unwrap();
        let values = run(&g, &self.w.env, self.w.clock).values;
        [ce, grads[0].unwrap(), grads[1].unwrap()].map(|v| values[v.index()].clone())
    }

    /// lse, target, dx, dw of linear_lse and linear_ce_grad; the gradient takes `merged`, or what
    /// this piece's own lse is.
    fn parts(&self, g: &Graph, env: &Env, clock: Clock, merged: Option<&Tensor>) -> [Tensor; 4] {
        let (mut g, mut env) = (g.clone(), env.clone());
        let ([x, m, targets, weights], [embed, vocab]) = (self.ins, self.axes);
        let (own, target) = g.linear_lse(x, m, targets, embed, vocab).unwrap();
        let mut lse = own;
        if let Some(merged) = merged {
            lse = g.input("lse", DType::F32, &merged.axes).unwrap();
            env.insert("lse".to_owned(), merged.clone());
        }
        let op = LinearCeGrad { embed, vocab };
        let grads = g.emit(op.into(), &[x, m, targets, weights, lse]).unwrap();
        let values = run(&g, &env, clock).values;
        let outs = [own, target, grads[0], grads[1]];
        for (name, v) in ["own", "target", "dx", "dw"].iter().zip(outs) {
            g.output(name, v);
        }
        // In primitive ops it is the same.
        let expanded = g.expanded(|_| true).unwrap();
        assert!(expanded.nodes().len() > g.nodes().len());
        let primitive = run(&expanded, &env, clock).outputs;
        for (name, v) in ["own", "target", "dx", "dw"].iter().zip(outs) {
            close(&primitive[*name], &values[v.index()], 1e-9, name);
        }
        outs.map(|v| values[v.index()].clone())
    }
}

/// weight · (lse - target).
fn cross_entropy(axes: &Axes, weights: &Tensor, lse: &Tensor, target: &Tensor) -> Tensor {
    let mut ce = weights.permuted(axes, &lse.axes);
    ce.data.iter_mut().zip(lse.data.iter().zip(&target.data)).for_each(|(c, (l, t))| *c *= l - t);
    ce
}

#[test]
fn the_parts_of_the_output_layer_are_the_whole() {
    for seed in 0..40 {
        let own = layer(seed);
        let [ce, dx, dw] = own.fused();
        let (g, env) = (&own.w.g, &own.w.env);
        let [lse, target, part_dx, part_dw] = own.parts(g, env, own.w.clock, None);
        close(&cross_entropy(g.axes(), &env["weights"], &lse, &target), &ce, 1e-9, "ce");
        close(&part_dx, &dx, 1e-9, "dx");
        close(&part_dw, &dw, 1e-9, "dw");
    }
}

/// Rows `from..from + rows` along an axis, which is as long in `cut`.
fn piece(cut: &Axes, t: &Tensor, axis: AxisId, from: usize) -> Tensor {
    let place = t.axes.iter().position(|&a| a == axis).unwrap();
    let inner: usize = t.sizes[place + 1..].iter().product();
    let (long, rows) = (t.sizes[place] * inner, cut.size(axis) * inner);
    let data = t.data.chunks(long).flat_map(|c| &c[from * inner..][..rows]).copied().collect();
    Tensor::from_vec(cut, &t.axes, data)
}

/// The graph of a rank that holds one of `pieces` of the vocabulary, its data, and its clock: with
/// two mesh axes the piece is counted along both.
fn ranks(w: &World, vocab: AxisId, pieces: usize) -> Vec<(Graph, Env, Clock)> {
    let mut g = w.g.clone();
    let over = if pieces == 4 { vec![(0, 2), (1, 2)] } else { vec![(0, pieces)] };
    for (axis, size) in over {
        g.cut_axis("vocab", Cutter::Mesh(axis), size).unwrap();
    }
    let rank = |r: usize| {
        let mut env = w.env.clone();
        for t in env.values_mut().filter(|t| t.axes.contains(&vocab)) {
            *t = piece(g.axes(), t, vocab, r * VOCAB / pieces);
        }
        let at = if pieces == 4 { [r / 2, r % 2] } else { [r, 0] }.map(|i| i as u16);
        (g.clone(), env, Clock { place: Place([at[0], at[1], 0, 0]), ..w.clock })
    };
    (0..pieces).map(rank).collect()
}

fn merged(by: Merge, parts: &[Tensor]) -> Tensor {
    let fold = |mut a: Tensor, b: &Tensor| {
        a.data.iter_mut().zip(&b.data).for_each(|(a, b)| *a = by.of(*a, *b));
        a
    };
    parts[1..].iter().fold(parts[0].clone(), fold)
}

#[test]
fn pieces_of_the_output_layer_add_up() {
    for (seed, pieces) in (0..30).flat_map(|seed| [2, 4].map(|pieces| (seed, pieces))) {
        let own = layer(seed);
        let [ce, dx, dw] = own.fused();
        let vocab = own.axes[1];
        let ranks = ranks(&own.w, vocab, pieces);
        let alone: Vec<_> =
            ranks.iter().map(|(g, env, clock)| own.parts(g, env, *clock, None)).collect();
        let of = |all: &[[Tensor; 4]], i: usize| -> Vec<Tensor> {
            all.iter().map(|parts| parts[i].clone()).collect()
        };
        let (lse, target) =
            (merged(Merge::Lse, &of(&alone, 0)), merged(Merge::Sum, &of(&alone, 1)));
        let axes = own.w.g.axes();
        close(&cross_entropy(axes, &own.w.env["weights"], &lse, &target), &ce, 1e-9, "ce");
        let all: Vec<_> =
            ranks.iter().map(|(g, env, clock)| own.parts(g, env, *clock, Some(&lse))).collect();
        close(&merged(Merge::Sum, &of(&all, 2)), &dx, 1e-9, "dx");
        for (r, (part, (g, ..))) in of(&all, 3).iter().zip(&ranks).enumerate() {
            let wanted = piece(g.axes(), &dw, vocab, r * VOCAB / pieces);
            close(part, &wanted, 1e-9, "dw");
        }
    }
}

#[test]
fn the_fused_loss_wants_the_whole_vocabulary() {
    let Layer { mut w, axes: [embed, vocab], ins: [x, m, targets, weights] } = layer(0);
    w.g.cut_axis("vocab", Cutter::Mesh(0), 2).unwrap();
    let error = w.g.linear_ce(x, m, targets, weights, embed, vocab).unwrap_err().to_string();
    assert!(error.contains("use linear_lse and linear_ce_grad"), "{error}");
}

/// A table with ids, and rows to scatter into one.
fn table(seed: u64, distinct: bool) -> (World, [AxisId; 2], [ValueId; 3]) {
    let mut w = World::new(seed, 0);
    let (vocab, d) = (w.g.axis("vocab", VOCAB).unwrap(), w.axis("d", 1, 3).unwrap());
    let t = w.axis("t", 1, 9).unwrap();
    let base = w.leaf("table", &[d, vocab]).unwrap();
    let mut all: Vec<f64> = (0..VOCAB).map(|i| i as f64).collect();
    w.rng.shuffle(&mut all);
    all.truncate(w.size(t));
    let ids = match distinct {
        true => w.given("ids", DType::U32, &[t], all).unwrap(),
        false => w.ids("ids", &[t], VOCAB).unwrap(),
    };
    let rows = w.leaf("rows", &[t, d]).unwrap();
    (w, [vocab, d], [base, ids, rows])
}

#[test]
fn gathers_from_pieces_of_a_table_add_up() {
    for (seed, pieces) in (0..30).flat_map(|seed| [2, 4].map(|pieces| (seed, pieces))) {
        let (w, [vocab, _], [base, ids, _]) = table(seed, false);
        let gathered = |g: &Graph, env: &Env, clock: Clock| {
            let mut g = g.clone();
            let y = g.gather(base, vocab, ids).unwrap();
            run(&g, env, clock).values[y.index()].clone()
        };
        let parts: Vec<_> =
            ranks(&w, vocab, pieces).iter().map(|(g, env, c)| gathered(g, env, *c)).collect();
        assert_eq!(merged(Merge::Sum, &parts), gathered(&w.g, &w.env, w.clock));
    }
}

#[test]
fn a_piece_of_a_table_takes_its_own_rows() {
    for (seed, pieces) in (0..30).flat_map(|seed| [2, 4].map(|pieces| (seed, pieces))) {
        for mode in [ScatterMode::Add, ScatterMode::Set] {
            let (w, [vocab, d], [base, ids, rows]) = table(seed, mode == ScatterMode::Set);
            let scattered = |g: &Graph, env: &Env, clock: Clock| {
                let mut g = g.clone();
                let op = Scatter { axis: vocab, mode, out: Type::new(DType::F32, [vocab, d]) };
                let ins =
                    if mode == ScatterMode::Add { vec![ids, rows] } else { vec![base, ids, rows] };
                let y = g.emit(op.into(), &ins).unwrap()[0];
                run(&g, env, clock).values[y.index()].clone()
            };
            let whole = scattered(&w.g, &w.env, w.clock);
            for (r, (g, env, clock)) in ranks(&w, vocab, pieces).iter().enumerate() {
                let wanted = piece(g.axes(), &whole, vocab, r * VOCAB / pieces);
                assert_eq!(scattered(g, env, *clock), wanted);
            }
        }
    }
}

#[test]
fn tables_are_not_cut_in_time() {
    for by in [Cutter::Time, Cutter::Fixed(1)] {
        let (mut w, [vocab, d], [base, ids, rows]) = table(0, false);
        w.g.cut_axis("vocab", by, 2).unwrap();
        let add =
            Scatter { axis: vocab, mode: ScatterMode::Add, out: Type::new(DType::F32, [vocab, d]) };
        let errors = [w.g.gather(base, vocab, ids).err(), w.g.emit(add.into(), &[ids, rows]).err()];
        for error in errors {
            let error = error.unwrap().to_string();
            assert!(error.contains("a mesh may cut it, time may not"), "{error}");
        }
    }
}
