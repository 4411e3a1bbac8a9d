// The epilogue of a plain product: C = product, or C += product (-DACCUMULATE=1).
// -DC_BF16: C is Half, else f32. -DC_WIDE: column stride 1, and pointer and all other strides are
// multiples of 16 bytes (as elements: of 8); else any strides.
#pragma once
#include "lib/gemm_epilogue.cuh"

#ifndef C_BF16
#define C_BF16 0
#endif
#ifndef C_WIDE
#define C_WIDE 1
#endif
#ifndef ACCUMULATE
#define ACCUMULATE 0
#endif

constexpr int C_COL = C_WIDE ? 1 : -1;

#if C_BF16
typedef Half CType;
#else
typedef float CType;
#endif

struct Epi {
    CType* c;
    Strides at_c;
};

template <int V>
struct Loads {
    static constexpr int WORDS = ACCUMULATE ? Packed<CType, V>::WORDS : 0;
    Packed<CType, V> c;
};

template <int V>
__device__ __forceinline__ void epilogue_load(const Epi& e, const At& at, Loads<V>& in) {
#if ACCUMULATE
    const CType* p = e.c + e.at_c.offset<C_COL>(at);
    if (C_WIDE)
        in.c.load(p, at.count);
    else
        in.c.load_strided(p, e.at_c.col, at.count);
#endif
}

template <int V>
__device__ __forceinline__ void epilogue(const Epi& e, const At& at, const Loads<V>& in,
                                         float (&x)[V]) {
#if ACCUMULATE
#pragma unroll
    for (int i = 0; i < V; i++) x[i] += in.c[i];
#endif
    CType* p = e.c + e.at_c.offset<C_COL>(at);
    if (C_WIDE)
        store(p, at.count, x);
    else
        store_strided(p, e.at_c.col, at.count, x);
}
