// Warpgroup products whose left operand is in registers: D[64, N] += A[64, 16] B[16, N].
//
// Warp w of the warpgroup holds rows 16 w.. of A, lane l of it, with g = l / 4 and t = l % 4,
//     a[0] (g, 2t..)  a[1] (g + 8, 2t..)  a[2] (g, 2t + 8..)  a[3] (g + 8, 2t + 8..)
// which is d[8 s..8 s + 8] of a product's 16 columns 16 s.., packed pair by pair. The registers may
// not change until the products are waited for.
#pragma once
#include "lib/wgmma.cuh"

// 64 columns.
template <int B_MN>
__device__ __forceinline__ void multiply_left_m64k16(float (&d)[32], const unsigned (&a)[4],
                                                     unsigned long long b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." HALF "." HALF " {"
        NAMES_32
        "}, {%32, %33, %34, %35}, %36, 1, 1, 1, %37;\n"
        : SUMS_32
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(B_MN)
        : "memory");
}

// 128 columns.
template <int B_MN>
__device__ __forceinline__ void multiply_left_m64k16(float (&d)[64], const unsigned (&a)[4],
                                                     unsigned long long b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." HALF "." HALF " {"
        NAMES_64
        "}, {%64, %65, %66, %67}, %68, 1, 1, 1, %69;\n"
        : SUMS_64
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(B_MN)
        : "memory");
}
