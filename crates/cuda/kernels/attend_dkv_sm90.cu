// Attention backward on Hopper, dk and dv: what attend_dkv does, with the roles of attend_fwd_sm90.
//
//   p^T = exp(scale k q^T - lse), ds^T = p^T (v do^T - D), dv = p^T do, dk = scale ds^T q
//
// A block has a tile of 128 keys, 64 for either consumer warpgroup; a stage is one unit of queries
// of one head. s^T and v do^T are issued together; while the second runs s^T becomes p^T; dv += p^T
// do runs while ds^T is made; dk += ds^T q last. What one warpgroup waits for, the other fills. p^T
// and ds^T never leave the registers.
//
//   shared memory   OWNS of k, v [2 warpgroups] boxes
//                   stages of q, do boxes, slices side by side
//                   stages of (lse, D) [64], either warpgroup's code, filled up to 16 bytes
//   registers       s^T 32, v do^T 32, p^T 16, ds^T 16, dk DQ / 2, dv DV / 2
//
// Where several query heads share keys, a block sums over them in their order.
//
// -D: DQ, DV 64|128, OWNS 1|2. Grid: ceil(batch * kv * tiles / run) blocks of 384; dynamic shared
// memory: 1024 + (OWNS 256 + STAGES 128) (DQ + DV) + STAGES 528 bytes, STAGES = 3. Lists of tiles
// of two units; PACK is 0.
#define PACK 0
#include "lib/attend_sm90.cuh"
#include "lib/attend_walk.cuh"

constexpr int STAGES = 3;
constexpr u32 K_BYTES = DQ / BOX * BOX_BYTES;  // of a unit; q's, too
constexpr u32 V_BYTES = DV / BOX * BOX_BYTES;
constexpr u32 STATS_BYTES = UNIT * 8;
constexpr u32 END = 0xfffffffdu;  // a code: there is no more
constexpr u32 OWN_BYTES = K_BYTES + V_BYTES;
constexpr u32 STAGES_AT = OWNS * CONSUMERS * OWN_BYTES;
constexpr u32 STATS_AT = STAGES_AT + STAGES * OWN_BYTES;

// Whether dk += ds^T q runs beside the next unit's scores. With wide heads there are no registers
// for left factors under way beside them; meanwhile the other warpgroup has the tensor cores.
constexpr bool AHEAD = DQ + DV <= 192;

struct Memory {
    u32 base, own_full, own_empty, full, empty;

    __device__ __forceinline__ u32 k(u32 room, u32 half) const {
        return base + (room * CONSUMERS + half) * OWN_BYTES;
    }
    __device__ __forceinline__ u32 v(u32 room, u32 half) const { return k(room, half) + K_BYTES; }
    __device__ __forceinline__ u32 q(u32 stage) const {
        return base + STAGES_AT + stage * OWN_BYTES;
    }
    __device__ __forceinline__ u32 out(u32 stage) const { return q(stage) + K_BYTES; }
};

/// Where statistics and codes of a stage are, from the start.
__device__ __forceinline__ u32 stats_at(u32 stage) {
    return STATS_AT + stage * (STATS_BYTES + 16);
}
__device__ __forceinline__ u32 codes_at(u32 stage) { return stats_at(stage) + STATS_BYTES; }

/// Fills stages with the units of a tile's list, and says where it ends.
__device__ __forceinline__ void produce_units(const HopperParams& h, const Memory& m, Work w,
                                              unsigned char* shared, Slot<STAGES>& slot) {
    const Params& p = h.p;
    Walk walk{};
    walk.open(p, w);
    for (;; slot.next()) {
        const u32 s = slot.index, bar = m.full + 8 * s;
        uint2* codes = reinterpret_cast<uint2*>(shared + codes_at(s));
        barrier_wait(m.empty + 8 * s, slot.phase ^ 1);
        if (walk.group >= p.group) {
            *codes = {END, END};
            barrier_arrive(bar);
            slot.next();
            return;
        }
        const u32 other = read_entry(p, walk.entry, 1).code;
        const Step step = take(p, w, walk, 0);
        *codes = {step.code, other};
        const u32 first = step.unit * UNIT;
        w.group = step.group;
        barrier_expect(bar, OWN_BYTES + STATS_BYTES);
        copy_unit<DQ>(m.q(s), BOX_BYTES, h.q, bar, first, place_of(w, h.q_heads));
        copy_unit<DV>(m.out(s), BOX_BYTES, h.dout, bar, first, place_of(w, h.dout_heads));
        copy_bytes(m.base + stats_at(s), row_stats(p, w.outer * p.group + step.group, step.unit),
                   STATS_BYTES, bar);
    }
}

__device__ __forceinline__ void produce(const HopperParams& h, const Memory& m,
                                        unsigned char* shared, Tile* tiles) {
    const Params& p = h.p;
    Slot<STAGES> slot;
    Slot<OWNS> own;
    for (Run run = run_of(h, 1); run.job < run.end; ++run.job, own.next()) {
        const Work w = place(p, run.job, 1);
        const u32 bar = m.own_full + 8 * own.index, first = w.tile * CONSUMERS * UNIT;
        const Place k = place_of(w, h.k_heads), v = place_of(w, h.v_heads);
        barrier_wait(m.own_empty + 8 * own.index, own.phase ^ 1);
        tiles[own.index] = {{head_address(p.dk, w, 2), head_address(p.dv, w, 2)},
                            first,
                            0,
                            run.job + 1 < run.end,
                            0};
        barrier_expect(bar, CONSUMERS * OWN_BYTES);
        for (u32 half = 0; half < CONSUMERS; ++half) {
            copy_unit<DQ>(m.k(own.index, half), BOX_BYTES, h.k, bar, first + half * UNIT, k);
            copy_unit<DV>(m.v(own.index, half), BOX_BYTES, h.v, bar, first + half * UNIT, v);
        }
        produce_units(h, m, w, shared, slot);
    }
}

/// One tile: dk and dv, over units of queries up to the end of the list.
__device__ __forceinline__ void attend(const Params& p, const Memory& m, u32 half, u32 room,
                                       const unsigned char* shared, Slot<STAGES>& slot,
                                       float (&dk)[DQ / 2], float (&dv)[DV / 2]) {
    const u32 lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane / 4;
    float s[32], dp[32];
    u32 a[4][4], b[4][4];
    u32 before = NONE;
    for (;; slot.next()) {
        const u32 stage = slot.index;
        barrier_wait(m.full + 8 * stage, slot.phase);
        const u32 code =
            uniform(reinterpret_cast<const u32*>(shared + codes_at(stage))[half]);
        if (code == END) break;
        if (code == EMPTY) {
            // Nothing is held while there is nothing to do: the ring may go around meanwhile.
            if (AHEAD && before != NONE) {
                products_wait<0>();
                pin(dv), pin(dk);
                release(m.empty + 8 * before);
                before = NONE;
            }
            release(m.empty + 8 * stage);
            continue;
        }
        products_begin();
        issue_rows<DQ>(s, m.k(room, half), m.q(stage), BOX_BYTES);
        issue_rows<DV>(dp, m.v(room, half), m.out(stage), BOX_BYTES);
        const Bits bits = read_bits(p, code, true, row);
        products_wait<1>();
        pin(s);
        if (AHEAD) {
            pin(dv), pin(dk);
            if (before != NONE) release(m.empty + 8 * before);
        }
        if (code != FULL) mask_unit<0>(s, bits, lane);
        // Columns 2t and 2t + 1 of each 8: lse, D of two queries in one word.
        const float4* stats =
            reinterpret_cast<const float4*>(shared + stats_at(stage)) + lane % 4;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
            const float4 two = stats[4 * n];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                s[4 * n + i] = exp2_approx(
                    fmaf(s[4 * n + i], p.scale_log2, i % 2 == 0 ? -two.x : -two.z));
        }
        pack(a, s);
        products_begin();
        issue_depth(dv, a, m.out(stage));
        products_wait<1>();
        pin(dp);
#pragma unroll
        for (int n = 0; n < 8; ++n) {
            const float4 two = stats[4 * n];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                s[4 * n + i] *= dp[4 * n + i] - (i % 2 == 0 ? two.y : two.w);
        }
        pack(b, s);
        products_begin();
        issue_depth(dk, b, m.q(stage));
        if (!AHEAD) {
            products_wait<0>();
            pin(dv), pin(dk);
            release(m.empty + 8 * stage);
        }
        before = stage;
    }
    products_wait<0>();
    pin(dv), pin(dk);
    if (AHEAD && before != NONE) release(m.empty + 8 * before);
    release(m.empty + 8 * slot.index);  // of the end
    slot.next();
}

__device__ __forceinline__ void consume(const Params& p, const Memory& m, u32 half,
                                        unsigned char* shared, const Tile* tiles) {
    Slot<STAGES> slot;
    for (Slot<OWNS> own;; own.next()) {
        float dk[DQ / 2], dv[DV / 2];
#pragma unroll
        for (int i = 0; i < DQ / 2; ++i) dk[i] = 0.0f;
#pragma unroll
        for (int i = 0; i < DV / 2; ++i) dv[i] = 0.0f;
        barrier_wait(m.own_full + 8 * own.index, own.phase);
        attend(p, m, half, own.index, shared, slot, dk, dv);
        group_wait(half);  // all are past their last product of k and v
        const Tile& tile = tiles[own.index];
        const float one[2] = {1.0f, 1.0f}, scale[2] = {p.scale, p.scale};
        const u32 first = tile.first + half * UNIT;
        unsigned char* room = shared + (own.index * CONSUMERS + half) * OWN_BYTES;
        store_group(dk, scale, room, reinterpret_cast<Half*>(tile.to[0]), key_positions(p, p.dk),
                    first, p.keys);
        store_group(dv, one, room, reinterpret_cast<Half*>(tile.to[1]), key_positions(p, p.dv),
                    first, p.keys);
        const bool more = uniform(tile.more);
        release_room(m.own_empty + 8 * own.index);
        if (!more) break;
    }
}

extern "C" __global__ void __launch_bounds__(128 * (1 + CONSUMERS), 1)
    attend_dkv_sm90(const __grid_constant__ HopperParams h) {
    extern __shared__ unsigned char shared[];
    __shared__ Barrier own_full[OWNS], own_empty[OWNS], full[STAGES], empty[STAGES];
    __shared__ Tile tiles[OWNS];
    const u32 group = uniform(threadIdx.x / 128);
    // The swizzle repeats in 1,024 bytes.
    const u32 skip = -shared_address(shared) & 1023;
    const Memory m = {shared_address(shared) + skip, shared_address(own_full),
                      shared_address(own_empty), shared_address(full), shared_address(empty)};
    if (threadIdx.x == 0) {
        prefetch_map(h.q), prefetch_map(h.k), prefetch_map(h.v), prefetch_map(h.dout);
        for (int i = 0; i < OWNS; ++i) {
            barrier_init(m.own_full + 8 * i, 1);
            barrier_init(m.own_empty + 8 * i, 4 * CONSUMERS);
        }
        for (int i = 0; i < STAGES; ++i) {
            barrier_init(m.full + 8 * i, 1);
            barrier_init(m.empty + 8 * i, 4 * CONSUMERS);
        }
        barrier_init_fence();
    }
    __syncthreads();
    if (group == 0) {
        registers_shrink<24>();
        if (threadIdx.x == 0) produce(h, m, shared + skip, tiles);
    } else {
        registers_grow<240>();
        consume(h.p, m, group - 1, shared + skip, tiles);
    }
}
