// Batched products of any strides:
//
//     C[b, m, n] = epilogue(alpha * sum over k of A[b, m, k] B[b, k, n])
//
// Serves what needs no Hopper: mma.sync on Half tiles (sm_80 and up), FFMA on f32 tiles, and
// loaders from 16-byte cp.async down to single elements for strides that are 1 nowhere.
//
// -D  COMPUTE_F32   1: f32 tiles and FFMA; 0: Half tiles and tensor cores with f32 sums
//     A_F32, B_F32  element types in global memory: f32, else Half (of B: B_HALF, in f32 tiles)
//     A_LAYOUT, B_LAYOUT   Half only: 0 K contiguous, 1 M or N contiguous, both in 16-byte steps;
//                   2 any strides, any element type (f32 is rounded to Half). f32 tiles: always 2
//     BM, BN, BK    the tile of a block; WARPS_M x WARPS_N warps share it (f32: 16 x 16 threads)
//     STAGES        tiles in flight
//     EPILOGUE      <lib/NAME.cuh>, the header that defines Epi: see lib/gemm_epilogue.cuh
//
//     BATCHED, N_WHOLE, SPLIT   see lib/gemm_epilogue.cuh
//
// Launch: grid (ceil(m / BM) * ceil(n / BN), splits, product of batch); 32 WARPS_M WARPS_N threads
// (f32: 256); dynamic shared memory STAGES * (BM + BN) * BK * 2 bytes, for f32 tiles
// STAGES * (BM + BN + 8) * BK * 4. With SPLIT, launch gemm_reduce behind it: lib/gemm_split.cuh has
// its grid (256 threads) and the workspace.
#ifndef EPILOGUE
#define EPILOGUE <lib/gemm_store.cuh>
#endif
#include EPILOGUE
#include "lib/gemm_operand.cuh"
#include "lib/gemm_split.cuh"

struct Gemm {
    const void* a;
    const void* b;
    float* work;                     // partial sums, if splits > 1
    i64 a_row, a_depth, a_outer;     // strides of A along M, K, outer K, in elements
    i64 b_col, b_depth, b_outer;     // strides of B along N, K, outer K
    i64 a_batch[3], b_batch[3];      // strides along the batch axes, outermost first
    int m, n, k;                     // sizes
    int k_outer;                     // size of a second axis of K, outside the first; 1 if none
    int batch[3];                    // sizes
    int splits;                      // blocks that share the depth of a tile
    float alpha;                     // factor on the product
    int reserved;
};

struct Params {
    Gemm gemm;
    Epi epi;
};

#if A_F32
typedef float AType;
#else
typedef Half AType;
#endif
#if B_F32
typedef float BType;
#elif defined(B_HALF)
typedef B_HALF BType;
#else
typedef Half BType;
#endif

constexpr int THREADS = COMPUTE_F32 ? 256 : 32 * WARPS_M * WARPS_N;
constexpr int ELEMENT_BYTES = COMPUTE_F32 ? 4 : 2;
constexpr int A_BYTES = (BM + (COMPUTE_F32 ? 4 : 0)) * BK * ELEMENT_BYTES;
constexpr int B_BYTES = (BN + (COMPUTE_F32 ? 4 : 0)) * BK * ELEMENT_BYTES;

__device__ __forceinline__ Parts parts_of(const Gemm& g) {
    return {g.work, g.splits, g.batch[0] * g.batch[1] * g.batch[2], g.m, g.n};
}

// What a block works on: its place in the output and its share of the slices of K.
struct Block {
    int row, col, which, batch[3], first, last, slices;
};

// Tiles are numbered so that blocks which run together touch few rows of A and columns of B:
// down eight tiles of rows, then to the next column.
__device__ __forceinline__ Block block_of(const Gemm& g) {
    const int down = (g.m + BM - 1) / BM, across = (g.n + BN - 1) / BN;
    const int group = blockIdx.x / (8 * across), height = min(8, down - 8 * group);
    const int place = blockIdx.x - group * 8 * across;
    Block x;
    x.row = (8 * group + place % height) * BM;
    x.col = place / height * BN;
    x.which = blockIdx.z;
    batch_of(x.which, g.batch, x.batch);
    x.slices = (g.k + BK - 1) / BK;
    const int total = x.slices * g.k_outer, splits = SPLIT ? g.splits : 1;
    const int share = (total + splits - 1) / splits;
    x.first = min(total, (int)blockIdx.y * share);
    x.last = min(total, x.first + share);
    return x;
}

template <int LAYOUT, int R, class T>
__device__ __forceinline__ void load_tile(unsigned char* tile, const Side<T>& x, int slice,
                                          const Block& block, int k_size) {
    const int outer = slice / block.slices, k = slice % block.slices * BK;
    const i64 base = outer * x.outer;
    if constexpr (COMPUTE_F32)
        load_floats<R, BK, THREADS>((float*)tile, x, base, k, k_size);
    else if constexpr (LAYOUT == ANY_MAJOR)
        load_elements<R, BK, THREADS>(tile, x, base, k, k_size);
    else
        load_chunks<LAYOUT, R, BK, THREADS>(shared_address(tile), x, base, k, k_size);
}

// Sends V finished columns on, or what this block has summed of them.
template <int V>
__device__ __forceinline__ void finish(const Params& p, const Block& block, const At& at,
                                       const Loads<V>& in, float (&x)[V]) {
    if constexpr (SPLIT) {
        store_part(parts_of(p.gemm), blockIdx.y, block.which, at, x);
    } else {
#pragma unroll
        for (int i = 0; i < V; i++) x[i] *= p.gemm.alpha;
        epilogue(p.epi, at, in, x);
    }
}

template <int V>
__device__ __forceinline__ At place(const Gemm& g, const Block& block, int row, int col) {
    return {row, col, {block.batch[0], block.batch[1], block.batch[2]},
            columns_left<V>(row < g.m, col, g.n)};
}

#if COMPUTE_F32

// Thread (x, y) of 16 x 16 owns rows 4 y + 0..3 and columns 4 x + 0..3 of each 64 x 64 of the tile.
constexpr int DOWN = BM / 64, ACROSS = BN / 64;

struct Sums {
    float sum[DOWN * 4][ACROSS * 4];

    __device__ __forceinline__ void slice(const unsigned char* a, const unsigned char* b) {
        const float* left = (const float*)a + threadIdx.x / 16 * 4;
        const float* right = (const float*)b + threadIdx.x % 16 * 4;
#pragma unroll 4
        for (int k = 0; k < BK; k++) {
            float4 x[DOWN], y[ACROSS];
#pragma unroll
            for (int i = 0; i < DOWN; i++) x[i] = *(const float4*)(left + k * (BM + 4) + 64 * i);
#pragma unroll
            for (int j = 0; j < ACROSS; j++) y[j] = *(const float4*)(right + k * (BN + 4) + 64 * j);
#pragma unroll
            for (int i = 0; i < DOWN * 4; i++)
#pragma unroll
                for (int j = 0; j < ACROSS * 4; j++)
                    sum[i][j] = fmaf((&x[i / 4].x)[i % 4], (&y[j / 4].x)[j % 4], sum[i][j]);
        }
    }

    __device__ __forceinline__ void finish(const Params& p, const Block& block) {
#pragma unroll
        for (int i = 0; i < DOWN * 4; i++)
#pragma unroll
            for (int j = 0; j < ACROSS; j++) {
                const int row = block.row + i / 4 * 64 + threadIdx.x / 16 * 4 + i % 4;
                const int col = block.col + j * 64 + threadIdx.x % 16 * 4;
                const At at = place<4>(p.gemm, block, row, col);
                if (at.count == 0) continue;
                const float* four = &sum[i][4 * j];
                float x[4] = {four[0], four[1], four[2], four[3]};
                Loads<4> in;
                if (!SPLIT) epilogue_load(p.epi, at, in);
                ::finish<4>(p, block, at, in, x);
            }
    }
};

#else

constexpr int WARP_M = BM / WARPS_M, WARP_N = BN / WARPS_N;
constexpr int A_FORM = A_LAYOUT == MN_MAJOR ? MN_MAJOR : K_MAJOR;
constexpr int B_FORM = B_LAYOUT == MN_MAJOR ? MN_MAJOR : K_MAJOR;
static_assert(WARP_M % 16 == 0 && WARP_N % 32 == 0, "a quad makes 8 columns of every 32");

struct Sums {
    float sum[WARP_M / 16][WARP_N / 8][4];

    __device__ __forceinline__ void slice(const unsigned char* a, const unsigned char* b) {
        const int warp = threadIdx.x / 32;
        const int m = warp / WARPS_N * WARP_M, n = warp % WARPS_N * WARP_N;
        const unsigned left = shared_address(a), right = shared_address(b);
#pragma unroll
        for (int k = 0; k < BK; k += 16) {
            unsigned x[WARP_M / 16][4], y[WARP_N / 16][4];
#pragma unroll
            for (int i = 0; i < WARP_M / 16; i++)
                load_a<A_FORM, BM, BK>(x[i], left, m + 16 * i, k);
#pragma unroll
            for (int j = 0; j < WARP_N / 16; j++)
                load_b<B_FORM, BN, BK>(y[j], right, n + 16 * j, k);
#pragma unroll
            for (int i = 0; i < WARP_M / 16; i++)
#pragma unroll
                for (int j = 0; j < WARP_N / 8; j++)
                    multiply_m16n8k16(sum[i][j], x[i], &y[j / 2][j % 2 * 2]);
        }
    }

    // Call c makes 8 rows by 32 columns of the warp's part, 8 columns of a row in each lane.
    static constexpr int CALLS = WARP_M / 8 * (WARP_N / 32);

    __device__ __forceinline__ At at(const Gemm& g, const Block& block, int call) const {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const int down = call / (WARP_N / 32) * 8, across = call % (WARP_N / 32) * 32;
        const int row = block.row + warp / WARPS_N * WARP_M + down + lane / 4;
        const int col = block.col + warp % WARPS_N * WARP_N + across + lane % 4 * 8;
        return place<8>(g, block, row, col);
    }

    __device__ __forceinline__ void finish(const Params& p, const Block& block) {
        constexpr int AHEAD = load_ahead<Loads<8>::WORDS>(CALLS, 16);
        Loads<8> in[AHEAD];
#pragma unroll
        for (int call = 0; call < AHEAD; call++) {
            const At place = at(p.gemm, block, call);
            if (place.count > 0 && !SPLIT) epilogue_load(p.epi, place, in[call]);
        }
#pragma unroll
        for (int call = 0; call < CALLS; call++) {
            const int i = call / (WARP_N / 32), group = call % (WARP_N / 32) * 4;
            float x[8];
#pragma unroll
            for (int t = 0; t < 8; t++) x[t] = sum[i / 2][group + t / 2][i % 2 * 2 + t % 2];
            quad_transpose(x);
            const At place = at(p.gemm, block, call);
            if (place.count > 0) ::finish<8>(p, block, place, in[call % AHEAD], x);
            if (call + AHEAD < CALLS) {
                const At next = at(p.gemm, block, call + AHEAD);
                if (next.count > 0 && !SPLIT) epilogue_load(p.epi, next, in[call % AHEAD]);
            }
        }
    }
};

#endif

extern "C" __global__ void __launch_bounds__(THREADS) gemm(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char shared[];
    const Gemm& g = p.gemm;
    const Block block = block_of(g);
    Side<AType> a = {(const AType*)g.a + block.row * g.a_row, g.a_row, g.a_depth, g.a_outer,
                     g.m - block.row};
    Side<BType> b = {(const BType*)g.b + block.col * g.b_col, g.b_col, g.b_depth, g.b_outer,
                     g.n - block.col};
#pragma unroll
    for (int i = 0; i < 3; i++) {
        a.data += block.batch[i] * g.a_batch[i];
        b.data += block.batch[i] * g.b_batch[i];
    }
    auto left = [&](int stage) { return shared + stage * (A_BYTES + B_BYTES); };
    auto right = [&](int stage) { return left(stage) + A_BYTES; };
    auto load = [&](int slice, int stage) {
        if (slice < block.last) {
            load_tile<A_LAYOUT, BM>(left(stage), a, slice, block, g.k);
            load_tile<B_LAYOUT, BN>(right(stage), b, slice, block, g.k);
        }
        copy_async_commit();
    };
    Sums sums = {};
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) load(block.first + i, i);
    for (int slice = block.first, stage = 0; slice < block.last; slice++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();  // this slice is there for all, and all are done with the one before it
        load(slice + STAGES - 1, stage == 0 ? STAGES - 1 : stage - 1);
        sums.slice(left(stage), right(stage));
        stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
    sums.finish(p, block);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    gemm_reduce(const __grid_constant__ Params p) {
    reduce_parts(parts_of(p.gemm), p.gemm.batch, p.gemm.alpha, p.epi, blockIdx.x);
}
