// An epilogue as it is generated: h = product + bias, y = gelu(h); both stored in Half.
//
//     %0 = product; %1 = load bias; %2 = add %0 %1; store h %2; ...; store y %n
#pragma once
#include "lib/gemm_epilogue.cuh"
#include "lib/gemm_gelu.cuh"

struct Epi {
    const Half* in0;  // bias, along the columns
    Half* out0;       // h
    Half* out1;       // y
    Strides at_in0, at_out0, at_out1;
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
    float y[V];
#pragma unroll
    for (int i = 0; i < V; i++) {
        x[i] = x[i] + in.in0[i];
        y[i] = gelu(x[i]);
    }
    store(e.out0 + e.at_out0.offset<1>(at), at.count, x);
    store(e.out1 + e.at_out1.offset<1>(at), at.count, y);
}
