// Folds over the lanes of a group of threads, in an order that depends on nothing but its size.
#pragma once
#include "lib/math.cuh"
#include "lib/vec.cuh"

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
// whole block, and `shared` is N * GROUP / 32 floats that nobody else uses meanwhile. With AGAIN
// the next fold may use the same ones; without, the one after the next.
template <class Fold, int GROUP, bool AGAIN = true, int N>
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
        if (AGAIN) __syncthreads();
    }
}

// The second phase of a reduction: `columns` columns of `chunks` rows of partial results, `pitch`
// apart, which all are multiples of W. A block of 1024 threads has 32 neighbouring columns, and
// every lane of warp w gets the result of column blockIdx.x * 32 + w. Sums are of f64:
//
//   thread t reads W columns from t % (32 / W) * W on, of rows t / (32 / W), + 32 W, + 64 W, ...;
//   a warp's W threads of the same columns fold, then the 32 warps.
template <class Fold, int W>
__device__ __forceinline__ f64 fold_partials(const f32* partials, u32 columns, u32 chunks,
                                             u64 pitch) {
    constexpr u32 ABREAST = 32 / W;
    __shared__ f64 shared[32][33];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 column = blockIdx.x * 32 + lane % ABREAST * W;
    f64 sum[W];
#pragma unroll
    for (int i = 0; i < W; ++i) sum[i] = Fold::zero();
    if (column < columns) {
#pragma unroll 4
        for (u32 chunk = threadIdx.x / ABREAST; chunk < chunks; chunk += 32 * W) {
            Vec<f32, W> x = load<f32, W>(partials, chunk * pitch + column);
#pragma unroll
            for (int i = 0; i < W; ++i) sum[i] = Fold::join(sum[i], f64(get(x, i)));
        }
    }
#pragma unroll
    for (int i = 0; i < W; ++i) {
#pragma unroll
        for (int apart = 16; apart >= int(ABREAST); apart /= 2) {
            sum[i] = Fold::join(sum[i], __shfl_xor_sync(0xffffffffu, sum[i], apart));
        }
        if (lane < ABREAST) shared[warp][lane * W + i] = sum[i];
    }
    __syncthreads();
    f64 result = shared[lane][warp];
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) {
        result = Fold::join(result, __shfl_xor_sync(0xffffffffu, result, apart));
    }
    return result;
}
