//! Collectives: what each gives, from the numbers of all ranks; their text; what is refused.

use aerogel_graph::ops::{Collective, Exchange, Merge};
use aerogel_graph::text::{parse, print};
use aerogel_graph::{
    AxisId, Build, Clock, Cutter, DType, Env, Graph, Mesh, Op, OpError, Rounding, Tensor, ValueId,
    gradients, interpret_mesh,
};

/// Two nodes of three ranks: rank 4 is the second of node 1.
fn mesh() -> Mesh {
    Mesh(vec![("node".to_owned(), 2), ("local".to_owned(), 3)])
}

struct Parts {
    g: Graph,
    x: ValueId,
    part: AxisId,
    whole: AxisId,
}

/// x: f32[row=2 part], where `part` is a third of `whole` = 6.
fn parts(name: &str) -> Parts {
    let mut g = Graph::new();
    g.set_mesh(mesh());
    let row = g.axis("row", 2).unwrap();
    let whole = g.axis("whole", 6).unwrap();
    let part = g.piece_of(whole, "part", Cutter::Mesh(1), 3).unwrap();
    let x = g.input("x", DType::F32, &[row, if name == "part" { part } else { whole }]).unwrap();
    Parts { g, x, part, whole }
}

fn emit(p: &mut Parts, exchange: Exchange, over: &[u8]) -> Result<ValueId, OpError> {
    let op = Collective { exchange, over: over.iter().copied().collect() };
    let y = p.g.emit(op.into(), &[p.x])?[0];
    p.g.output("y", y);
    Ok(y)
}

/// Runs on all ranks, where rank r has 100 r + element; also after a round trip through text.
fn run(g: &Graph) -> Vec<Vec<f64>> {
    let back = parse(&print(g)).unwrap();
    assert_eq!(print(&back), print(g));
    let of = |g: &Graph| -> Vec<Vec<f64>> {
        let ty = g.ty(g.find_input("x").unwrap().value);
        let envs: Vec<Env> = (0..6)
            .map(|r| {
                let count = g.axes().count(&ty.axes);
                let data = (0..count).map(|i| (100 * r + i) as f64).collect();
                Env::from([("x".to_owned(), Tensor::from_vec(g.axes(), &ty.axes, data))])
            })
            .collect();
        let runs = interpret_mesh(g, &envs, Clock::default(), Rounding::Exact).unwrap();
        runs.into_iter().map(|r| r.outputs["y"].data.clone()).collect()
    };
    let got = of(g);
    assert_eq!(of(&back), got);
    got
}

#[test]
fn all_reduce_merges_over_the_group() {
    let mut p = parts("part");
    emit(&mut p, Exchange::AllReduce(Merge::Sum), &[1]).unwrap();
    // Ranks 0, 1, 2 are one group, 3, 4, 5 the other.
    assert_eq!(run(&p.g)[1], [300.0, 303.0, 306.0, 309.0]);
    assert_eq!(run(&p.g)[5], [1200.0, 1203.0, 1206.0, 1209.0]);
    let mut p = parts("part");
    emit(&mut p, Exchange::AllReduce(Merge::Max), &[0]).unwrap();
    assert_eq!(run(&p.g)[1], [400.0, 401.0, 402.0, 403.0]);
    let mut p = parts("part");
    emit(&mut p, Exchange::AllReduce(Merge::Lse), &[0, 1]).unwrap();
    let far: f64 = run(&p.g)[0][0];
    assert!((far - 500.0).abs() < 1e-9, "{far}");
    assert!((Merge::Lse.of(0.0, 0.0) - 2f64.ln()).abs() < 1e-15);
    assert_eq!(Merge::Lse.of(f64::NEG_INFINITY, f64::NEG_INFINITY), f64::NEG_INFINITY);
}

#[test]
fn gather_scatter_and_keep_are_pieces_of_rows() {
    let mut p = parts("part");
    let exchange = Exchange::AllGather { axis: p.part, into: p.whole };
    emit(&mut p, exchange, &[1]).unwrap();
    let first = [0., 1., 100., 101., 200., 201.];
    let second = [2., 3., 102., 103., 202., 203.];
    assert_eq!(run(&p.g)[2], [first, second].concat());
    let mut p = parts("whole");
    let exchange = Exchange::ReduceScatter { axis: p.whole, into: p.part };
    emit(&mut p, exchange, &[1]).unwrap();
    assert_eq!(run(&p.g)[1], [306.0, 309.0, 324.0, 327.0]);
    let mut p = parts("whole");
    let exchange = Exchange::Keep { axis: p.whole, into: p.part };
    emit(&mut p, exchange, &[1]).unwrap();
    assert_eq!(run(&p.g)[5], [504.0, 505.0, 510.0, 511.0]);
}

#[test]
fn bytes_on_the_wire_are_those_of_a_ring() {
    let p = parts("part");
    let ty = p.g.ty(p.x).clone();
    let bytes = |exchange, over: &[u8]| {
        let over = over.iter().copied().collect();
        Collective { exchange, over }.wire_bytes(p.g.axes(), &ty)
    };
    // 16 bytes of input.
    assert_eq!(bytes(Exchange::AllReduce(Merge::Sum), &[0]), 16);
    assert_eq!(bytes(Exchange::AllGather { axis: p.part, into: p.whole }, &[1]), 32);
    assert_eq!(bytes(Exchange::ReduceScatter { axis: p.whole, into: p.part }, &[1]), 10);
    assert_eq!(bytes(Exchange::Keep { axis: p.whole, into: p.part }, &[1]), 0);
}

#[test]
fn what_cannot_be_is_refused() {
    let message = |e: OpError| e.to_string();
    let mut p = parts("part");
    let exchange = Exchange::AllGather { axis: p.part, into: p.whole };
    let error = message(emit(&mut p, exchange, &[0]).unwrap_err());
    assert!(error.contains("2 members need `part` of 2"), "{error}");
    let error = message(emit(&mut p, Exchange::AllReduce(Merge::Sum), &[2]).unwrap_err());
    assert!(error.contains("no axis number 2"), "{error}");
    let exchange = Exchange::Keep { axis: p.whole, into: p.part };
    let error = message(emit(&mut p, exchange, &[1]).unwrap_err());
    assert!(error.contains("needs axis `whole`"), "{error}");
    let y = emit(&mut p, Exchange::AllReduce(Merge::Sum), &[1]).unwrap();
    let axes = p.g.ty(y).axes.clone();
    let loss = p.g.sum(y, &axes).unwrap();
    let x = p.x;
    let error = message(gradients(&mut p.g, loss, &[x]).unwrap_err());
    assert!(error.contains("gradients are taken before ranks are"), "{error}");
    assert!(p.g.nodes().iter().any(|n| matches!(n.op, Op::Collective(_))));
}
