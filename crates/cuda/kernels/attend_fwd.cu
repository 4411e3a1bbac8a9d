// Attention forward: o = softmax(scale q k^T under a pattern) v, and the log-sum-exp of each row.
//
// A block of 4 warps owns a tile of 64 MT queries; a warp owns 16 MT of them, so that with MT = 2
// each fragment of k and v that it reads feeds two products (with one, shared memory and not the
// tensor cores would set the pace). It walks the units of 64 keys that its list names:
//
//   shared memory   q [64 MT][DQ] | stage 0: k [64][DQ], v [64][DV] | stage 1 ...
//   registers       s [MT][8][4] = q k^T, o [MT][DV / 8][4], maximum and sum of 2 MT rows
//
// With STAGES = 2 the next unit is copied while this one is computed, one barrier a unit; with 1
// (short lists) more blocks fit instead. Probabilities stay in registers: C of the first product is
// A of the second. They are rounded to Half there; their sum is of the unrounded ones. The output
// is rescaled only when the maximum of some row of the warp has risen (Dao 2023, FlashAttention-2).
//
// -D: DQ, DV (multiples of 32), ROW_TILES (MT) 1|2, STAGES 1|2, BLOCKS (of an SM, which registers
// must allow), PACK 0|1. Grid: heads * tiles blocks of 128; dynamic shared memory: 2 bytes *
// (64 MT DQ + STAGES 64 (DQ + DV)).
#include "lib/attend_tile.cuh"

constexpr int THREADS = 128;
constexpr int MT = ROW_TILES;
constexpr int ROWS = 64 * MT;
constexpr u32 Q_BYTES = ROWS * DQ * 2;
constexpr u32 K_BYTES = UNIT * DQ * 2;
constexpr u32 STAGE_BYTES = UNIT * (DQ + DV) * 2;
static_assert(ROWS * DV * 2 <= Q_BYTES + STAGES * STAGE_BYTES, "o is staged in shared memory");

/// Maximum and sum (this lane's share) of rows g and g + 8 of each m.
struct Rows {
    float top[MT][2], sum[MT][2];
};

/// What is subtracted: a row that has seen nothing yet has no maximum.
__device__ __forceinline__ float base_of(const Params& p, float top) {
    return top == -infinity() ? 0.0f : top * p.scale_log2;
}

/// The maximum of each row so far; sums and outputs so far are rescaled to it.
__device__ __forceinline__ void raise(const Params& p, const float (&s)[MT][8][4],
                                      float (&o)[MT][DV / 8][4], Rows& rows) {
    float factor[MT][2];
    bool risen = false;
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float top = rows.top[m][r];
#pragma unroll
            for (int n = 0; n < 8; ++n) top = fmaxf(top, fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
            factor[m][r] = exp2_approx(fmaf(rows.top[m][r], p.scale_log2, -base_of(p, top)));
            risen = risen || top > rows.top[m][r];
            rows.top[m][r] = top;
        }
    if (!__any_sync(~0u, risen)) return;
#pragma unroll
    for (int m = 0; m < MT; ++m) {
        rows.sum[m][0] *= factor[m][0], rows.sum[m][1] *= factor[m][1];
#pragma unroll
        for (int n = 0; n < DV / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) o[m][n][i] *= factor[m][i / 2];
    }
}

/// Scores of 16 keys become probabilities, in place.
__device__ __forceinline__ void exponentials(const Params& p, float (&s)[MT][8][4], int j,
                                             Rows& rows) {
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float base = base_of(p, rows.top[m][r]);
#pragma unroll
            for (int n = 2 * j; n < 2 * j + 2; ++n)
#pragma unroll
                for (int i = 2 * r; i < 2 * r + 2; ++i) {
                    s[m][n][i] = exp2_approx(fmaf(s[m][n][i], p.scale_log2, -base));
                    rows.sum[m][r] += s[m][n][i];
                }
        }
}

/// One unit of keys.
__device__ __forceinline__ void unit(const Params& p, u32 code, u32 row, u32 q, u32 kv,
                                     float (&o)[MT][DV / 8][4], Rows& rows) {
    const u32 lane = lane_anew();
    float s[MT][8][4];
    clear(s);
    multiply_rows<MT, 64, DQ>(s, rows_first<DQ>(q, lane), chunks_first<DQ>(kv, lane));
    if (code != FULL) {
#pragma unroll
        for (int m = 0; m < MT; ++m)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const u32* words = mask_row(p, code, false, row + 16 * m + 8 * r + lane / 4);
                const uint2 bits = __ldg(reinterpret_cast<const uint2*>(words));
                mask_scores<8>(s[m], 0, r, bits.x, lane);
                mask_scores<8>(s[m], 4, r, bits.y, lane);
            }
    }
    raise(p, s, o, rows);
    const Fragments<DV> v = rows_first<DV>(kv + K_BYTES, lane_anew());
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        u32 a[MT][4];
        exponentials(p, s, j, rows);
#pragma unroll
        for (int m = 0; m < MT; ++m) pack_a(a[m], s[m][2 * j], s[m][2 * j + 1]);
        multiply_depth16<MT, DV, 2>(o, a, v, 16 * j);
    }
}

/// Addresses of the head's operands and the tile's first position, kept in shared memory: `place`
/// costs a tenth of a short list, and registers a block of the multiprocessor.
struct Home {
    u64 k, v, o, lse;
    u32 first;
};

/// Writes lse and o.
__device__ __forceinline__ void finish(const Params& p, const Home& home,
                                       float (&o)[MT][DV / 8][4], Rows& rows,
                                       unsigned char* shared) {
    const u32 lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 * MT;
    const u32 first = home.first;
    const u32 end = min(p.queries, first + MT * p.query_step);
    float* lse = reinterpret_cast<float*>(home.lse);
    const Positions x = query_positions(p, p.lse);
    float factor[MT][2];
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float sum = rows.sum[m][r];
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            // No key: 0 and -inf. A NaN is no 0 and goes through.
            factor[m][r] = sum == 0.0f ? 0.0f : 1.0f / sum;
            const float log = fmaf(rows.top[m][r], p.scale_log2, log2_approx(sum)) * LN_2;
            const u32 position = first + row + 16 * m + 8 * r + lane / 4;
            if (lane % 4 == 0 && position < end)
                lse[x.at(position)] = sum == 0.0f ? -infinity() : log;
        }
    stage_rows<MT, DV / 8, 2, DV>(shared, o, factor, row, 0, lane);
    __syncthreads();
    Half* out = reinterpret_cast<Half*>(home.o);
    store_rows<ROWS, DV, THREADS>(shared, out, query_positions(p, p.o), first, end);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attend_fwd(const __grid_constant__ Params p) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 base = shared_address(shared);
    const Work w = place<true>(p, blockIdx.x, p.group);
    const u32 begin = __ldg(reinterpret_cast<const u32*>(p.first) + w.list);
    const u32 last = __ldg(reinterpret_cast<const u32*>(p.first) + w.list + 1);
    const u32 first = w.tile * MT * p.query_step;
    const u32 end = min(p.queries, first + MT * p.query_step);
    __shared__ Home home;  // read after barriers
    if (threadIdx.x == 0)
        home = {p.k.address + head_at(p.k, w, 0) * sizeof(Half),
                p.v.address + head_at(p.v, w, 0) * sizeof(Half),
                p.o.address + head_at(p.o, w, w.group) * sizeof(Half),
                p.lse.address + head_at(p.lse, w, w.group) * sizeof(float), first};
    const Half* q = reinterpret_cast<const Half*>(p.q.address) + head_at(p.q, w, w.group);
    const Half* k = reinterpret_cast<const Half*>(p.k.address) + head_at(p.k, w, 0);
    const Half* v = reinterpret_cast<const Half*>(p.v.address) + head_at(p.v, w, 0);
    const Positions kx = key_positions(p, p.k), vx = key_positions(p, p.v);
    auto load_from = [&](const Half* k, const Half* v, u32 number, u32 stage) {
        const u32 from = number * p.key_step, to = min(p.keys, from + p.key_step);
        const u32 at = base + Q_BYTES + stage * STAGE_BYTES;
        load_rows<UNIT, DQ, THREADS>(at, k, kx, from, to);
        load_rows<UNIT, DV, THREADS>(at + K_BYTES, v, vx, from, to);
        copy_commit();
    };
    auto load = [&](u32 number, u32 stage) {
        load_from(reinterpret_cast<const Half*>(home.k), reinterpret_cast<const Half*>(home.v),
                  number, stage);
    };

    load_rows<ROWS, DQ, THREADS>(base, q, query_positions(p, p.q), first, end);
    copy_commit();  // a tile without keys waits for it, too: results will lie where q is
    const u32 row = threadIdx.x / 32 * 16 * MT;
    HalfEntry now{}, next{};
    if (begin < last) now = read_entry(p, begin, row / UNIT), load_from(k, v, now.unit, 0);
    if (begin + 1 < last) next = read_entry(p, begin + 1, row / UNIT);
    float o[MT][DV / 8][4];
    clear(o);
    Rows rows;
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) rows.top[m][r] = -infinity(), rows.sum[m][r] = 0.0f;

    u32 stage = 0;
    for (u32 e = begin; e < last; ++e) {
        copy_wait<0>();
        __syncthreads();
        if (STAGES == 2 && e + 1 < last) load(next.unit, stage ^ 1);
        const u32 code = now.code, at = base + Q_BYTES + stage * STAGE_BYTES;
        now = next;
        if (e + 2 < last) next = read_entry(p, e + 2, row / UNIT);
        if (code != EMPTY)
            unit(p, code, row % UNIT, base + row * (DQ * 2), at, o, rows);
        if (STAGES == 1 && e + 1 < last) {
            __syncthreads();
            load(now.unit, 0);
        }
        stage ^= STAGES - 1;
    }

    copy_wait<0>();
    __syncthreads();
    finish(p, home, o, rows, shared);
}
