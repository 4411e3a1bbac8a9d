// Tiles of rows between device memory and swizzled shared memory, 16 bytes at a time.
#pragma once
#include "lib/attend.cuh"
#include "lib/mma.cuh"

/// The thread's number, read anew, as `lane_anew`.
__device__ __forceinline__ u32 thread_anew() {
    u32 thread;
    asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(thread));
    return thread;
}

/// Starts copies of ROWS positions from `from` on; those from `end` on become zero.
template <int ROWS, int WIDTH, int THREADS>
__device__ __forceinline__ void load_rows(u32 tile, const Half* head, Positions x, u32 from,
                                          u32 end) {
    constexpr int CHUNKS = WIDTH / 8;
    constexpr int ROUNDS = ROWS * CHUNKS / THREADS;
    static_assert(ROWS * CHUNKS % THREADS == 0, "every thread copies as many chunks");
    constexpr u32 STEP = THREADS / CHUNKS;
    if (!PACK && WIDTH <= 32 && THREADS % CHUNKS == 0 && STEP % 8 == 0) {
        // From round to round, all is as far from where it was. Nothing is read past the end.
        // Wider rows have no registers for it.
        const u32 thread = thread_anew();
        const u32 row = thread / CHUNKS, chunk = thread % CHUNKS;
        const Half* source = head + x.at(from + row) + chunk * 8;
        const u32 to = tile + chunk_at<WIDTH>(row, chunk);
#pragma unroll
        for (int i = 0; i < ROUNDS; ++i) {
            copy_async(to + i * STEP * (WIDTH * 2), source, from + row + i * STEP < end);
            source += x.row * STEP;
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < ROUNDS; ++i) {
        const u32 id = threadIdx.x + i * THREADS;
        const u32 row = id / CHUNKS, chunk = id % CHUNKS;
        const bool valid = from + row < end;
        const Half* source = head + (valid ? x.at(from + row) + chunk * 8 : 0);
        copy_async(tile + chunk_at<WIDTH>(row, chunk), source, valid);
    }
}

/// Puts C tiles as Half, times `factor` (by row: [m][r]), in rows from `row` on: two tiles, which
/// are 16 columns, in chunks `chunk` and `chunk` + 1, the next two STEP chunks on.
template <int MT, int TILES, int STEP, int WIDTH>
__device__ __forceinline__ void stage_rows(unsigned char* tile, const float (&c)[MT][TILES][4],
                                           const float (&factor)[MT][2], u32 row, u32 chunk,
                                           u32 lane) {
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int n = 0; n < TILES; ++n) {
                const u32 to = row + 16 * m + 8 * r + lane / 4;
                const u32 at = chunk_at<WIDTH>(to, chunk + n / 2 * STEP + n % 2);
                const float f = factor[m][r];
                *reinterpret_cast<u32*>(tile + at + 4 * (lane & 3)) =
                    pack_half(c[m][n][2 * r] * f, c[m][n][2 * r + 1] * f);
            }
}

/// Writes ROWS positions from `from` up to `end`.
template <int ROWS, int WIDTH, int THREADS>
__device__ __forceinline__ void store_rows(const unsigned char* tile, Half* head, Positions x,
                                           u32 from, u32 end) {
    constexpr int CHUNKS = WIDTH / 8;
#pragma unroll
    for (int i = 0; i < ROWS * CHUNKS / THREADS; ++i) {
        const u32 id = threadIdx.x + i * THREADS;
        const u32 row = id / CHUNKS, chunk = id % CHUNKS;
        if (from + row < end) {
            const uint4 word = *reinterpret_cast<const uint4*>(tile + chunk_at<WIDTH>(row, chunk));
            *reinterpret_cast<uint4*>(head + x.at(from + row) + chunk * 8) = word;
        }
    }
}
