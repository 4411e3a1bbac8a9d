//! What `gradients` builds, beyond its numbers: which nodes, in which dtypes, how many.

use super::harness::{Built, World, close};
use aerogel_graph::ops::{LinearCe, Map};
use aerogel_graph::{
    AxisId, Build, DType, Def, Expr, Graph, Init, NodeId, Op, ParamClass, Phase, Role, Type,
    ValueId, gradients,
};

fn weight(g: &mut Graph, name: &str, axes: &[AxisId]) -> ValueId {
    g.parameter(name, ParamClass::Weight, axes, Init::Normal(0.02)).unwrap()
}

fn whole(g: &mut Graph, v: ValueId) -> Built<ValueId> {
    let axes = g.ty(v).axes.clone();
    g.sum(v, &axes)
}

/// Names of the ops that were appended after the first `from` nodes.
fn appended(g: &Graph, from: usize) -> Vec<&'static str> {
    g.nodes()[from..].iter().map(|n| n.op.name()).collect()
}

/// x W1 -> norm -> W2, with a frozen embedding below and a frozen W2.
#[test]
fn frozen_values_cost_no_node() {
    let mut g = Graph::new();
    let (t, a, b) = (g.axis("t", 3).unwrap(), g.axis("a", 2).unwrap(), g.axis("b", 4).unwrap());
    let x = g.input("x", DType::F32, &[t, a]).unwrap();
    let (w1, w2) = (weight(&mut g, "w1", &[b, a]), weight(&mut g, "w2", &[a, b]));
    let h = g.einsum(&[x, w1], &[t, b]).unwrap();
    let y = g.einsum(&[h, w2], &[t, a]).unwrap();
    let loss = whole(&mut g, y).unwrap();
    let forward = g.nodes().len();
    let mut both = g.clone();
    assert!(gradients(&mut both, loss, &[w1, w2]).unwrap().iter().all(Option::is_some));
    // The cotangent of y, of w2, of h, of w1: one node each, and the 1 that all starts from.
    assert_eq!(appended(&both, forward), ["map", "map", "einsum", "einsum", "einsum"]);
    let mut upper = g.clone();
    assert!(gradients(&mut upper, loss, &[w2]).unwrap()[0].is_some());
    assert_eq!(appended(&upper, forward), ["map", "map", "einsum"]);
    let mut lower = g.clone();
    gradients(&mut lower, loss, &[w1]).unwrap();
    assert_eq!(appended(&lower, forward), ["map", "map", "einsum", "einsum"]);
    for node in &lower.nodes()[forward..] {
        assert_eq!(node.phase, Phase::Backward);
    }
}

/// Asked for the gradient of a node's output, the node itself is not differentiated.
#[test]
fn nothing_is_built_below_what_is_asked_for() {
    let mut g = Graph::new();
    let (t, a) = (g.axis("t", 3).unwrap(), g.axis("a", 2).unwrap());
    let x = weight(&mut g, "x", &[t, a]);
    let h = g.norm(x, a, true, 1e-5, None, None).unwrap();
    let square = g.map(&[h], &|v| &v[0] * &v[0]).unwrap();
    let loss = whole(&mut g, square).unwrap();
    let forward = g.nodes().len();
    assert!(gradients(&mut g, loss, &[h]).unwrap()[0].is_some());
    assert_eq!(appended(&g, forward), ["map", "map", "map"]);
}

/// Frozen inputs of the ops with several: no node for them either.
#[test]
fn ops_skip_the_cotangents_of_frozen_inputs() {
    let count = |wrt: &dyn Fn(&World) -> Vec<ValueId>, case: &str| {
        let mut w = World::new(9, 0);
        let case = super::cases::CASES.iter().find(|c| c.name == case).unwrap();
        let loss = (case.build)(&mut w).unwrap();
        let forward = w.g.nodes().len();
        let wrt = wrt(&w);
        gradients(&mut w.g, loss, &wrt).unwrap();
        w.g.nodes().len() - forward
    };
    let all = |w: &World| w.leaves.iter().map(|l| l.1).collect::<Vec<_>>();
    for case in ["einsum_of_two", "merge_attend", "scatter_set", "linear_ce_scaled"] {
        let everything = count(&all, case);
        for leaf in 0..2 {
            let one = count(&|w: &World| vec![w.leaves[leaf].1], case);
            assert!(one < everything, "{case}: {one} nodes for leaf {leaf}, {everything} for all");
        }
    }
}

/// Node by node for the two ops whose rule makes several.
#[test]
fn rules_make_the_nodes_of_one_cotangent_alone() {
    let (w, [loss, x, m]) = cross_entropy();
    for (wrt, products) in [(vec![x], 1), (vec![m], 1), (vec![x, m], 2)] {
        let mut g = w.g.clone();
        let scaled = g.map(&[loss], &|v| &v[0] * 0.5).unwrap();
        let forward = g.nodes().len();
        gradients(&mut g, scaled, &wrt).unwrap();
        // The 1, the 0.5 of it, that for each token, and one product for each cotangent.
        assert_eq!(appended(&g, forward).len(), 3 + products);
    }
    let mut g = Graph::new();
    let (t, d) = (g.axis("t", 3).unwrap(), g.axis("d", 2).unwrap());
    let (o, lse) = (weight(&mut g, "o", &[t, d]), weight(&mut g, "lse", &[t]));
    let (other, other_lse) = (weight(&mut g, "o2", &[t, d]), weight(&mut g, "lse2", &[t]));
    let (merged, _) = g.merge_attend((o, lse), (other, other_lse)).unwrap();
    let loss = whole(&mut g, merged).unwrap();
    let forward = g.nodes().len();
    let made = |wrt: ValueId| {
        let mut g = g.clone();
        gradients(&mut g, loss, &[wrt]).unwrap();
        appended(&g, forward)
    };
    // The 1, the cotangent of o, the part's share, and what is asked for.
    assert_eq!(made(o), ["map", "map", "map", "map"]);
    assert_eq!(made(other_lse), ["map", "map", "map", "map", "reduce", "map"]);
}

#[test]
fn what_the_loss_does_not_depend_on_has_no_gradient() {
    let mut g = Graph::new();
    let a = g.axis("a", 2).unwrap();
    let (x, y) = (weight(&mut g, "x", &[a]), weight(&mut g, "y", &[a]));
    let loss = whole(&mut g, x).unwrap();
    let found = gradients(&mut g, loss, &[y, x, loss]).unwrap();
    assert!(found[0].is_none() && found[1].is_some());
    assert_eq!(g.op_of(found[2].unwrap()).unwrap().name(), "map", "d loss / d loss is a constant");
    let error = gradients(&mut g, x, &[y]).unwrap_err().to_string();
    assert_eq!(error, "gradients: wants a scalar, got f32[a=2]");
}

/// bf16 compute over an f32 master weight: dW is one einsum of bf16 inputs into f32, and no cast.
#[test]
fn a_cast_takes_its_gradient_in_the_dtype_it_names() {
    for through_view in [false, true] {
        let mut g = Graph::new();
        let (t, a) = (g.axis("t", 3).unwrap(), g.axis("a", 4).unwrap());
        let (n, m, b) = (g.axis("n", 2).unwrap(), g.axis("m", 3).unwrap(), g.axis("b", 6).unwrap());
        let x = g.input("x", DType::Bf16, &[t, a]).unwrap();
        let w = weight(&mut g, "w", &[b, a]);
        let low = g.cast(w, DType::Bf16, DType::F32).unwrap();
        let (low, out) = match through_view {
            true => (g.split(low, b, &[n, m]).unwrap(), vec![t, n, m]),
            false => (low, vec![t, b]),
        };
        let y = g.einsum(&[x, low], &out).unwrap();
        assert_eq!(g.ty(y).dtype, DType::Bf16);
        let loss = whole(&mut g, y).unwrap();
        let d = gradients(&mut g, loss, &[w]).unwrap()[0].unwrap();
        let wanted = Type::new(DType::F32, g.ty(w).axes.clone());
        assert_eq!(g.ty(d), &wanted);
        let product = g.nodes().iter().rfind(|n| n.op.name() == "einsum").unwrap();
        assert_eq!(g.ty(product.outs[0]).dtype, DType::F32, "through a view: {through_view}");
        assert!(product.ins.iter().all(|v| g.ty(*v).dtype == DType::Bf16));
    }
}

/// A rule that hands its cotangent on as it is does not change the dtype of a gradient.
#[test]
fn a_gradient_has_the_dtype_of_its_value() {
    let mut g = Graph::new();
    let (t, vocab) = (g.axis("t", 2).unwrap(), g.axis("vocab", 3).unwrap());
    let ids = g.input("ids", DType::U32, &[t]).unwrap();
    let rows = Type::new(DType::Bf16, [t]);
    let rows = g.state("rows", rows, Role::Parameter, None, Init::Constant(0.0)).unwrap();
    let out = Type::new(DType::F32, [vocab]);
    let mode = aerogel_graph::ops::ScatterMode::Add;
    let op = aerogel_graph::ops::Scatter { axis: vocab, mode, out };
    let table = g.emit(op.into(), &[ids, rows]).unwrap()[0];
    let square = g.map(&[table], &|v| &v[0] * &v[0]).unwrap();
    let loss = whole(&mut g, square).unwrap();
    let d = gradients(&mut g, loss, &[rows]).unwrap()[0].unwrap();
    assert_eq!(g.ty(d).dtype, DType::Bf16);
}

/// Gradients stand at the scope of what they differentiate; the caller's scope stays.
#[test]
fn gradients_stand_where_their_forward_stands() {
    let mut g = Graph::new();
    let a = g.axis("a", 2).unwrap();
    let x = weight(&mut g, "x", &[a]);
    let y = g.scope("h.0", |g| g.map(&[x], &|v| v[0].exp())).unwrap();
    let found = g.scope("outer", |g| {
        g.phase(Phase::Update);
        let loss = g.sum(y, &[a])?;
        let d = gradients(g, loss, &[x])?;
        assert_eq!(g.path("w"), "outer.w");
        g.map(&[d[0].expect("x is read")], &|v| v[0].clone())
    });
    assert!(found.is_ok());
    let place = |n: &aerogel_graph::Node| (n.scope.to_string(), n.phase);
    let exp = g.nodes().iter().rfind(|n| &*n.scope == "h.0").unwrap();
    assert_eq!(place(exp), ("h.0".to_owned(), Phase::Backward));
    assert_eq!(place(g.nodes().last().unwrap()), ("outer".to_owned(), Phase::Update));
}

#[test]
fn contributions_are_added_in_one_node() {
    for uses in 1..6 {
        let mut g = Graph::new();
        let a = g.axis("a", 3).unwrap();
        let x = weight(&mut g, "x", &[a]);
        let parts: Vec<_> =
            (0..uses).map(|n| g.map(&[x], &|v| &v[0] * f64::from(n + 2)).unwrap()).collect();
        let sum = g.map(&parts, &|v| super::harness::total(v.to_vec())).unwrap();
        let loss = whole(&mut g, sum).unwrap();
        let forward = g.nodes().len();
        let d = gradients(&mut g, loss, &[x]).unwrap()[0].unwrap();
        let Def::Node(n, _) = g.value(d).def else { panic!("a gradient is made by a node") };
        assert_eq!(g.node(n).ins.len(), uses as usize);
        let sums = g.nodes()[forward..].iter().filter(|n| n.ins.len() == uses as usize).count();
        assert!(uses == 1 || sums == 1, "{uses} uses, {sums} sums");
    }
}

fn cross_entropy() -> (World, [ValueId; 3]) {
    let mut w = World::new(4, 0);
    let (t, e, v) =
        (w.g.axis("t", 3).unwrap(), w.g.axis("e", 2).unwrap(), w.g.axis("v", 4).unwrap());
    let (x, m) = (w.leaf("x", &[t, e]).unwrap(), w.leaf("m", &[v, e]).unwrap());
    let ids = w.ids("ids", &[t], 4).unwrap();
    let weights = w.noise("weights", &[t]).unwrap();
    let ce = w.g.linear_ce(x, m, ids, weights, e, v).unwrap();
    let loss = w.g.sum(ce, &[t]).unwrap();
    (w, [loss, x, m])
}

fn is_ce(op: &Op, with_grad: bool) -> bool {
    matches!(op, Op::LinearCe(LinearCe { grad, .. }) if *grad == with_grad)
}

#[test]
fn linear_ce_makes_its_gradient_in_the_forward() {
    let (mut w, [loss, x, m]) = cross_entropy();
    let nodes = w.g.nodes().len();
    assert!(is_ce(&w.g.node(NodeId(0)).op, false));
    let found = gradients(&mut w.g, loss, &[x, m]).unwrap();
    let node = w.g.node(NodeId(0)).clone();
    assert!(is_ce(&node.op, true) && node.phase == Phase::Forward);
    // Under a sum at the graph's end nothing multiplies: the gradients are outputs of the forward
    // node, and only the constant 1 and the sum's cotangent are new.
    assert_eq!(found, [Some(node.outs[1]), Some(node.outs[2])]);
    assert_eq!(appended(&w.g, nodes), ["map", "map"]);
    aerogel_graph::verify::verify(&w.g).unwrap();
    // Asked again, the forward is as wide as it needs to be.
    let again = gradients(&mut w.g, loss, &[m]).unwrap();
    assert_eq!(again, [Some(node.outs[2])]);
}

/// Tokens in pieces, one after another, and their sum: each piece makes its gradient in the
/// forward.
#[test]
fn linear_ce_of_pieces_of_the_tokens_makes_its_gradient_in_the_forward() {
    let (w, [_, x, m]) = cross_entropy();
    let mut g = w.g.clone();
    let [t, e, v] = ["t", "e", "v"].map(|name| g.axes().find(name).unwrap());
    let (first, rest) = (g.axis("first", 1).unwrap(), g.axis("rest", 2).unwrap());
    let [ids, weights] = ["ids", "weights"].map(|name| g.find_input(name).unwrap().value);
    let mut parts = vec![];
    for (start, into) in [(0, first), (1, rest)] {
        let ins = [x, ids, weights].map(|v| g.slice(v, t, start, into).unwrap());
        parts.push(g.linear_ce(ins[0], m, ins[1], ins[2], e, v).unwrap());
    }
    let ce = g.concat(&parts, &[first, rest], t).unwrap();
    let loss = whole(&mut g, ce).unwrap();
    gradients(&mut g, loss, &[x, m]).unwrap();
    let layers: Vec<_> = g.nodes().iter().filter(|n| n.op.name().starts_with("linear")).collect();
    let widened = layers.iter().filter(|n| is_ce(&n.op, true)).count();
    assert_eq!((layers.len(), widened), (3, 2), "the third is the whole, which nobody asks");
    let chunked = World { g, ..w };
    let (w, [whole_loss, ..]) = cross_entropy();
    for (got, wanted) in
        chunked.gradient(loss).unwrap().iter().zip(&w.gradient(whole_loss).unwrap())
    {
        close(got, wanted, 1e-12, "in pieces");
    }
}

/// Tokens of different cotangents: the backward computes the gradient, with the weights scaled.
#[test]
fn linear_ce_of_tokens_that_differ_has_a_backward_of_its_own() {
    let (mut w, [loss, x, m]) = cross_entropy();
    let ce = w.g.node(NodeId(0)).outs[0];
    let square = w.g.map(&[ce], &|v| &v[0] * &v[0]).unwrap();
    let other = whole(&mut w.g, square).unwrap();
    let both = w.g.map(&[loss, other], &|v| &v[0] + &v[1]).unwrap();
    let nodes = w.g.nodes().len();
    let found = gradients(&mut w.g, both, &[x, m]).unwrap();
    assert!(is_ce(&w.g.node(NodeId(0)).op, false), "the forward is as it was");
    let layer = |name: &&str| name.starts_with("linear");
    let made: Vec<_> = appended(&w.g, nodes).into_iter().filter(layer).collect();
    assert_eq!(made, ["linear_lse", "linear_ce_grad"]);
    let node = w.g.nodes().last().unwrap();
    assert_eq!(found, [Some(node.outs[0]), Some(node.outs[1])]);
}

#[test]
fn linear_ce_refuses_what_it_cannot_differentiate() {
    let (mut w, [loss, x, _]) = cross_entropy();
    let weights = w.g.find_input("weights").unwrap().value;
    let error = gradients(&mut w.g.clone(), loss, &[weights]).unwrap_err().to_string();
    assert_eq!(error, "linear_ce: has no gradient for its weights");
    let d = gradients(&mut w.g, loss, &[x]).unwrap()[0].unwrap();
    let square = w.g.map(&[d], &|v| &v[0] * &v[0]).unwrap();
    let norm = whole(&mut w.g, square).unwrap();
    let error = gradients(&mut w.g, norm, &[x]).unwrap_err().to_string();
    assert!(error.contains("no second gradient"), "{error}");
}

#[test]
fn widening_keeps_the_outputs_that_are_there() {
    let (mut w, _) = cross_entropy();
    let axes = ["v", "e", "t"].map(|name| w.g.axes().find(name).unwrap());
    let other = Map { expr: Expr::Const(0.0), out: Type::new(DType::F32, axes), cotangent: None };
    let error = w.g.widen(NodeId(0), other.into()).unwrap_err().to_string();
    assert!(error.contains("does not keep the outputs"), "{error}");
}

/// Two gradients of one graph, one after the other, equal those taken alone.
#[test]
fn gradients_can_be_taken_repeatedly() {
    let (mut w, [loss, x, m]) = cross_entropy();
    let twice = w.g.map(&[loss], &|v| &v[0] * &v[0]).unwrap();
    let (a, b) = (w.gradient(loss).unwrap(), w.gradient(twice).unwrap());
    gradients(&mut w.g, loss, &[x, m]).unwrap();
    for (again, alone) in w.gradient(twice).unwrap().iter().zip(&b) {
        close(again, alone, 1e-12, "the second");
    }
    for (again, alone) in w.gradient(loss).unwrap().iter().zip(&a) {
        close(again, alone, 1e-12, "the first");
    }
}
