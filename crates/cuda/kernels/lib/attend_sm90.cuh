// What the Hopper attention kernels share: tensor maps, the ring, masks, and the way out.
//
// A block is a producer warpgroup, one thread of which copies, and two consumer warpgroups that own
// 64 rows of the tile each. A box is 64 positions of 64 elements, 8 KiB, as lib/wgmma.cuh has it.
//
// A block takes a run of tiles one after another. There are OWNS rooms for the rows of a tile: with
// two, the next tile is on its way while this one ends and its results leave; with one there is
// more memory for stages. The producer alone walks the lists. What consumers need of a tile comes
// as a Tile with its rows, what they need of a unit as codes with the unit.
//
// What the host sees to, besides lib/attend.cuh: tiles of two units, no packing, and of each of q,
// k, v, do and o at most three of the axes batch 0, 1, 2, kv, group with more than one place;
// run >= 1, and as many blocks as runs.
#pragma once
#include "lib/attend.cuh"
#include "lib/tma.cuh"
#include "lib/wgmma_left.cuh"

constexpr int CONSUMERS = 2;

/// Tensor maps: Half, rank 5, box {64, 64, 1, 1, 1}, swizzle of 128 bytes, zeros out of bounds.
/// Axes, innermost first: width, positions, then up to three axes of the head that the operand
/// has; axis[i] says which: 0, 1, 2 batch, 3 kv, 4 group, 5 none (the map's size is 1).
struct Heads {
    u32 axis[3];
};

struct HopperParams {
    TensorMap q, k, v, dout, o;  // the forward reads neither dout nor o
    Params p;
    Heads q_heads, k_heads, v_heads, dout_heads, o_heads;
    u32 run;  // tiles of a block
};

/// What consumers know of a tile. Each tile has at least a Tile and its rows, be its list empty.
struct Tile {
    u64 to[4];  // addresses that belong to the head or the tile
    u32 first;  // position
    u32 units;  // of its list
    u32 more;   // whether the block has another
    u32 unused;
};

/// The tiles of a block: numbers that `place` knows.
struct Run {
    u32 job, end;
};

__device__ __forceinline__ Run run_of(const HopperParams& h, u32 groups) {
    const u32 all = head_count(h.p, groups) * h.p.tiles, first = blockIdx.x * h.run;
    return {first, min(first + h.run, all)};
}

__device__ __forceinline__ u64 head_address(const Operand& x, const Work& w, u32 bytes) {
    return x.address + head_at(x, w, w.group) * bytes;
}

/// An entry as it is.
struct BothEntry {
    u32 unit, code[2];
};

__device__ __forceinline__ BothEntry read_both(const Params& p, u32 e) {
    const uint4 word = __ldg(reinterpret_cast<const uint4*>(p.entries) + e);
    return {word.x, {word.y, word.z}};
}

/// The list of a tile.
struct List {
    u32 begin, last;
};

__device__ __forceinline__ List list_of(const Params& p, u32 list) {
    const u32* first = reinterpret_cast<const u32*>(p.first) + list;
    return {__ldg(first), __ldg(first + 1)};
}

/// A head's place in a map.
struct Place {
    int c[3];
};

__device__ __forceinline__ Place place_of(const Work& w, const Heads& heads) {
    Place at;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        const u32 a = heads.axis[i];
        at.c[i] = a == 0   ? w.batch[0]
                  : a == 1 ? w.batch[1]
                  : a == 2 ? w.batch[2]
                  : a == 3 ? w.kv
                  : a == 4 ? w.group
                           : 0;
    }
    return at;
}

/// Copies 64 positions of WIDTH elements, slice by slice, to boxes that lie `apart` bytes apart.
template <int WIDTH>
__device__ __forceinline__ void copy_unit(u32 to, u32 apart, const TensorMap& map, u32 bar,
                                          u32 position, const Place& at) {
    for (u32 slice = 0; slice < WIDTH / BOX; ++slice)
        copy_box(to + slice * apart, map, bar, slice * BOX, position, at.c[0], at.c[1], at.c[2]);
}

/// A place in the ring. Its barriers change phase each time around.
template <int STAGES>
struct Slot {
    u32 index = 0, phase = 0;

    __device__ __forceinline__ void next() {
        if (++index == STAGES) index = 0, phase ^= 1;
    }
};

/// What all lanes of a warp know, where the compiler cannot know that they do. Descriptors of
/// products are of uniform registers: an address that may differ is moved to them for each product.
__device__ __forceinline__ u32 uniform(u32 x) { return __shfl_sync(~0u, x, 0); }

/// One warp is done with a slot.
__device__ __forceinline__ void release(u32 bar) {
    if (threadIdx.x % 32 == 0) barrier_arrive(bar);
}

/// One warp is done with what it has read and written by itself: copies may write there.
__device__ __forceinline__ void release_room(u32 bar) {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
    release(bar);
}

/// All warps of a warpgroup.
__device__ __forceinline__ void group_wait(u32 half) {
    asm volatile("bar.sync %0, 128;\n" ::"r"(3 + half) : "memory");
}

/// Waits until PENDING groups are under way, but not before the exponentials, which are to run
/// beside them: the assembler moves a plain wait up as far as it can. `sum` is of exponentials and
/// never negative.
template <int PENDING = 0>
__device__ __forceinline__ void wait_behind(float sum) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.lt.f32 p, %0, 0f00000000;\n"
        "@p exit;\n"
        "wgmma.wait_group.sync.aligned %1;\n"
        "}" ::"f"(sum),
        "n"(PENDING)
        : "memory");
}

/// The 64 bits of row g (and of g + 8) of a unit: which columns are kept.
struct Bits {
    uint2 row[2];
};

__device__ __forceinline__ Bits read_bits(const Params& p, u32 code, bool by_key, u32 row) {
    Bits bits = {{{0, 0}, {0, 0}}};
    if (code < EMPTY) {
#pragma unroll
        for (int r = 0; r < 2; ++r)
            bits.row[r] =
                __ldg(reinterpret_cast<const uint2*>(mask_row(p, code, by_key, row + 8 * r)));
    }
    return bits;
}

/// Scores of 64 columns, from element FIRST on, become -inf where the bit is not set.
template <int FIRST, int COUNT>
__device__ __forceinline__ void mask_unit(float (&s)[COUNT], const Bits& bits, u32 lane) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int n = 0; n < 8; ++n) {
            const u32 word = (n < 4 ? bits.row[r].x : bits.row[r].y) >> (2 * (lane & 3));
            const int at = FIRST + 4 * n + 2 * r;
            if (!(word >> (8 * (n & 3)) & 1)) s[at] = -infinity();
            if (!(word >> (8 * (n & 3) + 1) & 1)) s[at + 1] = -infinity();
        }
}

/// Sums of 16 COUNT columns as left factors.
template <int COUNT>
__device__ __forceinline__ void pack(u32 (&a)[COUNT][4], const float (&s)[8 * COUNT]) {
#pragma unroll
    for (int k = 0; k < COUNT; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) a[k][i] = pack_half(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
}

/// Issues s = A B^T over WIDTH: A is 64 rows, whose boxes lie side by side, B the rows of s, whose
/// boxes lie `apart` bytes apart from slice to slice.
template <int WIDTH, int COUNT>
__device__ __forceinline__ void issue_rows(float (&s)[COUNT], u32 a, u32 b, u32 apart) {
#pragma unroll
    for (int k = 0; k < WIDTH / 16; ++k) {
        const u64 left = matrix_descriptor<true>(a + k / 4 * BOX_BYTES);
        const u64 right = matrix_descriptor<true>(b + k / 4 * apart);
        multiply_m64k16<0, 0>(s, left + k % 4 * descriptor_step<true>(),
                              right + k % 4 * descriptor_step<true>(), k > 0);
    }
    products_commit();
}

/// Issues c += A B over 64 of depth: A in registers, B 64 positions, whose slices lie side by side.
template <int COUNT>
__device__ __forceinline__ void issue_depth(float (&c)[COUNT], const u32 (&a)[4][4], u32 b) {
    const u64 right = matrix_descriptor<false>(b);
#pragma unroll
    for (int k = 0; k < 4; ++k)
        multiply_left_m64k16<1>(c, a[k], right + k * descriptor_step<false>());
    products_commit();
}

/// Writes a warpgroup's 64 rows from `first` up to `end`, times `factor` (rows g, g + 8), 64
/// columns at a time through `room`, 8 KiB that are the warpgroup's.
template <int COUNT>
__device__ __forceinline__ void store_group(const float (&c)[COUNT], const float (&factor)[2],
                                            unsigned char* room, Half* head, Positions x, u32 first,
                                            u32 end) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    unsigned char* own = room + warp * (16 * BOX * 2);  // [16][64], chunk c of row r at c ^ r % 8
    first += 16 * warp;
#pragma unroll
    for (int slice = 0; slice < COUNT / 32; ++slice) {
        __syncwarp();
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const u32 row = 8 * r + lane / 4, at = 32 * slice + 4 * n + 2 * r;
                *reinterpret_cast<u32*>(own + row * 128 + ((n ^ (row & 7)) << 4) + 4 * (lane & 3)) =
                    pack_half(c[at] * factor[r], c[at + 1] * factor[r]);
            }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const u32 row = 4 * i + lane / 8, chunk = lane % 8;
            if (first + row < end)
                *reinterpret_cast<uint4*>(head + x.at(first + row) + slice * BOX + chunk * 8) =
                    *reinterpret_cast<const uint4*>(own + row * 128 + ((chunk ^ (row & 7)) << 4));
        }
    }
}
