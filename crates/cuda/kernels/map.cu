// Element-wise regions: a generated program over a strided space.
//
// A thread works on UNROLL units of V lanes each; all of them are loaded before the first is
// computed, so that several accesses are in flight. The grid is exact: ceil(units / (THREADS *
// UNROLL)) blocks. One flat axis may end in a tail of fewer than V elements, which the last block
// takes one by one; with more axes V divides the innermost one.
//
// Constants: V (lanes), AXES (1 to 6), UNROLL, THREADS. The program between the markers is replaced
// by the one of the region; what stands here is AdamW over a bucket.
#include "lib/math.cuh"
#include "lib/philox.cuh"
#include "lib/strided.cuh"
#include "lib/vec.cuh"

#ifndef V
#define V 4
#endif
#ifndef AXES
#define AXES 1
#endif
#ifndef UNROLL
#define UNROLL 1
#endif
#ifndef THREADS
#define THREADS 256
#endif

//@program begin
// Operands: gradient, master, m, v, factor, rate, root, decay, finite; then master, m, v, weight.
constexpr int OPERANDS = 13;
constexpr int INDICES = 0;

struct Program {
    template <int N>
    struct Loads {
        Vec<f32, N> x0, x1, x2, x3;
        Vec<f32, 1> x4, x5, x6, x7, x8;
    };

    template <int N>
    static __device__ __forceinline__ void load(const Site<OPERANDS + INDICES>& s, Loads<N>& l) {
        l.x0 = ::load<f32, N>(s.ptr[0], s.at[0]);
        l.x1 = ::load<f32, N>(s.ptr[1], s.at[1]);
        l.x2 = ::load<f32, N>(s.ptr[2], s.at[2]);
        l.x3 = ::load<f32, N>(s.ptr[3], s.at[3]);
        l.x4 = ::load<f32, 1>(s.ptr[4], s.at[4]);
        l.x5 = ::load<f32, 1>(s.ptr[5], s.at[5]);
        l.x6 = ::load<f32, 1>(s.ptr[6], s.at[6]);
        l.x7 = ::load<f32, 1>(s.ptr[7], s.at[7]);
        l.x8 = ::load<f32, 1>(s.ptr[8], s.at[8]);
    }

    template <int N>
    static __device__ __forceinline__ void run(const Site<OPERANDS + INDICES>& s,
                                               const Loads<N>& l, const f32 (&product)[N],
                                               f32 (&result)[N]) {
        f32 y0[N], y1[N], y2[N], y3[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            f32 v0 = get(l.x0, i);
            f32 v1 = get(l.x1, i);
            f32 v2 = get(l.x2, i);
            f32 v3 = get(l.x3, i);
            f32 v4 = get(l.x4, 0);
            f32 v5 = get(l.x5, 0);
            f32 v6 = get(l.x6, 0);
            f32 v7 = get(l.x7, 0);
            f32 v8 = get(l.x8, 0);
            f32 v9 = v0 * v4;
            f32 v10 = 0.9f * v2 + 0.1f * v9;
            f32 v11 = v8 != 0.0f ? v10 : v2;
            f32 v12 = 0.95f * v3 + 0.05f * (v9 * v9);
            f32 v13 = v8 != 0.0f ? v12 : v3;
            f32 v14 = v5 * v11 / (math::sqrt(v13) * v6 + 1e-8f);
            f32 v15 = v1 - (v7 * v1 + v14);
            f32 v16 = v8 != 0.0f ? v15 : v1;
            y0[i] = v16;
            y1[i] = v11;
            y2[i] = v13;
            y3[i] = v16;
        }
        ::store<f32, N>(s.ptr[9], s.at[9], y0);
        ::store<f32, N>(s.ptr[10], s.at[10], y1);
        ::store<f32, N>(s.ptr[11], s.at[11], y2);
        ::store<bf16, N>(s.ptr[12], s.at[12], y3);
    }
};
//@program end

constexpr int ALL = OPERANDS + INDICES;

struct Params {
    void* ptr[OPERANDS];     // inputs, then outputs
    const Clock* clock;
    Draws draws;
    Space<AXES, ALL> space;  // units
    u32 units;               // whole ones, under 2^31
    u32 tail;                // elements after them, of one axis alone
};

template <int N>
__device__ __forceinline__ void one(const Site<ALL>& site) {
    f32 none[N] = {}, result[N];
    Program::Loads<N> loads;
    Program::load<N>(site, loads);
    Program::run<N>(site, loads, none, result);
}

extern "C" __global__ void LAUNCH_BOUNDS(THREADS)
map(const __grid_constant__ Params p) {
    u32 first = blockIdx.x * (THREADS * UNROLL) + threadIdx.x;
    Site<ALL> site[UNROLL];
    Program::Loads<V> loads[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        site[u] = {p.ptr, p.space.lane, p.clock, p.draws, {}};
        u32 unit = first + u * THREADS;
        if (unit >= p.units) continue;
        p.space.walk(unit, site[u].at);
        Program::load<V>(site[u], loads[u]);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        if (first + u * THREADS >= p.units) continue;
        f32 none[V] = {}, result[V];
        Program::run<V>(site[u], loads[u], none, result);
    }
    if (AXES == 1 && V > 1 && blockIdx.x == gridDim.x - 1 && threadIdx.x < p.tail) {
        Site<ALL> last = {p.ptr, p.space.lane, p.clock, p.draws, {}};
#pragma unroll
        for (int k = 0; k < ALL; ++k) {
            last.at[k] = (i64(p.units) * V + threadIdx.x) * p.space.lane[k];
        }
        one<1>(last);
    }
}
