// Attention backward on Hopper, dq: what attend_dq does, with the roles of attend_fwd_sm90.
//
//   p = exp(scale q k^T - lse), ds = p (do v^T - D), dq = scale ds k
//
// A block has a tile of 128 queries, 64 for either consumer warpgroup; a stage is one unit of keys
// and values. s and do v^T are issued together, and while the second runs s becomes p; dq += ds k
// is issued last and runs beside the next unit's s. ds never leaves the registers.
//
//   shared memory   q, do [2 warpgroups] boxes | stage: k, v boxes; slices side by side
//   registers       s 32, do v^T 32, ds 16, dq DQ / 2
//
// -D: DQ, DV 64|128. Grid: heads * tiles blocks of 384; dynamic shared memory: 1024 + (256 + STAGES
// 128) (DQ + DV) bytes, STAGES = 4. Lists of tiles of two units; PACK is 0.
#define PACK 0
#include "lib/attend_sm90.cuh"

constexpr int STAGES = 4;
constexpr u32 Q_BYTES = DQ / BOX * BOX_BYTES;  // of a unit; k's, too
constexpr u32 V_BYTES = DV / BOX * BOX_BYTES;
constexpr u32 STAGE_BYTES = Q_BYTES + V_BYTES;

struct Memory {
    u32 own, stages, own_full, full, empty;

    __device__ __forceinline__ u32 q(u32 half) const { return own + half * STAGE_BYTES; }
    __device__ __forceinline__ u32 out(u32 half) const { return q(half) + Q_BYTES; }
    __device__ __forceinline__ u32 k(u32 stage) const { return stages + stage * STAGE_BYTES; }
    __device__ __forceinline__ u32 v(u32 stage) const { return k(stage) + Q_BYTES; }
};

__device__ __forceinline__ void produce(const HopperParams& h, const Memory& m) {
    const Params& p = h.p;
    const Work w = place(p, blockIdx.x, p.group);
    const u32 begin = __ldg(reinterpret_cast<const u32*>(p.first) + w.list);
    const u32 last = __ldg(reinterpret_cast<const u32*>(p.first) + w.list + 1);
    if (begin == last) return;
    const Place k = place_of(w, h.k_heads), v = place_of(w, h.v_heads);
    {
        const Place q = place_of(w, h.q_heads), out = place_of(w, h.dout_heads);
        barrier_expect(m.own_full, CONSUMERS * STAGE_BYTES);
        for (u32 half = 0; half < CONSUMERS; ++half) {
            const u32 first = (w.tile * CONSUMERS + half) * UNIT;
            copy_unit<DQ>(m.q(half), BOX_BYTES, h.q, m.own_full, first, q);
            copy_unit<DV>(m.out(half), BOX_BYTES, h.dout, m.own_full, first, out);
        }
    }
    Slot<STAGES> slot;
    for (u32 e = begin; e < last; ++e, slot.next()) {
        const u32 s = slot.index, bar = m.full + 8 * s;
        const u32 first = read_entry(p, e, 0).unit * UNIT;
        barrier_wait(m.empty + 8 * s, slot.phase ^ 1);
        barrier_expect(bar, STAGE_BYTES);
        copy_unit<DQ>(m.k(s), BOX_BYTES, h.k, bar, first, k);
        copy_unit<DV>(m.v(s), BOX_BYTES, h.v, bar, first, v);
    }
}

__device__ __forceinline__ void consume(const Params& p, const Memory& m, u32 half,
                                        unsigned char* room) {
    const Work w = place(p, blockIdx.x, p.group);
    const u32 begin = __ldg(reinterpret_cast<const u32*>(p.first) + w.list);
    const u32 last = __ldg(reinterpret_cast<const u32*>(p.first) + w.list + 1);
    const u32 lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane / 4;
    // lse log2(e) and D of rows g and g + 8; past the last query: those of a neighbour, unused.
    const float2* stats =
        row_stats(p, w.outer, min(w.tile * CONSUMERS + half, p.query_units - 1)) + row;
    const float2 own[2] = {__ldg(stats), __ldg(stats + 8)};
    float dq[DQ / 2];
#pragma unroll
    for (int i = 0; i < DQ / 2; ++i) dq[i] = 0.0f;
    if (begin < last) {
        float s[32], dp[32];
        u32 a[4][4];
        Slot<STAGES> slot;
        u32 before = 0;
        u32 code = read_entry(p, begin, half).code;
        Bits bits = read_bits(p, code, false, row);
        barrier_wait(m.own_full, 0);
        for (u32 e = begin; e < last; ++e) {
            const u32 stage = slot.index;
            barrier_wait(m.full + 8 * stage, slot.phase);
            products_begin();
            issue_rows<DQ>(s, m.q(half), m.k(stage), BOX_BYTES);
            issue_rows<DV>(dp, m.out(half), m.v(stage), BOX_BYTES);
            products_wait<1>();
            pin(s), pin(dq);
            if (e > begin) release(m.empty + 8 * before);
            if (code != FULL) mask_unit<0>(s, bits, lane);
            if (e + 1 < last) {
                code = read_entry(p, e + 1, half).code;
                bits = read_bits(p, code, false, row);
            }
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < 32; ++i) {
                s[i] = exp2_approx(fmaf(s[i], p.scale_log2, -own[i / 2 % 2].x));
                if (i % 8 == 7) sum += s[i];
            }
            pin(s);
            wait_behind(sum);
            pin(dp);
#pragma unroll
            for (int i = 0; i < 32; ++i) s[i] *= dp[i] - own[i / 2 % 2].y;
            pack(a, s);
            products_begin();
            issue_depth(dq, a, m.k(stage));
            before = stage;
            slot.next();
        }
        products_wait<0>();
        pin(dq);
    }
    group_wait(half);  // all are past their last product of q
    const Work again = place(p, block_anew(), p.group);
    const float factor[2] = {p.scale, p.scale};
    Half* to = reinterpret_cast<Half*>(p.dq.address) + head_at(p.dq, again, again.group);
    store_group(dq, factor, room, to, query_positions(p, p.dq),
                (again.tile * CONSUMERS + half) * UNIT, p.queries);
}

extern "C" __global__ void __launch_bounds__(128 * (1 + CONSUMERS), 1)
    attend_dq_sm90(const __grid_constant__ HopperParams h) {
    extern __shared__ unsigned char shared[];
    __shared__ Barrier own_full, full[STAGES], empty[STAGES];
    const u32 group = threadIdx.x / 128;
    // The swizzle repeats in 1,024 bytes.
    const u32 skip = -shared_address(shared) & 1023, base = shared_address(shared) + skip;
    const Memory m = {base, base + CONSUMERS * STAGE_BYTES, shared_address(&own_full),
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
        if (threadIdx.x == 0) produce(h, m);
    } else {
        registers_grow<240>();
        consume(h.p, m, group - 1, shared + skip + (group - 1) * STAGE_BYTES);
    }
}
