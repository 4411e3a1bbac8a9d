// Hopper's warpgroup products: D[64, N] += A[64, 16] B[16, N], Half from shared memory, f32 sums.
//
// Operands lie in boxes of 64 x 64 elements, 8 KiB, as a copy with 128-byte swizzle leaves them:
//
//     K contiguous       box = 64 indices of M or N, each a row of 64 K of 128 bytes
//     M or N contiguous  box = 64 indices of K, each a row of 64 M or N
//
// and box i holds indices 64 i and up of M or N. Within 1,024 bytes (8 rows) the 16-byte chunk c of
// row r lies at chunk c ^ r. A descriptor of such an operand holds, in units of 16 bytes,
//
//     bits  0-13  start address
//     bits 16-29  leading offset: from box to box where M or N is contiguous, else unused
//     bits 32-45  stride offset: from 8 rows to the next 8 rows, 1,024 bytes
//     bits 62-63  1: swizzle of 128 bytes
//
// 16 of K further is 32 bytes further where K is contiguous, 16 rows (2,048 bytes) otherwise; the
// swizzle follows the address bits, so a start inside a row of a box needs no offset field.
//
// D: thread t of the warpgroup, warp w = t / 32, lane l = t % 32, holds in d[4 j + 2 h + e]
//     row 16 w + l / 4 + 8 h, column 8 j + 2 (l % 4) + e.
#pragma once
#include "lib/types.cuh"

constexpr int BOX = 64, BOX_BYTES = BOX * BOX * 2;

template <bool K_CONTIGUOUS>
__device__ __forceinline__ unsigned long long matrix_descriptor(unsigned address) {
    const unsigned long long leading = K_CONTIGUOUS ? 1 : BOX_BYTES / 16, stride = 1024 / 16;
    return 1ull << 62 | stride << 32 | leading << 16 | (address & 0x3ffff) >> 4;
}

// What a step of 16 along K adds to a descriptor.
template <bool K_CONTIGUOUS>
constexpr unsigned long long descriptor_step() {
    return (K_CONTIGUOUS ? 32 : 2048) / 16;
}

// Orders earlier accesses of the registers of D before the products that follow.
__device__ __forceinline__ void products_begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void products_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until at most PENDING groups of products are under way.
template <int PENDING>
__device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from moving uses of D across the point.
template <int COUNT>
__device__ __forceinline__ void pin(float (&d)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// The first so many registers of D, as an instruction names them and as operands of its text.
#define NAMES_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64 NAMES_32 ", " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_96 NAMES_64 ", " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define NAMES_128 NAMES_96 ", " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SUMS_8(i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), \
    "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SUMS_FROM(i) SUMS_8(i), SUMS_8(i + 8), SUMS_8(i + 16), SUMS_8(i + 24)
#define SUMS_32 SUMS_FROM(0)
#define SUMS_64 SUMS_32, SUMS_FROM(32)
#define SUMS_96 SUMS_64, SUMS_FROM(64)
#define SUMS_128 SUMS_96, SUMS_FROM(96)

// D = A B if `add` is 0, else D += A B. A_MN, B_MN: 1 where M or N is contiguous.
// 256 columns.
template <int A_MN, int B_MN>
__device__ __forceinline__ void multiply_m64k16(float (&d)[128], unsigned long long a,
                                                unsigned long long b, int add) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32." HALF "." HALF " {"
        NAMES_128
        "}, %128, %129, p, 1, 1, %131, %132;\n"
        "}"
        : SUMS_128
        : "l"(a), "l"(b), "r"(add), "n"(A_MN), "n"(B_MN)
        : "memory");
}

// 192 columns.
template <int A_MN, int B_MN>
__device__ __forceinline__ void multiply_m64k16(float (&d)[96], unsigned long long a,
                                                unsigned long long b, int add) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32." HALF "." HALF " {"
        NAMES_96
        "}, %96, %97, p, 1, 1, %99, %100;\n"
        "}"
        : SUMS_96
        : "l"(a), "l"(b), "r"(add), "n"(A_MN), "n"(B_MN)
        : "memory");
}

// 128 columns.
template <int A_MN, int B_MN>
__device__ __forceinline__ void multiply_m64k16(float (&d)[64], unsigned long long a,
                                                unsigned long long b, int add) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." HALF "." HALF " {"
        NAMES_64
        "}, %64, %65, p, 1, 1, %67, %68;\n"
        "}"
        : SUMS_64
        : "l"(a), "l"(b), "r"(add), "n"(A_MN), "n"(B_MN)
        : "memory");
}

// 64 columns.
template <int A_MN, int B_MN>
__device__ __forceinline__ void multiply_m64k16(float (&d)[32], unsigned long long a,
                                                unsigned long long b, int add) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." HALF "." HALF " {"
        NAMES_32
        "}, %32, %33, p, 1, 1, %35, %36;\n"
        "}"
        : SUMS_32
        : "l"(a), "l"(b), "r"(add), "n"(A_MN), "n"(B_MN)
        : "memory");
}
