// Attention backward on Hopper, dq: what attend_dq does, with the roles of attend_fwd_sm90.
//
//   p = exp(scale q k^T - lse), ds = p (do v^T - D), dq = scale ds k
//
// A block has a tile of 128 queries, 64 for either consumer warpgroup; a stage is one unit of keys
// and values. s and do v^T are issued together, and while the second runs s becomes p; dq += ds k
// is issued last and runs beside the next unit's s. ds never leaves the registers.
//
// It runs before attend_dkv_sm90 and makes what attend_stats makes for other forms: o comes through
// the stages, a unit each, before the keys, and meets do, which is there as it is.
//
//   shared memory   OWNS of q, do [2 warpgroups] boxes | stage: k, v boxes; slices side by side
//   registers       s 32, do v^T 32, ds 16, dq DQ / 2
//
// -D: DQ, DV 64|128, OWNS 1|2. Grid: ceil(heads * tiles / run) blocks of 384; dynamic shared
// memory: 1024 + (OWNS 256 + STAGES 128) (DQ + DV) bytes, STAGES = 4, but 3 for two rooms of the
// widest. Lists of tiles of two units; PACK is 0.
#define PACK 0
#include "lib/attend_sm90.cuh"
#include "lib/attend_walk.cuh"

constexpr int STAGES = OWNS == 2 && DQ + DV == 256 ? 3 : 4;
constexpr u32 Q_BYTES = DQ / BOX * BOX_BYTES;  // of a unit; k's, too
constexpr u32 V_BYTES = DV / BOX * BOX_BYTES;
constexpr u32 STAGE_BYTES = Q_BYTES + V_BYTES;

struct Memory {
    u32 own, stages, own_full, own_empty, full, empty;

    __device__ __forceinline__ u32 q(u32 room, u32 half) const {
        return own + (room * CONSUMERS + half) * STAGE_BYTES;
    }
    __device__ __forceinline__ u32 out(u32 room, u32 half) const { return q(room, half) + Q_BYTES; }
    __device__ __forceinline__ u32 k(u32 stage) const { return stages + stage * STAGE_BYTES; }
    __device__ __forceinline__ u32 v(u32 stage) const { return k(stage) + Q_BYTES; }
};

/// What comes with copies: tiles by room, either warpgroup's code by stage.
struct Notes {
    Tile tile[OWNS];
    u32 code[STAGES][CONSUMERS];
    float2 stats[CONSUMERS][UNIT];  // from consumers to consumers
};

__device__ __forceinline__ void produce(const HopperParams& h, const Memory& m, Notes& notes) {
    const Params& p = h.p;
    Slot<STAGES> slot;
    Slot<OWNS> own;
    for (Run run = run_of(h, p.group); run.job < run.end; ++run.job, own.next()) {
        const Work w = place(p, run.job, p.group);
        const List list = list_of(p, w.list);
        {
            const u32 tile = w.tile * CONSUMERS, bar = m.own_full + 8 * own.index;
            const Place q = place_of(w, h.q_heads), out = place_of(w, h.dout_heads);
            barrier_wait(m.own_empty + 8 * own.index, own.phase ^ 1);
            notes.tile[own.index] = {
                {head_address(p.dq, w, 2), reinterpret_cast<u64>(row_stats(p, w.outer, tile)),
                 head_address(p.lse, w, 4),
                 p.dlse.address == 0 ? 0 : head_address(p.dlse, w, 4)},
                tile * UNIT,
                list.last - list.begin,
                run.job + 1 < run.end,
                0};
            barrier_expect(bar, CONSUMERS * STAGE_BYTES);
            for (u32 half = 0; half < CONSUMERS; ++half) {
                const u32 first = (tile + half) * UNIT;
                copy_unit<DQ>(m.q(own.index, half), BOX_BYTES, h.q, bar, first, q);
                copy_unit<DV>(m.out(own.index, half), BOX_BYTES, h.dout, bar, first, out);
            }
        }
        const Place o = place_of(w, h.o_heads);
        for (u32 half = 0; half < CONSUMERS; ++half, slot.next()) {
            const u32 s = slot.index, bar = m.full + 8 * s;
            barrier_wait(m.empty + 8 * s, slot.phase ^ 1);
            barrier_expect(bar, V_BYTES);
            copy_unit<DV>(m.k(s), BOX_BYTES, h.o, bar, (w.tile * CONSUMERS + half) * UNIT, o);
        }
        const Place k = place_of(w, h.k_heads), v = place_of(w, h.v_heads);
        for (u32 e = list.begin; e < list.last; ++e, slot.next()) {
            const u32 s = slot.index, bar = m.full + 8 * s;
            const BothEntry entry = read_both(p, e);
            const u32 first = entry.unit * UNIT;
            barrier_wait(m.empty + 8 * s, slot.phase ^ 1);
            for (u32 half = 0; half < CONSUMERS; ++half) notes.code[s][half] = entry.code[half];
            barrier_expect(bar, STAGE_BYTES);
            copy_unit<DQ>(m.k(s), BOX_BYTES, h.k, bar, first, k);
            copy_unit<DV>(m.v(s), BOX_BYTES, h.v, bar, first, v);
        }
    }
}

/// lse log2(e) and D of the warpgroup's queries: to all of it, and to attend_dkv_sm90. Two threads
/// have a row. Chunks of o and of do lie alike, and in an order in which no two rows meet in a bank.
__device__ __forceinline__ void make_stats(const Params& p, const Memory& m, Notes& notes,
                                           u32 half, u32 room, const unsigned char* shared,
                                           Slot<STAGES>& slot) {
    const Tile& tile = notes.tile[room];
    const u32 row = threadIdx.x % 128 / 2, side = threadIdx.x % 2;
    const u32 x = tile.first + half * UNIT + row;
    float lse = -infinity(), slope = 0.0f, along = 0.0f;
    if (x < p.queries) {
        lse = __ldg(reinterpret_cast<const float*>(tile.to[2]) + query_positions(p, p.lse).at(x));
        if (tile.to[3] != 0)
            slope = __ldg(reinterpret_cast<const float*>(tile.to[3]) +
                          query_positions(p, p.dlse).at(x));
    }
    for (u32 unit = 0; unit < CONSUMERS; ++unit, slot.next()) {
        barrier_wait(m.full + 8 * slot.index, slot.phase);
        if (unit == half) {
            const unsigned char* o = shared + (m.k(slot.index) - m.own) + row * (BOX * 2);
            const unsigned char* out = shared + (m.out(room, half) - m.own) + row * (BOX * 2);
#pragma unroll
            for (u32 i = 0; i < DV / 16; ++i) {
                const u32 at = i / 4 * BOX_BYTES + 16 * (4 * side + (i + row) % 4);
                along += dot_half(*reinterpret_cast<const uint4*>(o + at),
                                  *reinterpret_cast<const uint4*>(out + at));
            }
        }
        release_room(m.empty + 8 * slot.index);
    }
    along += __shfl_xor_sync(~0u, along, 1);
    if (side == 0) {
        const float2 made = stats_of(lse, along, slope);
        notes.stats[half][row] = made;
        if (tile.first + half * UNIT < p.queries)
            reinterpret_cast<float2*>(tile.to[1])[half * UNIT + row] = made;
    }
    group_wait(half);
}

/// One tile: dq, unscaled, over `units` units of keys.
__device__ __forceinline__ void attend(const Params& p, const Memory& m, const Notes& notes,
                                       u32 half, u32 room, u32 units, Slot<STAGES>& slot,
                                       float (&dq)[DQ / 2]) {
    const u32 lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane / 4;
    // lse log2(e) and D of rows g and g + 8.
    const float2 own[2] = {notes.stats[half][row], notes.stats[half][row + 8]};
    float s[32], dp[32];
    u32 a[4][4];
    u32 before = NONE;
    for (u32 e = 0; e < units; ++e, slot.next()) {
        const u32 stage = slot.index;
        barrier_wait(m.full + 8 * stage, slot.phase);
        const u32 code = uniform(notes.code[stage][half]);
        if (code == EMPTY) {
            // Nothing is held while there is nothing to do: the ring may go around meanwhile.
            if (before != NONE) {
                products_wait<0>();
                pin(dq);
                release(m.empty + 8 * before);
                before = NONE;
            }
            release(m.empty + 8 * stage);
            continue;
        }
        products_begin();
        issue_rows<DQ>(s, m.q(room, half), m.k(stage), BOX_BYTES);
        issue_rows<DV>(dp, m.out(room, half), m.v(stage), BOX_BYTES);
        const Bits bits = read_bits(p, code, false, row);
        products_wait<1>();
        pin(s), pin(dq);
        if (before != NONE) release(m.empty + 8 * before);
        if (code != FULL) mask_unit<0>(s, bits, lane);
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
    }
    products_wait<0>();
    pin(dq);
    if (before != NONE) release(m.empty + 8 * before);
}

__device__ __forceinline__ void consume(const Params& p, const Memory& m, Notes& notes, u32 half,
                                        unsigned char* rooms) {
    Slot<STAGES> slot;
    const float factor[2] = {p.scale, p.scale};
    for (Slot<OWNS> own;; own.next()) {
        const Tile& tile = notes.tile[own.index];
        barrier_wait(m.own_full + 8 * own.index, own.phase);
        make_stats(p, m, notes, half, own.index, rooms, slot);
        float dq[DQ / 2];
#pragma unroll
        for (int i = 0; i < DQ / 2; ++i) dq[i] = 0.0f;
        const u32 units = uniform(tile.units);
        if (units > 0) attend(p, m, notes, half, own.index, units, slot, dq);
        group_wait(half);  // all are past their last product of q
        store_group(dq, factor, rooms + (own.index * CONSUMERS + half) * STAGE_BYTES,
                    reinterpret_cast<Half*>(tile.to[0]), query_positions(p, p.dq),
                    tile.first + half * UNIT, p.queries);
        const bool more = uniform(tile.more);
        release_room(m.own_empty + 8 * own.index);
        if (!more) break;
    }
}

extern "C" __global__ void __launch_bounds__(128 * (1 + CONSUMERS), 1)
    attend_dq_sm90(const __grid_constant__ HopperParams h) {
    extern __shared__ unsigned char shared[];
    __shared__ Barrier own_full[OWNS], own_empty[OWNS], full[STAGES], empty[STAGES];
    __shared__ Notes notes;
    const u32 group = uniform(threadIdx.x / 128);
    // The swizzle repeats in 1,024 bytes.
    const u32 skip = -shared_address(shared) & 1023, base = shared_address(shared) + skip;
    const Memory m = {base,
                      base + OWNS * CONSUMERS * STAGE_BYTES,
                      shared_address(own_full),
                      shared_address(own_empty),
                      shared_address(full),
                      shared_address(empty)};
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
        if (threadIdx.x == 0) produce(h, m, notes);
    } else {
        registers_grow<240>();
        consume(h.p, m, notes, group - 1, shared + skip);
    }
}
