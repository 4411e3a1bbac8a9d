//! Every op's gradient against central differences, on 100 random shapes or more per variant.

use super::cases::CASES;
use super::harness::World;
use aerogel_graph::{Op, gradients};

/// Ops that are checked as the gradient of another and not by differences of their own.
const AS_GRADIENT: [(&str, &str); 3] =
    [("norm_grad", "norm"), ("attend_grad", "attend"), ("linear_ce_grad", "linear_ce")];

/// Ops whose cases have run in this file; `every_op` compares it with `Op::NAMES`.
macro_rules! checks {
    ($($op:ident)*) => {
        const CHECKED: &[&str] = &[$(stringify!($op)),*];
        $(#[test]
        fn $op() {
            check(stringify!($op));
        })*
    };
}
checks! { einsum map reduce norm attend merge_attend gather scatter linear_ce linear_lse view }

fn check(op: &str) {
    for case in CASES.iter().filter(|c| c.op == op) {
        for variant in 0..case.variants {
            for seed in 0..100 {
                let mut w = World::new(seed, variant);
                let what = format!("{} (variant {variant}, seed {seed})", case.name);
                let loss = (case.build)(&mut w).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(w.g.nodes().iter().any(|n| n.op.name() == op), "{what} has no {op}");
                w.check_gradient(loss, &what);
            }
        }
    }
}

#[test]
fn every_op_is_in_the_table() {
    // Collectives come after autodiff: `collectives.rs` has their cases.
    for op in Op::NAMES.iter().filter(|op| **op != "collective") {
        let own = CHECKED.contains(op) && CASES.iter().any(|c| c.op == *op);
        let as_gradient = AS_GRADIENT.iter().any(|(name, _)| name == op);
        assert!(own != as_gradient, "{op} must be in CASES and CHECKED, or in AS_GRADIENT");
    }
    assert_eq!(CHECKED.len() + AS_GRADIENT.len() + 1, Op::NAMES.len());
}

#[test]
fn gradient_ops_are_what_their_forward_is_differentiated_to() {
    for (gradient, forward) in AS_GRADIENT {
        // The first case of the op: under a sum, linear_ce needs none.
        let case = CASES.iter().find(|c| c.op == forward).unwrap();
        let mut w = World::new(1, 0);
        let loss = (case.build)(&mut w).unwrap();
        let wrt: Vec<_> = w.leaves.iter().map(|l| l.1).collect();
        gradients(&mut w.g, loss, &wrt).unwrap();
        assert!(w.g.nodes().iter().any(|n| n.op.name() == gradient), "{gradient}");
    }
}
