// Copies, bit for bit, from one layout to another of the same type.
//
//   copy            both are contiguous along one axis: units of V elements, UNROLL a thread; grid
//                   ceil(units / (THREADS * UNROLL)). Axes in the order of the target.
//   copy_transpose  the source is contiguous along axis a, the target along axis b: tiles of 64 by
//                   64 elements go through shared memory, 256 threads each; grid (tiles of a *
//                   tiles of b, outer positions up to 65535).
//
// Where V divides neither size nor address it is 1. Casts are maps.
//
// Constants: T (bf16 for 2 bytes, u32 for 4), V (8 or 4, or less), AXES (of `copy` all, of
// `copy_transpose` the outer ones, at least 1), UNROLL, THREADS.
#include "lib/strided.cuh"
#include "lib/vec.cuh"

#ifndef T
#define T bf16
#endif
#ifndef V
#define V 8
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
    const void* from;
    void* to;
    i64 from_b;             // copy_transpose: elements of the source from step to step along b
    i64 to_a;               // copy_transpose: elements of the target from step to step along a
    Space<AXES, 2> space;   // from, to; copy: units, copy_transpose: outer axes
    Divide tiles_a;         // copy_transpose: ceil(size_a / 64)
    u32 units;              // copy
    u32 size_a;             // copy_transpose
    u32 size_b;             // copy_transpose
};

extern "C" __global__ void __launch_bounds__(THREADS)
copy(const __grid_constant__ Params p) {
    u32 first = blockIdx.x * (THREADS * UNROLL) + threadIdx.x;
    i64 at[UNROLL][2];
    Vec<T, V> x[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        if (first + u * THREADS >= p.units) continue;
        at[u][0] = at[u][1] = 0;
        p.space.walk(first + u * THREADS, at[u]);
        x[u] = load<T, V>(p.from, at[u][0]);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        if (first + u * THREADS < p.units) put<T, V>(p.to, at[u][1], x[u]);
    }
}

constexpr int SIDE = 64;
// Rows of the tile are an odd number of words apart, so that a column lies in all banks.
constexpr int PITCH = SIDE * sizeof(T) / 4 + 1;
constexpr int VECTORS = SIDE / V;                // of a row of the tile
constexpr int TURNS = SIDE * VECTORS / 256 > 0 ? SIDE * VECTORS / 256 : 1;

__device__ __forceinline__ u32 element(const u32* tile, u32 row, u32 column) {
    if constexpr (sizeof(T) == 4) {
        return tile[row * PITCH + column];
    } else {
        return reinterpret_cast<const u16*>(tile)[row * (2 * PITCH) + column];
    }
}

// tile[b][a]: rows as the source has them.
extern "C" __global__ void __launch_bounds__(256)
copy_transpose(const __grid_constant__ Params p) {
    __shared__ u32 tile[SIDE * PITCH];
    u32 tile_b = p.tiles_a.quotient(blockIdx.x);
    u32 a = (blockIdx.x - tile_b * p.tiles_a.divisor) * SIDE, b = tile_b * SIDE;
    i64 at[2] = {};
    p.space.walk(blockIdx.y, at);
    constexpr int STEP = 256 / VECTORS;          // rows that the block reads in one turn
    u32 vector = threadIdx.x % VECTORS, line = threadIdx.x / VECTORS;
    Vec<T, V> x[TURNS];
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        u32 row = turn * STEP + line;
        if (b + row >= p.size_b || a + vector * V >= p.size_a) continue;
        x[turn] = load<T, V>(p.from, at[0] + i64(b + row) * p.from_b + a + vector * V);
    }
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        u32 row = turn * STEP + line;
        if constexpr (V * sizeof(T) >= 4) {
#pragma unroll
            for (int w = 0; w < int(V * sizeof(T) / 4); ++w) {
                tile[row * PITCH + vector * (V * sizeof(T) / 4) + w] = x[turn].w[w];
            }
        } else {
            reinterpret_cast<u16*>(tile)[row * (2 * PITCH) + vector] = u16(x[turn].w[0]);
        }
    }
    __syncthreads();
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        u32 row = turn * STEP + line;            // along a
        if (a + row >= p.size_a || b + vector * V >= p.size_b) continue;
        Vec<T, V> y;
#pragma unroll
        for (int i = 0; i < V; ++i) {
            u32 bits = element(tile, vector * V + i, row);
            if constexpr (sizeof(T) == 4) {
                y.w[i] = bits;
            } else {
                y.w[i / 2] = i % 2 == 0 ? bits : y.w[i / 2] | bits << 16;
            }
        }
        put<T, V>(p.to, at[1] + i64(a + row) * p.to_a + b + vector * V, y);
    }
}
