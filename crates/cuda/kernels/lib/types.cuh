// Names of the machine types, and the floats of 16 bits: bf16, the upper half of an f32, and f16,
// IEEE's half precision. Both are rounded to nearest even; what is too large becomes infinite.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;
typedef float f32;
typedef double f64;

// Types of their own, so that templates tell them from an integer of 16 bits.
struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};

static_assert(sizeof(bf16) == 2 && sizeof(f16) == 2, "C layout of 16 bits");
static_assert(sizeof(u64) == 8 && sizeof(void*) == 8, "C layout of 64 bits");

// What the tensor cores of a source multiply: bf16, or f16 with -DF16=1. HALF is its name in PTX.
#ifndef F16
#define F16 0
#endif
#if F16
typedef f16 Half;
#define HALF "f16"
#else
typedef bf16 Half;
#define HALF "bf16"
#endif

// Kernels have a constant T: the parameter of these templates is another name.
template <class H>
constexpr bool is_f16 = false;
template <>
constexpr bool is_f16<f16> = true;

__device__ __forceinline__ f32 widen(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }
__device__ __forceinline__ f32 widen(f16 x) {
    f32 y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

// The two halves of a word that holds two of H; `low` comes first in memory.
template <class H>
__device__ __forceinline__ f32 low(u32 pair) {
    if constexpr (is_f16<H>) return widen(f16{u16(pair)});
    return __uint_as_float(pair << 16);
}
template <class H>
__device__ __forceinline__ f32 high(u32 pair) {
    if constexpr (is_f16<H>) return widen(f16{u16(pair >> 16)});
    return __uint_as_float(pair & 0xffff0000u);
}

// NaN becomes 0x7fff.
template <class H>
__device__ __forceinline__ H narrow(f32 x) {
    H y;
    if constexpr (is_f16<H>)
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    else
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// `first` in the low half.
template <class H>
__device__ __forceinline__ u32 pack(f32 first, f32 second) {
    u32 pair;
    if constexpr (is_f16<H>)
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    else
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

__device__ __forceinline__ f32 round_bf16(f32 x) { return low<bf16>(pack<bf16>(x, 0.0f)); }
__device__ __forceinline__ f32 round_f16(f32 x) { return widen(narrow<f16>(x)); }
