// What the Hopper products share: parameters, and the way from sums in registers to the epilogue.
#pragma once
#include "lib/gemm_epilogue.cuh"
#include "lib/gemm_split.cuh"
#include "lib/tma.cuh"
#include "lib/wgmma.cuh"

// Tensor maps: bf16, rank 5, box {64, 64, 1, 1, 1}, swizzle of 128 bytes, zeros out of bounds.
// Axes, innermost first: of A {k, m}, or {m, k} where M is contiguous; of B {k, n} or {n, k}; then
// batch axes 2, 1, 0. An operand that lacks a batch axis has size 1 there and `batched` 0.
struct Gemm {
    TensorMap a, b;
    float* work;                          // partial sums, if splits > 1: see gemm_split.cuh
    int m, n, k;                          // sizes
    int batch[3];                         // sizes, outermost first
    int a_batched[3], b_batched[3];       // 1 where the operand has the batch axis, else 0
    int splits;                           // work items that share the depth of a tile
    float alpha;                          // factor on the product
};

struct Params {
    Gemm gemm;
    Epi epi;
};

static_assert(sizeof(Gemm) == 320, "the host writes this layout");

// A warpgroup's 64 rows by COLS columns on their way out; call c makes 8 rows by 32 columns of
// each warp, 8 columns of a row in each lane.
template <int COLS>
struct Tile {
    static constexpr int CALLS = COLS / 16, AHEAD = load_ahead<Loads<8>::WORDS>(CALLS);

    const Params& p;
    int row, col, which, split, batch[3];
    Loads<8> in[AHEAD];

    __device__ __forceinline__ Tile(const Params& params, int row0, int col0, int which_, int split_)
        : p(params), which(which_), split(split_) {
        const int thread = threadIdx.x % 128, lane = thread % 32;
        row = row0 + thread / 32 * 16 + lane / 4;
        col = col0 + lane % 4 * 8;
        const int(&sizes)[3] = p.gemm.batch;
        batch[2] = which % sizes[2];
        batch[1] = which / sizes[2] % sizes[1];
        batch[0] = which / sizes[2] / sizes[1];
    }

    __device__ __forceinline__ At at(int call) const {
        At x = {row + call % 2 * 8, col + call / 2 * 32, {batch[0], batch[1], batch[2]}, 0};
        const int left = p.gemm.n - (int)x.col;
        x.count = x.row >= p.gemm.m || left < 0 ? 0 : left > 8 ? 8 : left;
        return x;
    }

    __device__ __forceinline__ void load(int call) {
        const At x = at(call);
        if (x.count > 0 && p.gemm.splits == 1) epilogue_load(p.epi, x, in[call % AHEAD]);
    }

    // To be called early: these reads overlap the product.
    __device__ __forceinline__ void load_first() {
#pragma unroll
        for (int call = 0; call < AHEAD; call++) load(call);
    }

    __device__ __forceinline__ void finish(const float (&sum)[COLS / 2]) {
#pragma unroll
        for (int call = 0; call < CALLS; call++) {
            float x[8];
#pragma unroll
            for (int t = 0; t < 8; t++) x[t] = sum[call / 2 * 16 + t / 2 * 4 + call % 2 * 2 + t % 2];
            quad_transpose(x);
            const At place = at(call);
            if (place.count > 0) {
                if (p.gemm.splits > 1) {
                    const int(&sizes)[3] = p.gemm.batch;
                    Parts parts = {p.gemm.work, p.gemm.splits, sizes[0] * sizes[1] * sizes[2],
                                   p.gemm.m, p.gemm.n};
                    store_part(parts, split, which, place, x);
                } else {
#pragma unroll
                    for (int t = 0; t < 8; t++) x[t] *= p.gemm.alpha;
                    epilogue(p.epi, place, in[call % AHEAD], x);
                }
            }
            if (call + AHEAD < CALLS) load(call + AHEAD);
        }
    }
};

// Batch coordinates of an operand.
struct Coordinates {
    int batch[3];

    __device__ __forceinline__ Coordinates(int which, const int (&sizes)[3], const int (&has)[3]) {
        batch[2] = which % sizes[2] * has[2];
        batch[1] = which / sizes[2] % sizes[1] * has[1];
        batch[0] = which / sizes[2] / sizes[1] * has[0];
    }
};

// The 64 x 64 of an operand from index `side` of M or N and `depth` of K.
template <bool K_CONTIGUOUS>
__device__ __forceinline__ void copy_operand(unsigned to, const TensorMap& map, unsigned bar,
                                             int side, int depth, const Coordinates& at) {
    copy_box(to, map, bar, K_CONTIGUOUS ? depth : side, K_CONTIGUOUS ? side : depth, at.batch);
}

template <bool K_CONTIGUOUS>
__device__ __forceinline__ void copy_operand_to(unsigned short blocks, unsigned to,
                                                const TensorMap& map, unsigned bar, int side,
                                                int depth, const Coordinates& at) {
    copy_box_to(blocks, to, map, bar, K_CONTIGUOUS ? depth : side, K_CONTIGUOUS ? side : depth,
                at.batch);
}

// Issues sum += A B over the 64 of K that lie in one box of A and COLS / 64 boxes of B.
template <bool LEFT_K, bool RIGHT_K, int SUMS>
__device__ __forceinline__ void multiply_box(float (&sum)[SUMS], unsigned a, unsigned b, bool add) {
    const unsigned long long left = matrix_descriptor<LEFT_K>(a), right = matrix_descriptor<RIGHT_K>(b);
    products_begin();
#pragma unroll
    for (int k = 0; k < BOX / 16; k++)
        multiply_m64k16<!LEFT_K, !RIGHT_K>(sum, left + k * descriptor_step<LEFT_K>(),
                                    right + k * descriptor_step<RIGHT_K>(), add || k > 0);
    products_commit();
}

__device__ __forceinline__ unsigned shared_of(const void* p) {
    return (unsigned)__cvta_generic_to_shared(p);
}

// Where dynamic shared memory reaches a multiple of 1,024 bytes, what the swizzle repeats in.
__device__ __forceinline__ unsigned boxes_start(const void* shared) {
    return (shared_of(shared) + 1023) & ~1023u;
}
