// An epilogue as it is generated: y = product + residual, Half in and out. They may be one array.
#pragma once
#include "lib/gemm_epilogue.cuh"

struct Epi {
    const Half* in0;  // residual
    Half* out0;       // y
    Strides at_in0, at_out0;
};

template <int V>
struct Loads {
    static constexpr int WORDS = Packed<Half, V>::WORDS;
    Packed<Half, V> in0;
};

template <int V>
__device__ __forceinline__ void epilogue_load(const Epi& e, const At& at, Loads<V>& in) {
    in.in0.load(e.in0 + e.at_in0.offset<1>(at), at.count);
}

template <int V>
__device__ __forceinline__ void epilogue(const Epi& e, const At& at, const Loads<V>& in,
                                         float (&x)[V]) {
#pragma unroll
    for (int i = 0; i < V; i++) x[i] = x[i] + in.in0[i];
    store(e.out0 + e.at_out0.offset<1>(at), at.count, x);
}
