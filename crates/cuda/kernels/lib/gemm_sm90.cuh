// What the Hopper products share: parameters, and the way from sums in registers to the epilogue.
#pragma once
#include "lib/gemm_epilogue.cuh"
#include "lib/gemm_split.cuh"
#include "lib/gemm_sums.cuh"
#include "lib/tma.cuh"
#include "lib/wgmma.cuh"

// Tensor maps: Half, rank 5, box {64, 64, 1, 1, 1}, swizzle of 128 bytes, zeros out of bounds.
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

#ifndef SUMS
#define SUMS 0
#endif

// -DTERMS=2 or more: C is the sum of so many products of one batch, added up where they are made:
// their slices of K follow one another. `Gemm` has the factors and the K of the first.
#ifndef TERMS
#define TERMS 1
#endif

// A further one.
struct Term {
    TensorMap a, b;
    int k;
};

// What a launch is told of one product.
struct Member {
    Gemm gemm;
    Epi epi;
#if SUMS
    Sums sums;
#endif
#if TERMS > 1
    static_assert(!BATCHED && !SUMS, "terms have no loops around them");
    Term more[TERMS - 1];
#endif
};

// A slice of 64 of K: of which term, and which of its own.
struct Slice {
    int term, own;
};

#if TERMS > 1
__device__ __forceinline__ int depth_of(const Member& p, int term) {
    return term == 0 ? p.gemm.k : p.more[term - 1].k;
}
__device__ __forceinline__ const TensorMap& left_of(const Member& p, int term) {
    return term == 0 ? p.gemm.a : p.more[term - 1].a;
}
__device__ __forceinline__ const TensorMap& right_of(const Member& p, int term) {
    return term == 0 ? p.gemm.b : p.more[term - 1].b;
}
#else
__device__ __forceinline__ int depth_of(const Member& p, int) { return p.gemm.k; }
__device__ __forceinline__ const TensorMap& left_of(const Member& p, int) { return p.gemm.a; }
__device__ __forceinline__ const TensorMap& right_of(const Member& p, int) { return p.gemm.b; }
#endif

__device__ __forceinline__ int slices_of(const Member& p) {
    int slices = 0;
#pragma unroll
    for (int term = 0; term < TERMS; term++) slices += (depth_of(p, term) + BOX - 1) / BOX;
    return slices;
}

__device__ __forceinline__ Slice slice_of(const Member& p, int slice) {
    Slice x = {0, slice};
#pragma unroll
    for (int term = 1; term < TERMS; term++) {
        const int behind = x.own - (depth_of(p, term - 1) + BOX - 1) / BOX;
        if (x.term == term - 1 && behind >= 0) x = {term, behind};
    }
    return x;
}

// -DMEMBERS=2 or more: products of one batch that have a factor in common share a launch, so that
// what they read of it together is read once. K, splits and everything that is compiled are the
// same for all. They have the right factor in common and as many columns, and their tiles lie below
// one another; with -DBESIDE=1 the left one and as many rows, and their tiles lie side by side.
#ifndef MEMBERS
#define MEMBERS 1
#endif
#ifndef BESIDE
#define BESIDE 0
#endif

#if MEMBERS == 1
typedef Member Params;
#else
static_assert(!BATCHED, "members have no loops around them");
struct Params {
    Member member[MEMBERS];
};
#endif

__device__ __forceinline__ const Member& member_of(const Params& p, int i) {
#if MEMBERS == 1
    return p;
#else
    return p.member[i];
#endif
}

static_assert(sizeof(Gemm) == 320, "the host writes this layout");

// -DB_PERMUTED=1 (with B_K = 1, B without batch axes, n a multiple of 32): the tensor map of B has
// the axes {k, 2, 4, 4, n / 32} with the strides of n {1, 8, 2, 32} and the box {64, 2, 4, 4, 2}.
// Row 8 j + 2 q + e of a box then holds column 32 (j / 4) + 8 q + 2 (j % 4) + e of B, so that lane
// q of a quad has 8 consecutive columns in its sums, and lanes have nothing to exchange.
#ifndef B_PERMUTED
#define B_PERMUTED 0
#endif

__device__ __forceinline__ Parts parts_of(const Gemm& g) {
    return {g.work, g.splits, g.batch[0] * g.batch[1] * g.batch[2], g.m, g.n};
}

// A warpgroup's 64 rows by COLS columns on their way out; call c makes 8 rows by 32 columns of
// each warp, 8 columns of a row in each lane. ROOM: registers for what the epilogue reads at most.
template <int COLS, int ROOM>
struct Tile {
    static constexpr int CALLS = COLS / 16, WORDS = Loads<8>::WORDS;
    // Calls loaded for during the product, and at most, in the place of sums that have left.
    static constexpr int EARLY = load_ahead<WORDS>(CALLS, COLS > 256 ? 16 : 32);
    static constexpr int MOST = load_ahead<WORDS>(CALLS, ROOM);

    const Member& p;
    const float* columns;  // the tile's, in shared memory: see EPILOGUE_COLUMN
    int row, col, which, split, batch[3];
    Loads<8> in[MOST];

    __device__ __forceinline__ Tile(const Member& params, const float* columns_, int row0,
                                    int col0, int which_, int split_)
        : p(params), columns(columns_), which(which_), split(split_) {
        const int thread = threadIdx.x % 128, lane = thread % 32;
        row = row0 + thread / 32 * 16 + lane / 4;
        col = col0 + lane % 4 * 8;
        batch_of(which, p.gemm.batch, batch);
    }

    __device__ __forceinline__ At at(int call) const {
        const int r = row + call % 2 * 8, c = col + call / 2 * 32;
        return {r, c, {batch[0], batch[1], batch[2]},
                columns_left<8>(r < p.gemm.m, c, p.gemm.n),
                EPILOGUE_COLUMN ? columns + threadIdx.x % 4 * 8 + call / 2 * 32 : nullptr};
    }

    __device__ __forceinline__ void load(int call) {
        const At x = at(call);
        Loads<8> own = {};  // so that nothing is thought to be kept from before
        if (x.count > 0 && !SPLIT) epilogue_load(p.epi, x, own);
        in[call % MOST] = own;
    }

    // Calls that have been loaded for when so many have left: half of their sums make room.
    static constexpr __device__ int loaded(int left) {
        const int room = EARLY + left * 4 / (WORDS == 0 ? 4 : WORDS);
        const int all = left + (room < MOST ? room : MOST);
        return all < CALLS ? all : CALLS;
    }

    // To be called early: these reads overlap the product.
    __device__ __forceinline__ void load_first() {
#pragma unroll
        for (int call = 0; call < loaded(0); call++) load(call);
    }

    __device__ __forceinline__ void finish(const float (&sum)[COLS / 2]) {
#pragma unroll
        for (int call = 0; call < CALLS; call++) {
            float x[8];
#pragma unroll
            for (int t = 0; t < 8; t++)
                x[t] = sum[call / 2 * 16 + t / 2 * 4 + call % 2 * 2 + t % 2];
            if (!B_PERMUTED) quad_transpose(x);
            const At place = at(call);
            if (place.count > 0) {
                if constexpr (SPLIT) {
                    store_part(parts_of(p.gemm), split, which, place, x);
                } else {
#pragma unroll
                    for (int t = 0; t < 8; t++) x[t] *= p.gemm.alpha;
                    epilogue(p.epi, place, in[call % MOST], x);
                }
            }
#pragma unroll
            for (int next = loaded(call); next < loaded(call + 1); next++) load(next);
        }
    }
};

// Puts the columns of a tile into shared memory, by so many threads.
template <int COLS, int THREADS>
__device__ __forceinline__ void stage_columns(const Member& p, float* columns, int col,
                                              int thread) {
#if EPILOGUE_COLUMN
#pragma unroll
    for (int i = thread; i < COLS; i += THREADS)
        columns[i] = col + i < p.gemm.n ? epilogue_column(p.epi, col + i) : 0.0f;
#endif
}

// Where an operand is copied from: its map, and the batch coordinates.
struct Source {
    const TensorMap& map;
    int batch[3];

    __device__ __forceinline__ Source(const TensorMap& m, int which, const int (&sizes)[3],
                                      const int (&has)[3])
        : map(m) {
        batch_of(which, sizes, batch);
#pragma unroll
        for (int i = 0; i < 3; i++) batch[i] *= has[i];
    }

    // The 64 x 64 from index `side` of M or N and `depth` of K on, to each of `blocks` (0: here).
    template <bool K_CONTIGUOUS, bool PERMUTED = false>
    __device__ __forceinline__ void copy(unsigned to, unsigned bar, int side, int depth,
                                         unsigned short blocks = 0) const {
        const int inner = K_CONTIGUOUS ? depth : side, outer = K_CONTIGUOUS ? side : depth;
        if constexpr (PERMUTED)
            copy_box(to, map, bar, depth, 0, 0, 0, side / 32, blocks);
        else
            copy_box(to, map, bar, inner, outer, batch[2], batch[1], batch[0], blocks);
    }
};

// 16 of K. The 320 columns of the widest tile take two instructions, which both start at a box.
template <bool LEFT_K, bool RIGHT_K, int COUNT>
__device__ __forceinline__ void multiply_step(float (&sum)[COUNT], unsigned long long left,
                                              unsigned long long right, int add) {
    if constexpr (COUNT == 160) {
        float(&low)[96] = *(float(*)[96])sum, (&high)[64] = *(float(*)[64])(sum + 96);
        multiply_m64k16<!LEFT_K, !RIGHT_K>(low, left, right, add);
        multiply_m64k16<!LEFT_K, !RIGHT_K>(high, left, right + 3 * BOX_BYTES / 16, add);
    } else {
        multiply_m64k16<!LEFT_K, !RIGHT_K>(sum, left, right, add);
    }
}

// Issues sum += A B over the 64 of K in one box of A and the boxes of B beside it.
template <bool LEFT_K, bool RIGHT_K, int COUNT>
__device__ __forceinline__ void multiply_box(float (&sum)[COUNT], unsigned a, unsigned b, bool add) {
    const unsigned long long left = matrix_descriptor<LEFT_K>(a);
    const unsigned long long right = matrix_descriptor<RIGHT_K>(b);
    products_begin();
#pragma unroll
    for (int k = 0; k < BOX / 16; k++)
        multiply_step<LEFT_K, RIGHT_K>(sum, left + k * descriptor_step<LEFT_K>(),
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
