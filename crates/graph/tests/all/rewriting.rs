//! Functions from graphs to graphs: rewrite, prune; and who reads what.

use super::cases::CASES;
use super::harness::{World, close};
use aerogel_graph::ops::Map;
use aerogel_graph::verify::verify;
use aerogel_graph::{
    Build, DType, Expr, Graph, Init, NodeId, Op, ParamClass, Phase, Rounding, StateId, Type,
    ValueId, gradients, interpret,
};

/// x -> used -> out; x -> unused; a node with a read second output only.
fn graph() -> (Graph, [ValueId; 4]) {
    let mut g = Graph::new();
    let a = g.axis("a", 3).unwrap();
    let x = g.input("x", DType::F32, &[a]).unwrap();
    let w = g.parameter("w", ParamClass::Bias, &[a], Init::Constant(0.0)).unwrap();
    let unused = g.map(&[x], &|v| v[0].sin()).unwrap();
    let used = g.map(&[x, w, x], &|v| &v[0] * &v[1] + &v[2]).unwrap();
    g.map(&[unused, used], &|v| &v[0] + &v[1]).unwrap();
    let end = g.map(&[used], &|v| v[0].exp()).unwrap();
    g.output("end", end);
    g.assign(StateId(0), used).unwrap();
    (g, [x, w, unused, used])
}

#[test]
fn readers_are_listed_once_and_in_order() {
    let (g, [x, w, unused, used]) = graph();
    let readers = g.readers();
    let of = |v: ValueId| readers[v.index()].iter().map(|n| n.0).collect::<Vec<_>>();
    assert_eq!(of(x), [0, 1]);
    assert_eq!(of(w), [1]);
    assert_eq!(of(unused), [2]);
    assert_eq!(of(used), [2, 3]);
}

#[test]
fn pruning_drops_what_no_end_needs_and_keeps_the_rest() {
    let (g, _) = graph();
    let pruned = g.pruned().unwrap();
    verify(&pruned).unwrap();
    assert_eq!(pruned.nodes().len(), 2);
    assert_eq!((pruned.inputs(), pruned.states().len()), (g.inputs(), 1));
    assert_eq!(pruned.assigns.len(), 1);
    assert_eq!(pruned.pruned().unwrap(), pruned);
}

/// Of a node with several outputs, one that is read is enough; numbers do not change.
#[test]
fn pruning_keeps_the_numbers() {
    for case in CASES {
        let mut w = World::new(6, 0);
        let loss = (case.build)(&mut w).unwrap();
        let wrt: Vec<ValueId> = w.leaves.iter().map(|l| l.1).collect();
        let grads = gradients(&mut w.g, loss, &wrt).unwrap();
        w.g.outputs.clear();
        let last = grads.into_iter().flatten().next_back().unwrap();
        w.g.output("last", last);
        let pruned = w.g.pruned().unwrap();
        assert!(pruned.nodes().len() <= w.g.nodes().len());
        let run = |g: &Graph| interpret(g, &w.env, w.clock, Rounding::Exact).unwrap().outputs;
        close(&run(&pruned)["last"], &run(&w.g)["last"], 0.0, case.name);
    }
}

#[test]
fn a_rewrite_replaces_nodes_and_keeps_their_place() {
    let (mut g, [x, ..]) = graph();
    g.at(&"h.0".into(), Phase::Backward);
    let tail = g.map(&[x], &|v| v[0].exp()).unwrap();
    g.output("tail", tail);
    let twice = g
        .rewrite(|out, node, ins| match &node.op {
            Op::Map(m) if m.expr == Expr::In(0).exp() => {
                let first = out.map(ins, &|v| v[0].cos())?;
                Ok(Some(vec![out.map(&[first], &|v| v[0].exp())?]))
            }
            _ => Ok(None),
        })
        .unwrap();
    verify(&twice).unwrap();
    assert_eq!(twice.nodes().len(), g.nodes().len() + 2);
    let last = &twice.nodes()[twice.nodes().len() - 2..];
    assert!(last.iter().all(|n| &*n.scope == "h.0" && n.phase == Phase::Backward));
    let same = g.rewrite(|_, _, _| Ok(None)).unwrap();
    assert_eq!(aerogel_graph::text::print(&same), aerogel_graph::text::print(&g));
}

#[test]
fn a_rewrite_that_drops_or_changes_what_is_read_is_refused() {
    let (g, _) = graph();
    let error = g.rewrite(|_, _, _| Ok(Some(vec![]))).unwrap_err().to_string();
    assert!(error.contains("was dropped but is read"), "{error}");
    let narrow = g.rewrite(|out, node, ins| {
        let axes = out.ty(ins[0]).axes.clone();
        let Op::Map(m) = &node.op else { return Ok(None) };
        let op = Map { out: Type::new(DType::Bf16, axes), ..m.clone() };
        out.emit(op.into(), ins).map(Some)
    });
    let error = narrow.unwrap_err().to_string();
    assert_eq!(error, "assign: `w` is f32[a=3], got bf16[a=3]");
}

#[test]
fn scopes_name_nodes_and_parameters() {
    let mut g = Graph::new();
    let w = g.scope("h", |g| {
        g.scope("0", |g| {
            let name = g.path("weight");
            let w = g.parameter(&name, ParamClass::Weight, &[], Init::Constant(1.0))?;
            g.map(&[w], &|v| v[0].exp())
        })
    });
    assert!(w.is_ok() && g.find_state("h.0.weight").is_some());
    assert_eq!(&*g.node(NodeId(0)).scope, "h.0");
    assert_eq!(g.node(NodeId(0)).phase, Phase::Forward);
}
