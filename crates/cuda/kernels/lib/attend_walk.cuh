// The way of a tile of keys through the units of queries that see it.
#pragma once
#include "lib/attend.cuh"

constexpr u32 NONE = ~0u;

/// The units of queries of all query heads that share the keys, one after another.
struct Walk {
    u32 group, entry, last;

    __device__ __forceinline__ void open(const Params& p, const Work& w) {
        while (entry == last && group < p.group) {
            const u32 list = pattern_kind(p, w.kv, group) * p.tiles + w.tile;
            entry = __ldg(reinterpret_cast<const u32*>(p.first) + list);
            last = __ldg(reinterpret_cast<const u32*>(p.first) + list + 1);
            if (entry == last) ++group;
        }
    }
};

/// A unit of queries of one head; `unit` NONE: no more.
struct Step {
    u32 unit, code, group;
};

__device__ __forceinline__ Step take(const Params& p, const Work& w, Walk& walk, u32 half) {
    if (walk.group >= p.group) return {NONE, EMPTY, 0};
    const HalfEntry entry = read_entry(p, walk.entry, half);
    const Step step = {entry.unit, entry.code, walk.group};
    if (++walk.entry == walk.last) {
        ++walk.group;
        walk.open(p, w);
    }
    return step;
}
