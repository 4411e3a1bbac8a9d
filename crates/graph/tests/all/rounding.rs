//! The interpreter's two modes: real numbers, or rounding where a value is declared.

use super::cases::CASES;
use super::harness::World;
use aerogel_graph::types::{f16_to_f32, f32_to_f16, round_bf16, round_f16};
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

/// The value of an f16 as the standard defines it: sign, 5 bits of exponent, 10 of fraction.
fn f16_value(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023) / 1024.0);
    let size = match exponent {
        0 => fraction * 2f64.powi(-14),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction) * 2f64.powi(exponent - 15),
    };
    if bits & 0x8000 == 0 { size } else { -size }
}

#[test]
fn every_f16_has_its_value_and_comes_back() {
    for bits in 0..=u16::MAX {
        let (value, wanted) = (f16_to_f32(bits), f16_value(bits));
        assert_eq!(value.is_sign_negative(), bits & 0x8000 != 0, "{bits:#x}");
        let back = f32_to_f16(value);
        if wanted.is_nan() {
            // Made quiet, and else the same.
            assert!(value.is_nan() && back == bits | 0x200, "{bits:#x} to {back:#x}");
        } else {
            assert_eq!((f64::from(value), back), (wanted, bits), "{bits:#x}");
            assert_eq!(round_f16(value).to_bits(), value.to_bits());
        }
    }
}

/// Between two neighbours: either one itself, the middle, and the f32 on both sides of it.
#[test]
fn what_is_no_f16_goes_to_the_nearest_and_ties_to_even() {
    for low in 0..0x7c00u16 {
        // Were the range larger, 65,536 would follow 65,504: that is where infinity begins.
        let (a, next) = (f16_value(low), f16_value(low + 1));
        let b = if next.is_finite() { next } else { 65_536.0 };
        let middle = ((a + b) / 2.0) as f32;
        assert_eq!(f64::from(middle), (a + b) / 2.0);
        let even = low + (low & 1);
        let [below, above] = [middle.to_bits() - 1, middle.to_bits() + 1].map(f32::from_bits);
        for (x, wanted) in [(below, low), (middle, even), (above, low + 1)] {
            assert_eq!(f32_to_f16(x), wanted, "{x:e}");
            assert_eq!(f32_to_f16(-x), wanted | 0x8000, "{x:e}");
            assert_eq!(round_f16(-x).to_bits(), f16_to_f32(wanted | 0x8000).to_bits(), "{x:e}");
            let rounded = DType::F16.round(f64::from(x));
            assert!(rounded == f16_value(wanted), "{x:e} to {rounded:e}");
        }
    }
    let least = f32::from_bits(1);
    for (x, wanted) in [(least, 0), (f32::MIN_POSITIVE, 0), (2f32.powi(-25), 0)] {
        assert_eq!([f32_to_f16(x), f32_to_f16(-x)], [wanted, wanted | 0x8000]);
    }
    assert_eq!(
        [65_504.0, 65_519.996, 65_520.0, f32::MAX].map(f32_to_f16),
        [0x7bff, 0x7bff, 0x7c00, 0x7c00]
    );
    assert_eq!([f32::INFINITY, f32::NEG_INFINITY].map(f32_to_f16), [0x7c00, 0xfc00]);
    // The shortest NaN must not become an infinity.
    for nan in [f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xff80_0001)] {
        let bits = f32_to_f16(nan);
        assert!(f16_value(bits).is_nan() && round_f16(nan).is_nan(), "{bits:#x}");
        assert_eq!(bits >> 15 != 0, nan.is_sign_negative());
    }
}

/// Samples of all f32 against rounding by the definition, in f64.
#[test]
fn f16_of_any_f32_is_the_definition() {
    for i in 0..4_000_000u32 {
        let x = f32::from_bits(i.wrapping_mul(2_654_435_761));
        assert_eq!(round_f16(x).to_bits(), f16_to_f32(f32_to_f16(x)).to_bits(), "{x:e}");
        if x.is_nan() {
            continue;
        }
        let size = f64::from(x).abs();
        let exponent = (size.to_bits() >> 52) as i32 - 1023;
        let step = 2f64.powi(exponent.max(-14) - 10);
        let rounded = (size / step).round_ties_even() * step;
        let wanted = if rounded >= 65_536.0 { f64::INFINITY } else { rounded };
        let wanted = if x < 0.0 { -wanted } else { wanted };
        assert_eq!(f64::from(round_f16(x)), wanted, "{x:e}");
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
