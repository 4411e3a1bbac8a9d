// The adjoint of gather, without atomics: table[b, id, w] = sum of rows[b, r, w] over the positions
// r with that id, in order; and rows set in a table.
//
// A micro-batch's positions are sorted by id once, by a stable radix sort of 8 bits a pass (ids of
// other pieces of the table count as `table_rows` and land at the end):
//   for pass in 0..ceil(bits(table_rows) / 8), keys[pass & 1] to keys[1 - (pass & 1)]:
//     scatter_count   grid tiles, 256 threads    how often each digit occurs in each tile
//     scatter_scan    grid 1, 1024 threads       where each tile's digits go
//     scatter_place   grid tiles, 256 threads    moves keys and positions
//   scatter_bounds    grid ceil((table_rows + 1) / 256), 256 threads   where each id's run begins
//   scatter_hot       grid (stretches, slices, batches), 32 threads
//   scatter_add       grid (ceil(table_rows / 8), slices, batches), 256 threads
// with tiles = ceil(count / 4096), stretches = ceil(count / 128), slices = ceil(units / 32) and
// units = width / V. The first pass reads ids (FIRST=1), the others sorted keys (FIRST=0).
//
// A run of up to 128 positions is added by one warp in order. The sorted positions are cut into
// stretches of 128, of which longer runs reach over several: scatter_hot adds what lies in each
// stretch, scatter_add the stretches in order, so that the most frequent ids take no longer than
// others. The order of a sum depends on the ids alone.
//
// Scratch: 4 arrays of `count` u32 (keys and positions, twice), 256 * tiles u32 of counts,
// (table_rows + 1) u32 of bounds, and stretches * 2 * width f32 for each batch.
//
// Constants: T (of rows), V, AXES (of positions), BATCH (axes), FIRST. The table is f32 for adding,
// of T for setting.
#include "lib/strided.cuh"
#include "lib/vec.cuh"

#ifndef T
#define T bf16
#endif
#ifndef V
#define V 8
#endif
#ifndef AXES
#define AXES 1
#endif
#ifndef BATCH
#define BATCH 1
#endif
#ifndef FIRST
#define FIRST 1
#endif

constexpr int WARPS = 8;
constexpr int ITEMS = 16;                    // of a thread in a tile
constexpr int TILE = WARPS * 32 * ITEMS;     // 4096
constexpr u32 STRETCH = 128;
constexpr int IN_FLIGHT = 8;                 // rows that a warp has asked for at once

struct Params {
    void* table;                   // written
    const u32* ids;
    const void* rows;
    u32* keys[2];                  // [count]
    u32* order[2];                 // [count], positions
    u32* counts;                   // [256][tiles]
    u32* bounds;                   // [table_rows + 1]
    f32* sums;                     // [batches][stretches][2][width]
    i64 table_row;                 // elements from table row to table row
    Space<AXES, 2> positions;      // ids, rows; lanes along the width (that of ids is 0)
    Space<BATCH, 2> batch;         // table, rows; the table's lane along the width
    u32 count;                     // positions
    u32 tiles;
    u32 units;                     // width / V
    u32 batches;
    u32 first_row;                 // the id of the table's first row
    u32 table_rows;
    u32 pass;
};

// The row of the table here that position i adds to, or `table_rows`.
__device__ __forceinline__ u32 key_of(const Params& p, u32 i) {
    if (!FIRST) return p.keys[p.pass & 1][i];
    i64 at[2] = {};
    p.positions.walk(i, at);
    u32 own = p.ids[at[0]] - p.first_row;  // wraps for ids before the piece
    return own < p.table_rows ? own : p.table_rows;
}

__device__ __forceinline__ u32 digit_of(const Params& p, u32 key) {
    return key >> (8 * p.pass) & 255;
}

// For each of a thread's items (of tile position warp * 512 + item * 32 + lane) its key and how
// many equal digits precede it in its warp; and how many of each digit every warp has.
struct Tile {
    u32 key[ITEMS];
    u32 rank[ITEMS];

    __device__ __forceinline__ Tile(const Params& p, u32 (&counts)[WARPS][256]) {
        u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        for (u32 i = threadIdx.x; i < WARPS * 256; i += WARPS * 32) counts[i / 256][i % 256] = 0;
        __syncthreads();
        u32 first = blockIdx.x * TILE + warp * (32 * ITEMS) + lane;
#pragma unroll
        for (int item = 0; item < ITEMS; ++item) {
            u32 i = first + item * 32;
            key[item] = i < p.count ? key_of(p, i) : 0;
        }
#pragma unroll
        for (int item = 0; item < ITEMS; ++item) {
            bool here = first + item * 32 < p.count;
            // 256 stands for items that do not exist; they meet only each other.
            u32 digit = here ? digit_of(p, key[item]) : 256;
            u32 same = __match_any_sync(0xffffffffu, digit);
            u32 before = __popc(same & ((1u << lane) - 1));
            u32 earlier = here ? counts[warp][digit] : 0;
            rank[item] = earlier + before;
            __syncwarp();
            if (here && before == 0) counts[warp][digit] = earlier + __popc(same);
            __syncwarp();
        }
        __syncthreads();
    }
};

extern "C" __global__ void __launch_bounds__(256)
scatter_count(const __grid_constant__ Params p) {
    __shared__ u32 counts[WARPS][256];
    Tile tile(p, counts);
    u32 digit = threadIdx.x, total = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) total += counts[warp][digit];
    p.counts[digit * p.tiles + blockIdx.x] = total;
}

// Counts become what precedes them, digit after digit and tile after tile.
extern "C" __global__ void __launch_bounds__(1024)
scatter_scan(const __grid_constant__ Params p) {
    __shared__ u32 shared[32];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 total = 256 * p.tiles, carried = 0;
    for (u32 first = 0; first < total; first += 1024) {
        u32 i = first + threadIdx.x;
        u32 own = i < total ? p.counts[i] : 0, sum = own;
#pragma unroll
        for (int apart = 1; apart < 32; apart *= 2) {
            u32 other = __shfl_up_sync(0xffffffffu, sum, apart);
            if (lane >= apart) sum += other;
        }
        if (lane == 31) shared[warp] = sum;
        __syncthreads();
        u32 others = shared[lane];
#pragma unroll
        for (int apart = 1; apart < 32; apart *= 2) {
            u32 other = __shfl_up_sync(0xffffffffu, others, apart);
            if (lane >= apart) others += other;
        }
        u32 before = __shfl_sync(0xffffffffu, others, warp == 0 ? 0 : warp - 1);
        if (warp == 0) before = 0;
        if (i < total) p.counts[i] = carried + before + sum - own;
        carried += __shfl_sync(0xffffffffu, others, 31);
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(256)
scatter_place(const __grid_constant__ Params p) {
    __shared__ u32 counts[WARPS][256];
    Tile tile(p, counts);
    u32 digit = threadIdx.x, next = p.counts[digit * p.tiles + blockIdx.x];
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) {
        u32 own = counts[warp][digit];
        counts[warp][digit] = next;
        next += own;
    }
    __syncthreads();
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 first = blockIdx.x * TILE + warp * (32 * ITEMS) + lane;
#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
        u32 i = first + item * 32;
        if (i >= p.count) continue;
        u32 to = counts[warp][digit_of(p, tile.key[item])] + tile.rank[item];
        p.keys[1 - (p.pass & 1)][to] = tile.key[item];
        p.order[1 - (p.pass & 1)][to] = FIRST ? i : p.order[p.pass & 1][i];
    }
}

// Where the run of each table row begins: the first sorted key that is not less. `pass` is the
// number of passes, here and below: the sorted arrays are those that the last one wrote.
extern "C" __global__ void __launch_bounds__(256)
scatter_bounds(const __grid_constant__ Params p) {
    u32 row = blockIdx.x * 256 + threadIdx.x;
    if (row > p.table_rows) return;
    const u32* keys = p.keys[p.pass & 1];
    u32 from = 0, to = p.count;
    while (from < to) {
        u32 middle = (from + to) / 2;
        if (keys[middle] < row) {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    p.bounds[row] = from;
}

// Adds rows `from` to `to` of the sorted positions, in order.
__device__ __forceinline__ void add_rows(const Params& p, u32 from, u32 to, u32 unit, i64 batch,
                                         f32 (&sum)[V]) {
    const u32* order = p.order[p.pass & 1];
    for (u32 first = from; first < to; first += IN_FLIGHT) {
        Vec<T, V> x[IN_FLIGHT];
        u32 position[IN_FLIGHT];
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; ++j) {
            if (first + j < to) position[j] = order[first + j];
        }
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; ++j) {
            if (first + j >= to) continue;
            i64 at[2] = {};
            p.positions.walk(position[j], at);
            x[j] = load<T, V>(p.rows, batch + at[1] + i64(unit) * V * p.positions.lane[1]);
        }
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; ++j) {
            if (first + j >= to) continue;
#pragma unroll
            for (int i = 0; i < V; ++i) sum[i] += get(x[j], i);
        }
    }
}

__device__ __forceinline__ u64 sums_at(const Params& p, u32 stretch, u32 slot, u32 unit) {
    u64 stretches = (p.count + STRETCH - 1) / STRETCH;
    return (((blockIdx.z * stretches + stretch) * 2 + slot) * p.units + unit) * V;
}

// What a stretch has of long runs: slot 0 of one that began before it, slot 1 of one that goes on.
extern "C" __global__ void __launch_bounds__(32)
scatter_hot(const __grid_constant__ Params p) {
    u32 unit = blockIdx.y * 32 + threadIdx.x;
    if (unit >= p.units) return;
    i64 batch[2] = {};
    p.batch.walk(blockIdx.z, batch);
    const u32* keys = p.keys[p.pass & 1];
    u32 begin = blockIdx.x * STRETCH;
    u32 end = begin + STRETCH < p.count ? begin + STRETCH : p.count;
    for (u32 slot = 0; slot < 2; ++slot) {
        u32 row = keys[slot == 0 ? begin : end - 1];
        if (row >= p.table_rows) continue;
        u32 from = p.bounds[row], to = p.bounds[row + 1];
        bool mine = slot == 0 ? from < begin : from >= begin && to > end;
        if (!mine || to - from <= STRETCH) continue;
        f32 sum[V] = {};
        add_rows(p, slot == 0 ? begin : from, to < end ? to : end, unit, batch[1], sum);
        store<f32, V>(p.sums, i64(sums_at(p, blockIdx.x, slot, unit)), sum);
    }
}

extern "C" __global__ void __launch_bounds__(256)
scatter_add(const __grid_constant__ Params p) {
    u32 row = blockIdx.x * 8 + threadIdx.x / 32;
    u32 unit = blockIdx.y * 32 + threadIdx.x % 32;
    if (row >= p.table_rows || unit >= p.units) return;
    i64 batch[2] = {};
    p.batch.walk(blockIdx.z, batch);
    u32 from = p.bounds[row], to = p.bounds[row + 1];
    f32 sum[V] = {};
    if (to - from <= STRETCH) {
        add_rows(p, from, to, unit, batch[1], sum);
    } else {
        u32 first = from / STRETCH, last = (to - 1) / STRETCH;
#pragma unroll 4
        for (u32 stretch = first; stretch <= last; ++stretch) {
            u32 slot = stretch == first ? 1 : 0;  // it cannot end where it begins
            Vec<f32, V> x = load<f32, V>(p.sums, i64(sums_at(p, stretch, slot, unit)));
#pragma unroll
            for (int i = 0; i < V; ++i) sum[i] += get(x, i);
        }
    }
    i64 at = batch[0] + i64(row) * p.table_row + i64(unit) * V * p.batch.lane[0];
    store<f32, V>(p.table, at, sum);
}

// Rows replace what the table holds; the ids are distinct. Grid: (ceil(count / 8), slices,
// batches).
extern "C" __global__ void __launch_bounds__(256)
scatter_set(const __grid_constant__ Params p) {
    u32 i = blockIdx.x * 8 + threadIdx.x / 32;
    u32 unit = blockIdx.y * 32 + threadIdx.x % 32;
    if (i >= p.count || unit >= p.units) return;
    i64 at[2] = {}, batch[2] = {};
    p.positions.walk(i, at);
    p.batch.walk(blockIdx.z, batch);
    u32 own = p.ids[at[0]] - p.first_row;
    if (own >= p.table_rows) return;
    Vec<T, V> x = load<T, V>(p.rows, batch[1] + at[1] + i64(unit) * V * p.positions.lane[1]);
    put<T, V>(p.table, batch[0] + i64(own) * p.table_row + i64(unit) * V * p.batch.lane[0], x);
}
