// Rows of a table by id: rows[b, r, w] = table[b, ids[b, r], w], bit for bit.
//
// The table may be a piece of a longer one that its ids count along: rows of other pieces are read
// as zeros, so that a sum over the pieces is the whole; ids beyond the whole table give NaN. Batch
// and row axes are one space of positions, in which the table has stride 0 along the row axes and
// ids have stride 0 along the batch axes. A thread moves UNROLL units of V elements; the grid is
// ceil(positions * units / (THREADS * UNROLL)), and positions * units is under 2^31.
//
// Constants: T (f32, bf16 or f16), V (1 where an operand is not contiguous along the width), AXES,
// UNROLL, THREADS. V divides the width.
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
#ifndef UNROLL
#define UNROLL 4
#endif
#ifndef THREADS
#define THREADS 256
#endif

struct Params {
    const void* table;
    const u32* ids;
    void* rows;
    i64 table_row;              // elements from table row to table row
    Space<AXES, 3> positions;   // table, ids, rows; lanes along the width (that of ids is 0)
    Divide units;               // of a row
    u32 total;                  // positions * units
    u32 first_row;              // the id of the table's first row
    u32 table_rows;
    u32 all_rows;               // of the whole table
};

extern "C" __global__ void __launch_bounds__(THREADS)
gather(const __grid_constant__ Params p) {
    u32 first = blockIdx.x * (THREADS * UNROLL) + threadIdx.x;
    i64 at[UNROLL][3];
    u32 id[UNROLL], unit[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        u32 index = first + u * THREADS;
        if (index >= p.total) continue;
        u32 position = p.units.quotient(index);
        unit[u] = index - position * p.units.divisor;
        at[u][0] = at[u][1] = at[u][2] = 0;
        p.positions.walk(position, at[u]);
        id[u] = p.ids[at[u][1]];
    }
    Vec<T, V> row[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        if (first + u * THREADS >= p.total) continue;
        u32 own = id[u] - p.first_row;  // wraps for ids before the piece
        if (own < p.table_rows) {
            i64 from = at[u][0] + i64(own) * p.table_row + i64(unit[u]) * V * p.positions.lane[0];
            row[u] = load<T, V>(p.table, from);
        } else {
            f32 missing[V];
#pragma unroll
            for (int i = 0; i < V; ++i) {
                missing[i] = id[u] < p.all_rows ? 0.0f : __uint_as_float(0x7fc00000u);
            }
            row[u] = rounded<T, V>(missing);
        }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        if (first + u * THREADS >= p.total) continue;
        i64 to = at[u][2] + i64(unit[u]) * V * p.positions.lane[2];
        put<T, V>(p.rows, to, row[u]);
    }
}
