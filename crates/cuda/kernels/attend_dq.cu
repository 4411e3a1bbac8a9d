// Attention backward, dq: of each tile of queries, over the units of keys that its list names.
//
//   p = exp(scale q k^T - lse), ds = p (do v^T - D), dq = scale ds k
//
// The shape is that of the forward: 4 warps own 64 MT queries. Two score tiles and dq must fit the
// registers, so keys come in chunks of CHUNK, which is 32 where MT = 2. p and ds never leave the
// registers; ds is rounded to Half for its product. Every dq has one owner, who adds in the order
// of the list: no atomics, equal bits each time. The price is that scores are made twice in a
// backward, here and in attend_dkv: 7 products instead of 5.
//
//   shared memory   q [64 MT][DQ], do [64 MT][DV] | stage 0: k [CHUNK][DQ], v [CHUNK][DV] | ...
//
// -D: DQ, DV, ROW_TILES, STAGES, BLOCKS, PACK as in attend_fwd; CHUNK 32|64. Grid: heads * tiles
// blocks of 128; dynamic shared memory: 2 bytes * (64 MT + STAGES CHUNK) * (DQ + DV).
#include "lib/attend_tile.cuh"

constexpr int THREADS = 128;
constexpr int MT = ROW_TILES;
constexpr int ROWS = 64 * MT;
constexpr u32 Q_BYTES = ROWS * DQ * 2;
constexpr u32 OWN_BYTES = ROWS * (DQ + DV) * 2;
constexpr u32 K_BYTES = CHUNK * DQ * 2;
constexpr u32 STAGE_BYTES = CHUNK * (DQ + DV) * 2;
static_assert(STAGES == 1 || UNIT / CHUNK == 2, "the part of a unit names its stage");

/// lse log2(e) and D of rows g and g + 8 of each m.
struct Rows {
    float lse[MT][2], d[MT][2];
};

/// CHUNK keys; `words` is where the mask words of the warp's first row and the chunk begin.
__device__ __forceinline__ void chunk(const Params& p, const u32* words, u32 q, u32 out, u32 kv,
                                      float (&dq)[MT][DQ / 8][4], const Rows& rows) {
    float s[MT][CHUNK / 8][4];
    clear(s);
    u32 lane = lane_anew();
    multiply_rows<MT, CHUNK, DQ>(s, rows_first<DQ>(q, lane), chunks_first<DQ>(kv, lane));
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
            for (int c = 0; c < CHUNK / 32; ++c)
                if (words != nullptr)
                    mask_scores(s[m], 4 * c, r, __ldg(words + (16 * m + 8 * r + lane / 4) * 2 + c),
                                lane);
#pragma unroll
            for (int n = 0; n < CHUNK / 8; ++n)
#pragma unroll
                for (int i = 2 * r; i < 2 * r + 2; ++i)
                    s[m][n][i] = exp2_approx(fmaf(s[m][n][i], p.scale_log2, -rows.lse[m][r]));
        }
    float dp[MT][CHUNK / 8][4];
    clear(dp);
    lane = lane_anew();
    multiply_rows<MT, CHUNK, DV>(dp, rows_first<DV>(out, lane),
                                 chunks_first<DV>(kv + K_BYTES, lane));
    const Fragments<DQ> k = rows_first<DQ>(kv, lane_anew());
#pragma unroll
    for (int j = 0; j < CHUNK / 16; ++j) {
        u32 a[MT][4];
#pragma unroll
        for (int m = 0; m < MT; ++m) {
#pragma unroll
            for (int n = 2 * j; n < 2 * j + 2; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) s[m][n][i] *= dp[m][n][i] - rows.d[m][i / 2];
            pack_a(a[m], s[m][2 * j], s[m][2 * j + 1]);
        }
        multiply_depth16<MT, DQ, 2>(dq, a, k, 16 * j);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attend_dq(const __grid_constant__ Params p) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 base = shared_address(shared);
    const Work w = place(p, blockIdx.x, p.group);
    u32 e = __ldg(reinterpret_cast<const u32*>(p.first) + w.list);
    const u32 last = __ldg(reinterpret_cast<const u32*>(p.first) + w.list + 1);
    const u32 first = w.tile * MT * p.query_step;
    const u32 end = min(p.queries, first + MT * p.query_step);
    const Half* q = reinterpret_cast<const Half*>(p.q.address) + head_at(p.q, w, w.group);
    const Half* out = reinterpret_cast<const Half*>(p.dout.address) + head_at(p.dout, w, w.group);
    const Half* k = reinterpret_cast<const Half*>(p.k.address) + head_at(p.k, w, 0);
    const Half* v = reinterpret_cast<const Half*>(p.v.address) + head_at(p.v, w, 0);
    const Positions kx = key_positions(p, p.k), vx = key_positions(p, p.v);
    auto load = [&](u32 number, u32 part, u32 stage) {
        const u32 from = number * p.key_step, to = min(p.keys, from + p.key_step);
        const u32 at = base + OWN_BYTES + stage * STAGE_BYTES;
        load_rows<CHUNK, DQ, THREADS>(at, k, kx, from + part * CHUNK, to);
        load_rows<CHUNK, DV, THREADS>(at + K_BYTES, v, vx, from + part * CHUNK, to);
        copy_commit();
    };

    const u32 row = threadIdx.x / 32 * 16 * MT;
    HalfEntry now{}, next{};
    load_rows<ROWS, DQ, THREADS>(base, q, query_positions(p, p.q), first, end);
    load_rows<ROWS, DV, THREADS>(base + Q_BYTES, out, query_positions(p, p.dout), first, end);
    copy_commit();  // a tile without keys waits for them, too: results will lie where they are
    if (e < last) next = read_entry(p, e, row / UNIT), load(next.unit, 0, 0);
    float dq[MT][DQ / 8][4];
    clear(dq);
    Rows rows;
    const float2* stats = row_stats(p, w.outer, w.tile * MT) + row + threadIdx.x % 32 / 4;
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float2 own = __ldg(stats + 16 * m + 8 * r);
            rows.lse[m][r] = own.x, rows.d[m][r] = own.y;
        }

    u32 part = 0;  // of the unit; two parts alternate as two stages do
    while (e < last) {
        copy_wait<0>();
        __syncthreads();
        if (part == 0) {
            now = next;
            if (e + 1 < last) next = read_entry(p, e + 1, row / UNIT);
        }
        const u32 own = part, at = base + OWN_BYTES + (STAGES == 2 ? own * STAGE_BYTES : 0);
        part = (part + 1) % (UNIT / CHUNK);
        if (part == 0) ++e;
        if (STAGES == 2 && e < last) load(part == 0 ? next.unit : now.unit, part, part);
        if (now.code != EMPTY) {
            const u32* words = mask_row(p, now.code, false, row % UNIT) + own * (CHUNK / 32);
            chunk(p, now.code == FULL ? nullptr : words, base + row * (DQ * 2),
                  base + Q_BYTES + row * (DV * 2), at, dq, rows);
        }
        if (STAGES == 1 && e < last) {
            __syncthreads();
            load(part == 0 ? next.unit : now.unit, part, 0);
        }
    }

    copy_wait<0>();
    __syncthreads();
    const Work again = place(p, block_anew(), p.group);
    float factor[MT][2];
#pragma unroll
    for (int m = 0; m < MT; ++m) factor[m][0] = factor[m][1] = p.scale;
    stage_rows<MT, DQ / 8, 2, DQ>(shared, dq, factor, row, 0, lane_anew());
    __syncthreads();
    Half* to = reinterpret_cast<Half*>(p.dq.address) + head_at(p.dq, again, again.group);
    const u32 from = again.tile * MT * p.query_step;
    store_rows<ROWS, DQ, THREADS>(shared, to, query_positions(p, p.dq), from,
                                  min(p.queries, from + MT * p.query_step));
}
