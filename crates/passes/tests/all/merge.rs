//! Merged graphs have the bits of the others, and nothing twice.

use super::models::models;
use super::support::{environment, run};
use aerogel_graph::verify::verify;
use aerogel_graph::{Build, DType, Expr, Graph, Node, Phase, Rounding};
use aerogel_passes::{Compute, backward, merge, precision};

/// Pairs of nodes of one phase with the same op over the same inputs.
fn repeated(g: &Graph) -> Vec<(&Node, &Node)> {
    let nodes = g.nodes();
    let same = |a: &Node, b: &Node| (&a.op, &a.ins, a.phase) == (&b.op, &b.ins, b.phase);
    let pairs = nodes.iter().enumerate().flat_map(|(i, a)| nodes[..i].iter().map(move |b| (b, a)));
    pairs.filter(|(a, b)| same(a, b)).collect()
}

#[test]
fn the_models_lose_what_they_have_twice_and_keep_their_bits() {
    let mut found = 0;
    for (name, g) in models() {
        for compute in [Compute::F32, Compute::Bf16] {
            let whole = backward(&precision(&g, compute).unwrap()).unwrap();
            let merged = merge(&whole).unwrap();
            verify(&merged).unwrap();
            found += repeated(&whole).len();
            let left = repeated(&merged);
            assert!(left.is_empty(), "{name}: {:?}", left[0]);
            let wanted = run(&whole, &mut environment(&whole), 0, Rounding::Declared);
            let got = run(&merged, &mut environment(&merged), 0, Rounding::Declared);
            assert_eq!(wanted.len(), got.len());
            for (output, tensor) in &wanted {
                let same = tensor.data.iter().map(|x| x.to_bits());
                assert!(same.eq(got[output].data.iter().map(|x| x.to_bits())), "{name}, {output}");
            }
        }
    }
    assert!(found > 0, "the models repeat gradients");
}

#[test]
fn only_nodes_that_are_equal_in_everything_are_merged() {
    let mut g = Graph::new();
    let (b, c) = (g.axis("b", 2).unwrap(), g.axis("c", 3).unwrap());
    let x = g.input("x", DType::F32, &[b, c]).unwrap();
    let y = g.input("y", DType::F32, &[b, c]).unwrap();
    let mut outs = vec![];
    let mut map = |g: &mut Graph, ins: &[_], f: &dyn Fn(&[Expr]) -> Expr| {
        let v = g.map(ins, f).unwrap();
        g.output(&format!("o{}", outs.len()), v);
        outs.push(v);
        v
    };
    let drop = |v: &[Expr]| &v[0] * Expr::rand("a");
    // One group each: the same thing, and what reads it.
    for _ in 0..2 {
        let v = map(&mut g, &[x, y], &|v| &v[0] - &v[1]);
        let w = map(&mut g, &[v], &drop);
        map(&mut g, &[w, x], &|v| &v[0] + &v[1]);
    }
    // Another order of operands, stream, sign of a zero, scope, phase: each stays.
    map(&mut g, &[y, x], &|v| &v[0] - &v[1]);
    map(&mut g, &[x], &drop);
    map(&mut g, &[x], &|v| &v[0] * Expr::rand("b"));
    map(&mut g, &[x], &|v| v[0].min(0.0));
    map(&mut g, &[x], &|v| v[0].min(-0.0));
    g.at(&"h.0".into(), Phase::Forward);
    map(&mut g, &[x], &drop);
    g.at(&"h.0".into(), Phase::Backward);
    map(&mut g, &[x], &drop);
    g.at(&"".into(), Phase::Forward);
    let merged = merge(&g).unwrap();
    verify(&merged).unwrap();
    assert_eq!((g.nodes().len(), merged.nodes().len()), (13, 10));
    let output = |i: usize| merged.find_output(&format!("o{i}")).unwrap();
    (0..3).for_each(|i| assert_eq!(output(i), output(i + 3)));
    let wanted = run(&g, &mut environment(&g), 0, Rounding::Exact);
    assert_eq!(run(&merged, &mut environment(&merged), 0, Rounding::Exact), wanted);
}
