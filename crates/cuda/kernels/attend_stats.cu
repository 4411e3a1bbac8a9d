// Attention backward, first of all: what a query's row of the score matrix needs besides its
// operands, lse log2(e) and D = rowsum(do o) - dlse, next to each other and in the order of units.
// (attend_dq_sm90 makes them by itself.)
//
// Reads o and do once, so device memory sets its pace: a warp asks for 2 ROUNDS chunks of each lane
// before it uses any. A row has LANES lanes, so a round of a warp is 32 / LANES rows; after the
// sums every lane of a row knows all of its rounds, lane r of a row keeps round r, and the results
// of a warp leave as one word of 8 bytes a lane, side by side.
//
// -D: DV (a multiple of 32), PACK. Grid: batch * kv * group * ceil(query_units / UNITS) blocks of
// 256, where UNITS is 4 for DV = 32, 2 for DV = 64, 1 above.
#include "lib/attend_tile.cuh"

constexpr u32 THREADS = 256, ROUNDS = 4;
constexpr u32 CHUNKS = DV / 8;
constexpr u32 LANES = CHUNKS <= 4 ? 4 : CHUNKS <= 8 ? 8 : 16;  // of a row
constexpr u32 SIDE = 32 / LANES;                               // rows of a warp's round
constexpr u32 UNITS = THREADS / LANES * ROUNDS / UNIT;
static_assert(CHUNKS <= LANES && ROUNDS <= LANES, "16 lanes take rows of up to 128");
static_assert(UNIT % (SIDE * ROUNDS) == 0, "a warp's rows are of one unit");

extern "C" __global__ void __launch_bounds__(THREADS)
    attend_stats(const __grid_constant__ Params p) {
    const u32 blocks = (p.query_units + UNITS - 1) / UNITS;
    const u32 head = blockIdx.x / blocks;
    const u32 row = threadIdx.x / 32 * SIDE * ROUNDS;  // the warp's first
    const u32 unit = (blockIdx.x - head * blocks) * UNITS + row / UNIT;
    if (unit >= p.query_units) return;
    const Work w = head_of(p, head, p.group);
    const Half* o = reinterpret_cast<const Half*>(p.o.address) + head_at(p.o, w, w.group);
    const Half* dout = reinterpret_cast<const Half*>(p.dout.address) + head_at(p.dout, w, w.group);
    const Positions ox = query_positions(p, p.o), dx = query_positions(p, p.dout);
    const u32 first = unit * p.query_step, end = min(p.queries, first + p.query_step);
    const u32 lane = threadIdx.x % 32, side = lane / LANES, chunk = lane % LANES;
    uint4 a[ROUNDS], b[ROUNDS];
#pragma unroll
    for (u32 r = 0; r < ROUNDS; ++r) {
        const u32 x = first + row % UNIT + r * SIDE + side;
        a[r] = b[r] = make_uint4(0, 0, 0, 0);
        if (x < end && chunk < CHUNKS) {
            a[r] = __ldg(reinterpret_cast<const uint4*>(o + ox.at(x)) + chunk);
            b[r] = __ldg(reinterpret_cast<const uint4*>(dout + dx.at(x)) + chunk);
        }
    }
    // The row whose results this lane keeps.
    const u32 own = row % UNIT + chunk * SIDE + side, x = first + own;
    float log = -infinity(), slope = 0.0f;
    if (x < end && chunk < ROUNDS) {
        log = __ldg(reinterpret_cast<const float*>(p.lse.address) + head_at(p.lse, w, w.group) +
                    query_positions(p, p.lse).at(x));
        if (p.dlse.address != 0)
            slope = __ldg(reinterpret_cast<const float*>(p.dlse.address) +
                          head_at(p.dlse, w, w.group) + query_positions(p, p.dlse).at(x));
    }
    float along = 0.0f;
#pragma unroll
    for (u32 r = 0; r < ROUNDS; ++r) {
        float sum = dot_half(a[r], b[r]);
#pragma unroll
        for (u32 apart = LANES / 2; apart > 0; apart /= 2)
            sum += __shfl_xor_sync(~0u, sum, apart);
        if (chunk == r) along = sum;
    }
    if (chunk < ROUNDS)
        const_cast<float2*>(row_stats(p, head, unit))[own] = stats_of(log, along, slope);
}
