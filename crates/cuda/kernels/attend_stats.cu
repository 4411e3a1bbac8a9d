// Attention backward, first of all: what a query's row of the score matrix needs besides its
// operands, lse log2(e) and D = rowsum(do o) - dlse, next to each other and in the order of units.
//
// -D: DV (a multiple of 32), PACK. Grid: batch * kv * group * query_units blocks of 256.
#include "lib/attend_tile.cuh"

constexpr u32 THREADS = 256;
constexpr u32 CHUNKS = DV / 8;
constexpr u32 LANES = CHUNKS <= 4 ? 4 : CHUNKS <= 8 ? 8 : 16;  // of a row
static_assert(CHUNKS <= LANES, "16 lanes take rows of up to 128");

extern "C" __global__ void __launch_bounds__(THREADS)
    attend_stats(const __grid_constant__ Params p) {
    const u32 unit = blockIdx.x % p.query_units;
    const Work w = head_of(p, blockIdx.x / p.query_units, p.group);
    const bf16* o = reinterpret_cast<const bf16*>(p.o.address) + head_at(p.o, w, w.group);
    const bf16* dout = reinterpret_cast<const bf16*>(p.dout.address) + head_at(p.dout, w, w.group);
    const float* lse = reinterpret_cast<const float*>(p.lse.address) + head_at(p.lse, w, w.group);
    const float* dlse = reinterpret_cast<const float*>(p.dlse.address);
    float2* to = const_cast<float2*>(row_stats(p, w.outer, unit));
    const u32 first = unit * p.query_step, end = min(p.queries, first + p.query_step);
    const u32 chunk = threadIdx.x % LANES;
#pragma unroll
    for (u32 row = threadIdx.x / LANES; row < UNIT; row += THREADS / LANES) {
        const u32 x = first + row;
        float sum = 0.0f;
        if (x < end && chunk < CHUNKS)
            sum = dot_bf16(
                __ldg(reinterpret_cast<const uint4*>(o + query_positions(p, p.o).at(x)) + chunk),
                __ldg(reinterpret_cast<const uint4*>(dout + query_positions(p, p.dout).at(x)) +
                      chunk));
#pragma unroll
        for (u32 apart = LANES / 2; apart > 0; apart /= 2)
            sum += __shfl_xor_sync(~0u, sum, apart);
        if (chunk == 0) {
            const float log = x < end ? lse[query_positions(p, p.lse).at(x)] : -infinity();
            const float slope = x < end && dlse != nullptr
                                    ? dlse[head_at(p.dlse, w, w.group) +
                                           query_positions(p, p.dlse).at(x)]
                                    : 0.0f;
            to[row] = stats_of(log, sum, slope);
        }
    }
}
