// Attention of few queries over a cache of keys; the first query's position is known on the device
// alone.
//
// No list can be made ahead, so the predicate is evaluated here: a head's pattern is a union of
// terms. A block of 8 warps owns one query; warp w takes the 32 keys of chunks w, w + 8, ... and
// skips chunks without a key that the query may see. In the end the warps' maxima, sums and outputs
// are joined in the order of the warps.
//
// -D: BF16 0|1, what q, k, v and o hold, f16 with F16=1; PACK=0. Grid: batch * kv * group * queries
// blocks of 256; dynamic shared memory: 4 bytes * (key_width + 8 (value_width + 2)). `first` is
// u32[kinds + 1] and `entries` Term[]: the terms of a kind of head; the other lists are not read,
// nor is `tiles`.
#include "lib/attend_plain.cuh"

constexpr u32 THREADS = 256;
constexpr u32 ALL_WARPS = THREADS / 32;

enum Kind : u32 { ALL, CAUSAL, BEFORE, LOCAL, STRIDED, BLOCK, SUMMARY, COLUMNS, COLUMNS_STRICT };

/// A pattern that is no union; `a` is its window, stride or block, `b` its columns.
struct Term {
    u32 kind, a, b, unused;
};

/// Whether query i may see key j.
__device__ __forceinline__ bool sees(const Term& t, u32 i, u32 j) {
    if (t.kind == ALL) return true;
    if (t.kind >= COLUMNS) {
        const u32 block = j / t.b, key = block * t.a + t.a - t.b + j % t.b;
        return t.kind == COLUMNS ? key <= i : block < i / t.a;
    }
    if (j > i) return false;
    switch (t.kind) {
        case BEFORE: return j < i;
        case LOCAL: return i - j < t.a;
        case STRIDED: return (i - j) % t.a == 0;
        case BLOCK: return i / t.a == j / t.a;
        case SUMMARY: return j % t.a >= t.a - t.b;
        default: return true;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 4)
    attend_decode(const __grid_constant__ Params p) {
    extern __shared__ float scratch[];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 row = blockIdx.x % p.queries;
    const Work w = head_of(p, blockIdx.x / p.queries, p.group);
    const u32 i = row + __ldg(reinterpret_cast<const u32*>(p.position));
    float* q = scratch;
    float* sums = q + p.key_width;  // [8] maxima, [8] sums, [8][value_width]
    float* o = sums + 2 * ALL_WARPS + warp * p.value_width;
    const Rows k = rows_of(p.k, key_positions(p, p.k), w, 0);
    const Rows v = rows_of(p.v, key_positions(p, p.v), w, 0);
    const Rows own = rows_of(p.q, query_positions(p, p.q), w, w.group);
    for (u32 d = threadIdx.x; d < p.key_width; d += THREADS) q[d] = own.get(row, d);
    for (u32 d = lane; d < p.value_width; d += 32) o[d] = 0.0f;
    __syncthreads();

    const u32* first = reinterpret_cast<const u32*>(p.first) + pattern_kind(p, w.kv, w.group);
    const Term* terms = reinterpret_cast<const Term*>(p.entries);
    float top = -infinity(), sum = 0.0f;
    for (u32 from = 32 * warp; from < p.keys; from += THREADS) {
        const u32 j = from + lane;
        bool seen = false;
        for (u32 t = first[0]; t < first[1]; ++t)
            seen = seen || (j < p.keys && sees(terms[t], i, j));
        if (!__any_sync(~0u, seen)) continue;
        const float s = seen ? dot(q, k, j, p.key_width) * p.scale_log2 : -infinity();
        const float before = top;
        top = fmaxf(top, warp_max(s));
        const float base = top == -infinity() ? 0.0f : top;
        const float factor = exp2_approx(before - base), weight = exp2_approx(s - base);
        sum = fmaf(sum, factor, weight);
        add_rows(o, factor, weight, v, from, p.value_width);
    }
    sum = warp_sum(sum);
    if (lane == 0) sums[warp] = top, sums[ALL_WARPS + warp] = sum;
    __syncthreads();

    float highest = -infinity(), total = 0.0f;
    for (u32 n = 0; n < ALL_WARPS; ++n) highest = fmaxf(highest, sums[n]);
    const float base = highest == -infinity() ? 0.0f : highest;
    for (u32 n = 0; n < ALL_WARPS; ++n)
        total = fmaf(sums[ALL_WARPS + n], exp2_approx(sums[n] - base), total);
    const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    const Rows out = rows_of(p.o, query_positions(p, p.o), w, w.group);
    for (u32 d = threadIdx.x; d < p.value_width; d += THREADS) {
        float x = 0.0f;
        for (u32 n = 0; n < ALL_WARPS; ++n)
            x = fmaf(sums[2 * ALL_WARPS + n * p.value_width + d], exp2_approx(sums[n] - base), x);
        out.at(row)[d * out.width] = from_float(x * inverse);
    }
    if (threadIdx.x == 0) {
        float* lse = reinterpret_cast<float*>(p.lse.address) + head_at(p.lse, w, w.group);
        lse[query_positions(p, p.lse).at(row)] =
            total == 0.0f ? -infinity() : (highest + log2_approx(total)) * LN_2;
    }
}
