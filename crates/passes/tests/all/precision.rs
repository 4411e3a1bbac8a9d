//! precision and backward: dtypes value by value, and what rounding does to the numbers.

use super::support::{difference, environment, network, run};
use aerogel_graph::ops::Op;
use aerogel_graph::verify::verify;
use aerogel_graph::{
    Build, DType, Def, Expr, Graph, Init, ParamClass, Phase, Rounding, Type, gradients,
};
use aerogel_passes::{Compute, PassError, backward, precision};

fn bf16(g: &Graph) -> Graph {
    let out = precision(g, Compute::Bf16).unwrap();
    verify(&out).unwrap();
    out
}

#[test]
fn f32_is_the_identity() {
    let g = network(2, false);
    assert_eq!(precision(&g, Compute::F32).unwrap(), g);
}

#[test]
fn dtypes_of_a_small_model() {
    for tied in [false, true] {
        let g = bf16(&network(2, tied));
        let mut casts = 0;
        for node in g.nodes() {
            let dtypes: Vec<DType> = node.ins.iter().map(|&v| g.ty(v).dtype).collect();
            let out = g.ty(node.outs[0]).dtype;
            match &node.op {
                Op::Map(map) if map.cotangent.is_some() => {
                    casts += 1;
                    assert_eq!((dtypes.as_slice(), out), (&[DType::F32][..], DType::Bf16));
                    assert_eq!(map.cotangent, Some(DType::F32));
                    assert!(matches!(g.value(node.ins[0]).def, Def::State(_)));
                }
                Op::Map(_) | Op::Norm(_) | Op::Gather(_) => assert_eq!(out, DType::Bf16),
                Op::Einsum(_) => {
                    assert_eq!(dtypes, [DType::Bf16; 2]);
                    assert_eq!(out, DType::Bf16);
                }
                Op::LinearCe(_) => {
                    assert_eq!(dtypes[..2], [DType::Bf16; 2]);
                    assert_eq!((dtypes[3], out), (DType::F32, DType::F32));
                }
                Op::Reduce(_) => assert_eq!(out, DType::F32),
                op => panic!("{} is not in the network", op.name()),
            }
        }
        // Tables and matrices once each: embedding, two a layer, and the head unless it is tied.
        assert_eq!(casts, if tied { 5 } else { 6 });
        assert!(g.states().iter().all(|s| g.ty(s.value).dtype == DType::F32));
    }
}

#[test]
fn gradients_of_masters_are_f32_and_never_rounded_to_less() {
    for tied in [false, true] {
        let g = backward(&bf16(&network(2, tied))).unwrap();
        verify(&g).unwrap();
        for s in g.states() {
            let grad = g.find_output(&format!("grad.{}", s.name)).unwrap();
            assert_eq!(g.ty(grad), g.ty(s.value), "{}", s.name);
            let Def::Node(n, _) = g.value(grad).def else { panic!("{} is no node", s.name) };
            let sum = matches!(g.node(n).op, Op::Map(_));
            assert_eq!(sum, tied && s.name == "embed.token", "{}: emitted as f32", s.name);
        }
        for node in g.nodes().iter().filter(|n| n.phase == Phase::Backward) {
            if let Op::Einsum(_) = node.op {
                let same = node.ins.iter().all(|&v| g.ty(v).dtype == DType::Bf16);
                assert!(same, "a contraction at {} mixes dtypes", node.scope);
            }
        }
    }
}

#[test]
fn bf16_numbers_are_near_those_of_f32() {
    for tied in [false, true] {
        let full = backward(&network(8, tied)).unwrap();
        let half = backward(&bf16(&network(8, tied))).unwrap();
        let exact = run(&full, &mut environment(&full), 0, Rounding::Exact);
        let wide = run(&full, &mut environment(&full), 0, Rounding::Declared);
        let got = run(&half, &mut environment(&half), 0, Rounding::Declared);
        for (name, tensor) in &exact {
            assert!(difference(&wide[name], tensor) <= 1e-5, "{name} in f32");
            let error = difference(&got[name], tensor);
            let bound = if name == "loss" { 2e-3 } else { 4e-2 };
            assert!(error <= bound, "{name} in bf16: {error}");
        }
        assert!(got["loss"] != wide["loss"], "bf16 rounds");
        assert_eq!(got["tokens"], wide["tokens"], "counts are exact");
    }
}

/// Views of a master, weights made by a map, statistics by hand, a start vector.
#[test]
fn what_is_no_activation_stays_f32() {
    let mut g = Graph::new();
    let (b, d, e) = (g.axis("batch", 2).unwrap(), g.axis("d", 4).unwrap(), g.axis("e", 4).unwrap());
    let (v, s, t) = (g.axis("v", 3).unwrap(), g.axis("s", 2).unwrap(), g.axis("t", 3).unwrap());
    let (one, f) = (g.axis("one", 1).unwrap(), g.axis("f", 4).unwrap());
    let ids = g.input("ids", DType::U32, &[b, s]).unwrap();
    let targets = g.input("targets", DType::U32, &[b, t]).unwrap();
    let mask = g.input("mask", DType::F32, &[b, t]).unwrap();
    let init = Init::Normal(1.0);
    let table = g.parameter("table", ParamClass::Embedding, &[v, d], init).unwrap();
    let square = g.parameter("square", ParamClass::Weight, &[d, e], init).unwrap();
    let start = g.parameter("start", ParamClass::Embedding, &[one, d], init).unwrap();
    let x = g.gather(table, v, ids).unwrap();
    let batched = Type::new(DType::F32, [b, one, d]);
    let start = g.map_to(&[start], batched, &|v| v[0].clone()).unwrap();
    let x = g.concat(&[start, x], &[one, s], t).unwrap();
    let y = g.einsum(&[x, square], &[b, t, e]).unwrap();
    let turned = g.rename(square, e, f).unwrap();
    let z = g.rename(y, e, d).unwrap();
    let z = g.einsum(&[z, turned], &[b, t, f]).unwrap();
    let z = g.rename(z, f, d).unwrap();
    // A root mean square by hand: what is reduced, and the result, are statistics.
    let squares = g.map(&[z], &|v| &v[0] * &v[0]).unwrap();
    let total = g.sum(squares, &[d]).unwrap();
    let z = g.map(&[z, total], &|v| &v[0] * (&v[1] / 4.0 + 1e-5).rsqrt()).unwrap();
    let weights = g.map(&[mask], &|v| v[0].lt(0.5).select(0.0, 1.0)).unwrap();
    let ce = g.linear_ce(z, table, targets, weights, d, v).unwrap();
    let loss = g.sum(ce, &[b, t]).unwrap();
    let tokens = g.sum(weights, &[b, t]).unwrap();
    g.output("loss", loss);
    g.output("tokens", tokens);
    let out = bf16(&g);
    let dtype = |old| {
        let Def::Node(n, _) = g.value(old).def else { panic!("a node") };
        let same = out.nodes().iter().filter(|m| !is_cast(m)).nth(n.index()).unwrap();
        out.ty(same.outs[0]).dtype
    };
    for (value, wanted) in [
        (x, DType::Bf16),
        (y, DType::Bf16),
        (turned, DType::F32),
        (squares, DType::F32),
        (total, DType::F32),
        (z, DType::Bf16),
        (weights, DType::F32),
        (loss, DType::F32),
    ] {
        assert_eq!(dtype(value), wanted);
    }
    let out = backward(&out).unwrap();
    verify(&out).unwrap();
}

fn is_cast(node: &aerogel_graph::Node) -> bool {
    matches!(&node.op, Op::Map(m) if m.cotangent.is_some())
}

#[test]
fn logits_that_the_host_reads_are_f32() {
    let mut g = Graph::new();
    let (b, d, v) = (g.axis("batch", 2).unwrap(), g.axis("d", 4).unwrap(), g.axis("v", 3).unwrap());
    let ids = g.input("ids", DType::U32, &[b]).unwrap();
    let table = g.parameter("table", ParamClass::Head, &[v, d], Init::Normal(1.0)).unwrap();
    let x = g.gather(table, v, ids).unwrap();
    let logits = g.einsum(&[x, table], &[b, v]).unwrap();
    g.output("logits", logits);
    let out = bf16(&g);
    assert_eq!(out.ty(out.find_output("logits").unwrap()).dtype, DType::F32);
}

#[test]
fn precision_after_backward_is_refused() {
    let g = backward(&network(2, false)).unwrap();
    assert!(matches!(precision(&g, Compute::Bf16), Err(PassError::NotForward { .. })));
}

#[test]
fn a_parameter_without_gradient_is_named() {
    let mut g = network(2, false);
    g.parameter("idle", ParamClass::Bias, &[], Init::Constant(0.0)).unwrap();
    let error = backward(&g).unwrap_err();
    assert_eq!(error, PassError::NoGradient { parameter: "idle".to_owned() });
    assert!(matches!(backward(&Graph::new()), Err(PassError::MissingOutput { .. })));
}

#[test]
fn gradients_have_the_axes_of_their_parameters() {
    // The map's output has the axes the other way round, so autodiff's sum has them so too.
    let mut g = Graph::new();
    let (b, p, q) = (g.axis("batch", 2).unwrap(), g.axis("p", 2).unwrap(), g.axis("q", 3).unwrap());
    let x = g.input("x", DType::F32, &[b, q, p]).unwrap();
    let w = g.parameter("w", ParamClass::Weight, &[p, q], Init::Constant(1.0)).unwrap();
    let y = g.map(&[x, w], &|v: &[Expr]| &v[0] * &v[1]).unwrap();
    let loss = g.sum(y, &[b, p, q]).unwrap();
    g.output("loss", loss);
    let mut plain = g.clone();
    let turned = gradients(&mut plain, loss, &[w]).unwrap()[0].unwrap();
    assert_ne!(plain.ty(turned), plain.ty(w), "the case is there");
    let g = backward(&g).unwrap();
    assert_eq!(g.ty(g.find_output("grad.w").unwrap()), g.ty(w));
}
