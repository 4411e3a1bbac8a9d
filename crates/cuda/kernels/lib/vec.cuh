// Vectors: N elements in registers as they lie in memory, read and written in as few accesses as
// alignment allows (16 bytes at most). Arithmetic is f32: `get` widens, `store` rounds.
#pragma once
#include "lib/types.cuh"

template <class T, int N>
struct Vec {
    u32 w[(N * sizeof(T) + 3) / 4];
};

// One access of so many bytes, at an address that is a multiple of it.
template <int BYTES>
__device__ __forceinline__ void read(const void* from, u32* w) {
    if constexpr (BYTES == 16) {
        uint4 q = *static_cast<const uint4*>(from);
        w[0] = q.x, w[1] = q.y, w[2] = q.z, w[3] = q.w;
    } else if constexpr (BYTES == 8) {
        uint2 q = *static_cast<const uint2*>(from);
        w[0] = q.x, w[1] = q.y;
    } else if constexpr (BYTES == 4) {
        w[0] = *static_cast<const u32*>(from);
    } else {
        static_assert(BYTES == 2, "accesses are of 2, 4, 8 or 16 bytes");
        w[0] = *static_cast<const u16*>(from);
    }
}

template <int BYTES>
__device__ __forceinline__ void write(void* to, const u32* w) {
    if constexpr (BYTES == 16) {
        *static_cast<uint4*>(to) = make_uint4(w[0], w[1], w[2], w[3]);
    } else if constexpr (BYTES == 8) {
        *static_cast<uint2*>(to) = make_uint2(w[0], w[1]);
    } else if constexpr (BYTES == 4) {
        *static_cast<u32*>(to) = w[0];
    } else {
        static_assert(BYTES == 2, "accesses are of 2, 4, 8 or 16 bytes");
        *static_cast<u16*>(to) = u16(w[0]);
    }
}

// Bytes of one access to N elements of T whose address is a multiple of A elements.
template <class T, int N, int A>
constexpr int access_bytes() {
    int bytes = (A < N ? A : N) * int(sizeof(T));
    return bytes < 16 ? bytes : 16;
}

// N elements from `at` on; `base` and `at` keep to multiples of A elements.
template <class T, int N, int A = N>
__device__ __forceinline__ Vec<T, N> load(const void* base, i64 at) {
    constexpr int BYTES = access_bytes<T, N, A>();
    const u8* from = static_cast<const u8*>(base) + at * i64(sizeof(T));
    Vec<T, N> x;
    if constexpr (BYTES == 2 && N > 1) {
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            u32 first, second = 0;
            read<2>(from + 2 * i, &first);
            if (i + 1 < N) read<2>(from + 2 * i + 2, &second);
            x.w[i / 2] = first | second << 16;
        }
    } else {
#pragma unroll
        for (int i = 0; i < N * int(sizeof(T)); i += BYTES) read<BYTES>(from + i, &x.w[i / 4]);
    }
    return x;
}

// N elements that are `stride` elements apart.
template <class T, int N>
__device__ __forceinline__ Vec<T, N> load_strided(const void* base, i64 at, i64 stride) {
    Vec<T, N> x;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        Vec<T, 1> one = load<T, 1>(base, at + i * stride);
        if constexpr (sizeof(T) == 4) {
            x.w[i] = one.w[0];
        } else {
            x.w[i / 2] = i % 2 == 0 ? one.w[0] : x.w[i / 2] | one.w[0] << 16;
        }
    }
    return x;
}

// Element i, which the compiler knows after unrolling.
template <int N>
__device__ __forceinline__ f32 get(const Vec<f32, N>& x, int i) {
    return __uint_as_float(x.w[i]);
}
template <int N>
__device__ __forceinline__ f32 get(const Vec<bf16, N>& x, int i) {
    return i % 2 == 0 ? low<bf16>(x.w[i / 2]) : high<bf16>(x.w[i / 2]);
}
template <int N>
__device__ __forceinline__ f32 get(const Vec<f16, N>& x, int i) {
    return i % 2 == 0 ? low<f16>(x.w[i / 2]) : high<f16>(x.w[i / 2]);
}
template <int N>
__device__ __forceinline__ f32 get(const Vec<u32, N>& x, int i) {
    return f32(x.w[i]);
}

template <class T>
constexpr bool is_u32 = false;
template <>
constexpr bool is_u32<u32> = true;

// To bf16 and f16 the nearest, ties to even; to u32 towards zero, within its range.
template <class T, int N>
__device__ __forceinline__ Vec<T, N> rounded(const f32 (&x)[N]) {
    Vec<T, N> y;
    if constexpr (sizeof(T) == 2) {
#pragma unroll
        for (int i = 0; i < N; i += 2) y.w[i / 2] = pack<T>(x[i], i + 1 < N ? x[i + 1] : 0.0f);
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if constexpr (is_u32<T>) {
                y.w[i] = u32(x[i]);
            } else {
                y.w[i] = __float_as_uint(x[i]);
            }
        }
    }
    return y;
}

// Bits to memory, in accesses as for `load`.
template <class T, int N, int A = N>
__device__ __forceinline__ void put(void* base, i64 at, const Vec<T, N>& x) {
    constexpr int BYTES = access_bytes<T, N, A>();
    u8* to = static_cast<u8*>(base) + at * i64(sizeof(T));
    if constexpr (BYTES == 2 && N > 1) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            u32 half = i % 2 == 0 ? x.w[i / 2] : x.w[i / 2] >> 16;
            write<2>(to + 2 * i, &half);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N * int(sizeof(T)); i += BYTES) write<BYTES>(to + i, &x.w[i / 4]);
    }
}

template <class T, int N, int A = N>
__device__ __forceinline__ void store(void* base, i64 at, const f32 (&x)[N]) {
    put<T, N, A>(base, at, rounded<T, N>(x));
}

template <class T, int N>
__device__ __forceinline__ void store_strided(void* base, i64 at, i64 stride, const f32 (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        f32 one[1] = {x[i]};
        store<T, 1>(base, at + i * stride, one);
    }
}

// 16 bytes from global to shared memory, past the registers; the thread that asked for them has
// them after `await_copies`.
__device__ __forceinline__ void copy_async(void* shared, const void* from) {
    u32 to = u32(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void await_copies() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}
