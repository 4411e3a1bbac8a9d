// What a matrix product does with a finished element: the contract between the kernels and the
// generated text, and the accesses that this text is made of.
//
// The text is a header that defines, for one tile program (see "The contract" below),
//
//     struct Epi { ... };                                    operands: pointers, then strides
//     template <int V> struct Loads { ... };                 what one call has read, still packed
//     template <int V> void epilogue_load(const Epi&, const At&, Loads<V>&);
//     template <int V> void epilogue(const Epi&, const At&, const Loads<V>&, float (&x)[V]);
//
// The contract
// - A call sees V consecutive columns of one row: x[i] is alpha times the product at
//   (at.batch, at.row, at.col + i). V is 8 (tensor cores) or 4 (f32); at.col is a multiple of V.
// - Only x[0 .. at.count) exist; the other x are zero and nothing may be stored for them. All
//   rows that are seen exist.
// - Loads stand in epilogue_load, all arithmetic and stores in epilogue: the kernels call
//   epilogue_load for several places ahead, so that reads of other operands overlap the product.
//   Hence an output may share its address with an input only element by element.
// - `Loads<V>::WORDS` is the number of 32-bit registers of a Loads; it decides how far ahead.
// - The host passes Params = { core, Epi }, so Epi is plain C: pointers, 64-bit, then 32-bit.
// - Every element is seen exactly once, in any order, by any thread.
//
// The kernels are compiled for what the host knows, so that the text carries no dead paths:
// -DBATCHED=0: one batch (batch indices are 0); -DN_WHOLE=1: n is a multiple of 8 (count is V);
// -DSPLIT=1: a block writes parts of sums, and the epilogue runs in gemm_reduce alone.
#pragma once
#include "lib/types.cuh"

#ifndef BATCHED
#define BATCHED 1
#endif
#ifndef N_WHOLE
#define N_WHOLE 0
#endif
#ifndef SPLIT
#define SPLIT 0
#endif

// Where a call stands. The batch indices are those of the loops around the product.
struct At {
    i64 row, col;
    int batch[3];
    int count;
    const float* column;  // in shared memory: see EPILOGUE_COLUMN; null where it is not used
};

// An input that is the same in all rows, as a bias is, is wanted by all of them at once: asking for
// it ahead takes the registers of what is far away, and the first-level cache, which shared memory
// has left little of, does not keep it. The text defines EPILOGUE_COLUMN for one such input, with
//
//     float epilogue_column(const Epi&, i64 col);
//
// and reads it by `column_read`; kernels may put the columns of their tile into shared memory.
#ifndef EPILOGUE_COLUMN
#define EPILOGUE_COLUMN 0
#endif

// Of f32, or of T that has 16 bits: bf16 or f16, whatever the factors are.
template <class T>
__device__ __forceinline__ float widen_any(const T* p) {
    return widen(*p);
}
__device__ __forceinline__ float widen_any(const float* p) { return *p; }
template <class T>
__device__ __forceinline__ void put(T* p, float x) {
    *p = narrow<T>(x);
}
__device__ __forceinline__ void put(float* p, float x) { *p = x; }

// V elements as they lie in memory. `load` wants an address that is a multiple of 16 bytes (8 for
// 16 bits with V = 4) when count == V; a ragged end is read element by element.
template <class T, int V>
struct Packed {
    static constexpr int WORDS = V / 2;
    u32 word[WORDS];

    __device__ __forceinline__ void load(const T* p, int count) {
        if (count == V) {
            if constexpr (V == 8) {
                uint4 all = *(const uint4*)p;
                word[0] = all.x, word[1] = all.y, word[2] = all.z, word[3] = all.w;
            } else {
                uint2 all = *(const uint2*)p;
                word[0] = all.x, word[1] = all.y;
            }
            return;
        }
        load_strided(p, 1, count);
    }

    __device__ __forceinline__ void load_strided(const T* p, i64 stride, int count) {
#pragma unroll
        for (int i = 0; i < V; i += 2) {
            u32 first = i < count ? p[i * stride].bits : 0;
            u32 second = i + 1 < count ? p[(i + 1) * stride].bits : 0;
            word[i / 2] = first | second << 16;
        }
    }

    __device__ __forceinline__ float operator[](int i) const {
        return i % 2 ? high<T>(word[i / 2]) : low<T>(word[i / 2]);
    }
};

template <int V>
struct Packed<float, V> {
    static constexpr int WORDS = V;
    float word[V];

    __device__ __forceinline__ void load(const float* p, int count) {
        if (count == V) {
#pragma unroll
            for (int i = 0; i < V; i += 4) {
                float4 four = *(const float4*)(p + i);
                word[i] = four.x, word[i + 1] = four.y;
                word[i + 2] = four.z, word[i + 3] = four.w;
            }
            return;
        }
        load_strided(p, 1, count);
    }

    __device__ __forceinline__ void load_strided(const float* p, i64 stride, int count) {
#pragma unroll
        for (int i = 0; i < V; i++) word[i] = i < count ? p[i * stride] : 0.0f;
    }

    __device__ __forceinline__ float operator[](int i) const { return word[i]; }
};

template <class T, int V>
__device__ __forceinline__ void store_strided(T* p, i64 stride, int count, const float (&x)[V]) {
#pragma unroll
    for (int i = 0; i < V; i++)
        if (i < count) put(p + i * stride, x[i]);
}

// As `Packed::load`: one access of 16 bytes (two for eight floats) unless the end is ragged.
template <class T, int V>
__device__ __forceinline__ void store(T* p, int count, const float (&x)[V]) {
    if (count < V) return store_strided(p, 1, count, x);
    if constexpr (V == 8) {
        *(uint4*)p = make_uint4(pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]),
                                pack<T>(x[6], x[7]));
    } else {
        *(uint2*)p = make_uint2(pack<T>(x[0], x[1]), pack<T>(x[2], x[3]));
    }
}

template <int V>
__device__ __forceinline__ void store(float* p, int count, const float (&x)[V]) {
    if (count < V) return store_strided(p, 1, count, x);
#pragma unroll
    for (int i = 0; i < V; i += 4)
        *(float4*)(p + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
}

// V columns of the input that is the same in all rows, of which `own` are at hand otherwise.
template <class T, int V>
__device__ __forceinline__ void column_read(const At& at, const T* own, float (&out)[V]) {
    if (at.column != nullptr) {
#pragma unroll
        for (int i = 0; i < V; i += 4) {
            float4 four = *(const float4*)(at.column + i);
            out[i] = four.x, out[i + 1] = four.y, out[i + 2] = four.z, out[i + 3] = four.w;
        }
        return;
    }
    Packed<T, V> x;
    x.load(own, at.count);
#pragma unroll
    for (int i = 0; i < V; i++) out[i] = x[i];
}

// Strides of an operand along the batch axes, rows and columns, in elements; 0 repeats it.
struct Strides {
    i64 batch[3], row, col;

    // For the column stride COL, which is known when the text is generated: 1, 0, or -1 for
    // whatever `col` says.
    template <int COL = -1>
    __device__ __forceinline__ i64 offset(const At& at) const {
        return at.batch[0] * batch[0] + at.batch[1] * batch[1] + at.batch[2] * batch[2] +
               at.row * row + at.col * (COL < 0 ? col : COL);
    }
};

// The indices along the batch axes of a number that counts through them.
__device__ __forceinline__ void batch_of(int which, const int (&sizes)[3], int (&batch)[3]) {
    batch[2] = BATCHED ? which % sizes[2] : 0;
    batch[1] = BATCHED ? which / sizes[2] % sizes[1] : 0;
    batch[0] = BATCHED ? which / sizes[2] / sizes[1] : 0;
}

// How many of V columns from `col` on exist, if the row does.
template <int V>
__device__ __forceinline__ int columns_left(bool row_exists, int col, int n) {
    if (!row_exists || col >= n) return 0;
    return N_WHOLE || n - col >= V ? V : n - col;
}

// How many calls ahead epilogue_load runs, of `calls`, with so many registers to spend.
template <int WORDS>
constexpr int load_ahead(int calls, int registers) {
    int ahead = WORDS == 0 ? 1 : registers / WORDS;
    return ahead < 1 ? 1 : ahead > calls ? calls : ahead;
}

// Fragments of products hold, of every 8 columns, 2 in each lane of a quad:
//
//     column  0 1 | 2 3 | 4 5 | 6 7        (mma.sync m16n8 and wgmma m64nN alike)
//     lane %4  0     1     2     3
//
// Of 4 such blocks, lane q wants all 8 columns of block q: a transposition of the 4 x 4 pairs, in
// two exchanges of halves. pair[t] then came from lane t, so x is in the order of columns.
__device__ __forceinline__ void quad_transpose(float (&x)[8]) {
    const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
#pragma unroll
    for (int block = 0; block < 8; block += 4)
#pragma unroll
        for (int i = block; i < block + 2; i++) {
            float other = __shfl_xor_sync(~0u, odd ? x[i] : x[i + 2], 1);
            x[i] = odd ? other : x[i];
            x[i + 2] = odd ? x[i + 2] : other;
        }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float other = __shfl_xor_sync(~0u, high ? x[i] : x[i + 4], 2);
        x[i] = high ? other : x[i];
        x[i + 4] = high ? x[i + 4] : other;
    }
}
