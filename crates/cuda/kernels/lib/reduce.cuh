// Folds over the lanes of a group of threads, in an order that depends on nothing but its size.
#pragma once
#include "lib/math.cuh"

struct Sum {
    static __device__ __forceinline__ f32 zero() { return 0.0f; }
    template <class F>
    static __device__ __forceinline__ F join(F a, F b) {
        return a + b;
    }
};

// NaN if any value is.
struct Max {
    static __device__ __forceinline__ f32 zero() { return -math::infinity(); }
    static __device__ __forceinline__ f32 join(f32 a, f32 b) {
        f32 y;
        asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
        return y;
    }
    template <class F>
    static __device__ __forceinline__ F join(F a, F b) {
        return a > b || a != a ? a : b;
    }
};

// The fold over neighbouring lanes of a warp; all of them get it.
template <class Fold, int GROUP>
__device__ __forceinline__ f32 fold_lanes(f32 x) {
#pragma unroll
    for (int apart = GROUP / 2; apart > 0; apart /= 2) {
        x = Fold::join(x, __shfl_xor_sync(0xffffffffu, x, apart));
    }
    return x;
}

// N folds over GROUP threads at once; all of them get the results. More lanes than a warp's are the
// whole block, and `shared` is N * GROUP / 32 floats that nobody else uses meanwhile.
template <class Fold, int GROUP, int N>
__device__ __forceinline__ void fold_group(f32 (&x)[N], f32* shared) {
    constexpr int WARPS = GROUP / 32;
#pragma unroll
    for (int n = 0; n < N; ++n) x[n] = fold_lanes<Fold, GROUP < 32 ? GROUP : 32>(x[n]);
    if constexpr (WARPS > 1) {
        u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        if (lane == 0) {
#pragma unroll
            for (int n = 0; n < N; ++n) shared[n * WARPS + warp] = x[n];
        }
        __syncthreads();
#pragma unroll
        for (int n = 0; n < N; ++n) {
            x[n] = fold_lanes<Fold, WARPS>(shared[n * WARPS + lane % WARPS]);
        }
        __syncthreads();  // the next fold may write
    }
}

// The second phase of a reduction: column `column` of `chunks` rows of partial results, `pitch`
// apart. A block of 32 by 32 threads has 32 neighbouring columns; the threads of its first warp get
// the results. Rows are added by 32 threads, 32 rows apart, and these in order, in f64.
template <class Fold>
__device__ __forceinline__ f64 fold_partials(const f32* partials, u32 column, u32 columns,
                                             u32 chunks, u64 pitch) {
    __shared__ f64 shared[32][33];
    u32 x = threadIdx.x % 32, y = threadIdx.x / 32;
    f64 result = Fold::zero();
    if (column < columns) {
#pragma unroll 4
        for (u32 chunk = y; chunk < chunks; chunk += 32) {
            result = Fold::join(result, f64(partials[chunk * pitch + column]));
        }
    }
    shared[y][x] = result;
    __syncthreads();
    if (y > 0) return 0.0;
    for (int i = 1; i < 32; ++i) result = Fold::join(result, shared[i][x]);
    return result;
}
