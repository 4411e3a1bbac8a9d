// Layer norm (Ba et al. 2016) and RMS norm (Zhang and Sennrich 2019) over the innermost axis:
//   y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * gain + bias,  RMS without the mean.
//
// LANES threads have a row in registers: UNITS units of V lanes each, unit u of a thread being
// number u * LANES + lane of the row. Two generated programs stand around it: the Prologue gives x
// (and may store on the way, such as the sum of a residual and a product), the Epilogue gets the
// finished y as its product and stores. Both are loaded before the statistics, so the epilogue must
// not read what the prologue stores. Statistics are two passes over registers, in f32.
//
// Constants: V, LANES (to 32, or THREADS), UNITS with UNITS * LANES * V >= width, THREADS, AXES (of
// the rows), CENTER (1: layer norm, 0: RMS), GAIN and BIAS (types, absent where there is none),
// CONST_ALIGN (gain and bias lie at multiples of so many elements). V divides the width.
// Grid: ceil(rows / (THREADS / LANES)). The programs between the markers are replaced.
#include "lib/philox.cuh"
#include "lib/reduce.cuh"
#include "lib/strided.cuh"
#include "lib/vec.cuh"

#ifndef V
#define V 8
#endif
#ifndef LANES
#define LANES 32
#endif
#ifndef UNITS
#define UNITS 3
#endif
#ifndef THREADS
#define THREADS 256
#endif
#ifndef AXES
#define AXES 1
#endif
#ifndef CENTER
#define CENTER 1
#endif
#ifndef CONST_ALIGN
#define CONST_ALIGN V
#endif

//@program begin
// Operands: residual, product; then their sum, and y.
constexpr int OPERANDS = 4;
constexpr int INDICES = 0;

struct Prologue {
    template <int N>
    struct Loads {
        Vec<bf16, N> x0, x1;
    };

    template <int N>
    static __device__ __forceinline__ void load(const Site<OPERANDS + INDICES>& s, Loads<N>& l) {
        l.x0 = ::load<bf16, N>(s.ptr[0], s.at[0]);
        l.x1 = ::load<bf16, N>(s.ptr[1], s.at[1]);
    }

    template <int N>
    static __device__ __forceinline__ void run(const Site<OPERANDS + INDICES>& s,
                                               const Loads<N>& l, const f32 (&product)[N],
                                               f32 (&result)[N]) {
        f32 y0[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            f32 v0 = get(l.x0, i);
            f32 v1 = get(l.x1, i);
            f32 v2 = v0 + v1;
            f32 v3 = round_bf16(v2);
            y0[i] = v3;
            result[i] = v3;
        }
        ::store<bf16, N>(s.ptr[2], s.at[2], y0);
    }
};

struct Epilogue {
    template <int N>
    struct Loads {};

    template <int N>
    static __device__ __forceinline__ void load(const Site<OPERANDS + INDICES>& s, Loads<N>& l) {}

    template <int N>
    static __device__ __forceinline__ void run(const Site<OPERANDS + INDICES>& s,
                                               const Loads<N>& l, const f32 (&product)[N],
                                               f32 (&result)[N]) {
        f32 y0[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            f32 v0 = product[i];
            y0[i] = v0;
        }
        ::store<bf16, N>(s.ptr[3], s.at[3], y0);
    }
};
//@program end

constexpr int ALL = OPERANDS + INDICES;
constexpr int GROUPS = THREADS / LANES;
static_assert(LANES <= 32 || LANES == THREADS, "more lanes than a warp's are the whole block");

struct Params {
    void* ptr[OPERANDS];     // of the prologue, then of the epilogue
    const void* gain;        // [width], contiguous
    const void* bias;        // [width], contiguous
    const Clock* clock;
    Draws draws;
    Space<AXES, ALL> rows;   // strides from row to row; lanes along the width
    u32 row_count;
    u32 width;
    f32 eps;
};

// The same constant for V lanes, or the gain or bias of a unit.
template <class T>
__device__ __forceinline__ void constant(const void* from, u32 unit, f32 (&out)[V]) {
    Vec<T, V> x = load<T, V, CONST_ALIGN>(from, i64(unit) * V);
#pragma unroll
    for (int i = 0; i < V; ++i) out[i] = get(x, i);
}

__device__ __forceinline__ f32 sum_of(const f32 (&x)[UNITS][V]) {
    f32 sum[V];
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] = x[0][i];
#pragma unroll
    for (int u = 1; u < UNITS; ++u) {
#pragma unroll
        for (int i = 0; i < V; ++i) sum[i] += x[u][i];
    }
#pragma unroll
    for (int apart = V / 2; apart > 0; apart /= 2) {
#pragma unroll
        for (int i = 0; i < apart; ++i) sum[i] += sum[i + apart];
    }
    return sum[0];
}

extern "C" __global__ void LAUNCH_BOUNDS(THREADS)
norm_rows(const __grid_constant__ Params p) {
    __shared__ f32 shared[LANES > 32 ? LANES / 32 : 1];
    u32 lane = threadIdx.x % LANES;
    u32 row = blockIdx.x * GROUPS + threadIdx.x / LANES;
    // Units here: none of a row that does not exist, whose threads only take part in folds.
    u32 units = row < p.row_count ? p.width / V : 0;
    i64 origin[ALL] = {};
    if (row < p.row_count) p.rows.walk(row, origin);
    auto site_of = [&](u32 unit) {
        Site<ALL> site = {p.ptr, p.rows.lane, p.clock, p.draws, {}};
#pragma unroll
        for (int k = 0; k < ALL; ++k) site.at[k] = origin[k] + i64(unit) * V * p.rows.lane[k];
        return site;
    };
    Prologue::Loads<V> before[UNITS];
    Epilogue::Loads<V> after[UNITS];
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
        if (u * LANES + lane < units) Prologue::load<V>(site_of(u * LANES + lane), before[u]);
    }
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
        if (u * LANES + lane < units) Epilogue::load<V>(site_of(u * LANES + lane), after[u]);
    }
    f32 x[UNITS][V];
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
        f32 none[V] = {};
        if (u * LANES + lane < units) {
            Prologue::run<V>(site_of(u * LANES + lane), before[u], none, x[u]);
        } else {
#pragma unroll
            for (int i = 0; i < V; ++i) x[u][i] = 0.0f;
        }
    }
    f32 share = 1.0f / f32(p.width), mean = 0.0f;
    if (CENTER) {
        f32 sum[1] = {sum_of(x)};
        fold_group<Sum, LANES>(sum, shared);
        mean = sum[0] * share;
    }
    f32 squares[1] = {0.0f};
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
        bool here = u * LANES + lane < units;
#pragma unroll
        for (int i = 0; i < V; ++i) {
            x[u][i] = here ? x[u][i] - mean : 0.0f;
            squares[0] = fmaf(x[u][i], x[u][i], squares[0]);
        }
    }
    fold_group<Sum, LANES>(squares, shared);
    f32 inverse = 1.0f / sqrtf(squares[0] * share + p.eps);
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
        u32 unit = u * LANES + lane;
        if (unit >= units) continue;
        f32 gain[V], bias[V], y[V], none[V];
#pragma unroll
        for (int i = 0; i < V; ++i) gain[i] = 1.0f, bias[i] = 0.0f;
#ifdef GAIN
        constant<GAIN>(p.gain, unit, gain);
#endif
#ifdef BIAS
        constant<BIAS>(p.bias, unit, bias);
#endif
#pragma unroll
        for (int i = 0; i < V; ++i) y[i] = fmaf(x[u][i] * inverse, gain[i], bias[i]);
        Epilogue::run<V>(site_of(unit), after[u], y, none);
    }
}
