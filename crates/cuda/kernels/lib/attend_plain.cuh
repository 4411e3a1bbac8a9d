// Rows of any element type, width and stride, a warp at a time: attention without tensor cores.
#pragma once
#include "lib/attend.cuh"

#if BF16 || F16
typedef Half Element;
__device__ __forceinline__ float to_float(Element x) { return widen(x); }
__device__ __forceinline__ Element from_float(float x) { return narrow<Half>(x); }
#else
typedef float Element;
__device__ __forceinline__ float to_float(Element x) { return x; }
__device__ __forceinline__ Element from_float(float x) { return x; }
#endif

/// One head of an operand.
struct Rows {
    Element* head;
    Positions x;
    i64 width;

    __device__ __forceinline__ Element* at(u32 position) const { return head + x.at(position); }
    __device__ __forceinline__ float get(u32 position, u32 d) const {
        return to_float(at(position)[d * width]);
    }
};

__device__ __forceinline__ Rows rows_of(const Operand& x, Positions positions, const Work& w,
                                        u32 group) {
    Element* head = reinterpret_cast<Element*>(x.address) + head_at(x, w, group);
    return {head, positions, x.width};
}

__device__ __forceinline__ void read_row(float* to, const Rows& x, u32 position, u32 width) {
    for (u32 d = threadIdx.x % 32; d < width; d += 32) to[d] = x.get(position, d);
}

__device__ __forceinline__ void write_row(const Rows& x, u32 position, const float* from,
                                          u32 width, float factor) {
    for (u32 d = threadIdx.x % 32; d < width; d += 32)
        x.at(position)[d * x.width] = from_float(from[d] * factor);
}

__device__ __forceinline__ float dot(const float* own, const Rows& x, u32 position, u32 width) {
    float sum = 0.0f;
    for (u32 d = 0; d < width; ++d) sum = fmaf(own[d], x.get(position, d), sum);
    return sum;
}

/// sum[d] = sum[d] factor + the sum over lanes j of weight_j x[first + j][d].
__device__ __forceinline__ void add_rows(float* sum, float factor, float weight, const Rows& x,
                                         u32 first, u32 width) {
    for (u32 from = 0; from < width; from += 32) {
        const u32 d = from + threadIdx.x % 32;
        float total = d < width ? sum[d] * factor : 0.0f;
        for (u32 j = 0; j < 32; ++j) {
            const float own = __shfl_sync(~0u, weight, j);
            if (own != 0.0f && d < width) total = fmaf(own, x.get(first + j, d), total);
        }
        if (d < width) sum[d] = total;
    }
}

__device__ __forceinline__ float warp_max(float x) {
    for (u32 apart = 16; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, apart));
    return x;
}

__device__ __forceinline__ float warp_sum(float x) {
    for (u32 apart = 16; apart > 0; apart /= 2) x += __shfl_xor_sync(~0u, x, apart);
    return x;
}
