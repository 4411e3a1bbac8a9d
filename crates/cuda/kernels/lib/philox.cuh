// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011).
//
// A draw is a pure function of (seed, step, stream, element). Key: the seed's low and high half.
// Counter: element / 4 (low, high), the step's low half, the stream folded to 32 bits. Word:
// element % 4. Bit-equal to the CPU device and to the graph's reference.
#pragma once
#include "lib/clock.cuh"

struct Quad {
    u32 word[4];
};

// Written as it is meant: of a product of u64 the compiler adds the upper half of the constant's
// extension, which is zero, to each of the forty.
__device__ __forceinline__ u64 multiply_wide(u32 a, u32 b) {
    u64 y;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(y) : "r"(a), "r"(b));
    return y;
}

__device__ __forceinline__ Quad philox(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        u64 a = multiply_wide(c0, 0xD2511F53u);
        u64 b = multiply_wide(c2, 0xCD9E8D57u);
        c0 = u32(b >> 32) ^ c1 ^ k0;
        c1 = u32(b);
        c2 = u32(a >> 32) ^ c3 ^ k1;
        c3 = u32(a);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// A stream of draws within a step.
struct Stream {
    u32 key[2];
    u32 step;
    u32 folded;

    __device__ __forceinline__ Stream(u64 seed, u64 at_step, u64 stream) {
        key[0] = u32(seed);
        key[1] = u32(seed >> 32);
        step = u32(at_step);
        folded = u32(stream ^ (stream >> 32));
    }

    // The words of elements 4 * quad to 4 * quad + 3.
    __device__ __forceinline__ Quad quad(u64 quad) const {
        return philox(u32(quad), u32(quad >> 32), step, folded, key[0], key[1]);
    }
};

// Uniform in [0, 1): a multiple of 2^-24.
__device__ __forceinline__ f32 unit_interval(u32 word) {
    return f32(word >> 8) * (1.0f / 16777216.0f);
}

// One of four words, without an array in memory.
__device__ __forceinline__ u32 pick(u32 a, u32 b, u32 c, u32 d, u32 which) {
    u32 low_pair = which & 1 ? b : a;
    u32 high_pair = which & 1 ? d : c;
    return which & 2 ? high_pair : low_pair;
}

// The word of one element.
__device__ __forceinline__ u32 draw(const Stream& stream, u64 element) {
    Quad q = stream.quad(element >> 2);
    return pick(q.word[0], q.word[1], q.word[2], q.word[3], u32(element) & 3);
}

// The words of N elements that are `stride` apart. Whoever wants numbers makes them of the words;
// whether one is under a constant, the word tells as well: see kernels/text.rs.
template <int N>
__device__ __forceinline__ void draw_strided(const Stream& stream, u64 first, i64 stride,
                                             u32 (&out)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = draw(stream, first + u64(i * stride));
}

// The words of N consecutive elements. The first is a multiple of 4 as a rule: then no word is
// thrown away and none is moved.
template <int N>
__device__ __forceinline__ void draw_unit(const Stream& stream, u64 first, u32 (&out)[N]) {
    u32 shift = u32(first) & 3;
    if constexpr (N < 4) {
        draw_strided<N>(stream, first, 1, out);
    } else if (shift == 0) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            Quad q = stream.quad((first + i) >> 2);
#pragma unroll
            for (int j = 0; j < 4; ++j) out[i + j] = q.word[j];
        }
    } else {
        u32 word[N + 4];
#pragma unroll
        for (int i = 0; i < N + 4; i += 4) {
            Quad q = stream.quad((first + i) >> 2);
#pragma unroll
            for (int j = 0; j < 4; ++j) word[i + j] = q.word[j];
        }
#pragma unroll
        for (int i = 0; i < N; ++i) {
            out[i] = pick(word[i], word[i + 1], word[i + 2], word[i + 3], shift);
        }
    }
}
