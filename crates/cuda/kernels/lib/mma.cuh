// Products of a warp: m16n8k16 of Half into f32, and its fragments in swizzled shared memory.
//
// Lane l of a warp has g = l / 4 and t = l % 4.
//   A 16x16: [0] (g, 2t..) [1] (g + 8, 2t..) [2] (g, 2t + 8..) [3] (g + 8, 2t + 8..)
//   B 16x8:  [0] (2t.., g) [1] (2t + 8.., g)
//   C 16x8:  [0] (g, 2t) [1] (g, 2t + 1) [2] (g + 8, 2t) [3] (g + 8, 2t + 1)
// So two neighbouring C tiles, packed pair by pair, are one A tile: a product's result is the next
// product's left factor without a word moved.
//
// A shared tile has rows of WIDTH Half without padding. The 16-byte chunk c of row r lies at chunk
// c ^ (r % 8), or for widths that are no multiple of 64 at c ^ (r / 2 % 4): the 8 rows of one
// column of chunks, which is what ldmatrix reads at once, then lie in 8 different groups of banks.
#pragma once
#include "lib/ptx.cuh"

__device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." HALF "." HALF ".f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// What the chunks of a row are XORed with.
template <int WIDTH>
__device__ __forceinline__ u32 swizzle(u32 row) {
    return WIDTH % 64 == 0 ? row & 7 : (row >> 1) & 3;
}

/// Byte offset of a 16-byte chunk in a tile.
template <int WIDTH>
__device__ __forceinline__ u32 chunk_at(u32 row, u32 chunk) {
    return row * (WIDTH * 2) + ((chunk ^ swizzle<WIDTH>(row)) << 4);
}

/// The lane's number, read anew: fragment addresses that hang on it are made where they are used,
/// and not kept in registers over a loop.
__device__ __forceinline__ u32 lane_anew() {
    u32 lane;
    asm volatile("mov.u32 %0, %%laneid;\n" : "=r"(lane));
    return lane;
}

/// Where this lane's row of 16x16 elements lies, with the swizzle of its chunk; `at` adds rows (a
/// multiple of 8) and chunks (even). Tiles and rows start at multiples of what the swizzle flips,
/// so one XOR moves from chunk to chunk, and the rest of the sum is a constant.
template <int WIDTH>
struct Fragments {
    u32 base;

    __device__ __forceinline__ u32 at(u32 row, u32 chunk) const {
        constexpr u32 FLIPPED = WIDTH % 64 == 0 ? 7 : 3;
        return (base ^ ((chunk & FLIPPED) << 4)) + row * (WIDTH * 2) + ((chunk & ~FLIPPED) << 4);
    }

    /// From this row on.
    __device__ __forceinline__ Fragments from(u32 row) const { return {base + row * (WIDTH * 2)}; }

    /// From column 16 `half` on (0 or 1), for steps of 4 chunks.
    __device__ __forceinline__ Fragments half(u32 half) const { return {base ^ (half << 5)}; }
};

/// Matrices in the order (rows 0, chunk 0) (8, 0) (0, 1) (8, 1): A from [m][k] plain, and B from
/// [k][n] transposed, where words 0, 1 are the B tile of the first 8 columns, 2, 3 of the next.
template <int WIDTH>
__device__ __forceinline__ Fragments<WIDTH> rows_first(u32 tile, u32 lane) {
    return {tile + chunk_at<WIDTH>(lane & 15, lane >> 4)};
}

/// Matrices in the order (rows 0, chunk 0) (0, 1) (8, 0) (8, 1): B from [n][k] plain, where words
/// 0, 1 are the B tile of the first 8 rows, 2, 3 of the next; and A from [k][m] transposed.
template <int WIDTH>
__device__ __forceinline__ Fragments<WIDTH> chunks_first(u32 tile, u32 lane) {
    return {tile + chunk_at<WIDTH>((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1)};
}

/// C tiles 2k and 2k + 1 as the A tile of depth 16k..16k + 16.
__device__ __forceinline__ void pack_a(u32 (&a)[4], const float (&c0)[4], const float (&c1)[4]) {
    a[0] = pack_half(c0[0], c0[1]);
    a[1] = pack_half(c0[2], c0[3]);
    a[2] = pack_half(c1[0], c1[1]);
    a[3] = pack_half(c1[2], c1[3]);
}

/// c[MT][N / 8] += A B^T: A is rows of `a` over WIDTH, B is N rows of `b` over WIDTH.
template <int MT, int N, int WIDTH>
__device__ __forceinline__ void multiply_rows(float (&c)[MT][N / 8][4], Fragments<WIDTH> a,
                                              Fragments<WIDTH> b) {
#pragma unroll
    for (int k = 0; k < WIDTH / 16; ++k) {
        u32 left[MT][4];
#pragma unroll
        for (int m = 0; m < MT; ++m) ldmatrix(left[m], a.at(16 * m, 2 * k));
#pragma unroll
        for (int n = 0; n < N / 16; ++n) {
            u32 right[4];
            ldmatrix(right, b.at(16 * n, 2 * k));
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                mma(c[m][2 * n], left[m], right[0], right[1]);
                mma(c[m][2 * n + 1], left[m], right[2], right[3]);
            }
        }
    }
}

/// c[MT][N / 8] += A B: A is 16 of depth in registers, B is rows `row`..`row` + 16 of `b`, of
/// which 16 columns are taken every 8 STEP columns.
template <int MT, int N, int STEP, int WIDTH>
__device__ __forceinline__ void multiply_depth16(float (&c)[MT][N / 8][4], const u32 (&a)[MT][4],
                                                 Fragments<WIDTH> b, u32 row) {
#pragma unroll
    for (int n = 0; n < N / 16; ++n) {
        u32 right[4];
        ldmatrix_trans(right, b.at(row, STEP * n));
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            mma(c[m][2 * n], a[m], right[0], right[1]);
            mma(c[m][2 * n + 1], a[m], right[2], right[3]);
        }
    }
}

template <int MT, int N>
__device__ __forceinline__ void clear(float (&c)[MT][N][4]) {
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) c[m][n][i] = 0.0f;
}
