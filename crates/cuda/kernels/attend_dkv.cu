// Attention backward, dk and dv: of each tile of keys, over the units of queries that see it.
//
//   p^T = exp(scale k q^T - lse), ds^T = p^T (v do^T - D), dv = p^T do, dk = scale ds^T q
//
// Scores are made transposed: p^T and ds^T come out of the tensor cores as left factors of the
// next products. A block of 8 warps owns 64 MT keys and works in pairs: warps 2 i and 2 i + 1 own
// 16 MT keys, each makes the scores of half of a unit's queries (32), and each has half of the
// columns of dk and dv (16 of every 32), over all 64. With a whole row of dk and dv a warp's
// accumulators would leave no room for 32 keys, and with 16 keys every fragment would feed one
// product only. So each warp hands its 32 queries' p^T and ds^T to its partner through shared
// memory, as registers (what a lane writes, the same lane of the partner reads), and multiplies
// its own while it waits.
//
//   shared memory   k [64 MT][DQ], v [64 MT][DV]
//                   exchange: 8 warps [2 (p, ds)][2][MT][32 lanes] of 16 bytes
//                   stage 0: q [64][DQ], do [64][DV], (lse, D) [64] | stage 1 ...
//
// FUSED=1 is the whole backward of launches in which every tile of queries sees one tile of keys
// and the other way round (packed columns): D is made here from o and do, which saves attend_stats;
// ds^T goes through shared memory, dq = scale ds k, and no second kernel reads the operands again.
// Needs MT = 1, STAGES = 1 and group = 1.
//
// Where several query heads share keys, a block sums over them in their order: one owner, fixed
// order, no atomics.
//
// -D: DQ, DV, ROW_TILES, STAGES, BLOCKS, PACK as in attend_fwd; FUSED 0|1. Grid: batch * kv * tiles
// blocks of 256; dynamic shared memory: 2 bytes * (64 MT + STAGES 64) * (DQ + DV) + 16384 MT +
// STAGES 512 + (FUSED ? 8192 : 0).
#include "lib/attend_tile.cuh"
#include "lib/attend_walk.cuh"

constexpr int THREADS = 256;
constexpr int MT = ROW_TILES;
constexpr int ROWS = 64 * MT;
constexpr u32 K_BYTES = ROWS * DQ * 2;
constexpr u32 OWN_BYTES = ROWS * (DQ + DV) * 2;
constexpr u32 WARP_BYTES = 2 * MT * 2 * 32 * 16;
constexpr u32 Q_BYTES = UNIT * DQ * 2;
constexpr u32 TILES_BYTES = UNIT * (DQ + DV) * 2;
constexpr u32 STAGE_BYTES = TILES_BYTES + UNIT * 8;
constexpr u32 STAGES_AT = OWN_BYTES + 8 * WARP_BYTES;
#if FUSED
constexpr u32 SCORES_AT = STAGES_AT + STAGES * STAGE_BYTES;  // ds^T [64 keys][64 queries]
#endif

struct Sums {
    float dk[MT][DQ / 16][4], dv[MT][DV / 16][4];
};

/// p^T and ds^T of this warp's keys and half of the queries, rounded, as left factors.
__device__ __forceinline__ void scores(const Params& p, u32 code, u32 row, u32 half, u32 base,
                                       u32 stage, const float4* stats, u32 (&pa)[2][MT][4],
                                       u32 (&da)[2][MT][4]) {
    const u32 lane = lane_anew();
    float s[MT][4][4];
    clear(s);
    multiply_rows<MT, 32, DQ>(s, rows_first<DQ>(base, lane).from(row),
                              chunks_first<DQ>(stage, lane).from(32 * half));
    if (code != FULL) {
#pragma unroll
        for (int m = 0; m < MT; ++m)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const u32 key = row % UNIT + 16 * m + 8 * r + lane / 4;
                mask_scores(s[m], 0, r, __ldg(mask_row(p, code, true, key) + half), lane);
            }
    }
    // Columns 2t and 2t + 1 of tile n: lse, D of two queries in one word.
    const float4* of = stats + 16 * half + lane % 4;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
        const float4 two = of[4 * n];
#pragma unroll
        for (int m = 0; m < MT; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float lse = i % 2 == 0 ? two.x : two.z;
                s[m][n][i] = exp2_approx(fmaf(s[m][n][i], p.scale_log2, -lse));
            }
    }
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int m = 0; m < MT; ++m) pack_a(pa[j][m], s[m][2 * j], s[m][2 * j + 1]);
    float dp[MT][4][4];
    clear(dp);
    const u32 again = lane_anew();
    multiply_rows<MT, 32, DV>(dp, rows_first<DV>(base + K_BYTES, again).from(row),
                              chunks_first<DV>(stage + Q_BYTES, again).from(32 * half));
#pragma unroll
    for (int n = 0; n < 4; ++n) {
        const float4 two = of[4 * n];
#pragma unroll
        for (int m = 0; m < MT; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                s[m][n][i] *= dp[m][n][i] - (i % 2 == 0 ? two.y : two.w);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int m = 0; m < MT; ++m) pack_a(da[j][m], s[m][2 * j], s[m][2 * j + 1]);
}

/// dk and dv of this warp's columns += 32 queries, which are the `half` of the unit.
__device__ __forceinline__ void add(Sums& sums, const u32 (&pa)[2][MT][4],
                                    const u32 (&da)[2][MT][4], u32 stage, u32 half, u32 columns) {
    const u32 lane = lane_anew();
    const auto out = rows_first<DV>(stage + Q_BYTES, lane).from(32 * half).half(columns);
    const auto q = rows_first<DQ>(stage, lane).from(32 * half).half(columns);
#pragma unroll
    for (int j = 0; j < 2; ++j) multiply_depth16<MT, DV / 2, 4>(sums.dv, pa[j], out, 16 * j);
#pragma unroll
    for (int j = 0; j < 2; ++j) multiply_depth16<MT, DQ / 2, 4>(sums.dk, da[j], q, 16 * j);
}

__device__ __forceinline__ void wait_for_partner(u32 pair) {
    if (pair == 0) barrier<1>(64);
    if (pair == 1) barrier<2>(64);
    if (pair == 2) barrier<3>(64);
    if (pair == 3) barrier<4>(64);
}

/// One unit of queries: scores, exchange, sums.
__device__ __forceinline__ void unit(const Params& p, u32 code, u32 row, u32 half,
                                     unsigned char* shared, u32 base, u32 at, Sums& sums) {
    u32 pa[2][MT][4], da[2][MT][4];
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const float4* stats = reinterpret_cast<const float4*>(shared + at + TILES_BYTES);
    scores(p, code, row, half, base, base + at, stats, pa, da);
    uint4* own = reinterpret_cast<uint4*>(shared + OWN_BYTES + warp * WARP_BYTES) + lane;
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            const u32(&x)[4] = pa[j][m];
            const u32(&y)[4] = da[j][m];
            own[(j * MT + m) * 32] = make_uint4(x[0], x[1], x[2], x[3]);
            own[(2 * MT + j * MT + m) * 32] = make_uint4(y[0], y[1], y[2], y[3]);
        }
#if FUSED
    // ds^T by keys and queries, rows of 64: words (g, 2t..) of each 8x8 matrix.
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const u32 to = chunk_at<64>(row + 8 * (i % 2) + lane / 4, 4 * half + 2 * j + i / 2);
            *reinterpret_cast<u32*>(shared + SCORES_AT + to + 4 * (lane % 4)) = da[j][0][i];
        }
#endif
    add(sums, pa, da, base + at, half, half);
    wait_for_partner(warp / 2);
    const uint4* other =
        reinterpret_cast<uint4*>(shared + OWN_BYTES + (warp ^ 1) * WARP_BYTES) + lane;
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            const uint4 x = other[(j * MT + m) * 32], y = other[(2 * MT + j * MT + m) * 32];
            pa[j][m][0] = x.x, pa[j][m][1] = x.y, pa[j][m][2] = x.z, pa[j][m][3] = x.w;
            da[j][m][0] = y.x, da[j][m][1] = y.y, da[j][m][2] = y.z, da[j][m][3] = y.w;
        }
    add(sums, pa, da, base + at, 1 - half, half);
}

#if FUSED
/// Four threads of a query: their share of its row of o, asked for while tiles are under way.
struct OutRow {
    uint4 word[DV / 32];
    float lse, dlse;
};

__device__ __forceinline__ OutRow read_out(const Params& p, const Work& w, u32 query_unit) {
    OutRow row{};
    const u32 first = query_unit * p.query_step, x = first + threadIdx.x / 4;
    row.lse = -infinity();
    if (x >= min(p.queries, first + p.query_step)) return row;
    const Half* o = reinterpret_cast<const Half*>(p.o.address) + head_at(p.o, w, 0) +
                    query_positions(p, p.o).at(x);
#pragma unroll
    for (int i = 0; i < DV / 32; ++i)
        row.word[i] = __ldg(reinterpret_cast<const uint4*>(o) + threadIdx.x % 4 + 4 * i);
    row.lse = __ldg(reinterpret_cast<const float*>(p.lse.address) + head_at(p.lse, w, 0) +
                    query_positions(p, p.lse).at(x));
    if (p.dlse.address != 0)
        row.dlse = __ldg(reinterpret_cast<const float*>(p.dlse.address) + head_at(p.dlse, w, 0) +
                         query_positions(p, p.dlse).at(x));
    return row;
}

/// lse and D of the unit's queries, once do is there.
__device__ __forceinline__ void make_stats(const OutRow& row, unsigned char* stage) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < DV / 32; ++i) {
        const u32 at = Q_BYTES + chunk_at<DV>(threadIdx.x / 4, threadIdx.x % 4 + 4 * i);
        sum += dot_half(row.word[i], *reinterpret_cast<const uint4*>(stage + at));
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if (threadIdx.x % 4 == 0)
        reinterpret_cast<float2*>(stage + TILES_BYTES)[threadIdx.x / 4] =
            stats_of(row.lse, sum, row.dlse);
}

#endif

/// Writes dk and dv to `shared`, over tiles that are no longer needed, and from there.
__device__ __forceinline__ void finish(const Params& p, const Work& w, u32 row, u32 half,
                                       unsigned char* shared, const Sums& sums) {
    const u32 lane = lane_anew();
    float scale[MT][2], one[MT][2];
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) scale[m][r] = p.scale, one[m][r] = 1.0f;
    stage_rows<MT, DQ / 16, 4, DQ>(shared, sums.dk, scale, row, 2 * half, lane);
    stage_rows<MT, DV / 16, 4, DV>(shared + K_BYTES, sums.dv, one, row, 2 * half, lane);
    __syncthreads();
    const u32 first = w.tile * MT * p.key_step;
    const u32 end = min(p.keys, first + MT * p.key_step);
    Half* dk = reinterpret_cast<Half*>(p.dk.address) + head_at(p.dk, w, 0);
    Half* dv = reinterpret_cast<Half*>(p.dv.address) + head_at(p.dv, w, 0);
    store_rows<ROWS, DQ, THREADS>(shared, dk, key_positions(p, p.dk), first, end);
    store_rows<ROWS, DV, THREADS>(shared + K_BYTES, dv, key_positions(p, p.dv), first, end);
}

#if FUSED
/// dq of the unit's queries: a pair of warps has 16 of them, a warp half of the columns. It leaves
/// through the room of the exchange.
__device__ __forceinline__ void finish_dq(const Params& p, const Work& w, u32 query_unit, u32 row,
                                          u32 half, unsigned char* shared, u32 base) {
    const u32 lane = lane_anew();
    float dq[1][DQ / 16][4];
    clear(dq);
    // A = ds from [key][query] transposed: 16 keys of depth, queries from `row` on.
    const u32 from = base + SCORES_AT + chunk_at<64>((lane & 7) + ((lane >> 4) << 3),
                                                     row / 8 + ((lane >> 3) & 1));
    const auto k = rows_first<DQ>(base, lane).half(half);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        u32 a[1][4];
        ldmatrix_trans(a[0], from + 16 * j * 128);
        multiply_depth16<1, DQ / 2, 4>(dq, a, k, 16 * j);
    }
    const float factor[1][2] = {{p.scale, p.scale}};
    stage_rows<1, DQ / 16, 4, DQ>(shared + OWN_BYTES, dq, factor, row, 2 * half, lane);
    __syncthreads();
    Half* to = reinterpret_cast<Half*>(p.dq.address) + head_at(p.dq, w, 0);
    const u32 first = query_unit * p.query_step;
    store_rows<UNIT, DQ, THREADS>(shared + OWN_BYTES, to, query_positions(p, p.dq), first,
                                  min(p.queries, first + p.query_step));
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attend_dkv(const __grid_constant__ Params p) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 base = shared_address(shared);
    const Work w = place(p, blockIdx.x, 1);
    const u32 half = threadIdx.x / 32 % 2, row = threadIdx.x / 64 * 16 * MT;
    const Half* k = reinterpret_cast<const Half*>(p.k.address) + head_at(p.k, w, 0);
    const Half* v = reinterpret_cast<const Half*>(p.v.address) + head_at(p.v, w, 0);
    const Half* q = reinterpret_cast<const Half*>(p.q.address) + head_at(p.q, w, 0);
    const Half* out = reinterpret_cast<const Half*>(p.dout.address) + head_at(p.dout, w, 0);
    const Positions qx = query_positions(p, p.q), ox = query_positions(p, p.dout);
    auto load = [&](const Step& step, u32 stage) {
        const u32 from = step.unit * p.query_step, to = min(p.queries, from + p.query_step);
        const u32 at = base + STAGES_AT + stage * STAGE_BYTES;
        load_rows<UNIT, DQ, THREADS>(at, q + step.group * p.q.group, qx, from, to);
        load_rows<UNIT, DV, THREADS>(at + Q_BYTES, out + step.group * p.dout.group, ox, from, to);
        if (!FUSED && threadIdx.x < UNIT / 2) {
            const float2* stats = row_stats(p, w.outer * p.group + step.group, step.unit);
            copy_async(at + TILES_BYTES + threadIdx.x * 16, stats + 2 * threadIdx.x, true);
        }
        copy_commit();
    };

    const u32 first = w.tile * MT * p.key_step, end = min(p.keys, first + MT * p.key_step);
    load_rows<ROWS, DQ, THREADS>(base, k, key_positions(p, p.k), first, end);
    load_rows<ROWS, DV, THREADS>(base + K_BYTES, v, key_positions(p, p.v), first, end);
    copy_commit();  // keys that nobody sees wait for it, too: results will lie where they are
    Walk walk{};
    walk.open(p, w);
    Step now = take(p, w, walk, row / UNIT);
    if (now.unit != NONE) load(now, 0);
    Step next = FUSED ? Step{NONE, EMPTY, 0} : take(p, w, walk, row / UNIT);
    Sums sums;
    clear(sums.dk), clear(sums.dv);
#if FUSED
    static_assert(MT == 1 && STAGES == 1, "a fused block has one unit of either side");
    const u32 query_unit = now.unit;
    const OutRow out_row = read_out(p, w, query_unit);
#endif

    u32 stage = 0;
    while (now.unit != NONE) {
        copy_wait<0>();
        __syncthreads();
#if FUSED
        make_stats(out_row, shared + STAGES_AT);
        __syncthreads();
#endif
        if (STAGES == 2 && next.unit != NONE) load(next, stage ^ 1);
        const u32 code = now.code;
        now = next;
        if (!FUSED) next = take(p, w, walk, row / UNIT);
        if (code != EMPTY)
            unit(p, code, row, half, shared, base,
                 STAGES_AT + stage * STAGE_BYTES, sums);
        if (STAGES == 1 && now.unit != NONE) {
            __syncthreads();
            load(now, 0);
        }
        stage ^= STAGES - 1;
        if (FUSED) break;
    }

    copy_wait<0>();
    __syncthreads();
    const Work again = place(p, block_anew(), 1);
#if FUSED
    finish(p, again, row, half, shared + STAGES_AT, sums);
    if (query_unit != NONE) finish_dq(p, again, query_unit, row, half, shared, base);
#else
    finish(p, again, row, half, shared, sums);
#endif
}
