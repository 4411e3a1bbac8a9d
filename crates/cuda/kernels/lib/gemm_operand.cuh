// How a block's tiles of A and B come from global memory, for gemm.cu.
#pragma once
#include "lib/gemm_epilogue.cuh"
#include "lib/mma_gemm.cuh"

// One side of a product as a block sees it: strides in elements along M or N (`side`), along K
// (`depth`) and along the outer axis of K; `size` is what is left of M or N from this tile on.
template <class T>
struct Side {
    const T* data;
    i64 side, depth, outer;
    int size;
};

// Half tiles by 16-byte cp.async; LAYOUT says which stride is 1. The other strides and the
// address are multiples of 16 bytes. What lies beyond the sizes becomes zero.
template <int LAYOUT, int R, int DEPTH, int THREADS>
__device__ __forceinline__ void load_chunks(unsigned tile, const Side<Half>& x, i64 base, int k,
                                            int k_size) {
    constexpr int ROWS = LAYOUT == K_MAJOR ? R : DEPTH;
    constexpr int CHUNKS = (LAYOUT == K_MAJOR ? DEPTH : R) / 8;
    static_assert(ROWS * CHUNKS % THREADS == 0 && THREADS % CHUNKS == 0, "whole rounds of rows");
    const int chunk = threadIdx.x % CHUNKS, first = threadIdx.x / CHUNKS;
    const int rows = LAYOUT == K_MAJOR ? x.size : k_size - k;
    const int along = (LAYOUT == K_MAJOR ? k_size - k : x.size) - 8 * chunk;
    const int bytes = along >= 8 ? 16 : along > 0 ? 2 * along : 0;
    const i64 step = LAYOUT == K_MAJOR ? x.side : x.depth;
    const Half* from = x.data + base + k * x.depth + first * step + 8 * chunk;
#pragma unroll
    for (int i = 0; i < ROWS * CHUNKS / THREADS; i++) {
        const int row = first + i * (THREADS / CHUNKS);
        const bool here = row < rows && bytes > 0;
        const Half* source = here ? from + i * (THREADS / CHUNKS) * step : x.data;
        copy_async_16(tile + chunk_at<CHUNKS>(row, chunk), source, here ? bytes : 0);
    }
}

// Which element a thread moves in round i: lanes run along the axis of the smaller stride.
template <int R, int DEPTH, int THREADS>
__device__ __forceinline__ void element(bool along_k, int i, int& r, int& k) {
    const int id = threadIdx.x + i * THREADS;
    r = along_k ? id / DEPTH : id % R;
    k = along_k ? id % DEPTH : id / R;
}

__device__ __forceinline__ i64 distance(i64 stride) { return stride < 0 ? -stride : stride; }

// Half tiles of any strides and element type, element by element, as K_MAJOR tiles.
template <int R, int DEPTH, int THREADS, class T>
__device__ __forceinline__ void load_elements(unsigned char* tile, const Side<T>& x, i64 base,
                                              int k0, int k_size) {
    const bool along_k = distance(x.depth) < distance(x.side);
#pragma unroll 8
    for (int i = 0; i < R * DEPTH / THREADS; i++) {
        int r, k;
        element<R, DEPTH, THREADS>(along_k, i, r, k);
        float value = 0.0f;
        if (r < x.size && k0 + k < k_size)
            value = widen_any(x.data + base + r * x.side + (k0 + k) * x.depth);
        *(Half*)(tile + chunk_at<DEPTH / 8>(r, k / 8) + k % 8 * 2) = narrow<Half>(value);
    }
}

// f32 tiles [DEPTH][R + 4] of any strides: by 4-byte cp.async from f32, else element by element.
// The four floats of padding keep both orders of lanes to at most two lanes a bank.
template <int R, int DEPTH, int THREADS, class T>
__device__ __forceinline__ void load_floats(float* tile, const Side<T>& x, i64 base, int k0,
                                            int k_size) {
    const bool along_k = distance(x.depth) < distance(x.side);
#pragma unroll 8
    for (int i = 0; i < R * DEPTH / THREADS; i++) {
        int r, k;
        element<R, DEPTH, THREADS>(along_k, i, r, k);
        const bool here = r < x.size && k0 + k < k_size;
        const T* from = here ? x.data + base + r * x.side + (k0 + k) * x.depth : x.data;
        float* to = tile + k * (R + 4) + r;
        if constexpr (sizeof(T) == 4)
            copy_async_4(shared_address(to), from, here ? 4 : 0);
        else
            *to = here ? widen_any(from) : 0.0f;
    }
}
