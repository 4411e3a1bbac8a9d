// Names of the machine types, and bf16: the upper half of an f32, rounded to nearest even.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;
typedef float f32;
typedef double f64;

// A type of its own, so that templates tell it from an integer of 16 bits.
struct bf16 {
    u16 bits;
};

static_assert(sizeof(bf16) == 2 && sizeof(u64) == 8 && sizeof(void*) == 8, "C layout of 64 bits");

__device__ __forceinline__ f32 widen(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

// The two halves of a word that holds two bf16; `low` comes first in memory.
__device__ __forceinline__ f32 low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ f32 high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// NaN becomes 0x7fff.
__device__ __forceinline__ bf16 narrow(f32 x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// `first` in the low half.
__device__ __forceinline__ u32 pack(f32 first, f32 second) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

__device__ __forceinline__ f32 round_bf16(f32 x) { return low(pack(x, 0.0f)); }
