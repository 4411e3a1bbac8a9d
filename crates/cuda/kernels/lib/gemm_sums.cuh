// Sums of A over K beside a product: the gradient of a bias beside that of its weights. Whoever
// makes a tile of C in its first columns has every element of these rows of A in shared memory.
//
// -DSUMS=1, with M contiguous in A (A_K=0), one batch (BATCHED=0).
//
// Workspace, with SPLIT: float part[splits][m], behind the parts of the product.
#pragma once
#include "lib/gemm_split.cuh"
#include "lib/wgmma.cuh"

struct Sums {
    float* out;
    i64 stride;  // elements from row to row
};

__device__ __forceinline__ float* sum_parts(const Parts& parts, int split) {
    return parts.at(parts.splits, 0, 0, 0) + (i64)split * parts.m;
}

// A warpgroup's sums of 64 M, on the cores that wait while the tensor cores multiply.
//
// A box of A is 64 rows of K, each 8 chunks of 8 M, chunk c of row r at c ^ r % 8. Warp w takes the
// chunks 2 w and 2 w + 1, of 16 rows with each load; lanes take
//
//     lane bit 0      chunk 2 w + bit
//          bits 1, 2  bits 1, 2 of the row
//          bit 3      bit 0 of the row: 8 lanes that load together touch 8 different chunks
//          bit 4      bit 3 of the row
struct RowSums {
    float x[8] = {};
    unsigned place;  // in a box, of what this lane loads first

    __device__ __forceinline__ RowSums() {
        const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
        const unsigned row = (lane & 6) + (lane >> 3 & 1) + (lane >> 4) * 8;
        const unsigned chunk = 2 * warp + lane % 2;
        place = row * 128 + (chunk ^ row % 8) * 16;
    }

    __device__ __forceinline__ void add(unsigned box) {
        u32 word[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(word[i][0]), "=r"(word[i][1]), "=r"(word[i][2]), "=r"(word[i][3])
                         : "r"(box + place + i * 16 * 128)
                         : "memory");
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                x[2 * j] += low<Half>(word[i][j]);
                x[2 * j + 1] += high<Half>(word[i][j]);
            }
    }

    // Adds what the lanes of a chunk have, by halves: a lane ends with one M of the warp's 16,
    // which it returns, in x[0]; lanes 16 apart have the same.
    __device__ __forceinline__ int finish() {
        const unsigned lane = threadIdx.x % 32;
#pragma unroll
        for (int half = 4, bit = 2; half > 0; half /= 2, bit *= 2) {
            const bool upper = lane & bit;
#pragma unroll
            for (int i = 0; i < half; i++) {
                const float other = __shfl_xor_sync(~0u, upper ? x[i] : x[i + half], bit);
                x[i] = (upper ? x[i + half] : x[i]) + other;
            }
        }
        x[0] += __shfl_xor_sync(~0u, x[0], 16);
        return (lane & 1) * 8 + (lane & 2) * 2 + (lane & 4) / 2 + (lane >> 3 & 1);
    }

    // `row`: the first of the warpgroup's 64.
    __device__ __forceinline__ void store(const Sums& sums, const Parts& parts, int split,
                                          int row) {
        row += threadIdx.x / 32 % 4 * 16 + finish();
        if (threadIdx.x % 32 >= 16 || row >= parts.m) return;
        if constexpr (SPLIT)
            sum_parts(parts, split)[row] = x[0];
        else
            sums.out[row * sums.stride] = x[0];
    }
};

// A block of 256 threads finishes 64 sums, in the order of `reduce_parts`.
__device__ __forceinline__ void reduce_sums(const Parts& parts, const Sums& sums, int block) {
    __shared__ float quarters[3][64];
    const int lane = threadIdx.x % 64, quarter = threadIdx.x / 64, row = block * 64 + lane;
    const int share = (parts.splits + 3) / 4, first = quarter * share;
    const int count = row < parts.m ? min(share, parts.splits - first) : 0;
    const float* p = sum_parts(parts, first) + row;
    float sum = 0.0f;
#pragma unroll 8
    for (int split = 0; split < count; split++, p += parts.m) sum += *p;
    if (quarter > 0) quarters[quarter - 1][lane] = sum;
    __syncthreads();
    if (quarter == 0 && row < parts.m)
        sums.out[row * sums.stride] =
            (sum + quarters[0][lane]) + (quarters[1][lane] + quarters[2][lane]);
}
