//! Elementary functions as branch-free scalar code that the compiler vectorises.
//!
//! Polynomials were fitted by weighted least squares on Chebyshev nodes. The largest errors against
//! f64, held by the tests below, in units in the last place of the result:
//!
//! | function | error | range |
//! |---|--:|---|
//! | `exp` | 1.5 | all; results under 2^-126 to half their smallest step more |
//! | `ln` | 1.5 | all, subnormal arguments included |
//! | `tanh` | 2 | all |
//! | `erf` | 2.5 | all |
//! | `sigmoid` | 3 | results over 2^-126 |
//! | `sin`, `cos` | 2 | magnitudes up to 2^30 ([`SIN_LIMIT`]); callers go another way beyond |
//!
//! NaN arguments give NaN; infinities give the limits.

/// Adding and subtracting this rounds a small f32 to an integer, left in the low mantissa bits.
pub(crate) const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
const ROUND_F64: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52
/// Nine significant bits, so that `n * LN2_HIGH` is exact.
pub(crate) const LN2_HIGH: f32 = 0.693_359_4;
/// What is left of ln 2.
pub(crate) const LN2_LOW: f32 = -2.121_944_4e-4;

// Coefficients, lowest power first, and bounds: generated code for tile programs has the same.
/// `(e^r - 1 - r) / r^2`.
pub(crate) const EXP_TAIL: [f32; 5] =
    [0.5, 0.166_665_1, 0.041_666_247, 0.008_369_873, 0.001_394_760_6];
/// Where `exp` becomes 0 and infinity.
pub(crate) const EXP_BOUNDS: [f32; 2] = [-104.0, 89.0];
/// `(ln(1 + f) - f + f^2 / 2) / f^3`.
pub(crate) const LN_TAIL: [f32; 8] = [
    0.333_333_3,
    -0.250_008_46,
    0.200_014_12,
    -0.166_227_52,
    0.141_978_77,
    -0.131_616_06,
    0.127_863_3,
    -0.076_608_19,
];
/// What brings subnormal numbers to normal ones: 2^23.
pub(crate) const LN_SCALE: f32 = 8_388_608.0;
/// The bits of the square root of a half.
pub(crate) const LN_ORIGIN: u32 = 0x3f35_04f3;
/// `(tanh(x) - x) / x^3` in powers of x^2.
pub(crate) const TANH_TAIL: [f32; 5] =
    [-0.333_332_8, 0.133_314_35, -0.053_739_376, 0.020_638_476, -0.005_704_647_3];
/// Below the first, `tanh` is a polynomial; beyond the second, it is 1 to the last bit.
pub(crate) const TANH_BOUNDS: [f32; 2] = [0.625, 9.1];
/// `erf(x) / x` in powers of x^2.
pub(crate) const ERF_SMALL: [f32; 8] = [
    std::f32::consts::FRAC_2_SQRT_PI,
    -0.376_126_38,
    0.112_837_83,
    -0.026_865_438,
    0.005_221_053_4,
    -0.000_848_439_66,
    0.000_112_682_54,
    -9.673_591e-6,
];
/// `ln(erfc(x))` between the bounds.
pub(crate) const ERF_LOG: [f32; 9] = [
    0.000_305_333_68,
    -1.130_168_6,
    -0.631_946_47,
    -0.109_956_38,
    0.026_344_389,
    -0.004_730_175_7,
    0.000_590_000_53,
    -4.518_895e-5,
    1.590_157_4e-6,
];
/// Below the first, `erf` is a polynomial; beyond the second, it is 1 to the last bit.
pub(crate) const ERF_BOUNDS: [f32; 2] = [1.0, 4.0];

/// Arguments of `sin` and `cos` beyond this magnitude need another way.
pub const SIN_LIMIT: f32 = 1_073_741_824.0;

/// `c[0] + c[1] x + c[2] x^2 + ...`
#[inline(always)]
fn polynomial<const N: usize>(x: f32, c: [f32; N]) -> f32 {
    let mut sum = c[N - 1];
    let mut i = N - 1;
    while i > 0 {
        i -= 1;
        sum = sum.mul_add(x, c[i]);
    }
    sum
}

/// The larger, or NaN if either is NaN.
#[inline(always)]
pub fn max(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

/// The smaller, or NaN if either is NaN.
#[inline(always)]
pub fn min(a: f32, b: f32) -> f32 {
    if a < b || a.is_nan() { a } else { b }
}

/// `(e^r - 1 - r) / r^2` for `r` within half of ln 2 around zero.
#[inline(always)]
fn exp_tail(r: f32) -> f32 {
    polynomial(r, EXP_TAIL)
}

/// e^x.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Outside, the result is 0 or infinity; NaN fails both comparisons and stays.
    let [least, most] = EXP_BOUNDS;
    let x = if x < least { least } else { x };
    let x = if x > most { most } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let value = (r * r).mul_add(exp_tail(r), r) + 1.0;
    // 2^n in two factors: n reaches -150 and 128, beyond the exponents of one f32.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let scale = |e: i32| f32::from_bits((e.wrapping_add(127) as u32) << 23);
    value * scale(half) * scale(n.wrapping_sub(half))
}

/// Natural logarithm; NaN below zero, -infinity at zero.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    let tiny = x < f32::MIN_POSITIVE;
    let scaled = if tiny { x * LN_SCALE } else { x };
    let bits = scaled.to_bits();
    // Exponent such that the mantissa lies in [sqrt(1/2), sqrt(2)).
    let e = (bits.wrapping_sub(LN_ORIGIN) as i32) >> 23;
    let f = f32::from_bits(bits.wrapping_sub((e << 23) as u32)) - 1.0;
    let e = e as f32 - if tiny { 23.0 } else { 0.0 };
    let tail = polynomial(f, LN_TAIL);
    let s = f * f;
    let low = (f * s).mul_add(tail, e * LN2_LOW);
    let value = e.mul_add(LN2_HIGH, s.mul_add(-0.5, low) + f);
    let value = if x == f32::INFINITY { x } else { value };
    let value = if x == 0.0 { f32::NEG_INFINITY } else { value };
    if x >= 0.0 { value } else { f32::NAN }
}

/// Hyperbolic tangent.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let t = x.abs();
    let s = x * x;
    let tail = polynomial(s, TANH_TAIL);
    let small = (s * x).mul_add(tail, x);
    // 1 - 2 / (e^(2t) + 1). Beyond the bound it is 1 to the last bit; NaN fails the comparison.
    let [near, far] = TANH_BOUNDS;
    let u = if t > far { far } else { t };
    let u = u + u;
    let shifted = u.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, u));
    let low = (r * r).mul_add(exp_tail(r), r);
    // n lies in 0..=27: unlike in `exp`, one factor holds 2^n.
    let bits = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let scale = f32::from_bits(bits << 23);
    let large = (1.0 - 2.0 / scale.mul_add(low, scale + 1.0)).copysign(x);
    if t < near { small } else { large }
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let t = x.abs();
    let small = x * polynomial(x * x, ERF_SMALL);
    // ln(erfc(t)) on [1, 4]; beyond, erf is 1 to the last bit.
    let [near, far] = ERF_BOUNDS;
    let u = if t > far { far } else { t };
    let log = polynomial(u, ERF_LOG);
    let large = (1.0 - exp(log)).copysign(x);
    if t < near { small } else { large }
}

/// `x` minus the nearest multiple of pi/2, and that multiple modulo 4 in the low bits.
#[inline(always)]
fn quadrant(x: f32) -> (f32, u32) {
    const HIGH: f64 = std::f64::consts::FRAC_PI_2;
    const LOW: f64 = 6.123_233_995_736_766e-17;
    let x = f64::from(x);
    let shifted = x.mul_add(std::f64::consts::FRAC_2_PI, ROUND_F64);
    let n = shifted - ROUND_F64;
    (n.mul_add(-LOW, n.mul_add(-HIGH, x)) as f32, shifted.to_bits() as u32)
}

#[inline(always)]
fn wave(r: f32, quadrant: u32) -> f32 {
    let s = r * r;
    let sin_tail = polynomial(s, [-0.166_666_67, 0.008_333_329, -0.000_198_392_82, 2.717_83e-6]);
    let sin = (s * r).mul_add(sin_tail, r);
    let cos_tail = polynomial(s, [0.041_666_668, -0.001_388_888_3, 2.479_945e-5, -2.720_497e-7]);
    let cos = (s * s).mul_add(cos_tail, s.mul_add(-0.5, 1.0));
    let value = if quadrant & 1 == 0 { sin } else { cos };
    f32::from_bits(value.to_bits() ^ ((quadrant & 2) << 30))
}

/// Sine, for magnitudes up to [`SIN_LIMIT`].
#[inline(always)]
pub fn sin(x: f32) -> f32 {
    let (r, n) = quadrant(x);
    wave(r, n)
}

/// Cosine, for magnitudes up to [`SIN_LIMIT`].
#[inline(always)]
pub fn cos(x: f32) -> f32 {
    let (r, n) = quadrant(x);
    wave(r, n.wrapping_add(1))
}

/// bf16 to f32, exact.
#[inline(always)]
pub fn from_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// f32 to bf16, to nearest, ties to even; NaN stays a (quiet) NaN.
#[inline(always)]
pub fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    (if x.is_nan() { (bits >> 16) | 0x40 } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error in ulp over samples of `range`, geometric in both signs and linear.
    fn worst(f: fn(f32) -> f32, exact: fn(f64) -> f64, range: f32) -> f64 {
        let mut worst = 0.0f64;
        let mut check = |x: f32| {
            let wanted = exact(f64::from(x));
            let (got, rounded) = (f(x), wanted as f32);
            if rounded.abs() < f32::MIN_POSITIVE || rounded.is_infinite() {
                let error = (f64::from(got) - f64::from(rounded)).abs();
                assert!(got == rounded || error <= 3e-45, "{x}: {got} {rounded}");
                return;
            }
            let ulp = f64::from(f32::from_bits(rounded.abs().to_bits() + 1) - rounded.abs());
            worst = worst.max((f64::from(got) - wanted).abs() / ulp);
        };
        for i in 0..200_000 {
            check(range * (i as f32 / 100_000.0 - 1.0));
            let x = range * (-(i as f32) / 3_000.0).exp();
            check(x);
            check(-x);
        }
        worst
    }

    fn erf_f64(x: f64) -> f64 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        if x.abs() > 5.0 {
            return x.signum();
        }
        while term.abs() > 1e-18 * sum.abs() {
            n += 1.0;
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
        }
        sum * (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn errors_stay_within_the_table() {
        assert!(worst(exp, f64::exp, 110.0) < 1.5, "exp {}", worst(exp, f64::exp, 110.0));
        let ln_f64 = |x: f64| f64::ln(x.abs());
        assert!(worst(|x| ln(x.abs()), ln_f64, 1e30) < 1.5);
        assert!(worst(|x| ln(x.abs()), ln_f64, 2.0) < 1.5);
        assert!(worst(tanh, f64::tanh, 12.0) < 2.0, "tanh {}", worst(tanh, f64::tanh, 12.0));
        assert!(worst(erf, erf_f64, 6.0) < 2.5, "erf {}", worst(erf, erf_f64, 6.0));
        let logistic = |x: f64| 1.0 / (1.0 + (-x).exp());
        assert!(worst(sigmoid, logistic, 87.0) < 3.0);
        for range in [3.0, 1000.0, SIN_LIMIT] {
            assert!(worst(sin, f64::sin, range) < 2.0, "sin {}", worst(sin, f64::sin, range));
            assert!(worst(cos, f64::cos, range) < 2.0, "cos {}", worst(cos, f64::cos, range));
        }
    }

    #[test]
    fn limits_and_nan() {
        let inf = f32::INFINITY;
        assert_eq!([exp(-inf), exp(inf), exp(0.0)], [0.0, inf, 1.0]);
        assert_eq!([ln(0.0), ln(inf), ln(1.0), ln(1e-45)], [-inf, inf, 0.0, 1e-45f32.ln()]);
        assert!(ln(-1.0).is_nan() && ln(-1e-45).is_nan());
        assert_eq!([tanh(-inf), tanh(inf), erf(-inf), erf(inf)], [-1.0, 1.0, -1.0, 1.0]);
        assert_eq!([sigmoid(-inf), sigmoid(inf)], [0.0, 1.0]);
        for f in [exp, ln, tanh, erf, sigmoid, sin, cos] {
            assert!(f(f32::NAN).is_nan());
        }
        assert!(max(f32::NAN, 1.0).is_nan() && max(1.0, f32::NAN).is_nan());
        assert!(min(f32::NAN, 1.0).is_nan() && min(1.0, f32::NAN).is_nan());
    }

    #[test]
    fn bf16_agrees_with_the_half_crate() {
        for i in 0..2_000_000u32 {
            let x = f32::from_bits(i.wrapping_mul(2_654_435_761));
            let wanted = half::bf16::from_f32(x);
            assert_eq!(to_bf16(x), wanted.to_bits(), "{x}");
            assert!(x.is_nan() || from_bf16(to_bf16(x)) == wanted.to_f32());
        }
    }
}
