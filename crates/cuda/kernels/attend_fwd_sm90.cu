// Attention forward on Hopper: o = softmax(scale q k^T under a pattern) v, and the log-sum-exp.
//
// What attend_fwd does, with warpgroup products, tensor copies and roles, as in Shah et al. 2024,
// FlashAttention-3. A block has a tile of 128 queries. One thread of its first warpgroup copies
// keys and values, two units (128 keys) a stage; each of the other two warpgroups owns 64 queries:
//
//   s(j) = q k(j)^T is issued, then o += p(j - 1) v(j - 1); while the second runs, s(j) becomes
//   p(j); the two warpgroups issue in turns, so that one's exponentials meet the other's products.
//
//   shared memory   OWNS of q [2 warpgroups][DQ / 64] boxes
//                   stage: k [DQ / 64][2 units] boxes, v [2 units][DV / 64] boxes
//   a box           64 positions of 64 elements, 8 KiB, as lib/wgmma.cuh has it
//   registers       s [64 keys of either unit] 64, p 32, o DV / 2
//
// A list of odd length ends with its last unit twice, the second time EMPTY.
//
// -D: DQ, DV 64|128, OWNS 1|2. Grid: ceil(heads * tiles / run) blocks of 384; dynamic shared
// memory: 1024 + OWNS 256 DQ + STAGES 256 (DQ + DV) bytes, STAGES = 2. Lists of tiles of two units;
// PACK is 0.
#define PACK 0
#include "lib/attend_sm90.cuh"

constexpr int STAGES = 2;
constexpr u32 K_SLICES = DQ / BOX, V_SLICES = DV / BOX;
constexpr u32 Q_BYTES = K_SLICES * BOX_BYTES;  // of one warpgroup
constexpr u32 K_BYTES = 2 * K_SLICES * BOX_BYTES, V_BYTES = 2 * V_SLICES * BOX_BYTES;
constexpr u32 STAGE_BYTES = K_BYTES + V_BYTES;

struct Memory {
    u32 own, stages, q_full, q_empty, k_full, k_empty, v_full, v_empty;

    __device__ __forceinline__ u32 q(u32 room, u32 half) const {
        return own + (room * CONSUMERS + half) * Q_BYTES;
    }
    __device__ __forceinline__ u32 k(u32 stage) const { return stages + stage * STAGE_BYTES; }
    __device__ __forceinline__ u32 v(u32 stage) const { return k(stage) + K_BYTES; }
};

/// What comes with copies: tiles by room, codes of either warpgroup's pair by stage.
struct Notes {
    Tile tile[OWNS];
    uint2 codes[STAGES][CONSUMERS];
};

__device__ __forceinline__ void produce(const HopperParams& h, const Memory& m, Notes& notes) {
    const Params& p = h.p;
    Slot<STAGES> slot;
    Slot<OWNS> own;
    for (Run run = run_of(h, p.group); run.job < run.end; ++run.job, own.next()) {
        const Work w = place(p, run.job, p.group);
        const List list = list_of(p, w.list);
        const u32 first = w.tile * CONSUMERS * UNIT;
        {
            const Place q = place_of(w, h.q_heads);
            const u32 bar = m.q_full + 8 * own.index;
            barrier_wait(m.q_empty + 8 * own.index, own.phase ^ 1);
            notes.tile[own.index] = {{head_address(p.o, w, 2), head_address(p.lse, w, 4)},
                                     first,
                                     list.last - list.begin,
                                     run.job + 1 < run.end,
                                     0};
            barrier_expect(bar, CONSUMERS * Q_BYTES);
            for (u32 half = 0; half < CONSUMERS; ++half)
                copy_unit<DQ>(m.q(own.index, half), BOX_BYTES, h.q, bar, first + half * UNIT, q);
        }
        const Place k = place_of(w, h.k_heads), v = place_of(w, h.v_heads);
        for (u32 e = list.begin; e < list.last; e += 2, slot.next()) {
            const u32 s = slot.index;
            const BothEntry one = read_both(p, e);
            BothEntry two = {one.unit, {EMPTY, EMPTY}};
            if (e + 1 < list.last) two = read_both(p, e + 1);
            barrier_wait(m.k_empty + 8 * s, slot.phase ^ 1);
            for (u32 half = 0; half < CONSUMERS; ++half)
                notes.codes[s][half] = {one.code[half], two.code[half]};
            barrier_expect(m.k_full + 8 * s, K_BYTES);
            for (u32 unit = 0; unit < 2; ++unit)
                copy_unit<DQ>(m.k(s) + unit * BOX_BYTES, 2 * BOX_BYTES, h.k, m.k_full + 8 * s,
                              (unit == 0 ? one.unit : two.unit) * UNIT, k);
            barrier_wait(m.v_empty + 8 * s, slot.phase ^ 1);
            barrier_expect(m.v_full + 8 * s, V_BYTES);
            for (u32 unit = 0; unit < 2; ++unit)
                copy_unit<DV>(m.v(s) + unit * V_SLICES * BOX_BYTES, BOX_BYTES, h.v,
                              m.v_full + 8 * s, (unit == 0 ? one.unit : two.unit) * UNIT, v);
        }
    }
}

/// Maximum, sum (this lane's share) and what rescales them, of rows g and g + 8.
struct Rows {
    float top[2], sum[2], factor[2];
    bool risen;
};

/// Masks of a pair of units. The loads run beside the products.
struct PairBits {
    Bits unit[2];
};

__device__ __forceinline__ PairBits read_pair_bits(const Params& p, uint2 codes, u32 row) {
    return {{read_bits(p, codes.x, false, row), read_bits(p, codes.y, false, row)}};
}

__device__ __forceinline__ void mask(float (&s)[64], uint2 codes, const PairBits& bits, u32 lane) {
    if (codes.x != FULL) mask_unit<0>(s, bits.unit[0], lane);
    if (codes.y != FULL) mask_unit<32>(s, bits.unit[1], lane);
}

/// Scores become probabilities, in place; rows.factor is what earlier outputs are to be multiplied
/// with, unless nothing has `risen`.
__device__ __forceinline__ void softmax(const Params& p, float (&s)[64], Rows& rows) {
    bool risen = false;
    float base[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float top = rows.top[r];
#pragma unroll
        for (int n = 0; n < 16; ++n)
            top = fmaxf(top, fmaxf(s[4 * n + 2 * r], s[4 * n + 2 * r + 1]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        // A row that has seen nothing yet has no maximum.
        base[r] = top == -infinity() ? 0.0f : top * p.scale_log2;
        rows.factor[r] = exp2_approx(fmaf(rows.top[r], p.scale_log2, -base[r]));
        risen = risen || top > rows.top[r];
        rows.top[r] = top;
        rows.sum[r] *= rows.factor[r];
    }
    rows.risen = __any_sync(~0u, risen);
#pragma unroll
    for (int n = 0; n < 16; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float& x = s[4 * n + i];
            x = exp2_approx(fmaf(x, p.scale_log2, -base[i / 2]));
            rows.sum[i / 2] += x;
        }
}

/// Issues s = q k^T.
__device__ __forceinline__ void issue_scores(float (&s)[64], u32 q, u32 k) {
    issue_rows<DQ>(s, q, k, 2 * BOX_BYTES);
}

/// Issues o += p v.
__device__ __forceinline__ void issue_outputs(float (&o)[DV / 2], const u32 (&a)[8][4], u32 v) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
        const u64 right = matrix_descriptor<false>(v + k / 4 * V_SLICES * BOX_BYTES);
        multiply_left_m64k16<1>(o, a[k], right + k % 4 * descriptor_step<false>());
    }
    products_commit();
}

/// The warpgroups' turns: waiting for one's own, and giving the other's.
__device__ __forceinline__ void turn_wait(u32 half) {
    asm volatile("bar.sync %0, 256;\n" ::"r"(1 + half) : "memory");
}
__device__ __forceinline__ void turn_give(u32 half) {
    asm volatile("bar.arrive %0, 256;\n" ::"r"(2 - half) : "memory");
}

/// Writes lse and o, 64 columns at a time through the warpgroup's room of q.
__device__ __forceinline__ void finish(const Params& p, const Tile& tile, u32 half,
                                       const float (&o)[DV / 2], const Rows& rows,
                                       unsigned char* room) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const u32 first = tile.first + half * UNIT;
    float* lse = reinterpret_cast<float*>(tile.to[1]);
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float sum = rows.sum[r];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        // No key: 0 and -inf. A NaN is no 0 and goes through.
        factor[r] = sum == 0.0f ? 0.0f : 1.0f / sum;
        const float log = fmaf(rows.top[r], p.scale_log2, log2_approx(sum)) * LN_2;
        const u32 x = first + 16 * warp + 8 * r + lane / 4;
        if (lane % 4 == 0 && x < p.queries)
            lse[query_positions(p, p.lse).at(x)] = sum == 0.0f ? -infinity() : log;
    }
    store_group(o, factor, room, reinterpret_cast<Half*>(tile.to[0]), query_positions(p, p.o),
                first, p.queries);
}

/// Waits for a stage of keys, and reads the codes of the pair.
__device__ __forceinline__ uint2 wait_keys(const Memory& m, const Notes& notes,
                                           const Slot<STAGES>& k, u32 half) {
    barrier_wait(m.k_full + 8 * k.index, k.phase);
    return notes.codes[k.index][half];
}

/// One tile: o and its rows' sums, over `units` units of keys.
__device__ __forceinline__ void attend(const Params& p, const Memory& m, const Notes& notes,
                                       u32 half, u32 q, u32 units, Slot<STAGES>& k,
                                       Slot<STAGES>& v, float (&o)[DV / 2], Rows& rows) {
    const u32 lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane / 4;
    u32 pairs = (units + 1) / 2;
    float s[64];
    u32 a[8][4];
    if (half == 1 && pairs > 1) turn_give(1);
    uint2 codes = wait_keys(m, notes, k, half);
    products_begin();
    issue_scores(s, q, m.k(k.index));
    PairBits bits = read_pair_bits(p, codes, row);
    products_wait<0>();
    pin(s);
    release(m.k_empty + 8 * k.index);
    k.next();
    mask(s, codes, bits, lane);
    softmax(p, s, rows);
    pack(a, s);
    while (--pairs > 0) {
        barrier_wait(m.v_full + 8 * v.index, v.phase);
        codes = wait_keys(m, notes, k, half);
        turn_wait(half);
        products_begin();
        issue_scores(s, q, m.k(k.index));
        issue_outputs(o, a, m.v(v.index));
        // The other's last turn has nobody after it.
        if (half == 0 || pairs > 1) turn_give(half);
        bits = read_pair_bits(p, codes, row);
        products_wait<1>();
        pin(s);
        release(m.k_empty + 8 * k.index);
        mask(s, codes, bits, lane);
        softmax(p, s, rows);
        pin(s);
        wait_behind(rows.sum[0] + rows.sum[1]);
        pin(o);
        release(m.v_empty + 8 * v.index);
        if (rows.risen) {
#pragma unroll
            for (int i = 0; i < DV / 2; ++i) o[i] *= rows.factor[i / 2 % 2];
        }
        pack(a, s);
        k.next(), v.next();
    }
    barrier_wait(m.v_full + 8 * v.index, v.phase);
    products_begin();
    issue_outputs(o, a, m.v(v.index));
    products_wait<0>();
    pin(o);
    release(m.v_empty + 8 * v.index);
    v.next();
}

__device__ __forceinline__ void consume(const Params& p, const Memory& m, const Notes& notes,
                                        u32 half, unsigned char* rooms) {
    Slot<STAGES> k, v;
    for (Slot<OWNS> own;; own.next()) {
        const Tile& tile = notes.tile[own.index];
        barrier_wait(m.q_full + 8 * own.index, own.phase);
        float o[DV / 2];
#pragma unroll
        for (int i = 0; i < DV / 2; ++i) o[i] = 0.0f;
        Rows rows = {{-infinity(), -infinity()}, {0.0f, 0.0f}, {1.0f, 1.0f}, false};
        const u32 units = uniform(tile.units);
        if (units > 0) attend(p, m, notes, half, m.q(own.index, half), units, k, v, o, rows);
        group_wait(half);  // all are past their last product of q
        finish(p, tile, half, o, rows, rooms + (own.index * CONSUMERS + half) * Q_BYTES);
        const bool more = uniform(tile.more);
        release_room(m.q_empty + 8 * own.index);
        if (!more) break;
    }
}

extern "C" __global__ void __launch_bounds__(128 * (1 + CONSUMERS), 1)
    attend_fwd_sm90(const __grid_constant__ HopperParams h) {
    extern __shared__ unsigned char shared[];
    __shared__ Barrier q_full[OWNS], q_empty[OWNS];
    __shared__ Barrier k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
    __shared__ Notes notes;
    const u32 group = uniform(threadIdx.x / 128);
    // The swizzle repeats in 1,024 bytes.
    const u32 skip = -shared_address(shared) & 1023, base = shared_address(shared) + skip;
    const Memory m = {base,
                      base + OWNS * CONSUMERS * Q_BYTES,
                      shared_address(q_full),
                      shared_address(q_empty),
                      shared_address(k_full),
                      shared_address(k_empty),
                      shared_address(v_full),
                      shared_address(v_empty)};
    if (threadIdx.x == 0) {
        prefetch_map(h.q), prefetch_map(h.k), prefetch_map(h.v);
        for (int i = 0; i < OWNS; ++i) {
            barrier_init(m.q_full + 8 * i, 1);
            barrier_init(m.q_empty + 8 * i, 4 * CONSUMERS);
        }
        for (int i = 0; i < STAGES; ++i) {
            barrier_init(m.k_full + 8 * i, 1), barrier_init(m.v_full + 8 * i, 1);
            barrier_init(m.k_empty + 8 * i, 4 * CONSUMERS);
            barrier_init(m.v_empty + 8 * i, 4 * CONSUMERS);
        }
        barrier_init_fence();
    }
    __syncthreads();
    if (group == 0) {
        registers_shrink<24>();
        if (threadIdx.x == 0) produce(h, m, notes);
    } else {
        registers_grow<240>();
        consume(h.p, m, notes, group - 1, shared + skip);
    }
}
