// Attention without tensor cores, forward and backward: for f32, for widths that are no multiple of
// 32, and for operands whose rows are not contiguous or not 16-byte aligned. Sums are f32.
//
// A warp owns one query (or one key, for dk and dv): its lanes score 32 positions, then turn to the
// columns of the result, with the probabilities passed from lane to lane. Lists and masks are those
// of tiles of one unit, so time is proportional to the units kept here as well.
//
// -D: BF16 0|1, what all operands but lse, dlse and stats hold, f16 with F16=1; PACK. Blocks of
// 128; grid: x = heads * tiles (attend_plain_dkv: batch * kv * tiles), y = 16. Dynamic shared
// memory, bytes: 16 (key_width + value_width), twice that for attend_plain_dkv; attend_plain_dq:
// 16 (2 key_width + value_width); attend_plain_stats: none.
#include "lib/attend_plain.cuh"

constexpr u32 WARPS = 4;

/// Whether the pair of this warp's row and this lane's position, of 32 of a unit, may be.
__device__ __forceinline__ bool allowed(const Params& p, u32 code, bool by_key, u32 row, u32 part) {
    if (code == FULL || code == EMPTY) return code == FULL;
    return __ldg(mask_row(p, code, by_key, row) + part) >> (threadIdx.x % 32) & 1;
}

/// The entries of a list.
struct List {
    u32 begin, last;
};

__device__ __forceinline__ List list_of(const Params& p, u32 list) {
    const u32* first = reinterpret_cast<const u32*>(p.first) + list;
    return {__ldg(first), __ldg(first + 1)};
}

extern "C" __global__ void __launch_bounds__(128, 4)
    attend_plain_fwd(const __grid_constant__ Params p) {
    extern __shared__ float scratch[];
    const Work w = place(p, blockIdx.x, p.group);
    const u32 lane = threadIdx.x % 32, row = blockIdx.y * WARPS + threadIdx.x / 32;
    const u32 i = w.tile * p.query_step + row;
    if (row >= p.query_step || i >= p.queries) return;
    float* q = scratch + threadIdx.x / 32 * (p.key_width + p.value_width);
    float* o = q + p.key_width;
    const Rows k = rows_of(p.k, key_positions(p, p.k), w, 0);
    const Rows v = rows_of(p.v, key_positions(p, p.v), w, 0);
    read_row(q, rows_of(p.q, query_positions(p, p.q), w, w.group), i, p.key_width);
    for (u32 d = lane; d < p.value_width; d += 32) o[d] = 0.0f;
    __syncwarp();

    float top = -infinity(), sum = 0.0f;
    const List list = list_of(p, w.list);
    for (u32 n = 2 * list.begin; n < 2 * list.last; ++n) {
        const HalfEntry entry = read_entry(p, n / 2, 0);
        const u32 part = n % 2, first = entry.unit * p.key_step + 32 * part, j = first + lane;
        const bool seen = 32 * part + lane < p.key_step && j < p.keys &&
                          allowed(p, entry.code, false, row, part);
        const float s = seen ? dot(q, k, j, p.key_width) * p.scale_log2 : -infinity();
        const float before = top;
        top = fmaxf(top, warp_max(s));
        // A query that has seen nothing yet has no maximum to subtract.
        const float base = top == -infinity() ? 0.0f : top;
        const float factor = exp2_approx(before - base), weight = exp2_approx(s - base);
        sum = fmaf(sum, factor, weight);
        add_rows(o, factor, weight, v, first, p.value_width);
    }
    sum = warp_sum(sum);
    write_row(rows_of(p.o, query_positions(p, p.o), w, w.group), i, o, p.value_width,
              sum == 0.0f ? 0.0f : 1.0f / sum);
    float* lse = reinterpret_cast<float*>(p.lse.address) + head_at(p.lse, w, w.group);
    if (lane == 0)
        lse[query_positions(p, p.lse).at(i)] =
            sum == 0.0f ? -infinity() : (top + log2_approx(sum)) * LN_2;
}

/// lse log2(e) and D, as attend_stats makes them.
extern "C" __global__ void __launch_bounds__(128, 4)
    attend_plain_stats(const __grid_constant__ Params p) {
    const u32 unit = blockIdx.x % p.query_units;
    const Work w = head_of(p, blockIdx.x / p.query_units, p.group);
    const u32 row = blockIdx.y * WARPS + threadIdx.x / 32, i = unit * p.query_step + row;
    const bool there = row < p.query_step && i < p.queries;
    float log = -infinity(), d = 0.0f, slope = 0.0f;
    if (there) {
        const Rows o = rows_of(p.o, query_positions(p, p.o), w, w.group);
        const Rows dout = rows_of(p.dout, query_positions(p, p.dout), w, w.group);
        for (u32 c = threadIdx.x % 32; c < p.value_width; c += 32)
            d = fmaf(o.get(i, c), dout.get(i, c), d);
        const float* lse = reinterpret_cast<const float*>(p.lse.address);
        log = lse[head_at(p.lse, w, w.group) + query_positions(p, p.lse).at(i)];
    }
    d = warp_sum(d);
    if (there && p.dlse.address != 0) {
        const float* dlse = reinterpret_cast<const float*>(p.dlse.address);
        slope = dlse[head_at(p.dlse, w, w.group) + query_positions(p, p.dlse).at(i)];
    }
    if (threadIdx.x % 32 == 0)
        const_cast<float2*>(row_stats(p, w.outer, unit))[row] = stats_of(log, d, slope);
}

extern "C" __global__ void __launch_bounds__(128, 4)
    attend_plain_dq(const __grid_constant__ Params p) {
    extern __shared__ float scratch[];
    const Work w = place(p, blockIdx.x, p.group);
    const u32 lane = threadIdx.x % 32, row = blockIdx.y * WARPS + threadIdx.x / 32;
    const u32 i = w.tile * p.query_step + row;
    if (row >= p.query_step || i >= p.queries) return;
    float* q = scratch + threadIdx.x / 32 * (2 * p.key_width + p.value_width);
    float *dq = q + p.key_width, *dout = dq + p.key_width;
    const Rows k = rows_of(p.k, key_positions(p, p.k), w, 0);
    const Rows v = rows_of(p.v, key_positions(p, p.v), w, 0);
    read_row(q, rows_of(p.q, query_positions(p, p.q), w, w.group), i, p.key_width);
    read_row(dout, rows_of(p.dout, query_positions(p, p.dout), w, w.group), i, p.value_width);
    for (u32 d = lane; d < p.key_width; d += 32) dq[d] = 0.0f;
    __syncwarp();

    const float2 stats = row_stats(p, w.outer, w.tile)[row];
    const List list = list_of(p, w.list);
    for (u32 n = 2 * list.begin; n < 2 * list.last; ++n) {
        const HalfEntry entry = read_entry(p, n / 2, 0);
        const u32 part = n % 2, first = entry.unit * p.key_step + 32 * part, j = first + lane;
        float weight = 0.0f;
        if (32 * part + lane < p.key_step && j < p.keys &&
            allowed(p, entry.code, false, row, part)) {
            const float s = dot(q, k, j, p.key_width) * p.scale_log2;
            weight = exp2_approx(s - stats.x) * (dot(dout, v, j, p.value_width) - stats.y);
        }
        add_rows(dq, 1.0f, weight, k, first, p.key_width);
    }
    write_row(rows_of(p.dq, query_positions(p, p.dq), w, w.group), i, dq, p.key_width, p.scale);
}

extern "C" __global__ void __launch_bounds__(128, 4)
    attend_plain_dkv(const __grid_constant__ Params p) {
    extern __shared__ float scratch[];
    const Work w = place(p, blockIdx.x, 1);
    const u32 lane = threadIdx.x % 32, row = blockIdx.y * WARPS + threadIdx.x / 32;
    const u32 j = w.tile * p.key_step + row;
    if (row >= p.key_step || j >= p.keys) return;
    float* k = scratch + threadIdx.x / 32 * 2 * (p.key_width + p.value_width);
    float *dk = k + p.key_width, *v = dk + p.key_width, *dv = v + p.value_width;
    read_row(k, rows_of(p.k, key_positions(p, p.k), w, 0), j, p.key_width);
    read_row(v, rows_of(p.v, key_positions(p, p.v), w, 0), j, p.value_width);
    for (u32 d = lane; d < p.key_width; d += 32) dk[d] = 0.0f;
    for (u32 d = lane; d < p.value_width; d += 32) dv[d] = 0.0f;
    __syncwarp();

    for (u32 group = 0; group < p.group; ++group) {
        const Rows q = rows_of(p.q, query_positions(p, p.q), w, group);
        const Rows dout = rows_of(p.dout, query_positions(p, p.dout), w, group);
        const List list = list_of(p, pattern_kind(p, w.kv, group) * p.tiles + w.tile);
        for (u32 n = 2 * list.begin; n < 2 * list.last; ++n) {
            const HalfEntry entry = read_entry(p, n / 2, 0);
            const u32 part = n % 2, first = entry.unit * p.query_step + 32 * part, i = first + lane;
            float weight = 0.0f, slope = 0.0f;
            if (32 * part + lane < p.query_step && i < p.queries &&
                allowed(p, entry.code, true, row, part)) {
                const float2 stats = row_stats(p, w.outer * p.group + group,
                                               entry.unit)[32 * part + lane];
                const float s = dot(k, q, i, p.key_width) * p.scale_log2;
                weight = exp2_approx(s - stats.x);
                slope = weight * (dot(v, dout, i, p.value_width) - stats.y);
            }
            add_rows(dv, 1.0f, weight, dout, first, p.value_width);
            add_rows(dk, 1.0f, slope, q, first, p.key_width);
        }
    }
    write_row(rows_of(p.dk, key_positions(p, p.dk), w, 0), j, dk, p.key_width, p.scale);
    write_row(rows_of(p.dv, key_positions(p, p.dv), w, 0), j, dv, p.value_width, 1.0f);
}
