// Softmax and cross entropy over a chunk of logits [rows, vocab], row by row: log-sum-exp, loss,
// the target's logit, and the gradient of the logits in place.
//
//   ce = weight * (lse - logit of the target)
//   gradient = weight * (exp(logit - lse) - [target])
//
// LANES threads (to 32, or THREADS) have a row; unit u of a thread is number u * LANES + lane of
// the row, of V elements (16 bytes). Rows are held on the chip and read once: units below UNITS in
// registers, the SHARED next ones in shared memory, where a thread meets only its own, so that two
// blocks of 512 threads hold two rows of 50,304 at a time and one's exponentials hide behind the
// other's accesses. With UNITS = SHARED = 0 rows are walked: once for the sums (running maximum and
// sum), once more for the gradient. GIVEN log-sum-exps (of a vocabulary that is cut over ranks)
// need no sums. What is left of a row after its whole units, fewer than V logits, is one logit each
// for as many threads; beyond vocab nothing is looked at, and the gradient is 0 up to a multiple of
// V.
//
// The vocabulary may be a piece of a longer one that targets count along. A target beyond the whole
// one makes NaN.
//
// Constants: LOGITS (f32, bf16 or f16), GRADIENT (a type; absent where none is wanted), LANES,
// UNITS, SHARED, THREADS, BLOCKS, AXES (of the rows of the whole batch), GIVEN (0 or 1). ld and
// gradient_ld are multiples of V = 16 bytes of logits. In f32 the exponential is that of
// lib/math.cuh, in 16 bits the hardware's. Grid: ceil(rows / (THREADS / LANES)); dynamic shared
// memory: SHARED * THREADS * 16 bytes.
#include "lib/reduce.cuh"
#include "lib/strided.cuh"
#include "lib/vec.cuh"

#ifndef LOGITS
#define LOGITS bf16
#endif
#ifndef LANES
#define LANES 512
#endif
#ifndef UNITS
#define UNITS 3
#endif
#ifndef SHARED
#define SHARED 10
#endif
#ifndef THREADS
#define THREADS 512
#endif
#ifndef AXES
#define AXES 1
#endif
#ifndef GIVEN
#define GIVEN 0
#endif
#ifdef GRADIENT
#define WANTS_GRADIENT 1
#else
#define WANTS_GRADIENT 0
#define GRADIENT LOGITS
#endif

enum Each { TARGETS, WEIGHTS, LSE_GIVEN, CE, LSE, HIT, EACH };
constexpr int V = 16 / sizeof(LOGITS);
constexpr int GROUPS = THREADS / LANES;
constexpr int HELD = UNITS + SHARED;
// Blocks that a multiprocessor should hold: 64 registers a thread, where the units leave room.
#ifndef BLOCKS
#define BLOCKS (UNITS <= 3 ? 1024 / THREADS : 1)
#endif
typedef Vec<LOGITS, V> Unit;
static_assert(LANES <= 32 || LANES == THREADS, "more lanes than a warp's are the whole block");

struct Params {
    const void* logits;
    void* gradient;            // may be the logits; of another type only where rows are held
    // One number for each row of the batch; null where the op has none. They are addressed by
    // `rows`, and read or written for rows first .. first + count.
    const u32* targets;
    const f32* weights;        // 1 if absent
    const f32* given;          // log-sum-exps of the whole vocabulary
    f32* ce;
    f32* lse;                  // over the entries here
    f32* hit;                  // logit of the target; 0 where it is not here
    i64 ld;                    // elements from row to row of the logits
    i64 gradient_ld;
    Space<AXES, EACH> rows;    // in the order of Each
    u32 first;                 // row of the batch that the chunk begins with
    u32 count;                 // rows of the chunk
    u32 vocab;                 // entries here
    u32 first_row;             // the id of the first of them
    u32 all_rows;              // entries of the whole vocabulary
};

// e^(x - less) in two steps: what is prepared once a row, and the rest.
__device__ __forceinline__ f32 prepared(f32 less) {
    return sizeof(LOGITS) == 4 ? less : less * math::LOG2_E;
}
__device__ __forceinline__ f32 exponential(f32 x, f32 less) {
    if constexpr (sizeof(LOGITS) == 4) return math::exp(x - less);
    f32 y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(fmaf(x, math::LOG2_E, -less)));
    return y;
}

// The maximum so far, and the sum of exponentials over it.
struct Softmax {
    f32 top, sum;

    // Of a unit, whose maximum is found first: one exponential an element, and one a unit.
    __device__ __forceinline__ void add(const Unit& x) {
        f32 higher = top;
#pragma unroll
        for (int i = 0; i < V; ++i) higher = Max::join(higher, get(x, i));
        if (higher == -math::infinity()) return;
        f32 part = 0.0f, less = prepared(higher);
#pragma unroll
        for (int i = 0; i < V; ++i) part += exponential(get(x, i), less);
        sum = fmaf(sum, exponential(top, less), part);
        top = higher;
    }
};

// A word of logits that are -infinity.
template <class T>
constexpr u32 NO_LOGITS = 0xff800000u;
template <>
constexpr u32 NO_LOGITS<bf16> = 0xff80ff80u;
template <>
constexpr u32 NO_LOGITS<f16> = 0xfc00fc00u;

// A unit without anything in it: -infinity throughout.
__device__ __forceinline__ Unit nothing() {
    Unit x;
#pragma unroll
    for (int w = 0; w < 4; ++w) x.w[w] = NO_LOGITS<LOGITS>;
    return x;
}

// The row of a group of threads.
struct Row {
    const Params& p;
    u32 lane, row, units;    // whole units: 0 of a row that does not exist
    i64 start;               // elements to its first logit

    // A unit of it, or nothing beyond the last.
    __device__ __forceinline__ Unit unit(u32 unit) const {
        return unit < units ? load<LOGITS, V>(p.logits, start + i64(unit) * V) : nothing();
    }

    // The logit that the thread has of the rest.
    __device__ __forceinline__ f32 rest() const {
        if (units * V + lane >= p.vocab || row >= p.count) return -math::infinity();
        return get(load<LOGITS, 1>(p.logits, start + units * V + lane), 0);
    }

    // Calls f(x, unit) for the thread's units, which are read from memory.
    template <class F>
    __device__ __forceinline__ void walk(F f) const {
        constexpr int IN_FLIGHT = 4;
        for (u32 first = lane; first < units; first += LANES * IN_FLIGHT) {
            Unit some[IN_FLIGHT];
#pragma unroll
            for (int u = 0; u < IN_FLIGHT; ++u) some[u] = unit(first + u * LANES);
#pragma unroll
            for (int u = 0; u < IN_FLIGHT; ++u) {
                if (first + u * LANES < units) f(some[u], first + u * LANES);
            }
        }
    }
};

// A row that is held on the chip.
struct Held {
    Unit own[UNITS > 0 ? UNITS : 1];
    uint4* shared;           // [SHARED][THREADS]

    __device__ __forceinline__ Held(const Row& row, uint4* memory) : shared(memory) {
#pragma unroll
        for (int u = UNITS; u < HELD; ++u) {
            u32 unit = u * LANES + row.lane;
            if (unit < row.units) {
                const LOGITS* from = static_cast<const LOGITS*>(row.p.logits);
                copy_async(slot(u), from + row.start + i64(unit) * V);
            } else {
                write<16>(slot(u), nothing().w);
            }
        }
#pragma unroll
        for (int u = 0; u < UNITS; ++u) own[u] = row.unit(u * LANES + row.lane);
        if (SHARED > 0) await_copies();
    }

    __device__ __forceinline__ uint4* slot(int u) const {
        return shared + (u - UNITS) * THREADS + threadIdx.x;
    }

    // Calls f(x, unit) for the thread's units.
    template <class F>
    __device__ __forceinline__ void each(const Row& row, F f) const {
#pragma unroll
        for (int u = 0; u < HELD; ++u) {
            Unit x;
            if (u < UNITS) {
                x = own[u];
            } else {
                read<16>(slot(u), x.w);
            }
            f(x, u * LANES + row.lane);
        }
    }
};

// What is known of a row besides its logits.
struct Known {
    i64 at[EACH];
    u32 target;              // its number here, or no number of the vocabulary
    f32 weight, hit;

    __device__ __forceinline__ Known(const Params& p, const Row& row) : at{} {
        target = 0xffffffffu, weight = 1.0f, hit = 0.0f;
        if (row.row >= p.count) return;
        p.rows.walk(p.first + row.row, at);
        u32 id = p.targets[at[TARGETS]], own = id - p.first_row;  // wraps before the piece
        if (p.weights != nullptr) weight = p.weights[at[WEIGHTS]];
        if (own < p.vocab) {
            target = own;
            hit = get(load<LOGITS, 1>(p.logits, row.start + own), 0);
        } else if (id >= p.all_rows) {
            hit = math::not_a_number();
        }
    }

    __device__ __forceinline__ void write(const Params& p, f32 lse) const {
        // A row of weight 0 does not count, whatever its target.
        if (p.ce != nullptr) p.ce[at[CE]] = weight == 0.0f ? 0.0f : weight * (lse - hit);
        if (p.lse != nullptr) p.lse[at[LSE]] = lse;
        if (p.hit != nullptr) p.hit[at[HIT]] = hit;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
cross_entropy(const __grid_constant__ Params p) {
    extern __shared__ uint4 memory[];
    __shared__ f32 folds[LANES > 32 ? LANES / 32 : 1];
    u32 number = blockIdx.x * GROUPS + threadIdx.x / LANES;
    bool live = number < p.count;
    Row row = {p, threadIdx.x % LANES, number, live ? p.vocab / V : 0,
               live ? number * p.ld : 0};
    Held held(row, memory);
    Known known(p, row);
    f32 rest = row.rest();
    f32 top[1] = {-math::infinity()}, sum[1] = {0.0f}, lse;
    if (GIVEN) {
        lse = top[0] = live ? p.given[known.at[LSE_GIVEN]] : 0.0f;
        sum[0] = 1.0f;
    } else if (HELD > 0) {
        held.each(row, [&](const Unit& x, u32) {
#pragma unroll
            for (int i = 0; i < V; ++i) top[0] = Max::join(top[0], get(x, i));
        });
        top[0] = Max::join(top[0], rest);
        fold_group<Max, LANES>(top, folds);
        f32 less = prepared(top[0]);
        sum[0] = exponential(rest, less);
        held.each(row, [&](const Unit& x, u32) {
            f32 part = 0.0f;
#pragma unroll
            for (int i = 0; i < V; ++i) part += exponential(get(x, i), less);
            sum[0] += part;
        });
        fold_group<Sum, LANES>(sum, folds);
    } else {
        Softmax part = {-math::infinity(), 0.0f};
        row.walk([&](const Unit& x, u32) { part.add(x); });
        if (rest > -math::infinity() || math::is_nan(rest)) {
            Unit last = nothing();
            last.w[0] = rounded<LOGITS, 2>({rest, -math::infinity()}).w[0];
            part.add(last);
        }
        top[0] = part.top;
        fold_group<Max, LANES>(top, folds);
        // A thread without logits has the sum 0 over a maximum that cannot be subtracted.
        sum[0] = part.top == -math::infinity()
            ? 0.0f : part.sum * exponential(part.top, prepared(top[0]));
        fold_group<Sum, LANES>(sum, folds);
    }
    if (!GIVEN) lse = top[0] + math::ln(sum[0]);
    if (live && row.lane == 0) known.write(p, lse);
#if WANTS_GRADIENT
    // All have read the target's logit before anyone writes over it.
    if (LANES > 32) __syncthreads();
    __syncwarp();
    f32 less = prepared(top[0]), factor = known.weight / sum[0];
    auto write_gradient = [&](const Unit& x, u32 unit) {
        if (unit >= row.units) return;
        f32 y[V];
#pragma unroll
        for (int i = 0; i < V; ++i) y[i] = exponential(get(x, i), less) * factor;
        if (unit == known.target / V) {
#pragma unroll
            for (int i = 0; i < V; ++i) {
                y[i] -= i == known.target % V ? known.weight : 0.0f;
            }
        }
        store<GRADIENT, V>(p.gradient, number * p.gradient_ld + i64(unit) * V, y);
    };
    if (HELD > 0) {
        held.each(row, write_gradient);
    } else {
        row.walk(write_gradient);
    }
    u32 last = row.units * V + row.lane;
    if (live && row.lane < V && last / V * V < p.vocab) {
        f32 hot = last == known.target ? known.weight : 0.0f;
        f32 y[1] = {exponential(rest, less) * factor - hot};
        if (last >= p.vocab) y[0] = 0.0f;
        store<GRADIENT, 1>(p.gradient, number * p.gradient_ld + last, y);
    }
#endif
}
