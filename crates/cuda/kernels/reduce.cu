// Sums and maxima of a generated program's value over some axes, in two phases of a fixed order.
//
// The axes are cut in two: `outer` and `inner`, whose last one is contiguous and is walked in units
// of V lanes. COLUMNS says which of the two goes:
//
//   rows (COLUMNS=0)     inner axes are reduced. LANES threads fold a chunk of one row (a warp's
//                        part, a warp, or the whole block); grid: (ceil(outer / groups), chunks).
//   columns (COLUMNS=1)  outer axes are reduced: bias gradients. LANES threads stand side by side
//                        over LANES * V columns, the groups of a block take every so-manieth row
//                        of its chunk; grid: (ceil(inner units / LANES), chunks).
//
// A block has THREADS / LANES groups. With more than one chunk the results are partials
// [chunks][kept] in f32, and `reduce_finish` (1024 threads, grid ceil(kept / 32)) folds them in
// f64. How many chunks, is a function of shapes alone, so that the sum has one order on every
// device:
//   rows     chunks = clamp(ceil(1024 / outer), 1, max(1, units / (LANES * UNROLL * 4)))
//   columns  across = ceil(units / LANES), blocks = 132 * 1024 / THREADS
//            chunks = clamp(floor((across > 32 ? 4 : 1) * blocks / across), 1,
//                           ceil(outer / (UNROLL * groups)))
//   chunk = ceil(length / chunks); chunks = ceil(length / chunk), at least 1
// Columns thus are the blocks that an H100 holds at once, or four times as many where these would
// not come out even. Scratch: chunks > 1 ? 4 * chunks * kept bytes : 0.
//
// What fits: for rows UNROLL = min(ceil(units / LANES), 8) / turns, so that a row is in flight as a
// whole; for columns 512 threads and, of LANES = 32, 16, 8, the one that leaves the fewest lanes
// idle (across * LANES), the first of equals.
//
// Constants: COLUMNS, FOLD (Sum or Max), OUT (f32, bf16 or f16), V, LANES, THREADS, UNROLL, OUTER
// and INNER (axes, 1 to 6). The program between the markers is replaced.
#include "lib/philox.cuh"
#include "lib/reduce.cuh"
#include "lib/strided.cuh"
#include "lib/vec.cuh"

#ifndef COLUMNS
#define COLUMNS 0
#endif
#ifndef FOLD
#define FOLD Sum
#endif
#ifndef OUT
#define OUT f32
#endif
#ifndef V
#define V 4
#endif
#ifndef LANES
#define LANES 32
#endif
#ifndef THREADS
#define THREADS 256
#endif
#ifndef UNROLL
#define UNROLL 4
#endif
#ifndef OUTER
#define OUTER 1
#endif
#ifndef INNER
#define INNER 1
#endif

//@program begin
// Operand: x. Result: its square.
constexpr int OPERANDS = 1;
constexpr int INDICES = 0;

struct Program {
    template <int N>
    struct Loads {
        Vec<f32, N> x0;
    };

    template <int N>
    static __device__ __forceinline__ void load(const Site<OPERANDS + INDICES>& s, Loads<N>& l) {
        l.x0 = ::load<f32, N>(s.ptr[0], s.at[0]);
    }

    template <int N>
    static __device__ __forceinline__ void run(const Site<OPERANDS + INDICES>& s,
                                               const Loads<N>& l, const f32 (&product)[N],
                                               f32 (&result)[N]) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            f32 v0 = get(l.x0, i);
            f32 v1 = v0 * v0;
            result[i] = v1;
        }
    }
};
//@program end

constexpr int ALL = OPERANDS + INDICES;
constexpr int GROUPS = THREADS / LANES;
static_assert(LANES <= 32 || LANES == THREADS, "more lanes than a warp's are the whole block");
static_assert(!COLUMNS || LANES <= 32, "columns: at most a warp side by side");

struct Params {
    void* ptr[OPERANDS];           // inputs
    const Clock* clock;
    void* out;
    f32* partials;                 // [chunks][kept]
    Draws draws;
    Space<OUTER, ALL + 1> outer;   // the last operand is the output
    Space<INNER, ALL + 1> inner;
    u32 outer_count;
    u32 units;                     // of the inner axes
    u32 tail;                      // rows of one inner axis: elements after the units
    u32 chunks;
    u32 chunk;                     // rows: units; columns: outer positions
};

struct Place {
    i64 at[ALL + 1];
};

__device__ __forceinline__ Site<ALL> site_of(const Params& p, const Place& place) {
    Site<ALL> site = {p.ptr, p.inner.lane, p.clock, p.draws, {}};
#pragma unroll
    for (int k = 0; k < ALL; ++k) site.at[k] = place.at[k];
    return site;
}

template <int N>
__device__ __forceinline__ void add(const Site<ALL>& site, const Program::Loads<N>& loads,
                                    f32 (&sum)[V]) {
    f32 none[N] = {}, result[N];
    Program::run<N>(site, loads, none, result);
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] = FOLD::join(sum[i], result[i]);
}

// Folds positions `first`, `first + step`, ... before `end` into `sum`, UNROLL of them in flight.
// `walk` adds where one of them begins.
template <class Walk>
__device__ __forceinline__ void fold_stretch(const Params& p, const Place& origin, u32 first,
                                             u32 end, u32 step, f32 (&sum)[V], Walk walk) {
    for (u32 at = first; at < end; at += step * UNROLL) {
        Site<ALL> site[UNROLL];
        Program::Loads<V> loads[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            if (at + u * step >= end) continue;
            Place place = origin;
            walk(at + u * step, place);
            site[u] = site_of(p, place);
            Program::load<V>(site[u], loads[u]);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            if (at + u * step < end) add<V>(site[u], loads[u], sum);
        }
    }
}

__device__ __forceinline__ void store_one(const Params& p, i64 at, f32 value) {
    f32 one[1] = {value};
    store<OUT, 1>(p.out, at, one);
}

#if COLUMNS
extern "C" __global__ void LAUNCH_BOUNDS(THREADS)
reduce(const __grid_constant__ Params p) {
    __shared__ f32 shared[GROUPS][LANES * V];
    u32 lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
    u32 unit = blockIdx.x * LANES + lane;
    f32 sum[V];
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] = FOLD::zero();
    if (unit < p.units) {
        Place origin = {};
        p.inner.walk(unit, origin.at);
        u32 begin = blockIdx.y * p.chunk;
        u32 end = begin + p.chunk < p.outer_count ? begin + p.chunk : p.outer_count;
        fold_stretch(p, origin, begin + group, end, GROUPS, sum,
                     [&](u32 row, Place& place) { p.outer.walk(row, place.at); });
    }
#pragma unroll
    for (int i = 0; i < V; ++i) shared[group][lane * V + i] = sum[i];
    __syncthreads();
    for (u32 column = threadIdx.x; column < LANES * V; column += THREADS) {
        u32 own = blockIdx.x * LANES + column / V;
        if (own >= p.units) continue;
        f32 total = shared[0][column];
#pragma unroll
        for (int g = 1; g < GROUPS; ++g) total = FOLD::join(total, shared[g][column]);
        if (p.chunks > 1) {
            u64 kept = u64(p.units) * V;
            p.partials[blockIdx.y * kept + u64(own) * V + column % V] = total;
        } else {
            Place place = {};
            p.inner.walk(own, place.at);
            store_one(p, place.at[ALL] + column % V * p.inner.lane[ALL], total);
        }
    }
}

extern "C" __global__ void __launch_bounds__(1024)
reduce_finish(const __grid_constant__ Params p) {
    u32 column = blockIdx.x * 32 + threadIdx.x / 32, columns = p.units * V;
    f64 total = fold_partials<FOLD, V % 4 == 0 ? 4 : V>(p.partials, columns, p.chunks, columns);
    if (threadIdx.x % 32 > 0 || column >= columns) return;
    Place place = {};
    p.inner.walk(column / V, place.at);
    store_one(p, place.at[ALL] + column % V * p.inner.lane[ALL], f32(total));
}
#else
extern "C" __global__ void LAUNCH_BOUNDS(THREADS)
reduce(const __grid_constant__ Params p) {
    __shared__ f32 shared[LANES > 32 ? LANES / 32 : 1];
    u32 lane = threadIdx.x % LANES;
    u32 row = blockIdx.x * GROUPS + threadIdx.x / LANES;
    Place origin = {};
    f32 sum[V];
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] = FOLD::zero();
    if (row < p.outer_count) {
        p.outer.walk(row, origin.at);
        u32 begin = blockIdx.y * p.chunk;
        u32 end = begin + p.chunk < p.units ? begin + p.chunk : p.units;
        fold_stretch(p, origin, begin + lane, end, LANES, sum,
                     [&](u32 unit, Place& place) { p.inner.walk(unit, place.at); });
        if (INNER == 1 && V > 1 && blockIdx.y == p.chunks - 1) {
            for (u32 i = lane; i < p.tail; i += LANES) {
                Place place = origin;
#pragma unroll
                for (int k = 0; k < ALL; ++k) {
                    place.at[k] += (i64(p.units) * V + i) * p.inner.lane[k];
                }
                Site<ALL> site = site_of(p, place);
                Program::Loads<1> loads;
                Program::load<1>(site, loads);
                add<1>(site, loads, sum);
            }
        }
    }
    f32 total[1] = {sum[0]};
#pragma unroll
    for (int i = 1; i < V; ++i) total[0] = FOLD::join(total[0], sum[i]);
    fold_group<FOLD, LANES>(total, shared);
    if (lane > 0 || row >= p.outer_count) return;
    if (p.chunks > 1) {
        p.partials[u64(blockIdx.y) * p.outer_count + row] = total[0];
    } else {
        store_one(p, origin.at[ALL], total[0]);
    }
}

extern "C" __global__ void __launch_bounds__(1024)
reduce_finish(const __grid_constant__ Params p) {
    u32 row = blockIdx.x * 32 + threadIdx.x / 32;
    f64 total = fold_partials<FOLD, 1>(p.partials, p.outer_count, p.chunks, p.outer_count);
    if (threadIdx.x % 32 > 0 || row >= p.outer_count) return;
    Place place = {};
    p.outer.walk(row, place.at);
    store_one(p, place.at[ALL], f32(total));
}
#endif
