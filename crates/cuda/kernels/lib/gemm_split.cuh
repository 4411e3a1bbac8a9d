// Split products: several blocks sum parts of K for one tile of C, a second kernel adds the parts
// in the order of K and runs the epilogue. The cut follows from shapes alone, so the bits do not
// depend on the device or on what else runs.
//
// Workspace: float part[splits][batches][m][round_up(n, 8)], 16-byte aligned.
#pragma once
#include "lib/gemm_epilogue.cuh"

struct Parts {
    float* data;
    int splits, batches, m, n;

    __device__ __forceinline__ i64 row_floats() const { return (n + 7) / 8 * 8; }

    __device__ __forceinline__ float* at(int split, int batch, i64 row, i64 col) const {
        return data + (((i64)split * batches + batch) * m + row) * row_floats() + col;
    }
};

// Stores whole vectors: rows are padded, so a ragged end needs no care.
template <int V>
__device__ __forceinline__ void store_part(const Parts& parts, int split, int batch, const At& at,
                                           const float (&x)[V]) {
    store(parts.at(split, batch, at.row, at.col), V, x);
}

// One thread per 8 columns of a row; grid: cover batches * m * ceil(n / 8) threads.
__device__ __forceinline__ void reduce_parts(const Parts& parts, const int (&batch)[3],
                                             float alpha, const Epi& epi) {
    const i64 vectors = (parts.n + 7) / 8, each = parts.m * vectors;
    i64 id = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= each * parts.batches) return;
    int which = (int)(id / each);
    At at;
    at.row = id % each / vectors;
    at.col = id % vectors * 8;
    batch_of(which, batch, at.batch);
    at.count = columns_left<8>(true, (int)at.col, parts.n);
    Loads<8> in;
    epilogue_load(epi, at, in);
    float sum[8] = {};
    const float* p = parts.at(0, which, at.row, at.col);
    const i64 step = (i64)parts.batches * parts.m * parts.row_floats();
#pragma unroll 8
    for (int split = 0; split < parts.splits; split++, p += step) {
        float4 low = *(const float4*)p, high = *(const float4*)(p + 4);
        sum[0] += low.x, sum[1] += low.y, sum[2] += low.z, sum[3] += low.w;
        sum[4] += high.x, sum[5] += high.y, sum[6] += high.z, sum[7] += high.w;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) sum[i] = i < at.count ? alpha * sum[i] : 0.0f;
    epilogue(epi, at, in, sum);
}
