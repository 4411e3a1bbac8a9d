// The few PTX instructions that tensor-core kernels of sm_80 and up are written in.
#pragma once
#include "lib/types.cuh"

constexpr u32 INF_BITS = 0x7f800000u;

__device__ __forceinline__ float infinity() { return __uint_as_float(INF_BITS); }

/// A shared-memory address as the 32-bit number that PTX takes.
__device__ __forceinline__ u32 shared_address(const void* at) {
    return static_cast<u32>(__cvta_generic_to_shared(at));
}

/// Copies 16 bytes past the registers and L1; without `valid`, 16 bytes of zero and no read.
__device__ __forceinline__ void copy_async(u32 to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void copy_commit() {
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}

/// Waits until at most `PENDING` groups of this thread's copies are under way.
template <int PENDING>
__device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

/// Four 8x8 matrices of Half: lane l gives the address of row l % 8 of matrix l / 8, and gets
/// elements (l / 4, 2 (l % 4)) and the next of each.
__device__ __forceinline__ void ldmatrix(u32 (&to)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from));
}

/// The same of the transposed matrices.
__device__ __forceinline__ void ldmatrix_trans(u32 (&to)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from));
}

/// Waits for the `threads` threads that share barrier ID (0 is that of __syncthreads). The number
/// is a constant, or a block would hold all 16.
template <u32 ID>
__device__ __forceinline__ void barrier(u32 threads) {
    asm volatile("bar.sync %0, %1;\n" ::"n"(ID), "r"(threads) : "memory");
}

/// 2^x; of -inf exactly 0.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float log2_approx(float x) {
    float y;
    asm("lg2.approx.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

/// Two f32 rounded to nearest, `first` in the low half.
__device__ __forceinline__ u32 pack_half(float first, float second) {
    return pack<Half>(first, second);
}

/// The sum of the products of eight pairs.
__device__ __forceinline__ float dot_half(uint4 a, uint4 b) {
    const u32 x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        sum = fmaf(low<Half>(x[i]), low<Half>(y[i]), sum);
        sum = fmaf(high<Half>(x[i]), high<Half>(y[i]), sum);
    }
    return sum;
}
