// Attention backward on Hopper, dk and dv: what attend_dkv does, with the roles of attend_fwd_sm90.
//
//   p^T = exp(scale k q^T - lse), ds^T = p^T (v do^T - D), dv = p^T do, dk = scale ds^T q
//
// A block has a tile of 128 keys, 64 for either consumer warpgroup; a stage is one unit of queries
// of one head. s^T and v do^T are issued together; while the second runs s^T becomes p^T; dv += p^T
// do runs while ds^T is made; dk += ds^T q last. What one warpgroup waits for, the other fills. p^T
// and ds^T never leave the registers.
//
//   shared memory   k, v [2 warpgroups] boxes
//                   stage: q, do boxes, (lse, D) [64], either warpgroup's code, filled up to 1,024
//                   bytes; slices of boxes side by side
//   registers       s^T 32, v do^T 32, p^T 16, ds^T 16, dk DQ / 2, dv DV / 2
//
// Where several query heads share keys, a block sums over them in their order.
//
// -D: DQ, DV 64|128. Grid: batch * kv * tiles blocks of 384; dynamic shared memory: 1024 + 256
// (DQ + DV) + STAGES (128 (DQ + DV) + 1024) bytes, STAGES = 3. Lists of tiles of two units; PACK
// is 0.
#define PACK 0
#include "lib/attend_sm90.cuh"
#include "lib/attend_walk.cuh"

constexpr int STAGES = 3;
constexpr u32 K_BYTES = DQ / BOX * BOX_BYTES;  // of a unit; q's, too
constexpr u32 V_BYTES = DV / BOX * BOX_BYTES;
constexpr u32 STATS_BYTES = UNIT * 8;
constexpr u32 END = 0xfffffffdu;  // a code: there is no more
constexpr u32 OWN_BYTES = K_BYTES + V_BYTES, STAGE_BYTES = OWN_BYTES + 1024;

// Whether dk += ds^T q runs beside the next unit's scores. With wide heads there are no registers
// for left factors under way beside them; meanwhile the other warpgroup has the tensor cores.
constexpr bool AHEAD = DQ + DV <= 192;

struct Memory {
    u32 own, stages, own_full, full, empty;

    __device__ __forceinline__ u32 k(u32 half) const { return own + half * OWN_BYTES; }
    __device__ __forceinline__ u32 v(u32 half) const { return k(half) + K_BYTES; }
    __device__ __forceinline__ u32 q(u32 stage) const { return stages + stage * STAGE_BYTES; }
    __device__ __forceinline__ u32 out(u32 stage) const { return q(stage) + K_BYTES; }
    __device__ __forceinline__ u32 stats(u32 stage) const { return q(stage) + OWN_BYTES; }
    __device__ __forceinline__ u32 codes(u32 stage) const { return stats(stage) + STATS_BYTES; }
};

/// The producer alone walks the list: consumers have no register to spare for it.
__device__ __forceinline__ void produce(const HopperParams& h, const Memory& m,
                                        unsigned char* shared, u32 base) {
    const Params& p = h.p;
    Work w = place(p, blockIdx.x, 1);
    Walk walk{};
    walk.open(p, w);
    {
        const Place k = place_of(w, h.k_heads), v = place_of(w, h.v_heads);
        barrier_expect(m.own_full, CONSUMERS * OWN_BYTES);
        for (u32 half = 0; half < CONSUMERS; ++half) {
            const u32 first = (w.tile * CONSUMERS + half) * UNIT;
            copy_unit<DQ>(m.k(half), BOX_BYTES, h.k, m.own_full, first, k);
            copy_unit<DV>(m.v(half), BOX_BYTES, h.v, m.own_full, first, v);
        }
    }
    for (Slot<STAGES> slot;; slot.next()) {
        const u32 s = slot.index, bar = m.full + 8 * s;
        uint2* codes = reinterpret_cast<uint2*>(shared + (m.codes(s) - base));
        barrier_wait(m.empty + 8 * s, slot.phase ^ 1);
        if (walk.group >= p.group) {
            *codes = {END, END};
            barrier_arrive(bar);
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
        copy_bytes(m.stats(s), row_stats(p, w.outer * p.group + step.group, step.unit),
                   STATS_BYTES, bar);
    }
}

__device__ __forceinline__ void consume(const Params& p, const Memory& m, u32 half,
                                        unsigned char* shared, u32 base) {
    const u32 lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane / 4;
    float dk[DQ / 2], dv[DV / 2];
#pragma unroll
    for (int i = 0; i < DQ / 2; ++i) dk[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < DV / 2; ++i) dv[i] = 0.0f;
    {
        float s[32], dp[32];
        u32 a[4][4], b[4][4];
        u32 before = NONE;
        barrier_wait(m.own_full, 0);
        for (Slot<STAGES> slot;; slot.next()) {
            const u32 stage = slot.index;
            barrier_wait(m.full + 8 * stage, slot.phase);
            const u32 code =
                reinterpret_cast<const u32*>(shared + (m.codes(stage) - base))[half];
            if (code == END) break;
            products_begin();
            issue_rows<DQ>(s, m.k(half), m.q(stage), BOX_BYTES);
            issue_rows<DV>(dp, m.v(half), m.out(stage), BOX_BYTES);
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
                reinterpret_cast<const float4*>(shared + (m.stats(stage) - base)) + lane % 4;
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
    }
    group_wait(half);  // all are past their last product of k and v
    const Work again = place(p, block_anew(), 1);
    const float one[2] = {1.0f, 1.0f}, scale[2] = {p.scale, p.scale};
    const u32 first = (again.tile * CONSUMERS + half) * UNIT;
    Half* to_k = reinterpret_cast<Half*>(p.dk.address) + head_at(p.dk, again, 0);
    Half* to_v = reinterpret_cast<Half*>(p.dv.address) + head_at(p.dv, again, 0);
    unsigned char* room = shared + (m.k(half) - base);
    store_group(dk, scale, room, to_k, key_positions(p, p.dk), first, p.keys);
    store_group(dv, one, room, to_v, key_positions(p, p.dv), first, p.keys);
}

extern "C" __global__ void __launch_bounds__(128 * (1 + CONSUMERS), 1)
    attend_dkv_sm90(const __grid_constant__ HopperParams h) {
    extern __shared__ unsigned char shared[];
    __shared__ Barrier own_full, full[STAGES], empty[STAGES];
    const u32 group = threadIdx.x / 128;
    // The swizzle repeats in 1,024 bytes.
    const u32 skip = -shared_address(shared) & 1023, base = shared_address(shared) + skip;
    const Memory m = {base, base + CONSUMERS * OWN_BYTES, shared_address(&own_full),
                      shared_address(full), shared_address(empty)};
    if (threadIdx.x == 0) {
        prefetch_map(h.q), prefetch_map(h.k), prefetch_map(h.v), prefetch_map(h.dout);
        barrier_init(m.own_full, 1);
        for (int i = 0; i < STAGES; ++i) {
            barrier_init(m.full + 8 * i, 1);
            barrier_init(m.empty + 8 * i, 4 * CONSUMERS);
        }
        barrier_init_fence();
    }
    __syncthreads();
    if (group == 0) {
        registers_shrink<24>();
        if (threadIdx.x == 0) produce(h, m, shared + skip, base);
    } else {
        registers_grow<240>();
        consume(h.p, m, group - 1, shared + skip, base);
    }
}
