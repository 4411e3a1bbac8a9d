// Attention backward of narrow patterns (local windows), all three gradients in one pass.
//
//   p^T = exp(scale k q^T - lse), ds^T = p^T (v do^T - D),
//   dv = p^T do, dk = scale ds^T q, dq = scale ds k
//
// attend_dkv and attend_dq both make the scores: 7 products and two exponentials a pair. Where a
// query sees a few units of keys only, one block can own a stretch of n units of queries and the n
// units of keys beside them, and make 5 products and one exponential: it walks the visits (key
// unit, query unit) of either, keys rising, for each key queries rising. dk and dv of the key at
// hand are in registers; dq of the queries that are under way waits in shared memory. Visits that
// stick out of the stretch are made twice, by the owner of the key and by the owner of the query,
// each for its own gradient. So every gradient has one owner and one order: no atomics.
//
// 4 warps own 16 keys each, over all queries of the unit, 32 at a time. p^T and ds^T come out of
// the tensor cores as left factors of dv and dk; for dq, a sum over all keys, ds^T goes through
// shared memory, and a warp makes 16 queries.
//
//   shared memory   KEY_STAGES of k [64][DQ], v [64][DV]
//                   2 stages of q [64][DQ], do [64][DV], (lse, D) [64]
//                   ds^T [64 keys][64 queries]
//                   slots of dq: 4 warps [DQ / 8][32 lanes] of 16 bytes
//
// The list of a stretch: Entry {key unit, code, query unit, flags}, where flags are as below. What
// the host sees to, besides lib/attend.cuh: group = 1; a slot is nobody else's from a query's first
// visit to its last; every own unit has a visit, of code EMPTY if it has no pair. `tiles` counts stretches, and `order` ranks them.
//
// -D: DQ <= DV (multiples of 32), KEY_STAGES 1|2, BLOCKS, PACK as in attend_fwd. Grid: batch * kv *
// tiles blocks of 128; dynamic shared memory: (KEY_STAGES + 2) * 128 * (DQ + DV) + 9216 + slots *
// 256 * DQ.
#include "lib/attend_tile.cuh"

constexpr int THREADS = 128;
constexpr u32 SLOT = 0xff;           // which slot dq waits in
constexpr u32 QUERY_FIRST = 1 << 8;  // the query's first visit: dq is 0 so far
constexpr u32 QUERY_LAST = 1 << 9;   // its last: dq leaves
constexpr u32 QUERY_OWN = 1 << 10;   // dq is wanted
constexpr u32 KEY_OWN = 1 << 11;     // dk and dv are wanted
constexpr u32 KEY_FIRST = 1 << 12;   // the first visit of another key unit than before
constexpr u32 KEY_LAST = 1 << 13;    // and the last: dk and dv leave

constexpr u32 K_BYTES = UNIT * DQ * 2;
constexpr u32 TILES_BYTES = UNIT * (DQ + DV) * 2;
constexpr u32 STAGE_BYTES = TILES_BYTES + UNIT * 8;
constexpr u32 STAGES_AT = KEY_STAGES * TILES_BYTES;
constexpr u32 SCORES_AT = STAGES_AT + 2 * STAGE_BYTES;
constexpr u32 SLOTS_AT = SCORES_AT + UNIT * UNIT * 2;
constexpr u32 SLOT_BYTES = UNIT * DQ * 4;
// Whether there are registers for what else is made anew for each key: where dk and dv go.
constexpr bool KEEP = DQ == 32;
static_assert(DQ <= DV, "dk leaves through the warp's rows of v");

struct Visit {
    u32 key, code, query, flags;
};

__device__ __forceinline__ Visit read_visit(const Params& p, u32 e) {
    const uint4 word = __ldg(reinterpret_cast<const uint4*>(p.entries) + e);
    return {word.x, word.y, word.z, word.w};
}

struct Sums {
    float dk[1][DQ / 8][4], dv[1][DV / 8][4];
};

/// Writes 16 rows of a warp from `from` on, through `tile`, which is the warp's alone.
template <int WIDTH>
__device__ __forceinline__ void leave(unsigned char* tile, const float (&c)[1][WIDTH / 8][4],
                                      float scale, Half* head, Positions x, u32 from, u32 end) {
    const u32 lane = lane_anew();
    const float factor[1][2] = {{scale, scale}};
    __syncwarp();
    stage_rows<1, WIDTH / 8, 2, WIDTH>(tile, c, factor, 0, 0, lane);
    __syncwarp();
    constexpr u32 CHUNKS = WIDTH / 8;
#pragma unroll
    for (u32 i = 0; i < CHUNKS / 2; ++i) {
        const u32 id = lane + 32 * i, row = id / CHUNKS, chunk = id % CHUNKS;
        if (from + row < end) {
            const uint4 word = *reinterpret_cast<const uint4*>(tile + chunk_at<WIDTH>(row, chunk));
            *reinterpret_cast<uint4*>(head + x.at(from + row) + chunk * 8) = word;
        }
    }
}

/// Where word i of A tile j of ds^T goes: words (g, 2t..) of each 8x8 matrix, by keys and queries.
__device__ __forceinline__ u32 ds_at(u32 row, u32 half, u32 j, u32 i, u32 lane) {
    return chunk_at<64>(row + 8 * (i % 2) + lane / 4, 4 * half + 2 * j + i / 2) + 4 * (lane % 4);
}

/// No pair of these keys and queries.
__device__ __forceinline__ void clear_ds(unsigned char* ds, u32 row, u32 half, u32 lane) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) *reinterpret_cast<u32*>(ds + ds_at(row, half, j, i, lane)) = 0;
}

/// 32 queries of a visit: scores, dk and dv, and ds^T into shared memory. `words` are the mask's of
/// the rows g and g + 8.
__device__ __forceinline__ void scores(const Params& p, const Visit& at, u32 half,
                                       const u32 (&words)[2], u32 row, u32 kv, u32 q,
                                       const float4* stats, unsigned char* ds, Sums& sums) {
    u32 lane = lane_anew();
    if (at.code != FULL && !__any_sync(~0u, words[0] | words[1])) {
        // None of the 32 queries sees a key of the warp: at the edges of a window.
        if (at.flags & QUERY_OWN) clear_ds(ds, row, half, lane);
        return;
    }
    const u32 out = q + K_BYTES;
    float s[1][4][4];
    clear(s);
    multiply_rows<1, 32, DQ>(s, rows_first<DQ>(kv, lane).from(row),
                             chunks_first<DQ>(q, lane).from(32 * half));
    if (at.code != FULL) {
#pragma unroll
        for (int r = 0; r < 2; ++r) mask_scores(s[0], 0, r, words[r], lane);
    }
    // Columns 2t and 2t + 1 of tile n: lse, D of two queries in one word.
    const float4* of = stats + 16 * half + lane % 4;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
        const float4 two = of[4 * n];
#pragma unroll
        for (int i = 0; i < 4; ++i)
            s[0][n][i] =
                exp2_approx(fmaf(s[0][n][i], p.scale_log2, i % 2 == 0 ? -two.x : -two.z));
    }
    if (at.flags & KEY_OWN) {
        const auto b = rows_first<DV>(out, lane_anew()).from(32 * half);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            u32 a[1][4];
            pack_a(a[0], s[0][2 * j], s[0][2 * j + 1]);
            multiply_depth16<1, DV, 2>(sums.dv, a, b, 16 * j);
        }
    }
    float dp[1][4][4];
    clear(dp);
    lane = lane_anew();
    multiply_rows<1, 32, DV>(dp, rows_first<DV>(kv + K_BYTES, lane).from(row),
                             chunks_first<DV>(out, lane).from(32 * half));
    u32 a[2][1][4];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
        const float4 two = of[4 * n];
#pragma unroll
        for (int i = 0; i < 4; ++i) s[0][n][i] *= dp[0][n][i] - (i % 2 == 0 ? two.y : two.w);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) pack_a(a[j][0], s[0][2 * j], s[0][2 * j + 1]);
    if (at.flags & QUERY_OWN) {
#pragma unroll
        for (int j = 0; j < 2; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                *reinterpret_cast<u32*>(ds + ds_at(row, half, j, i, lane)) = a[j][0][i];
    }
    if (at.flags & KEY_OWN) {
        const auto b = rows_first<DQ>(q, lane_anew()).from(32 * half);
#pragma unroll
        for (int j = 0; j < 2; ++j) multiply_depth16<1, DQ, 2>(sums.dk, a[j], b, 16 * j);
    }
}

/// dq of 16 queries, from `row` of the unit on, over the 64 keys.
__device__ __forceinline__ void add_dq(const Params& p, const Visit& at, u32 row, u32 k, u32 ds,
                                       unsigned char* slot, Half* to) {
    const u32 lane = lane_anew();
    float4* waiting = reinterpret_cast<float4*>(slot) + lane;
    float dq[1][DQ / 8][4];
#pragma unroll
    for (int n = 0; n < DQ / 8; ++n) {
        float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (!(at.flags & QUERY_FIRST)) x = waiting[32 * n];
        dq[0][n][0] = x.x, dq[0][n][1] = x.y, dq[0][n][2] = x.z, dq[0][n][3] = x.w;
    }
    if (at.code != EMPTY) {
        // A = ds from [key][query] transposed: 16 keys of depth.
        const u32 from = ds + chunk_at<64>((lane & 7) + ((lane >> 4) << 3),
                                           row / 8 + ((lane >> 3) & 1));
        const auto b = rows_first<DQ>(k, lane);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            u32 a[1][4];
            ldmatrix_trans(a[0], from + 16 * j * 128);
            multiply_depth16<1, DQ, 2>(dq, a, b, 16 * j);
        }
    }
    if (at.flags & QUERY_LAST) {
        const u32 first = at.query * p.query_step, end = min(p.queries, first + p.query_step);
        leave<DQ>(slot, dq, p.scale, to, query_positions(p, p.dq), first + row, end);
    } else {
#pragma unroll
        for (int n = 0; n < DQ / 8; ++n)
            waiting[32 * n] = make_float4(dq[0][n][0], dq[0][n][1], dq[0][n][2], dq[0][n][3]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attend_band(const __grid_constant__ Params p) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 base = shared_address(shared);
    const Work w = place<true>(p, blockIdx.x, 1);
    u32 e = __ldg(reinterpret_cast<const u32*>(p.first) + w.list);
    const u32 last = __ldg(reinterpret_cast<const u32*>(p.first) + w.list + 1);
    const u32 warp = threadIdx.x / 32, row = 16 * warp;
    const Half* q = reinterpret_cast<const Half*>(p.q.address) + head_at(p.q, w, 0);
    const Half* out = reinterpret_cast<const Half*>(p.dout.address) + head_at(p.dout, w, 0);
    const Half* k = reinterpret_cast<const Half*>(p.k.address) + head_at(p.k, w, 0);
    const Half* v = reinterpret_cast<const Half*>(p.v.address) + head_at(p.v, w, 0);
    Half* dq = reinterpret_cast<Half*>(p.dq.address) + head_at(p.dq, w, 0);
    Half* dk = reinterpret_cast<Half*>(p.dk.address) + head_at(p.dk, w, 0);
    Half* dv = reinterpret_cast<Half*>(p.dv.address) + head_at(p.dv, w, 0);
    auto load_keys = [&](u32 number, u32 stage) {
        const u32 from = number * p.key_step, to = min(p.keys, from + p.key_step);
        const u32 at = base + stage * TILES_BYTES;
        load_rows<UNIT, DQ, THREADS>(at, k, key_positions(p, p.k), from, to);
        load_rows<UNIT, DV, THREADS>(at + K_BYTES, v, key_positions(p, p.v), from, to);
    };
    auto load_queries = [&](u32 number, u32 stage) {
        const u32 from = number * p.query_step, to = min(p.queries, from + p.query_step);
        const u32 at = base + STAGES_AT + stage * STAGE_BYTES;
        load_rows<UNIT, DQ, THREADS>(at, q, query_positions(p, p.q), from, to);
        load_rows<UNIT, DV, THREADS>(at + K_BYTES, out, query_positions(p, p.dout), from, to);
        if (threadIdx.x < UNIT / 2)
            copy_async(at + TILES_BYTES + threadIdx.x * 16,
                       row_stats(p, w.outer, number) + 2 * threadIdx.x, true);
    };

    Visit now{}, next{};
    u32 stage = 0, keys = 0;
    if (e < last) {
        next = read_visit(p, e);
        load_keys(next.key, 0), load_queries(next.query, 0), copy_commit();
    }
    Sums sums;
    clear(sums.dk), clear(sums.dv);
    for (; e < last; ++e) {
        now = next;
        if (e + 1 < last) next = read_visit(p, e + 1);
        u32 words[2][2];  // [half][rows g, g + 8]
        if (now.code < EMPTY) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const u32 key = row + 8 * r + threadIdx.x % 32 / 4;
                const uint2 both =
                    __ldg(reinterpret_cast<const uint2*>(mask_row(p, now.code, true, key)));
                words[0][r] = both.x, words[1][r] = both.y;
            }
        }
        copy_wait<0>();
        __syncthreads();
        const u32 kv = base + keys * TILES_BYTES, at = STAGES_AT + stage * STAGE_BYTES;
        const bool another = e + 1 < last && next.flags & KEY_FIRST;
        if (e + 1 < last) {
            load_queries(next.query, stage ^ 1);
            if (KEY_STAGES == 2 && another) load_keys(next.key, keys ^ 1);
            copy_commit();
        }
        if (now.code != EMPTY) {
            const float4* stats = reinterpret_cast<const float4*>(shared + at + TILES_BYTES);
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
                scores(p, now, half, words[half], row, kv, base + at, stats, shared + SCORES_AT,
                       sums);
        }
        if (now.flags & QUERY_OWN) {
            __syncthreads();
            unsigned char* slot = shared + SLOTS_AT + (now.flags & SLOT) * SLOT_BYTES;
            add_dq(p, now, row, kv, base + SCORES_AT, slot + warp * (SLOT_BYTES / 4), dq);
        }
        if (now.flags & KEY_LAST) {
            if (now.flags & KEY_OWN) {
                if (!KEEP) {
                    const Work again = place<true>(p, block_anew(), 1);
                    dk = reinterpret_cast<Half*>(p.dk.address) + head_at(p.dk, again, 0);
                    dv = reinterpret_cast<Half*>(p.dv.address) + head_at(p.dv, again, 0);
                }
                const u32 first = now.key * p.key_step, end = min(p.keys, first + p.key_step);
                // Nobody else reads these rows of v.
                unsigned char* own = shared + (kv - base) + K_BYTES + row * (DV * 2);
                leave<DV>(own, sums.dv, 1.0f, dv, key_positions(p, p.dv), first + row, end);
                leave<DQ>(own, sums.dk, p.scale, dk, key_positions(p, p.dk), first + row, end);
            }
            clear(sums.dk), clear(sums.dv);
        }
        if (KEY_STAGES == 1 && another) {
            __syncthreads();
            load_keys(next.key, 0), copy_commit();
        }
        stage ^= 1;
        if (another) keys ^= KEY_STAGES - 1;
    }
}
