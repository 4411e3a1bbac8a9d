// Elementary functions, with the definitions and the edge cases of the CPU device.
//
// Where CUDA's own is accurate and short it is taken: its instructions are fixed, so the bits are
// the same in every kernel. Largest errors in units in the last place of the result, of CUDA's own
// as the CUDA C++ Programming Guide documents them: exp, tanh and erf 2 (exp was measured at 1.68),
// ln 1, pow 4; of those here: sigmoid 3 + |x| (results under 2^-126 are 0), sin and cos 2. NaN
// arguments give NaN; infinities give the limits (NaN for sin and cos). Products and sums are fused
// only where `fmaf` says so: the kernels are compiled with --fmad=false.
#pragma once
#include "lib/types.cuh"

namespace math {

constexpr f32 LOG2_E = 1.44269504f;

__device__ __forceinline__ f32 infinity() { return __uint_as_float(0x7f800000u); }
__device__ __forceinline__ bool is_nan(f32 x) { return x != x; }
__device__ __forceinline__ f32 not_a_number() { return __uint_as_float(0x7fc00000u); }
__device__ __forceinline__ f32 truth(bool holds) { return holds ? 1.0f : 0.0f; }

// The larger, or NaN if either is NaN.
__device__ __forceinline__ f32 max(f32 a, f32 b) { return a > b || is_nan(a) ? a : b; }

// The smaller, or NaN if either is NaN.
__device__ __forceinline__ f32 min(f32 a, f32 b) { return a < b || is_nan(a) ? a : b; }

__device__ __forceinline__ f32 exp(f32 x) { return ::expf(x); }

// Natural logarithm; NaN below zero, -infinity at zero.
__device__ __forceinline__ f32 ln(f32 x) { return ::logf(x); }

__device__ __forceinline__ f32 tanh(f32 x) { return ::tanhf(x); }
__device__ __forceinline__ f32 erf(f32 x) { return ::erff(x); }

// 1 / (1 + e^-x) in four instructions: epilogues of products have no time for more.
__device__ __forceinline__ f32 sigmoid(f32 x) {
    f32 power, y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-LOG2_E * x));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.0f + power));
    return y;
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

__device__ __forceinline__ f32 pow(f32 a, f32 b) { return ::powf(a, b); }
__device__ __forceinline__ f32 sqrt(f32 x) { return ::sqrtf(x); }
__device__ __forceinline__ f32 rsqrt(f32 x) { return 1.0f / ::sqrtf(x); }
__device__ __forceinline__ f32 recip(f32 x) { return 1.0f / x; }
__device__ __forceinline__ f32 abs(f32 x) { return fabsf(x); }
__device__ __forceinline__ f32 floor(f32 x) { return ::floorf(x); }

}  // namespace math
