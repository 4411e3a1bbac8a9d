//! Draws and coordinates are facts of the global element, the step and the stream alone.

use aerogel_graph::{
    Build, Clock, Cutter, DType, Env, Expr, Graph, Place, Rounding, Tensor, Type, ValueId,
    interpret,
};

const SIZES: [(&str, usize); 3] = [("batch", 8), ("seq", 6), ("embed", 5)];

/// A map over [batch, seq, embed] of a draw, and one of coordinates.
fn graph() -> (Graph, [ValueId; 2]) {
    let mut g = Graph::new();
    let axes = SIZES.map(|(name, size)| g.axis(name, size).unwrap());
    let out = Type::new(DType::F32, axes);
    let draw = g.map_to(&[], out.clone(), &|_| Expr::rand("h.0.drop")).unwrap();
    let coordinates =
        |_: &[Expr]| axes.iter().fold(Expr::Const(0.0), |sum, &a| sum * 100.0 + Expr::Coord(a));
    let place = g.map_to(&[], out, &coordinates).unwrap();
    (g, [draw, place])
}

fn run(g: &Graph, clock: Clock) -> Vec<Tensor> {
    interpret(g, &Env::new(), clock, Rounding::Exact).unwrap().values
}

const CLOCK: Clock = Clock { seed: 5, step: 7, micro: 0, place: Place([0; 4]) };

/// The pieces of a cut axis, one after another, are the uncut tensor: for an outer axis, a middle
/// one and the innermost.
#[test]
fn pieces_draw_what_the_whole_draws() {
    let (g, values) = graph();
    let whole = run(&g, CLOCK);
    for (position, (name, size)) in SIZES.into_iter().enumerate() {
        for pieces in (1..=size).filter(|p| size % p == 0) {
            let mut cut = g.clone();
            cut.cut_axis(name, Cutter::Time, pieces).unwrap();
            let inner: usize = SIZES[position + 1..].iter().map(|s| s.1).product();
            for micro in 0..pieces {
                let part = run(&cut, Clock { micro: micro as u64, ..CLOCK });
                for v in values {
                    let (whole, part) = (&whole[v.index()].data, &part[v.index()].data);
                    let step = size / pieces;
                    for (i, x) in part.iter().enumerate() {
                        let (outer, rest) = (i / (step * inner), i % (step * inner));
                        let at = outer * size * inner + micro * step * inner + rest;
                        assert_eq!(*x, whole[at], "{name} in {pieces}, piece {micro}, element {i}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_piece_is_no_matter_to_whole_axes() {
    let (g, [draw, _]) = graph();
    let other = Clock { micro: 3, ..CLOCK };
    assert_eq!(run(&g, CLOCK)[draw.index()], run(&g, other)[draw.index()]);
}

#[test]
fn seed_step_and_stream_all_matter_and_draws_lie_in_the_unit_interval() {
    let (mut g, [draw, _]) = graph();
    let out = g.ty(draw).clone();
    let stream = g.map_to(&[], out, &|_| Expr::rand("h.1.drop")).unwrap();
    let own = run(&g, CLOCK);
    let base = &own[draw.index()];
    assert!(base.data.iter().all(|x| (0.0..1.0).contains(x)));
    let mut sorted = base.data.clone();
    sorted.sort_by(f64::total_cmp);
    sorted.dedup();
    assert_eq!(sorted.len(), base.data.len(), "each element has a draw of its own");
    let differs = |other: &Tensor| {
        let equal = base.data.iter().zip(&other.data).filter(|(a, b)| a == b).count();
        assert!(equal < 3, "{equal} of {} draws are equal", base.data.len());
    };
    differs(&own[stream.index()]);
    differs(&run(&g, Clock { seed: 6, ..CLOCK })[draw.index()]);
    differs(&run(&g, Clock { step: 8, ..CLOCK })[draw.index()]);
}

/// The order of nodes, other draws in between, and a second copy of a node change nothing.
#[test]
fn draws_do_not_depend_on_the_order_of_evaluation() {
    let (g, [draw, _]) = graph();
    let wanted = &run(&g, CLOCK)[draw.index()];
    let mut other = Graph::new();
    let axes = SIZES.map(|(name, size)| other.axis(name, size).unwrap());
    let out = Type::new(DType::F32, axes);
    let before = other.map_to(&[], out.clone(), &|_| Expr::rand("elsewhere")).unwrap();
    let late = other.map_to(&[before], out.clone(), &|v| &v[0] * 0.0 + Expr::rand("h.0.drop"));
    let clone = other.map_to(&[], out, &|_| Expr::rand("h.0.drop")).unwrap();
    let values = run(&other, CLOCK);
    assert_eq!(&values[late.unwrap().index()], wanted);
    assert_eq!(&values[clone.index()], wanted, "a recomputed clone");
}

/// Backward reads the mask by drawing it again: the derivative of dropout has forward's draws.
#[test]
fn backward_draws_what_forward_drew() {
    let mut g = Graph::new();
    let a = g.axis("a", 64).unwrap();
    let x = g.input("x", DType::F32, &[a]).unwrap();
    let drop = |v: &[Expr]| Expr::rand("drop").lt(0.5).select(0.0, &v[0] * 2.0);
    let y = g.map(&[x], &drop).unwrap();
    let loss = g.sum(y, &[a]).unwrap();
    let d = aerogel_graph::gradients(&mut g, loss, &[x]).unwrap()[0].unwrap();
    let ones = Tensor::full(g.axes(), &[a], 1.0);
    let env = Env::from([("x".to_owned(), ones)]);
    let run = interpret(&g, &env, CLOCK, Rounding::Exact).unwrap();
    let (y, d) = (&run.values[y.index()], &run.values[d.index()]);
    assert_eq!(y.data, d.data);
    let kept = y.data.iter().filter(|v| **v == 2.0).count();
    assert!((16..48).contains(&kept), "{kept} of 64 kept");
}
