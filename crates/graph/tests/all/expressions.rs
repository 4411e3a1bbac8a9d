//! Expressions: simplification keeps the meaning, erf is right, derivatives stay small.

use super::harness::Rng;
use aerogel_graph::Expr;
use aerogel_graph::expr::{Bin, Site, Un, erf};

fn eval(e: &Expr, ins: &[f64]) -> f64 {
    e.eval(&Site { ins, rand: &|_| 0.25, coord: &|_| 3.0 })
}

fn tree(rng: &mut Rng, depth: usize) -> Expr {
    const UN: [Un; 5] = [Un::Neg, Un::Tanh, Un::Sin, Un::Sigmoid, Un::Abs];
    const BIN: [Bin; 6] = [Bin::Add, Bin::Sub, Bin::Mul, Bin::Max, Bin::Lt, Bin::Min];
    const CONST: [f64; 4] = [0.0, 1.0, -1.0, 0.5];
    if depth == 0 {
        return if rng.coin() { Expr::In(rng.below(2)) } else { CONST[rng.below(4)].into() };
    }
    match rng.below(3) {
        0 => Expr::un(UN[rng.below(5)], tree(rng, depth - 1)),
        1 => Expr::bin(BIN[rng.below(6)], tree(rng, depth - 1), tree(rng, depth - 1)),
        _ => tree(rng, depth - 1).select(tree(rng, depth - 1), tree(rng, depth - 1)),
    }
}

#[test]
fn simplification_keeps_the_value() {
    let mut rng = Rng(8);
    for n in 0..3000 {
        let e = tree(&mut rng, 1 + n % 5);
        let ins = [rng.within(-2.0, 2.0), rng.within(-2.0, 2.0)];
        let (a, b) = (eval(&e, &ins), eval(&e.simplified(), &ins));
        assert!((a - b).abs() < 1e-12, "{e:?} is {a}, simplified {b}");
        assert!(e.simplified().flops() <= e.flops());
    }
}

#[test]
fn neutral_elements_vanish_from_derivatives() {
    let x = || Expr::In(0);
    assert_eq!((x() + 2.0).derivative(0), Expr::Const(1.0));
    assert_eq!((x() * Expr::In(1)).derivative(0), Expr::In(1));
    assert_eq!((x() * 3.0).derivative(1), Expr::Const(0.0));
    assert_eq!(x().exp().derivative(0), x().exp());
    let dropout = Expr::rand("drop").lt(0.1).select(0.0, x() / 0.9);
    assert_eq!(dropout.derivative(0), Expr::rand("drop").lt(0.1).select(0.0, 1.0 / 0.9));
}

#[test]
fn inputs_are_found_and_renumbered() {
    let e = Expr::In(3) * (Expr::In(1) + Expr::In(3)).exp();
    assert_eq!(e.inputs(), [1, 3]);
    assert_eq!(e.renumber(&|i| i + 1).inputs(), [2, 4]);
}

/// Values of Abramowitz and Stegun, table 7.1, and the limits.
#[test]
fn erf_agrees_with_its_table() {
    for (x, y) in [
        (0.0, 0.0),
        (0.1, 0.112_462_916_018_284_89),
        (0.5, 0.520_499_877_813_046_5),
        (1.0, 0.842_700_792_949_714_9),
        (2.0, 0.995_322_265_018_952_7),
        (3.0, 0.999_977_909_503_001_4),
        (7.0, 1.0),
    ] {
        assert!((erf(x) - y).abs() < 2e-15, "erf({x}) = {}", erf(x));
        assert_eq!(erf(-x), -erf(x));
    }
    assert!(erf(f64::NAN).is_nan());
    assert!((erf(2.5 - 1e-12) - erf(2.5)).abs() < 2e-14, "the two forms meet");
}
