// One value everywhere: UNROLL units of V elements a thread; grid ceil(units / (THREADS * UNROLL)).
// One flat axis may end in a tail of fewer than V elements.
//
// Constants: T (f32, bf16 or u32), V, AXES, UNROLL, THREADS.
#include "lib/strided.cuh"
#include "lib/vec.cuh"

#ifndef T
#define T f32
#endif
#ifndef V
#define V 4
#endif
#ifndef AXES
#define AXES 1
#endif
#ifndef UNROLL
#define UNROLL 4
#endif
#ifndef THREADS
#define THREADS 256
#endif

struct Params {
    void* to;
    Space<AXES, 1> space;
    u32 units;
    u32 tail;    // elements after the units, of one axis alone
    u32 bits;    // of the value, as it is stored
};

extern "C" __global__ void __launch_bounds__(THREADS)
fill(const __grid_constant__ Params p) {
    Vec<T, V> x;
#pragma unroll
    for (int w = 0; w < int(sizeof(x) / 4); ++w) {
        x.w[w] = sizeof(T) == 4 ? p.bits : p.bits | p.bits << 16;
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        u32 unit = blockIdx.x * (THREADS * UNROLL) + u * THREADS + threadIdx.x;
        if (unit >= p.units) continue;
        i64 at[1] = {};
        p.space.walk(unit, at);
        put<T, V>(p.to, at[0], x);
    }
    if (AXES == 1 && V > 1 && blockIdx.x == gridDim.x - 1 && threadIdx.x < p.tail) {
        Vec<T, 1> one = {{x.w[0]}};
        put<T, 1>(p.to, (i64(p.units) * V + threadIdx.x) * p.space.lane[0], one);
    }
}
