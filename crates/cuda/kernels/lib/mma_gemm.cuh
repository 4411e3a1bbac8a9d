// Tensor-core products from shared memory, for sm_80 and up: cp.async, ldmatrix, mma.sync.
//
// A tile of an operand is R indices of M or N by DEPTH of K, in Half, in one of two forms:
//
//     K_MAJOR   R rows of DEPTH elements   (K is contiguous in global memory)
//     MN_MAJOR  DEPTH rows of R elements   (M or N is contiguous)
//
// Rows are cut into chunks of 16 bytes, what cp.async and ldmatrix move. Eight rows of one chunk
// column must fall into different banks, so a chunk's place is XORed with the row:
//
//     rows of >= 128 bytes    chunk ^ (row % 8)
//     rows of 64 bytes        chunk ^ (row / 2 % 4)      two rows per 128 bytes
#pragma once
#include "lib/types.cuh"

enum { K_MAJOR, MN_MAJOR, ANY_MAJOR };

__device__ __forceinline__ unsigned shared_address(const void* p) {
    return (unsigned)__cvta_generic_to_shared(p);
}

// Byte offset of a chunk in a tile whose rows have CHUNKS of them.
template <int CHUNKS>
__device__ __forceinline__ unsigned chunk_at(int row, int chunk) {
    static_assert(CHUNKS == 4 || CHUNKS % 8 == 0, "rows of 64 bytes or a multiple of 128");
    return (row * CHUNKS + (chunk ^ (CHUNKS == 4 ? row / 2 % 4 : row % 8))) * 16;
}

// Copies `bytes` of 16 and fills the rest with zeros; nothing is read for 0 bytes.
__device__ __forceinline__ void copy_async_16(unsigned to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void copy_async_4(unsigned to, const void* from, int bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void copy_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int PENDING>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8 x 8 matrices; lane 8 i + j gives the address of row j of matrix i.
template <bool TRANSPOSE>
__device__ __forceinline__ void load_matrix_x4(unsigned (&x)[4], unsigned from) {
    if constexpr (TRANSPOSE)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                     : "r"(from)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                     : "r"(from)
                     : "memory");
}

// 16 indices of M by 16 of K from (m, k) of a tile: the A fragment of m16n8k16.
//     x[0]: m 0-7 k 0-7    x[1]: m 8-15 k 0-7    x[2]: m 0-7 k 8-15    x[3]: m 8-15 k 8-15
template <int LAYOUT, int R, int DEPTH>
__device__ __forceinline__ void load_a(unsigned (&x)[4], unsigned tile, int m, int k) {
    const int lane = threadIdx.x % 32, row = lane % 8, low = lane / 8 % 2, high = lane / 16;
    if constexpr (LAYOUT == MN_MAJOR)
        load_matrix_x4<true>(x, tile + chunk_at<R / 8>(k + row + 8 * high, m / 8 + low));
    else
        load_matrix_x4<false>(x, tile + chunk_at<DEPTH / 8>(m + row + 8 * low, k / 8 + high));
}

// 16 indices of N by 16 of K: the B fragments of two m16n8k16.
//     x[0]: n 0-7 k 0-7    x[1]: n 0-7 k 8-15    x[2]: n 8-15 k 0-7    x[3]: n 8-15 k 8-15
template <int LAYOUT, int R, int DEPTH>
__device__ __forceinline__ void load_b(unsigned (&x)[4], unsigned tile, int n, int k) {
    const int lane = threadIdx.x % 32, row = lane % 8, low = lane / 8 % 2, high = lane / 16;
    if constexpr (LAYOUT == MN_MAJOR)
        load_matrix_x4<true>(x, tile + chunk_at<R / 8>(k + row + 8 * low, n / 8 + high));
    else
        load_matrix_x4<false>(x, tile + chunk_at<DEPTH / 8>(n + row + 8 * high, k / 8 + low));
}

// c[0], c[1]: row lane / 4, columns 2 (lane % 4) and the next; c[2], c[3]: eight rows below.
__device__ __forceinline__ void multiply_m16n8k16(float (&c)[4], const unsigned (&a)[4],
                                                  const unsigned* b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32." HALF "." HALF ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
