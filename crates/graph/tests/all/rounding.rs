//! The interpreter's two modes: real numbers, or rounding where a value is declared.

use super::cases::CASES;
use super::harness::World;
use aerogel_graph::types::round_bf16;
use aerogel_graph::{
    Build, Clock, DType, Env, Graph, Rounding, Tensor, Type, ValueId, gradients, interpret,
};

/// x + 2^-10, in the given dtypes of input, sum, and result; gives all three values.
fn chain(dtypes: [DType; 3], x: f64, mode: Rounding) -> [f64; 3] {
    let mut g = Graph::new();
    let input = g.input("x", dtypes[0], &[]).unwrap();
    let sum = g.map_to(&[input], Type::new(dtypes[1], []), &|v| &v[0] + 2f64.powi(-10)).unwrap();
    let back = g.map_to(&[sum], Type::new(dtypes[2], []), &|v| &v[0] - 1.0).unwrap();
    let env = Env::from([("x".to_owned(), Tensor::full(g.axes(), &[], x))]);
    let run = interpret(&g, &env, Clock::default(), mode).unwrap();
    [input, sum, back].map(|v: ValueId| run.values[v.index()].data[0])
}

#[test]
fn values_are_rounded_where_they_are_declared_and_nowhere_else() {
    use DType::{Bf16, F32};
    let tiny = 2f64.powi(-10);
    let declared = |dtypes| chain(dtypes, 1.0, Rounding::Declared);
    // bf16 has 8 bits: 1 + 2^-10 is 1. In f32 it stays, though the result is bf16 again.
    assert_eq!(declared([F32, Bf16, F32]), [1.0, 1.0, 0.0]);
    assert_eq!(declared([Bf16, F32, Bf16]), [1.0, 1.0 + tiny, tiny]);
    // An input is what its dtype can hold.
    assert_eq!(chain([Bf16, F32, F32], 1.0 + tiny, Rounding::Declared), [1.0, 1.0 + tiny, tiny]);
    let pi = std::f64::consts::PI;
    assert_eq!(chain([F32, F32, F32], pi, Rounding::Declared)[0], f64::from(pi as f32));
    // Exact: dtypes are no matter.
    assert_eq!(chain([Bf16, Bf16, Bf16], pi, Rounding::Exact), [pi, pi + tiny, pi + tiny - 1.0]);
}

/// A contraction of bf16 values is summed without rounding, and rounded once at the end.
#[test]
fn sums_are_rounded_once() {
    let mut g = Graph::new();
    let k = g.axis("k", 257).unwrap();
    let x = g.input("x", DType::Bf16, &[k]).unwrap();
    let ones = g.input("ones", DType::Bf16, &[k]).unwrap();
    let low = g.einsum(&[x, ones], &[]).unwrap();
    let high = g.einsum_to(&[x, ones], &[], DType::F32).unwrap();
    let sum = g.sum(x, &[k]).unwrap();
    let one = Tensor::full(g.axes(), &[k], 1.0);
    let env = Env::from([("x".to_owned(), one.clone()), ("ones".to_owned(), one)]);
    let run = interpret(&g, &env, Clock::default(), Rounding::Declared).unwrap();
    let get = |v: ValueId| run.values[v.index()].data[0];
    // 257 lies between two numbers of bf16; the tie goes to 256.
    assert_eq!((get(low), get(high), get(sum)), (256.0, 257.0, 257.0));
    // Here a running sum in bf16 would end elsewhere.
    let step = Tensor::full(g.axes(), &[k], 1.0 + 2f64.powi(-7));
    let env = Env::from([("x".to_owned(), step.clone()), ("ones".to_owned(), step)]);
    let run = interpret(&g, &env, Clock::default(), Rounding::Declared).unwrap();
    let exact = 257.0 * (1.0 + 2f64.powi(-7)).powi(2);
    assert_eq!(run.values[low.index()].data[0], DType::Bf16.round(exact));
}

#[test]
fn ties_go_to_even_and_infinities_stay() {
    let ulp = 2f32.powi(-7);
    assert_eq!(round_bf16(1.0 + ulp / 2.0), 1.0);
    assert_eq!(round_bf16(1.0 + 1.5 * ulp), 1.0 + 2.0 * ulp);
    assert_eq!(round_bf16(1.0 + 0.51 * ulp), 1.0 + ulp);
    assert_eq!(round_bf16(-1.0 - 0.51 * ulp), -1.0 - ulp);
    assert_eq!(round_bf16(f32::INFINITY), f32::INFINITY);
    assert_eq!(round_bf16(f32::NEG_INFINITY), f32::NEG_INFINITY);
    assert_eq!(round_bf16(f32::MAX), f32::INFINITY);
    assert!(round_bf16(f32::NAN).is_nan());
    assert_eq!(DType::F32.round(0.1), f64::from(0.1f32));
    for i in 0..2000u32 {
        let x = f32::from_bits(0x3f80_0000 + i * 7919);
        let y = round_bf16(x);
        assert_eq!(y.to_bits() & 0xffff, 0);
        assert!((x - y).abs() <= x * 2f32.powi(-8), "{x} to {y}");
    }
}

/// In rounding mode each value of each graph and its gradient is one that its dtype can hold, and
/// differs from the exact one by little.
#[test]
fn every_value_fits_its_dtype() {
    for case in CASES {
        for variant in 0..case.variants {
            let mut w = World::new(2, variant);
            let loss = (case.build)(&mut w).unwrap();
            let wrt: Vec<ValueId> = w.leaves.iter().map(|l| l.1).collect();
            gradients(&mut w.g, loss, &wrt).unwrap();
            let run = interpret(&w.g, &w.env, w.clock, Rounding::Declared).unwrap();
            let exact = interpret(&w.g, &w.env, w.clock, Rounding::Exact).unwrap();
            for ((value, got), exact) in w.g.values().iter().zip(&run.values).zip(&exact.values) {
                for (a, b) in got.data.iter().zip(&exact.data) {
                    assert_eq!(*a, value.ty.dtype.round(*a), "{}", case.name);
                    assert!(a == b || (a - b).abs() < 1e-3 * b.abs().max(1.0), "{}", case.name);
                }
            }
        }
    }
}

#[test]
fn what_is_not_given_is_named() {
    let mut g = Graph::new();
    let a = g.axis("a", 3).unwrap();
    g.input("x", DType::F32, &[a]).unwrap();
    let run = |env: &Env| interpret(&g, env, Clock::default(), Rounding::Exact).unwrap_err();
    assert_eq!(run(&Env::new()).to_string(), "`x` is f32[a=3], got nothing");
    let scalar = Env::from([("x".to_owned(), Tensor::full(g.axes(), &[], 0.0))]);
    assert_eq!(run(&scalar).to_string(), "`x` is f32[a=3], got []");
}
