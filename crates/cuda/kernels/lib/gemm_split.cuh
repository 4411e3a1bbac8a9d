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

// A block of 256 threads finishes 64 vectors of 8 columns: four groups of 64 threads sum a quarter
// of the parts each, in order, and the first adds the quarters, ((0 + 1) + (2 + 3)).
// Blocks: ceil(batches * m * ceil(n / 8) / 64).
__device__ __forceinline__ void reduce_parts(const Parts& parts, const int (&batch)[3],
                                             float alpha, const Epi& epi, int block) {
    __shared__ float4 quarters[3][2][64];
    const int lane = threadIdx.x % 64, quarter = threadIdx.x / 64;
    const i64 vectors = (parts.n + 7) / 8, each = parts.m * vectors;
    const i64 id = (i64)block * 64 + lane;
    const bool here = id < each * parts.batches;
    const int which = here ? (int)(id / each) : 0;
    At at;
    at.row = id % each / vectors;
    at.col = id % vectors * 8;
    batch_of(which, batch, at.batch);
    at.column = nullptr;
    at.count = here ? columns_left<8>(true, (int)at.col, parts.n) : 0;
    Loads<8> in;
    if (at.count > 0 && quarter == 0) epilogue_load(epi, at, in);

    float sum[8] = {};
    const int share = (parts.splits + 3) / 4, first = quarter * share;
    const int count = here ? min(share, parts.splits - first) : 0;
    const float* p = parts.at(first, which, at.row, at.col);
    const i64 step = (i64)parts.batches * parts.m * parts.row_floats();
#pragma unroll 8
    for (int split = 0; split < count; split++, p += step) {
        float4 low = *(const float4*)p, high = *(const float4*)(p + 4);
        sum[0] += low.x, sum[1] += low.y, sum[2] += low.z, sum[3] += low.w;
        sum[4] += high.x, sum[5] += high.y, sum[6] += high.z, sum[7] += high.w;
    }
    if (quarter > 0) {
        quarters[quarter - 1][0][lane] = make_float4(sum[0], sum[1], sum[2], sum[3]);
        quarters[quarter - 1][1][lane] = make_float4(sum[4], sum[5], sum[6], sum[7]);
    }
    __syncthreads();
    if (quarter > 0 || at.count == 0) return;
    float rest[3][8];
#pragma unroll
    for (int i = 0; i < 3; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float4 four = quarters[i][half][lane];
            rest[i][4 * half] = four.x, rest[i][4 * half + 1] = four.y;
            rest[i][4 * half + 2] = four.z, rest[i][4 * half + 3] = four.w;
        }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float total = (sum[i] + rest[0][i]) + (rest[1][i] + rest[2][i]);
        sum[i] = i < at.count ? alpha * total : 0.0f;
    }
    epilogue(epi, at, in, sum);
}
