// The gradient of a layer or RMS norm over the innermost axis. With u = (x - mean) / deviation and
// g = dy * gain:
//   dx = (g - mean(g) - u * mean(g * u)) / deviation
//   dgain = sum over rows of dy * u,  dbias = sum over rows of dy
// RMS subtracts neither mean(x) nor mean(g). Statistics are computed again.
//
// As in norm.cu LANES threads have a row in registers, x and dy as they were loaded. Three
// generated programs stand around it: SourceX and SourceDy give x and dy, the Epilogue gets dx as
// its product (adds the gradient of the residual, stores). All are loaded before the statistics;
// none may store what another one reads, and the sources are run several times, so they must not
// store at all.
//
// A block takes `chunk` consecutive rows, its groups every so-manieth of them, and keeps its share
// of dgain and dbias in registers; the groups are added in order, and the block writes a row of
// partials [blocks][2][width] f32. `norm_grad_finish` (1024 threads, grid (ceil(width / 32), 2))
// folds these in f64. chunk = ceil(rows / B) rounded up to a multiple of the groups, with a number
// B of the variant: the blocks that 132 multiprocessors hold at once (by registers), so that the
// order of the sums is the same on every device. Grid: ceil(rows / chunk). Scratch: 8 * blocks *
// width.
//
// A group's next row is under way while it works on one (AHEAD=1, where registers allow), or the
// memory would be idle during the folds.
//
// Dropout's draws are a third of the arithmetic, and whatever is computed again row by row is time
// in which too few loads are under way: of one unit a thread keeps all numbers in registers, the
// clock is read once, and addresses are shared where all operands lie alike.
//
// Constants: as in norm.cu (no BIAS), SUMS (0: no dgain nor dbias is wanted), AHEAD (0 or 1), WHOLE
// (1: a row is one unit of all its lanes), ALIKE (1: all operands, and elements that are drawn for,
// lie side by side along the width and are as far from row to row).
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
#ifndef SUMS
#define SUMS 1
#endif
#ifndef AHEAD
#define AHEAD 0
#endif
#ifndef WHOLE
#define WHOLE 0
#endif
#ifndef ALIKE
#define ALIKE 0
#endif
#ifndef CONST_ALIGN
#define CONST_ALIGN V
#endif

//@program begin
// Operands: x, dy, gradient of the residual; then dx.
constexpr int OPERANDS = 4;
constexpr int INDICES = 0;

struct SourceX {
    template <int N>
    struct Loads {
        Vec<bf16, N> x0;
    };

    template <int N>
    static __device__ __forceinline__ void load(const Site<OPERANDS + INDICES>& s, Loads<N>& l) {
        l.x0 = ::load<bf16, N>(s.ptr[0], s.at[0]);
    }

    template <int N>
    static __device__ __forceinline__ void run(const Site<OPERANDS + INDICES>& s,
                                               const Loads<N>& l, const f32 (&product)[N],
                                               f32 (&result)[N]) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            f32 v0 = get(l.x0, i);
            result[i] = v0;
        }
    }
};

struct SourceDy {
    template <int N>
    struct Loads {
        Vec<bf16, N> x0;
    };

    template <int N>
    static __device__ __forceinline__ void load(const Site<OPERANDS + INDICES>& s, Loads<N>& l) {
        l.x0 = ::load<bf16, N>(s.ptr[1], s.at[1]);
    }

    template <int N>
    static __device__ __forceinline__ void run(const Site<OPERANDS + INDICES>& s,
                                               const Loads<N>& l, const f32 (&product)[N],
                                               f32 (&result)[N]) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            f32 v0 = get(l.x0, i);
            result[i] = v0;
        }
    }
};

struct Epilogue {
    template <int N>
    struct Loads {
        Vec<bf16, N> x0;
    };

    template <int N>
    static __device__ __forceinline__ void load(const Site<OPERANDS + INDICES>& s, Loads<N>& l) {
        l.x0 = ::load<bf16, N>(s.ptr[2], s.at[2]);
    }

    template <int N>
    static __device__ __forceinline__ void run(const Site<OPERANDS + INDICES>& s,
                                               const Loads<N>& l, const f32 (&product)[N],
                                               f32 (&result)[N]) {
        f32 y0[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            f32 v0 = product[i];
            f32 v1 = round_bf16(v0);
            f32 v2 = get(l.x0, i);
            f32 v3 = v1 + v2;
            y0[i] = v3;
        }
        ::store<bf16, N>(s.ptr[3], s.at[3], y0);
    }
};
//@program end

constexpr int ALL = OPERANDS + INDICES;
constexpr int GROUPS = THREADS / LANES;
constexpr bool KEEP = UNITS == 1;  // numbers in registers, not only what was loaded
static_assert(LANES <= 32 || LANES == THREADS, "more lanes than a warp's are the whole block");

struct Params {
    void* ptr[OPERANDS];     // of SourceX, SourceDy, then of the epilogue
    const void* gain;        // [width], contiguous
    f32* partials;           // [blocks][2][width]
    f32* dgain;              // null where it is not wanted
    f32* dbias;              // null where it is not wanted
    i64 dgain_stride;        // elements
    i64 dbias_stride;        // elements
    const Clock* clock;
    Draws draws;
    Space<AXES, ALL> rows;   // strides from row to row; lanes along the width
    u32 row_count;
    u32 width;
    u32 chunk;               // rows of a block
    u32 blocks;
    f32 eps;
};

__device__ __forceinline__ void gain_of(const Params& p, u32 unit, f32 (&out)[V]) {
#pragma unroll
    for (int i = 0; i < V; ++i) out[i] = 1.0f;
#ifdef GAIN
    Vec<GAIN, V> x = load<GAIN, V, CONST_ALIGN>(p.gain, i64(unit) * V);
#pragma unroll
    for (int i = 0; i < V; ++i) out[i] = get(x, i);
#endif
}

// In shared memory a group's lanes lie side by side, `PITCH` apart for the next of their elements;
// so neither lanes nor columns wait for each other's banks.
constexpr int PITCH = LANES == 32 ? LANES + 4 : LANES;
constexpr int TABLE = UNITS * V * PITCH;

// What the block's groups have summed, added in their order, to its row of partials.
__device__ __forceinline__ void write_sums(const Params& p, u32 lane, u32 group, int part,
                                           f32 (&sum)[UNITS][V], f32* shared) {
    f32* to = p.partials + (u64(blockIdx.x) * 2 + part) * p.width;
    if (GROUPS == 1) {
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            u32 unit = u * LANES + lane;
            if (unit < p.width / V) store<f32, V>(to, i64(unit) * V, sum[u]);
        }
        return;
    }
    if (part > 0) __syncthreads();
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
#pragma unroll
        for (int i = 0; i < V; ++i) shared[group * TABLE + (u * V + i) * PITCH + lane] = sum[u][i];
    }
    __syncthreads();
    for (u32 column = threadIdx.x; column < p.width; column += THREADS) {
        u32 unit = column / V;
        const f32* own = shared + (unit / LANES * V + column % V) * PITCH + unit % LANES;
        f32 total = own[0];
#pragma unroll 8
        for (int g = 1; g < GROUPS; ++g) total += own[g * TABLE];
        to[column] = total;
    }
}

// A thread's part of a row, as it was loaded.
struct Sources {
    SourceX::Loads<V> x[UNITS];
    SourceDy::Loads<V> dy[UNITS];
};

// A unit as numbers.
struct Numbers {
    f32 x[V], dy[V], gain[V];
};

extern "C" __global__ void LAUNCH_BOUNDS(THREADS)
norm_grad(const __grid_constant__ Params p) {
    // Folds take turns with two pieces, so that one may begin while another is read.
    __shared__ f32 folds[2][LANES > 32 ? 2 * LANES / 32 : 1];
    __shared__ f32 shared[SUMS && GROUPS > 1 ? GROUPS * TABLE : 1];
    u32 lane = threadIdx.x % LANES, group = threadIdx.x / LANES, turn = 0;
    u32 begin = blockIdx.x * p.chunk;
    u32 end = begin + p.chunk < p.row_count ? begin + p.chunk : p.row_count;
    f32 share = 1.0f / f32(p.width);
    f32 dgain[SUMS ? UNITS : 1][V] = {}, dbias[SUMS ? UNITS : 1][V] = {};
    // Read once: what a row stores could be the clock, for all that the compiler knows.
    Clock clock = {};
    if (p.clock != nullptr) clock = *p.clock;
    // Of more than one unit they would take the registers of other warps: then they are made of
    // what was loaded whenever they are wanted.
    Numbers kept;
    if (KEEP && (WHOLE || lane < p.width / V)) gain_of(p, lane, kept.gain);
    auto origin_of = [&](u32 row, i64 (&origin)[ALL]) {
        p.rows.walk(row, origin);
#pragma unroll
        for (int k = 1; k < ALL && ALIKE; ++k) origin[k] = origin[0];
    };
    auto site_of = [&](const i64 (&origin)[ALL], u32 unit) {
        Site<ALL> site = {p.ptr, p.rows.lane, &clock, p.draws, {}};
#pragma unroll
        for (int k = 0; k < ALL; ++k) {
            site.at[k] = origin[k] + i64(unit * V) * (ALIKE ? 1 : p.rows.lane[k]);
        }
        return site;
    };
    // Whether a group has a row at all, and a thread a unit of it. Groups of a warp or more have
    // one whenever they work.
    auto there = [&](u32 row) { return LANES >= 32 || row < end; };
    auto in_row = [&](u32 row, u32 unit) {
        return there(row) && (WHOLE || unit < p.width / V);
    };
    auto load_row = [&](u32 row, Sources& to) {
        i64 origin[ALL] = {};
        if (row < end) {
            origin_of(row, origin);
#pragma unroll
            for (int u = 0; u < UNITS; ++u) {
                u32 unit = u * LANES + lane;
                if (in_row(row, unit)) SourceX::load<V>(site_of(origin, unit), to.x[u]);
                if (in_row(row, unit)) SourceDy::load<V>(site_of(origin, unit), to.dy[u]);
            }
        }
    };
    Sources next;
    if (AHEAD) load_row(begin + group, next);
    // Groups that share a warp make as many turns, so that all threads take part in all folds.
    for (u32 first = begin; first < end; first += GROUPS) {
        u32 row = first + group;
        if (LANES >= 32 && row >= end) break;
        i64 origin[ALL] = {};
        if (there(row)) origin_of(row, origin);
        Sources own;
        if (AHEAD) {
            own = next;
        } else {
            load_row(row, own);
        }
        Epilogue::Loads<V> after[UNITS];
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            u32 unit = u * LANES + lane;
            if (in_row(row, unit)) Epilogue::load<V>(site_of(origin, unit), after[u]);
        }
        auto widen_unit = [&](int u, Numbers& to) {
            u32 unit = u * LANES + lane;
            f32 none[V] = {};
            SourceX::run<V>(site_of(origin, unit), own.x[u], none, to.x);
            SourceDy::run<V>(site_of(origin, unit), own.dy[u], none, to.dy);
            if (!KEEP) gain_of(p, unit, to.gain);
        };
        if (KEEP && in_row(row, lane)) widen_unit(0, kept);
        // After the last row nothing is loaded, nor looked at.
        Sources following;
        if (AHEAD) load_row(row + GROUPS, following);
        // Calls f(u, numbers) for the thread's units.
        auto each = [&](auto f) {
#pragma unroll
            for (int u = 0; u < UNITS; ++u) {
                if (!in_row(row, u * LANES + lane)) continue;
                Numbers made;
                if (!KEEP) widen_unit(u, made);
                f(u, KEEP ? kept : made);
            }
        };
        f32 sums[2] = {0.0f, 0.0f};
        if (CENTER) {
            each([&](int, const Numbers& n) {
#pragma unroll
                for (int i = 0; i < V; ++i) {
                    sums[0] += n.x[i];
                    sums[1] = fmaf(n.dy[i], n.gain[i], sums[1]);
                }
            });
            fold_group<Sum, LANES, false>(sums, folds[turn++ % 2]);
        }
        f32 mean = sums[0] * share, level = sums[1] * share;
        f32 squares[2] = {0.0f, 0.0f};
        each([&](int, const Numbers& n) {
#pragma unroll
            for (int i = 0; i < V; ++i) {
                squares[0] = fmaf(n.x[i] - mean, n.x[i] - mean, squares[0]);
                squares[1] = fmaf(n.dy[i] * n.gain[i], n.x[i] - mean, squares[1]);
            }
        });
        fold_group<Sum, LANES, false>(squares, folds[turn++ % 2]);
        f32 inverse = 1.0f / sqrtf(squares[0] * share + p.eps);
        f32 slope = squares[1] * inverse * share;
        each([&](int u, const Numbers& n) {
            f32 none[V] = {}, dx[V];
#pragma unroll
            for (int i = 0; i < V; ++i) {
                f32 unity = (n.x[i] - mean) * inverse;
                dx[i] = fmaf(-slope, unity, fmaf(n.dy[i], n.gain[i], -level)) * inverse;
                if (SUMS) dgain[u][i] = fmaf(n.dy[i], unity, dgain[u][i]);
                if (SUMS) dbias[u][i] += n.dy[i];
            }
            Epilogue::run<V>(site_of(origin, u * LANES + lane), after[u], dx, none);
        });
        if (AHEAD) next = following;
    }
#if SUMS
    write_sums(p, lane, group, 0, dgain, shared);
    write_sums(p, lane, group, 1, dbias, shared);
#endif
}

#if SUMS
extern "C" __global__ void __launch_bounds__(1024)
norm_grad_finish(const __grid_constant__ Params p) {
    u32 column = blockIdx.x * 32 + threadIdx.x / 32;
    const f32* part = p.partials + u64(blockIdx.y) * p.width;
    constexpr int W = V % 4 == 0 ? 4 : V;
    f64 total = fold_partials<Sum, W>(part, p.width, p.blocks, 2 * u64(p.width));
    if (threadIdx.x % 32 > 0 || column >= p.width) return;
    f32* to = blockIdx.y == 0 ? p.dgain : p.dbias;
    i64 stride = blockIdx.y == 0 ? p.dgain_stride : p.dbias_stride;
    if (to != nullptr) to[column * stride] = f32(total);
}
#endif
