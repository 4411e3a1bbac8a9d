// Spaces of axes with a stride for each operand, and what a generated program sees of a position.
//
// The innermost axis is walked in units of V lanes: V consecutive positions, which a thread works
// on together. So a space counts units, and its strides say how far an operand goes from one step
// of an axis to the next; `lane` says how far from lane to lane.
#pragma once
#include "lib/clock.cuh"

// The compiler gives up registers for occupancy, and now and then spills a few of them. A generated
// kernel that does is compiled again with MIN_BLOCKS=1, which lets it have all that there are.
#ifdef MIN_BLOCKS
#define LAUNCH_BOUNDS(threads) __launch_bounds__(threads, MIN_BLOCKS)
#else
#define LAUNCH_BOUNDS(threads) __launch_bounds__(threads)
#endif

// Division by a number that the host knows, of dividends under 2^31:
// shift = ceil(log2(divisor)), multiplier = floor(2^32 * (2^shift - divisor) / divisor) + 1.
// (Granlund and Montgomery, "Division by invariant integers using multiplication", 1994.)
struct Divide {
    u32 divisor;
    u32 multiplier;
    u32 shift;

    __device__ __forceinline__ u32 quotient(u32 n) const {
        return (__umulhi(n, multiplier) + n) >> shift;
    }
};

// Axes outermost first. The first is not divided by; its size is not used.
template <int RANK, int COUNT>
struct Space {
    i64 stride[COUNT][RANK];  // elements; of the innermost axis for a whole unit
    i64 lane[COUNT];          // elements from lane to lane of a unit
    Divide axis[RANK];           // sizes; of the innermost axis in units

    // Adds to `at` where unit `index` of each operand begins.
    __device__ __forceinline__ void walk(u32 index, i64 (&at)[COUNT]) const {
#pragma unroll
        for (int a = RANK - 1; a > 0; --a) {
            u32 rest = axis[a].quotient(index);
            u32 along = index - rest * axis[a].divisor;
#pragma unroll
            for (int k = 0; k < COUNT; ++k) at[k] += i64(along) * stride[k][a];
            index = rest;
        }
#pragma unroll
        for (int k = 0; k < COUNT; ++k) at[k] += i64(index) * stride[k][0];
    }
};

// A unit, as a generated program sees it. Of its operands the first have addresses; those after
// them are numbers that are linear in the coordinates: of coordinates themselves, and of elements
// to draw for.
template <int COUNT>
struct Site {
    void* const* ptr;    // addresses of the operands at the origin of the space
    const i64* lane;     // elements from lane to lane
    const Clock* clock;
    Draws draws;
    i64 at[COUNT];    // elements from the origin to the unit's first lane

    // The element of the whole tensor that the first lane draws for.
    __device__ __forceinline__ u64 element(int k) const {
        return draws.first + clock->micro * draws.step + u64(at[k]);
    }

    __device__ __forceinline__ f32 coordinate(int k, int i) const {
        return f32(i32(at[k] + i * lane[k]));
    }

    __device__ __forceinline__ f32 piece() const { return f32(clock->micro); }
};
