// The adjoint of gather, without atomics: table[b, id, w] = sum of rows[b, r, w] over the positions
// r with that id, in order; and rows set in a table.
//
// A micro-batch's positions are sorted by id, by a stable radix sort of 8 bits a pass (ids of other
// pieces of the table count as `table_rows` and land at the end), then their runs are added:
//   scatter_count   grid tiles, 256 threads    how often each digit occurs in each tile
//   scatter_place   grid tiles, 256 threads    for each pass in turn: moves keys and positions
//                                              from keys[pass & 1] to keys[1 - (pass & 1)]
//   scatter_runs    grid (ceil(stretches / 8) + ceil((table_rows + 1) / 256), slices, batches),
//                   256 threads                where each id's run begins; parts of long runs
//   scatter_add     grid (ceil(table_rows / 32), slices, batches), 256 threads
// with passes = ceil(bits(table_rows) / 8), tiles = ceil(count / 2048), stretches =
// ceil(count / 64), slices = ceil(units / 32) and units = width / V. `pass` is set for
// scatter_place alone. What each block places where, it finds from the counts of all tiles by
// itself, and while it moves the keys it counts the next pass's digits in the tiles that they come
// to lie in (by atomics of integers, whose order does not show).
//
// A run of up to 64 positions is added by one warp in order. The sorted positions are cut into
// stretches of 64, of which longer runs reach over several: scatter_runs adds what lies in each
// stretch, and scatter_add has a block add the stretches, an eighth of them a warp and these in
// order, so that the most frequent ids take no longer than others. The order of a sum depends on
// the ids alone.
//
// Scratch: 4 arrays of `count` u32 (keys and positions, twice), passes * tiles * 256 u32 of counts,
// (table_rows + 1) u32 of bounds, and stretches * 2 * width f32 for each batch.
//
// Constants: T (of rows), V, AXES (of positions), BATCH (axes). The table is f32 for adding, of T
// for setting.
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

constexpr int WARPS = 8;
constexpr int ITEMS = 8;                     // of a thread in a tile
constexpr int TILE = WARPS * 32 * ITEMS;     // 2048
constexpr int DIGITS = 256;
constexpr u32 STRETCH = 64;
constexpr int IN_FLIGHT = 8;                 // rows that a warp has asked for at once
constexpr int ROWS = 32;                     // table rows of a block that adds
constexpr u32 ALL_LANES = 0xffffffffu;

struct Params {
    void* table;                   // written
    const u32* ids;
    const void* rows;
    u32* keys[2];                  // [count]
    u32* order[2];                 // [count], positions
    u32* counts;                   // [passes][tiles][256]
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
    u32 passes;
    u32 pass;
};

// The row of the table here that position i adds to, or `table_rows`.
__device__ __forceinline__ u32 key_of(const Params& p, u32 i) {
    i64 at[2] = {};
    p.positions.walk(i, at);
    u32 own = p.ids[at[0]] - p.first_row;  // wraps for ids before the piece
    return own < p.table_rows ? own : p.table_rows;
}

__device__ __forceinline__ u32 digit_of(u32 key, u32 pass) { return key >> (8 * pass) & 255; }

__device__ __forceinline__ u32* counts_of(const Params& p, u32 pass, u32 tile) {
    return p.counts + (u64(pass) * p.tiles + tile) * DIGITS;
}

// A thread's items of a tile, of positions warp * 256 + item * 32 + lane.
struct Tile {
    u32 key[ITEMS];
    u32 rank[ITEMS];   // how many equal digits precede it in its warp

    static __device__ __forceinline__ u32 position(int item) {
        u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        return blockIdx.x * TILE + warp * (32 * ITEMS) + item * 32 + lane;
    }

    __device__ __forceinline__ Tile(const Params& p, u32 pass) {
#pragma unroll
        for (int item = 0; item < ITEMS; ++item) {
            u32 i = position(item);
            key[item] = i >= p.count ? 0 : pass == 0 ? key_of(p, i) : p.keys[pass & 1][i];
        }
    }

    // Finds the ranks, and how many of each digit every warp has.
    __device__ __forceinline__ void count(const Params& p, u32 pass, u32 (&counts)[WARPS][DIGITS]) {
        u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) counts[w][threadIdx.x] = 0;
        __syncthreads();
#pragma unroll
        for (int item = 0; item < ITEMS; ++item) {
            bool here = position(item) < p.count;
            // 256 stands for items that do not exist; they meet only each other.
            u32 digit = here ? digit_of(key[item], pass) : DIGITS;
            u32 same = __match_any_sync(ALL_LANES, digit);
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
    __shared__ u32 counts[WARPS][DIGITS];
    u32 digit = threadIdx.x, total = 0;
    for (u32 pass = 1; pass < p.passes; ++pass) counts_of(p, pass, blockIdx.x)[digit] = 0;
    Tile tile(p, 0);
    tile.count(p, 0, counts);
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) total += counts[warp][digit];
    counts_of(p, 0, blockIdx.x)[digit] = total;
}

// The sum over the threads before this one, of 256.
__device__ __forceinline__ u32 sum_before(u32 own) {
    __shared__ u32 shared[WARPS];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, sum = own;
#pragma unroll
    for (int apart = 1; apart < 32; apart *= 2) {
        u32 other = __shfl_up_sync(ALL_LANES, sum, apart);
        if (lane >= apart) sum += other;
    }
    if (lane == 31) shared[warp] = sum;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < WARPS; ++w) sum += w < warp ? shared[w] : 0;
    return sum - own;
}

extern "C" __global__ void __launch_bounds__(256)
scatter_place(const __grid_constant__ Params p) {
    __shared__ u32 counts[WARPS][DIGITS];
    Tile tile(p, p.pass);
    // Where the tile's items of a digit go: after those of lesser digits and of earlier tiles.
    u32 digit = threadIdx.x, all = 0, earlier = 0;
#pragma unroll 8
    for (u32 t = 0; t < p.tiles; ++t) {
        u32 there = counts_of(p, p.pass, t)[digit];
        all += there;
        earlier += t < blockIdx.x ? there : 0;
    }
    tile.count(p, p.pass, counts);
    u32 next = sum_before(all) + earlier;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) {
        u32 own = counts[warp][digit];
        counts[warp][digit] = next;
        next += own;
    }
    __syncthreads();
    u32 warp = threadIdx.x / 32;
#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
        u32 i = Tile::position(item), key = tile.key[item];
        if (i >= p.count) continue;
        u32 to = counts[warp][digit_of(key, p.pass)] + tile.rank[item];
        p.keys[1 - (p.pass & 1)][to] = key;
        p.order[1 - (p.pass & 1)][to] = p.pass == 0 ? i : p.order[p.pass & 1][i];
        if (p.pass + 1 < p.passes) {
            atomicAdd(counts_of(p, p.pass + 1, to / TILE) + digit_of(key, p.pass + 1), 1u);
        }
    }
}

// Rows of the sorted positions `from` to `to`, in order: calls f(x, position) for each, IN_FLIGHT of
// them being asked for at once. All lanes of the warp take part; those without columns have
// `live` false.
template <class F>
__device__ __forceinline__ void each_row(const Params& p, u32 from, u32 to, bool live, i64 origin,
                                         F f) {
    const u32* order = p.order[p.passes & 1];
    u32 lane = threadIdx.x % 32;
    for (u32 base = from; base < to; base += 32) {
        i64 at[2] = {};
        if (base + lane < to) p.positions.walk(order[base + lane], at);
        u32 end = base + 32 < to ? base + 32 : to;
        for (u32 first = base; first < end; first += IN_FLIGHT) {
            Vec<T, V> x[IN_FLIGHT];
#pragma unroll
            for (int j = 0; j < IN_FLIGHT; ++j) {
                i64 own = __shfl_sync(ALL_LANES, at[1], (first - base + j) % 32);
                if (first + j < end && live) x[j] = load<T, V>(p.rows, origin + own);
            }
#pragma unroll
            for (int j = 0; j < IN_FLIGHT; ++j) {
                if (first + j < end) f(x[j], first + j);
            }
        }
    }
}

__device__ __forceinline__ void add(f32 (&sum)[V], const Vec<T, V>& x) {
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] += get(x, i);
}

__device__ __forceinline__ i64 sums_at(const Params& p, u32 stretch, u32 slot, u32 unit) {
    u64 stretches = (p.count + STRETCH - 1) / STRETCH;
    return (((blockIdx.z * stretches + stretch) * 2 + slot) * p.units + unit) * V;
}

// Where the run of a table row begins: the first sorted key that is not less.
__device__ __forceinline__ void find_bound(const Params& p, u32 row) {
    const u32* keys = p.keys[p.passes & 1];
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

// What a stretch has of long runs: slot 0 of one that began before it, slot 1 of one that goes on.
__device__ __forceinline__ void add_stretch(const Params& p, u32 stretch) {
    const u32* keys = p.keys[p.passes & 1];
    u32 lane = threadIdx.x % 32, unit = blockIdx.y * 32 + lane;
    u32 begin = stretch * STRETCH;
    u32 end = begin + STRETCH < p.count ? begin + STRETCH : p.count;
    u32 first = keys[begin], last = keys[end - 1], firsts = 0, lasts = 0;
#pragma unroll
    for (u32 i = 0; i < STRETCH; i += 32) {
        u32 at = begin + i + lane, key = at < end ? keys[at] : 0;
        firsts += __popc(__ballot_sync(ALL_LANES, at < end && key == first));
        lasts += __popc(__ballot_sync(ALL_LANES, at < end && key == last));
    }
    i64 batch[2] = {};
    p.batch.walk(blockIdx.z, batch);
#pragma unroll 1
    for (u32 slot = 0; slot < 2; ++slot) {
        u32 row = slot == 0 ? first : last;
        u32 from = slot == 0 ? begin : end - lasts, to = slot == 0 ? begin + firsts : end;
        bool before = from == begin && begin > 0 && keys[begin - 1] == row;
        bool after = to == end && end < p.count && keys[end] == row;
        if (row >= p.table_rows || (slot == 0 ? !before : before || !after)) continue;
        // Keys are sorted: the run is longer than a stretch if the key so far from its end, or
        // from its beginning, is of it.
        bool is_long = slot == 0 ? to > STRETCH && keys[to - 1 - STRETCH] == row
                                 : from + STRETCH < p.count && keys[from + STRETCH] == row;
        if (!is_long) continue;
        f32 sum[V] = {};
        i64 origin = batch[1] + i64(unit) * V * p.positions.lane[1];
        each_row(p, from, to, unit < p.units, origin,
                     [&](const Vec<T, V>& x, u32) { add(sum, x); });
        if (unit < p.units) store<f32, V>(p.sums, sums_at(p, stretch, slot, unit), sum);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
scatter_runs(const __grid_constant__ Params p) {
    u32 stretches = (p.count + STRETCH - 1) / STRETCH;
    u32 blocks = (stretches + WARPS - 1) / WARPS;  // which add stretches; the others find bounds
    if (blockIdx.x < blocks) {
        u32 stretch = blockIdx.x * WARPS + threadIdx.x / 32;
        if (stretch < stretches) add_stretch(p, stretch);
    } else if (blockIdx.y == 0 && blockIdx.z == 0) {
        u32 row = (blockIdx.x - blocks) * 256 + threadIdx.x;
        if (row <= p.table_rows) find_bound(p, row);
    }
}

extern "C" __global__ void __launch_bounds__(256, 3)
scatter_add(const __grid_constant__ Params p) {
    __shared__ u32 bounds[ROWS + 1];
    __shared__ f32 shared[WARPS][32 * V];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, unit = blockIdx.y * 32 + lane;
    u32 top = blockIdx.x * ROWS;
    bool live = unit < p.units;
    i64 batch[2] = {};
    p.batch.walk(blockIdx.z, batch);
    i64 origin = batch[1] + i64(unit) * V * p.positions.lane[1];
    i64 table = batch[0] + i64(top) * p.table_row;
    if (threadIdx.x <= ROWS) {
        u32 row = top + threadIdx.x;
        bounds[threadIdx.x] = p.bounds[row < p.table_rows ? row : p.table_rows];
    }
    __syncthreads();
    u32 rows = p.table_rows - top < ROWS ? p.table_rows - top : ROWS;
    auto is_long = [&](u32 row) { return bounds[row + 1] - bounds[row] > STRETCH; };
    u32 row = warp * (ROWS / WARPS), end = row + ROWS / WARPS < rows ? row + ROWS / WARPS : rows;
    while (row < end) {
        // Short runs lie one behind the other: their rows are asked for together.
        u32 from = row;
        while (row < end && !is_long(row)) ++row;
        u32 own = from;
        f32 sum[V] = {};
        auto finish_row = [&] {
            i64 at = table + i64(own) * p.table_row + i64(unit) * V * p.batch.lane[0];
            if (live) store<f32, V>(p.table, at, sum);
#pragma unroll
            for (int i = 0; i < V; ++i) sum[i] = 0.0f;
            ++own;
        };
        if (from < row) {
            each_row(p, bounds[from], bounds[row], live, origin,
                        [&](const Vec<T, V>& x, u32 position) {
                while (position == bounds[own + 1]) finish_row();
                add(sum, x);
            });
        }
        while (own < row) finish_row();
        ++row;  // the long one
    }
    for (u32 row = 0; row < rows; ++row) {
        if (!is_long(row)) continue;
        u32 first = bounds[row] / STRETCH, last = (bounds[row + 1] - 1) / STRETCH;
        u32 share = (last - first) / WARPS + 1, begin = first + warp * share;
        u32 end = begin + share < last + 1 ? begin + share : last + 1;
        f32 sum[V] = {};
#pragma unroll 4
        for (u32 stretch = begin; stretch < end; ++stretch) {
            u32 slot = stretch == first ? 1 : 0;  // it cannot end where it begins
            if (!live) continue;
            Vec<f32, V> x = load<f32, V>(p.sums, sums_at(p, stretch, slot, unit));
#pragma unroll
            for (int i = 0; i < V; ++i) sum[i] += get(x, i);
        }
#pragma unroll
        for (int i = 0; i < V; ++i) shared[warp][lane * V + i] = sum[i];
        __syncthreads();
        u32 column = threadIdx.x, place = blockIdx.y * 32 * V + column;
        if (column < 32 * V && place < p.units * V) {
            f32 total[1] = {shared[0][column]};
#pragma unroll
            for (int w = 1; w < WARPS; ++w) total[0] += shared[w][column];
            i64 at = table + i64(row) * p.table_row + i64(place) * p.batch.lane[0];
            store<f32, 1>(p.table, at, total);
        }
        __syncthreads();
    }
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
