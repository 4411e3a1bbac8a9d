// What all attention kernels share: parameters, the place of a block's work, lists and masks.
//
// Positions are cut in units of 64. A list says which units of keys a tile of queries sees (rows:
// forward, dq), or which units of queries see a tile of keys (columns: dk, dv); a tile is one or
// two units. For each half of the tile an entry has a code: nothing, everything, or the number of
// a bit mask of 64x64 pairs, stored by query and by key. The predicate itself is known to the host
// alone: masks are kept once each, a mask costs a bit test per element in partial units only, and
// one compiled kernel serves every pattern, unions and patterns per head included.
//
// Packing (-DPACK=1): many short sequences lie next to each other in a unit. Positions are then
// x = column * length + position, where `column` is a batch axis that the host folded in, and the
// mask keeps columns apart. A unit starts every `step` <= 64 positions, so that whole columns fit.
//
// What the host sees to:
// - Tensor-core kernels: q, k, v, o, do, dq, dk, dv are Half, `width` strides are 1, every address
//   is a multiple of 16 bytes and every other stride of 8 elements (0 included); scale > 0.
// - A pair of positions is in some mask or a full unit only if both exist: a unit that sticks out
//   past the last key is never full. Units without a pair are left out of the lists; a half tile
//   without one, or past the end, is EMPTY.
// - kinds = 1, or the heads follow kv * group + group modulo it. section >= 1, and about as many
//   heads as have their keys and values (columns: queries and do) in half of L2.
// - step != 64 only for tiles of one unit. Packing: length >= 2, positions * length < 2^32.
// - Full lists name each unit once, in rising order: the order of sums.
#pragma once
#include "lib/ptx.cuh"

constexpr u32 UNIT = 64;
constexpr u32 FULL = 0xffffffffu;
constexpr u32 EMPTY = 0xfffffffeu;
constexpr u32 MASK_WORDS = 256;  // [by query, by key][64][2]
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

/// An operand: its address, and its strides in elements along the axes of the attention. An axis
/// that the operand lacks has stride 0.
struct Operand {
    u64 address;
    i64 batch[3];  // outermost first
    i64 kv;        // key/value heads
    i64 group;     // query heads that share one
    i64 column;    // the packed axis; 0 without packing
    i64 row;       // positions
    i64 width;     // 1 for the tensor-core kernels
};

/// Units that a tile sees: entries[first[kind * tiles + tile]..first[.. + 1]], rising.
struct Entry {
    u32 unit;     // of the other side
    u32 code[2];  // for either half of the tile (a tile of one unit has only the first)
    u32 unused;
};

struct Params {
    Operand q, k, v, o, lse;             // lse: f32, natural logarithm
    Operand dout, dlse, dq, dk, dv;      // backward; dlse.address 0: none
    u64 stats;                           // float2[heads * query_units + 1][64]: lse log2(e), D
    u64 first;                           // u32[kinds * tiles + 1]
    u64 entries;                         // Entry[], 16-byte aligned
    u64 order;                           // u32[kinds][tiles]: tiles, longest list first
    u64 masks;                           // u32[masks][MASK_WORDS]
    u64 position;                        // u32: of the first query; attend_decode alone
    u32 batch[3];                        // sizes
    u32 kv, group;                       // sizes
    u32 queries, keys;                   // positions, of all packed columns
    u32 query_length, key_length;        // positions of a packed column
    u32 query_magic, key_magic;          // ceil(2^32 / length)
    u32 query_step, key_step;            // positions from unit to unit: 64 without packing
    u32 query_units;                     // ceil(queries / query_step)
    u32 tiles;                           // of a head, in this launch
    u32 kinds;                           // heads with lists of their own: head h has h % kinds
    u32 section;                         // heads whose tiles are taken in turns (they share L2)
    u32 key_width, value_width;          // read by the plain kernels alone
    float scale;                         // on scores; positive
    float scale_log2;                    // scale * log2(e)
};

/// What a block works on.
struct Work {
    u32 batch[3], kv, group;  // coordinates of the head
    u32 outer;                // its number over batch, kv and group
    u32 tile, list;           // a tile of it, and its place in `first`
};

__device__ __forceinline__ u32 pattern_kind(const Params& p, u32 kv, u32 group) {
    return p.kinds == 1 ? 0 : (kv * p.group + group) % p.kinds;
}

/// x / size. Most sizes are 1, and a division takes twenty instructions: with ONES they are not
/// made, but a branch each takes registers.
template <bool ONES>
__device__ __forceinline__ u32 quotient(u32 x, u32 size) {
    return ONES && size == 1 ? x : x / size;
}

/// The coordinates of a head; `groups` is 1 for work on keys and p.group for work on queries.
template <bool ONES = false>
__device__ __forceinline__ Work head_of(const Params& p, u32 outer, u32 groups) {
    Work w;
    w.outer = outer;
    u32 rest = quotient<ONES>(outer, groups);
    w.group = outer - rest * groups, outer = rest;
    rest = quotient<ONES>(outer, p.kv);
    w.kv = outer - rest * p.kv, outer = rest;
    rest = quotient<ONES>(outer, p.batch[2]);
    w.batch[2] = outer - rest * p.batch[2], outer = rest;
    w.batch[0] = quotient<ONES>(outer, p.batch[1]);
    w.batch[1] = outer - w.batch[0] * p.batch[1];
    w.tile = w.list = 0;
    return w;
}

/// `groups` as in `head_of`.
__device__ __forceinline__ u32 head_count(const Params& p, u32 groups) {
    return p.batch[0] * p.batch[1] * p.batch[2] * p.kv * groups;
}

/// Blocks are numbered by section, then by rank in the order of work, then by head: the longest
/// tiles of a section start first, and the heads of a section fit L2 together.
template <bool ONES = false>
__device__ __forceinline__ Work place(const Params& p, u32 block, u32 groups) {
    const u32 heads = head_count(p, groups);
    const u32 section = block / (p.section * p.tiles);
    const u32 within = block - section * p.section * p.tiles;
    const u32 count = min(p.section, heads - section * p.section);
    const u32 rank = quotient<ONES>(within, count);
    Work w = head_of<ONES>(p, section * p.section + within - rank * count, groups);
    const u32 kind = pattern_kind(p, w.kv, w.group);
    w.tile = reinterpret_cast<const u32*>(p.order)[kind * p.tiles + rank];
    w.list = kind * p.tiles + w.tile;
    return w;
}

/// The block's number, read where it is needed: what `place` makes of it is cheaper to make twice
/// than to keep in registers over the main loop.
__device__ __forceinline__ u32 block_anew() {
    u32 block;
    asm volatile("mov.u32 %0, %%ctaid.x;\n" : "=r"(block));
    return block;
}

/// Elements from an operand's address to its first position of a head.
__device__ __forceinline__ i64 head_at(const Operand& x, const Work& w, u32 group) {
    return w.batch[0] * x.batch[0] + w.batch[1] * x.batch[1] + w.batch[2] * x.batch[2] +
           w.kv * x.kv + group * x.group;
}

/// An entry as the warps of one half of the tile see it.
struct HalfEntry {
    u32 unit, code;
};

__device__ __forceinline__ HalfEntry read_entry(const Params& p, u32 e, u32 half) {
    const uint4 word = __ldg(reinterpret_cast<const uint4*>(p.entries) + e);
    return {word.x, half == 0 ? word.y : word.z};
}

/// The mask words of one row of a unit: bit b of word w is column 32 w + b.
__device__ __forceinline__ const u32* mask_row(const Params& p, u32 code, bool by_key, u32 row) {
    return reinterpret_cast<const u32*>(p.masks) + code * MASK_WORDS + (by_key ? 128 : 0) + row * 2;
}

/// lse log2(e) (of a row without keys, and past the end: inf) and D of the queries of a unit.
__device__ __forceinline__ const float2* row_stats(const Params& p, u32 head, u32 unit) {
    return reinterpret_cast<const float2*>(p.stats) + (u64(head) * p.query_units + unit) * UNIT;
}

/// The two. A query without keys gets lse = +inf, and D = 0: its probabilities 2^(score - lse) are
/// then 0 without a test. So do the rows that fill up a unit.
__device__ __forceinline__ float2 stats_of(float lse, float along, float dlse) {
    return lse == -infinity() ? make_float2(infinity(), 0.0f)
                              : make_float2(lse * LOG2_E, along - dlse);
}

/// Positions of one side: where a position lies, in elements from the head's first.
struct Positions {
    u32 count, step;     // all of them; from unit to unit
    u32 length, magic;   // of a packed column
    i64 column, row;

#if PACK
    __device__ __forceinline__ i64 at(u32 x) const {
        const u32 c = __umulhi(x, magic);
        return c * column + (x - c * length) * row;
    }
#else
    __device__ __forceinline__ i64 at(u32 x) const { return x * row; }
#endif
};

__device__ __forceinline__ Positions query_positions(const Params& p, const Operand& x) {
    return {p.queries, p.query_step, p.query_length, p.query_magic, x.column, x.row};
}

__device__ __forceinline__ Positions key_positions(const Params& p, const Operand& x) {
    return {p.keys, p.key_step, p.key_length, p.key_magic, x.column, x.row};
}

/// Scores of pairs whose bit is not set become -inf: 32 columns, which are C tiles `first`.. of the
/// row of elements 2 r, 2 r + 1.
template <int TILES>
__device__ __forceinline__ void mask_scores(float (&s)[TILES][4], int first, int r, u32 word,
                                            u32 lane) {
    word >>= 2 * (lane & 3);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
        if (!(word >> (8 * n) & 1)) s[first + n][2 * r] = -infinity();
        if (!(word >> (8 * n + 1) & 1)) s[first + n][2 * r + 1] = -infinity();
    }
}
