// Elementary functions with the polynomials and the edge cases of the CPU device.
//
// Largest errors against f64, in units in the last place of the result: exp and ln 1.5, tanh 2, erf
// 2.5, sigmoid 3 (results over 2^-126), sin and cos 2. NaN arguments give NaN; infinities give the
// limits (NaN for sin and cos). Products and sums are fused only where `fmaf` says so: the kernels
// are compiled with --fmad=false.
#pragma once
#include "lib/types.cuh"

namespace math {

constexpr f32 ROUND = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low bits
constexpr f32 LOG2_E = 1.44269504f;
constexpr f32 LN2_HIGH = 0.6933594f;  // nine significant bits, so that n * LN2_HIGH is exact
constexpr f32 LN2_LOW = -2.1219444e-4f;

__device__ __forceinline__ bool is_nan(f32 x) { return x != x; }
__device__ __forceinline__ f32 infinity() { return __uint_as_float(0x7f800000u); }
__device__ __forceinline__ f32 not_a_number() { return __uint_as_float(0x7fc00000u); }
__device__ __forceinline__ f32 truth(bool holds) { return holds ? 1.0f : 0.0f; }

// The larger, or NaN if either is NaN.
__device__ __forceinline__ f32 max(f32 a, f32 b) { return a > b || is_nan(a) ? a : b; }

// The smaller, or NaN if either is NaN.
__device__ __forceinline__ f32 min(f32 a, f32 b) { return a < b || is_nan(a) ? a : b; }

// (e^r - 1 - r) / r^2 for r within half of ln 2 around zero.
__device__ __forceinline__ f32 exp_tail(f32 r) {
    f32 sum = 0.0013947606f;
    sum = fmaf(sum, r, 0.008369873f);
    sum = fmaf(sum, r, 0.041666247f);
    sum = fmaf(sum, r, 0.1666651f);
    return fmaf(sum, r, 0.5f);
}

// 2^e for e in -126..=127.
__device__ __forceinline__ f32 power_of_two(i32 e) { return __uint_as_float(u32(e + 127) << 23); }

__device__ __forceinline__ f32 exp(f32 x) {
    // Outside, the result is 0 or infinity; NaN fails both comparisons and stays.
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    f32 shifted = fmaf(x, LOG2_E, ROUND);
    f32 n = shifted - ROUND;
    f32 r = fmaf(n, -LN2_LOW, fmaf(n, -LN2_HIGH, x));
    f32 value = fmaf(r * r, exp_tail(r), r) + 1.0f;
    // 2^n in two factors: n reaches -150 and 128, beyond the exponents of one f32.
    i32 whole = i32(__float_as_uint(shifted) - __float_as_uint(ROUND));
    i32 half = whole >> 1;
    return value * power_of_two(half) * power_of_two(whole - half);
}

// Natural logarithm; NaN below zero, -infinity at zero.
__device__ __forceinline__ f32 ln(f32 x) {
    bool tiny = x < 1.17549435e-38f;
    u32 bits = __float_as_uint(tiny ? x * 8388608.0f : x);
    // Exponent such that the mantissa lies in [sqrt(1/2), sqrt(2)).
    i32 exponent = i32(bits - 0x3f3504f3u) >> 23;
    f32 f = __uint_as_float(bits - (u32(exponent) << 23)) - 1.0f;
    f32 e = f32(exponent) - (tiny ? 23.0f : 0.0f);
    f32 tail = -0.07660819f;
    tail = fmaf(tail, f, 0.1278633f);
    tail = fmaf(tail, f, -0.13161606f);
    tail = fmaf(tail, f, 0.14197877f);
    tail = fmaf(tail, f, -0.16622752f);
    tail = fmaf(tail, f, 0.20001412f);
    tail = fmaf(tail, f, -0.25000846f);
    tail = fmaf(tail, f, 0.3333333f);
    f32 s = f * f;
    f32 rest = fmaf(f * s, tail, e * LN2_LOW);
    f32 value = fmaf(e, LN2_HIGH, fmaf(s, -0.5f, rest) + f);
    value = x == infinity() ? x : value;
    value = x == 0.0f ? -infinity() : value;
    return x >= 0.0f ? value : not_a_number();
}

__device__ __forceinline__ f32 tanh(f32 x) {
    f32 t = fabsf(x);
    f32 s = x * x;
    f32 tail = -0.0057046474f;
    tail = fmaf(tail, s, 0.020638476f);
    tail = fmaf(tail, s, -0.053739376f);
    tail = fmaf(tail, s, 0.13331435f);
    tail = fmaf(tail, s, -0.3333328f);
    f32 small = fmaf(s * x, tail, x);
    // 1 - 2 / (e^(2t) + 1). Beyond the bound it is 1 to the last bit; NaN fails the comparison.
    f32 u = t > 9.1f ? 9.1f : t;
    u = u + u;
    f32 shifted = fmaf(u, LOG2_E, ROUND);
    f32 n = shifted - ROUND;
    f32 r = fmaf(n, -LN2_LOW, fmaf(n, -LN2_HIGH, u));
    f32 part = fmaf(r * r, exp_tail(r), r);
    // n lies in 0..=27: unlike in `exp`, one factor holds 2^n.
    f32 scale = power_of_two(i32(__float_as_uint(shifted) - __float_as_uint(ROUND)));
    f32 large = copysignf(1.0f - 2.0f / fmaf(scale, part, scale + 1.0f), x);
    return t < 0.625f ? small : large;
}

// 1 / (1 + e^-x).
__device__ __forceinline__ f32 sigmoid(f32 x) { return 1.0f / (1.0f + exp(-x)); }

__device__ __forceinline__ f32 erf(f32 x) {
    f32 t = fabsf(x);
    f32 s = x * x;
    f32 near = -9.673591e-6f;
    near = fmaf(near, s, 0.00011268254f);
    near = fmaf(near, s, -0.00084843966f);
    near = fmaf(near, s, 0.0052210534f);
    near = fmaf(near, s, -0.026865438f);
    near = fmaf(near, s, 0.11283783f);
    near = fmaf(near, s, -0.37612638f);
    near = fmaf(near, s, 1.1283792f);
    // ln(erfc(t)) on [1, 4]; beyond, erf is 1 to the last bit.
    f32 u = t > 4.0f ? 4.0f : t;
    f32 log = 1.5901574e-6f;
    log = fmaf(log, u, -4.518895e-5f);
    log = fmaf(log, u, 0.000590000530f);
    log = fmaf(log, u, -0.0047301757f);
    log = fmaf(log, u, 0.026344389f);
    log = fmaf(log, u, -0.10995638f);
    log = fmaf(log, u, -0.63194647f);
    log = fmaf(log, u, -1.1301686f);
    log = fmaf(log, u, 0.00030533368f);
    f32 large = copysignf(1.0f - exp(log), x);
    return t < 1.0f ? x * near : large;
}

// The first 224 bits of 2 / pi after the point.
__constant__ const u32 TWO_OVER_PI[7] = {0xA2F9836Eu, 0x4E441529u, 0xFC2757D1u, 0xF534DDC0u,
                                         0xDB629599u, 0x3C439041u, 0xFE5163ABu};

// `x` minus the nearest multiple of pi / 2, and that multiple modulo 4 in the low bits, for finite
// magnitudes over 2^30 (Payne and Hanek, 1983). Of the product with 2 / pi only the bits under 4
// are formed: with x = m * 2^e those begin at bit e - 2 of the table.
__device__ __forceinline__ f32 far_quadrant(f32 x, u32& quadrant) {
    u32 bits = __float_as_uint(x);
    u64 m = (bits & 0x7fffffu) | 0x800000u;
    u32 start = ((bits >> 23) & 0xff) - 152;
    u32 at = start >> 5, skip = start & 31;
    u32 w[3];
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        // The window never needs the word after the last: that one counts as zeros.
        u32 next = at + i + 1 < 7 ? TWO_OVER_PI[at + i + 1] : 0;
        w[i] = u32((((u64(TWO_OVER_PI[at + i]) << 32) | next) << skip) >> 32);
    }
    u64 lower = m * w[2];
    u64 middle = m * w[1] + (lower >> 32);
    u64 top = m * w[0] + (middle >> 32);
    // Two bits of the integer part, then the fraction.
    u64 product = (top << 32) | u32(middle);
    u32 whole = u32(product >> 62);
    i64 fraction = i64(product << 2);  // as a signed number: the nearest integer is taken off
    whole += fraction < 0;
    f64 r = f64(fraction) * (1.5707963267948966 / 18446744073709551616.0);
    bool negative = bits >> 31;
    quadrant = negative ? 0u - whole : whole;
    return f32(negative ? -r : r);
}

__device__ __forceinline__ f32 near_quadrant(f32 x, u32& quadrant) {
    constexpr f64 ROUND_F64 = 6755399441055744.0;  // 1.5 * 2^52
    f64 wide = x;
    f64 shifted = ::fma(wide, 0.63661977236758134, ROUND_F64);
    f64 n = shifted - ROUND_F64;
    quadrant = u32(__double_as_longlong(shifted));
    return f32(::fma(n, -6.123233995736766e-17, ::fma(n, -1.5707963267948966, wide)));
}

// Sine of x + turns * pi / 2.
__device__ __forceinline__ f32 wave(f32 x, u32 turns) {
    u32 quadrant;
    f32 r;
    if (!(fabsf(x) < infinity())) return not_a_number();
    if (fabsf(x) <= 1073741824.0f) {
        r = near_quadrant(x, quadrant);
    } else {
        r = far_quadrant(x, quadrant);
    }
    quadrant += turns;
    f32 s = r * r;
    f32 tail = 2.71783e-6f;
    tail = fmaf(tail, s, -0.00019839282f);
    tail = fmaf(tail, s, 0.008333329f);
    tail = fmaf(tail, s, -0.16666667f);
    f32 sine = fmaf(s * r, tail, r);
    tail = -2.720497e-7f;
    tail = fmaf(tail, s, 2.479945e-5f);
    tail = fmaf(tail, s, -0.0013888883f);
    tail = fmaf(tail, s, 0.041666668f);
    f32 cosine = fmaf(s * s, tail, fmaf(s, -0.5f, 1.0f));
    f32 value = quadrant & 1 ? cosine : sine;
    return __uint_as_float(__float_as_uint(value) ^ ((quadrant & 2) << 30));
}

__device__ __forceinline__ f32 sin(f32 x) { return wave(x, 0); }
__device__ __forceinline__ f32 cos(f32 x) { return wave(x, 1); }

// The C library's: its accuracy (4 ulp) and its edge cases.
__device__ __forceinline__ f32 pow(f32 a, f32 b) { return ::powf(a, b); }
__device__ __forceinline__ f32 sqrt(f32 x) { return ::sqrtf(x); }
__device__ __forceinline__ f32 rsqrt(f32 x) { return 1.0f / ::sqrtf(x); }
__device__ __forceinline__ f32 recip(f32 x) { return 1.0f / x; }
__device__ __forceinline__ f32 abs(f32 x) { return fabsf(x); }
__device__ __forceinline__ f32 floor(f32 x) { return ::floorf(x); }

}  // namespace math
