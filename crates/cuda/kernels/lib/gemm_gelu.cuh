// GELU in its tanh form and its derivative, for the sample epilogues.
//
// With u = sqrt(2/pi) (x + 0.044715 x^3) and s = 1 / (1 + exp(-2 u)), that is (1 + tanh u) / 2:
//     gelu(x) = x s,    gelu'(x) = s + 2 x s (1 - s) u',    u' = sqrt(2/pi) (1 + 0.134145 x^2).
// Two special-function instructions an element: a product with K = 256 has time for about 24
// plain ones. For large |x| exp overflows to infinity or vanishes, and s is exactly 0 or 1.
#pragma once

__device__ __forceinline__ float gelu_gate(float x, float square) {
    const float scale = -2.302208198f;  // -2 sqrt(2/pi) / ln 2
    float v = scale * x * fmaf(0.044715f, square, 1.0f), power, gate;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(v));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(gate) : "f"(1.0f + power));
    return gate;
}

__device__ __forceinline__ float gelu(float x) { return x * gelu_gate(x, x * x); }

__device__ __forceinline__ float gelu_grad(float x) {
    float square = x * x, gate = gelu_gate(x, square);
    float slope = fmaf(0.2140644488f, square, 1.5957691216f);  // 2 u'
    return fmaf(x * slope, gate * (1.0f - gate), gate);
}
