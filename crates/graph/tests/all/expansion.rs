//! Coarse ops against their expansion in primitive ones: values, gradients, second gradients.

use super::cases::{CASES, Case};
use super::harness::{World, close, in_order, largest};
use aerogel_graph::{Build, Op, Rounding, Type, ValueId, gradients, interpret};

const COARSE: [&str; 5] = ["norm", "attend", "merge_attend", "linear_ce", "linear_lse"];

fn coarse() -> impl Iterator<Item = &'static Case> {
    CASES.iter().filter(|c| COARSE.contains(&c.op))
}

/// A world and its loss, and the same with every coarse op expanded.
fn pair(case: &Case, variant: usize, seed: u64) -> (World, ValueId, World, ValueId) {
    let build = || {
        let mut w = World::new(seed, variant);
        let loss = (case.build)(&mut w).unwrap();
        w.g.output("loss", loss);
        (w, loss)
    };
    let (w, loss) = build();
    let (mut e, _) = build();
    e.g = w.g.expanded(|_| true).unwrap();
    for (name, v) in &mut e.leaves {
        let state = e.g.find_state(name).unwrap();
        *v = e.g.states()[state.index()].value;
    }
    let expanded_loss = e.g.find_output("loss").unwrap();
    (w, loss, e, expanded_loss)
}

#[test]
fn every_op_that_expands_is_tested() {
    for case in CASES {
        let (w, _, e, _) = pair(case, 0, 0);
        let changed = w.g.rewrite(|_, _, _| Ok(None)).unwrap() != e.g;
        assert_eq!(changed, COARSE.contains(&case.op), "{}", case.name);
        assert!(e.g.nodes().iter().all(|n| !COARSE.contains(&n.op.name())), "{}", case.name);
    }
}

#[test]
fn values_and_gradients_equal_the_expansion() {
    for case in coarse() {
        for variant in 0..case.variants {
            for seed in 0..30 {
                let what = format!("{} (variant {variant}, seed {seed})", case.name);
                let (w, loss, e, expanded_loss) = pair(case, variant, seed);
                let run = |w: &World| interpret(&w.g, &w.env, w.clock, Rounding::Exact).unwrap();
                let (own, other) = (run(&w).outputs, run(&e).outputs);
                for (name, t) in &own {
                    close(&other[name], t, 1e-9, &format!("{what}: {name}"));
                }
                let (own, other) = (w.gradient(loss).unwrap(), e.gradient(expanded_loss).unwrap());
                for ((a, b), (name, _)) in own.iter().zip(&other).zip(&w.leaves) {
                    close(b, a, 1e-9 * largest(&own).max(1.0), &format!("{what}: d {name}"));
                }
            }
        }
    }
}

/// The gradient of a gradient's square norm, through the expansion.
#[test]
fn an_expanded_op_is_differentiated_twice() {
    for case in coarse() {
        for variant in 0..case.variants {
            for seed in 0..5 {
                let (_, _, mut e, loss) = pair(case, variant, seed);
                let wrt: Vec<ValueId> = e.leaves.iter().map(|l| l.1).collect();
                let grads = gradients(&mut e.g, loss, &wrt).unwrap();
                let scalar = |g: &mut aerogel_graph::Graph, d: ValueId| {
                    let axes = g.ty(d).axes.clone();
                    let square = g.map(&[d], &|v| &v[0] * &v[0])?;
                    g.sum(square, &axes)
                };
                let terms: Vec<ValueId> =
                    grads.into_iter().flatten().map(|d| scalar(&mut e.g, d).unwrap()).collect();
                let norm =
                    e.g.map(&terms, &|v| v[1..].iter().fold(v[0].clone(), |s, t| s + t)).unwrap();
                let what = format!("{} twice (variant {variant}, seed {seed})", case.name);
                e.check_gradient(norm, &what);
            }
        }
    }
}

#[test]
fn a_coarse_gradient_is_not_differentiated_but_says_so() {
    // Those two are differentiated in primitive ops.
    let primitive = ["merge_attend", "linear_lse"];
    for case in coarse().filter(|c| !primitive.contains(&c.op)) {
        let mut w = World::new(3, 0);
        let loss = (case.build)(&mut w).unwrap();
        let x = w.leaves[0].1;
        let d = gradients(&mut w.g, loss, &[x]).unwrap()[0].unwrap();
        let axes = w.g.ty(d).axes.clone();
        let square = w.g.map_to(&[d], Type::new(w.g.ty(d).dtype, axes.clone()), &|v| &v[0] * &v[0]);
        let norm = w.g.sum(square.unwrap(), &axes).unwrap();
        let error = gradients(&mut w.g, norm, &[x]).unwrap_err().to_string();
        assert!(error.contains("expand"), "{}: {error}", case.name);
    }
}

#[test]
fn an_expansion_is_chosen_node_by_node() {
    let mut w = World::new(5, 1);
    let case = coarse().find(|c| c.name == "norm").unwrap();
    (case.build)(&mut w).unwrap();
    assert_eq!(w.g.expanded(|_| false).unwrap(), w.g.rewrite(|_, _, _| Ok(None)).unwrap());
    let only = w.g.expanded(|n| matches!(n.op, Op::Norm(_))).unwrap();
    assert!(only.nodes().len() > w.g.nodes().len());
    let run = interpret(&only, &w.env, w.clock, Rounding::Exact).unwrap();
    let own = interpret(&w.g, &w.env, w.clock, Rounding::Exact).unwrap();
    let (a, b) = (w.g.find_output("out0").unwrap(), only.find_output("out0").unwrap());
    close(&in_order(&only, &run.values, Some(b), b), &own.values[a.index()], 1e-12, "norm");
}
