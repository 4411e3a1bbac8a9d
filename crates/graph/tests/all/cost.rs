//! FLOPs and bytes of the ops that the report's totals rest on, counted by hand.

use super::harness::World;
use aerogel_graph::ops::{Attend, Cost};
use aerogel_graph::{Build, DType, Graph, Pattern, Type, ValueId, gradients};

/// Work of the first node of that op.
fn cost(g: &Graph, op: &str) -> Cost {
    let node = g.nodes().iter().find(|n| n.op.name() == op).expect(op);
    node.op.cost(g.axes(), &g.in_types(node), &g.out_types(node))
}

fn world(sizes: [usize; 4]) -> (World, [aerogel_graph::AxisId; 4]) {
    let mut w = World::new(0, 0);
    let mut sizes = sizes.into_iter();
    let axes = ["t", "a", "b", "c"].map(|n| w.g.axis(n, sizes.next().unwrap()).unwrap());
    (w, axes)
}

#[test]
fn a_product_is_two_flops_a_term() {
    let (mut w, [t, a, b, _]) = world([7, 3, 5, 1]);
    let (x, m) = (w.noise("x", &[t, a]).unwrap(), w.noise("m", &[b, a]).unwrap());
    w.g.einsum_to(&[x, m], &[t, b], DType::Bf16).unwrap();
    let bytes = 4 * (7 * 3 + 5 * 3) + 2 * 7 * 5;
    assert_eq!(cost(&w.g, "einsum"), Cost { flops: 2 * 7 * 3 * 5, bytes });
}

#[test]
fn the_output_layer_costs_three_products_with_its_gradient() {
    let (mut w, [t, embed, vocab, _]) = world([6, 4, 9, 1]);
    let (x, m) = (w.leaf("x", &[t, embed]).unwrap(), w.leaf("m", &[vocab, embed]).unwrap());
    let (ids, weights) = (w.ids("ids", &[t], 9).unwrap(), w.noise("weights", &[t]).unwrap());
    let ce = w.g.linear_ce(x, m, ids, weights, embed, vocab).unwrap();
    assert_eq!(cost(&w.g, "linear_ce").flops, 6 * 9 * (2 * 4 + 4));
    let square = w.g.map(&[ce], &|v| &v[0] * &v[0]).unwrap();
    let mut apart = w.g.clone();
    let loss = apart.sum(square, &[t]).unwrap();
    gradients(&mut apart, loss, &[x, m]).unwrap();
    assert_eq!(cost(&apart, "linear_lse").flops, 6 * 9 * (2 * 4 + 4));
    assert_eq!(cost(&apart, "linear_ce_grad").flops, 6 * 9 * (3 * 2 * 4 + 4));
    let loss = w.g.sum(ce, &[t]).unwrap();
    gradients(&mut w.g, loss, &[x, m]).unwrap();
    assert_eq!(cost(&w.g, "linear_ce").flops, 6 * 9 * (3 * 2 * 4 + 4));
}

/// Attention is charged for the pairs that its pattern keeps: 2 (dim + width) + 4 each, and in
/// backward five products of them.
#[test]
fn attention_costs_its_pairs() {
    let (mut w, [query, key, dim, width]) = world([8, 8, 3, 2]);
    let (batch, head) = (w.g.axis("batch", 2).unwrap(), w.g.axis("head", 4).unwrap());
    let q = w.leaf("q", &[batch, head, query, dim]).unwrap();
    let (k, v) = (w.leaf("k", &[batch, key, dim]).unwrap(), w.leaf("v", &[batch, key, width]));
    for (pattern, pairs) in [
        (Pattern::Causal, 36),
        (Pattern::Local(2), 15),
        (Pattern::Block(4), 20),
        (Pattern::Full, 64),
    ] {
        let mut g: Graph = w.g.clone();
        let heads = [head].into_iter().collect();
        let op = Attend { query, key, dim, heads, scale: 1.0, pattern, offset: false };
        let (o, _) = g.attend(op, &[q, k, *v.as_ref().unwrap()]).unwrap();
        let axes = g.ty(o).axes.clone();
        let loss = g.sum(o, &axes).unwrap();
        gradients(&mut g, loss, &[q]).unwrap();
        let all = 2 * 4 * pairs;
        assert_eq!(cost(&g, "attend").flops, all * (2 * (3 + 2) + 4));
        assert_eq!(cost(&g, "attend_grad").flops, all * (6 * 3 + 4 * 2 + 6));
    }
}

#[test]
fn what_only_moves_elements_has_bytes_and_no_flops() {
    let (mut w, [t, a, _, _]) = world([4, 3, 2, 2]);
    let x: ValueId = w.noise("x", &[t, a]).unwrap();
    let ta = w.g.axis("ta", 12).unwrap();
    w.g.merge(x, &[t, a], ta).unwrap();
    assert_eq!(cost(&w.g, "view"), Cost { flops: 0, bytes: 2 * 4 * 12 });
    w.g.map_to(&[x], Type::new(DType::F32, [t, a]), &|v| &v[0] * &v[0] + 1.0).unwrap();
    assert_eq!(cost(&w.g, "map").flops, 2 * 12);
    w.g.sum(x, &[a]).unwrap();
    assert_eq!(cost(&w.g, "reduce").flops, 12);
}
