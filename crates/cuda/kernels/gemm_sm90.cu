// Products on Hopper: wgmma fed by tensor copies, for Half operands with a contiguous axis.
//
// A persistent block of three warpgroups makes tiles of 128 x BN of C. One warp of the first keeps
// a ring of slices (64 of K) of both operands filled, across tiles; the other two warpgroups own
// 64 rows each. While they run the epilogue of a tile the ring fills for the next one.
//
//     ring slot:  A 2 boxes (rows 0-63, 64-127), B BN / 64 boxes; a box is 64 x 64, 8 KiB
//     full[s]     the copies have arrived      producer expects bytes; consumers wait
//     empty[s]    all have multiplied          each consumer warp arrives, in every block that
//                                              writes into its slot; the producer waits
//
// With CLUSTER = 2 two blocks make neighbouring tiles of rows: each copies half of B to both.
//
// -D  A_K, B_K   1: K is contiguous in the operand; 0: M (N) is
//     BN         256 or 128, or 320 with BATCHED=0 and N_WHOLE=1
//     CLUSTER    1 or 2
//     EPILOGUE   <lib/NAME.cuh>
//     B_PERMUTED                see lib/gemm_sm90.cuh
//     BATCHED, N_WHOLE, SPLIT   see lib/gemm_epilogue.cuh
//     SUMS                      see lib/gemm_sums.cuh
//     MEMBERS, BESIDE, TERMS    see lib/gemm_sm90.cuh
//
// Launch: 384 threads; grid CLUSTER * min(items, multiprocessors / CLUSTER), where items = batches
// * splits * tiles, and tiles = ceil(m / (128 CLUSTER)) * ceil(n / BN), of members the sum; dynamic
// shared memory 197,632 bytes (BN = 320: 230,400).
// No share of K may be empty: k > 0, and with s = ceil(k / 64) slices, of terms the sum, splits =
// ceil(s / ceil(s / wanted)). With SPLIT launch gemm_reduce (256 threads) behind it, with SUMS of
// ceil(m / 64) more blocks; the blocks of members follow one another.
#ifndef EPILOGUE
#define EPILOGUE <lib/gemm_store.cuh>
#endif
#include EPILOGUE
#include "lib/gemm_sm90.cuh"

constexpr int BM = 128, STAGES = BN >= 256 ? 4 : 6;
constexpr int A_BYTES = BM / BOX * BOX_BYTES, B_BYTES = BN / BOX * BOX_BYTES;
constexpr int SLOT_BYTES = A_BYTES + B_BYTES;
constexpr int CONSUMERS = 2;
constexpr bool WIDEST = BN == 320;
static_assert(!WIDEST || (!BATCHED && N_WHOLE), "its sums leave no registers for more");
// Warpgroups that have one copy of the columns: beside the ring of the widest tile is room for one.
constexpr int SHARERS = WIDEST ? CONSUMERS : 1;
static_assert(!SUMS || (!A_K && !BATCHED), "sums are of rows that lie side by side");

// A place in the ring. A slot's barriers change phase each time around.
struct Slot {
    int index = 0;
    unsigned phase = 0;

    __device__ __forceinline__ void next() {
        if (++index == STAGES) index = 0, phase ^= 1;
    }
};

// A tile of C, or one share of its depth.
struct Item {
    int member, row, col, which, split, first, last;
};

// Tiles of C from top to bottom and from left to right: of a product, and of all members.
struct Tiles {
    int down, across;
};

__device__ __forceinline__ Tiles tiles_of(const Gemm& g) {
    return {(g.m + BM * CLUSTER - 1) / (BM * CLUSTER), (g.n + BN - 1) / BN};
}

__device__ __forceinline__ Tiles tiles_of(const Params& p) {
    Tiles all = tiles_of(member_of(p, 0).gemm);
#pragma unroll
    for (int i = 1; i < MEMBERS; i++) {
        const Tiles own = tiles_of(member_of(p, i).gemm);
        if (BESIDE)
            all.across += own.across;
        else
            all.down += own.down;
    }
    return all;
}

// Neighbours in time are neighbours in C: down 2,048 rows, then to the next columns, so that what
// runs together reads few rows of A and columns of B from the second-level cache.
__device__ __forceinline__ Item item_of(const Params& p, int item, int rank) {
    constexpr int GROUP = 16 / CLUSTER;
    const Gemm& g = member_of(p, 0).gemm;
    const auto [down, across] = tiles_of(p);
    const int tile = item % (down * across), share_of = item / (down * across);
    const int group = tile / (GROUP * across), height = min(GROUP, down - GROUP * group);
    const int place = tile - group * GROUP * across;
    Item x;
    Tiles at = {GROUP * group + place % height, place / height};
    x.member = 0;
#pragma unroll
    for (int i = 1; i < MEMBERS; i++) {
        const Tiles before = tiles_of(member_of(p, i - 1).gemm);
        int& way = BESIDE ? at.across : at.down;
        const int behind = way - (BESIDE ? before.across : before.down);
        if (x.member == i - 1 && behind >= 0) x.member = i, way = behind;
    }
    x.row = (at.down * CLUSTER + rank) * BM;
    x.col = at.across * BN;
    const int splits = SPLIT ? g.splits : 1;
    x.which = share_of / splits;
    x.split = share_of % splits;
    const int total = slices_of(member_of(p, 0)), share = (total + splits - 1) / splits;
    x.first = x.split * share;
    x.last = min(total, x.first + share);
    return x;
}

__device__ __forceinline__ int items_of(const Params& p) {
    const Gemm& g = member_of(p, 0).gemm;
    const auto [down, across] = tiles_of(p);
    return g.batch[0] * g.batch[1] * g.batch[2] * (SPLIT ? g.splits : 1) * down * across;
}

struct Ring {
    unsigned data, full, empty;

    __device__ __forceinline__ unsigned a(Slot s) const { return data + s.index * SLOT_BYTES; }
    __device__ __forceinline__ unsigned b(Slot s) const { return a(s) + A_BYTES; }
    __device__ __forceinline__ unsigned is_full(Slot s) const { return full + 8 * s.index; }
    __device__ __forceinline__ unsigned is_empty(Slot s) const { return empty + 8 * s.index; }

    // One warp is done with the slot, for every block that writes into it.
    __device__ __forceinline__ void release(Slot s) const {
        if constexpr (SUMS) __syncwarp();  // all lanes have loaded
        const unsigned lane = threadIdx.x % 32;
        if constexpr (CLUSTER == 1) {
            if (lane == 0) barrier_arrive(is_empty(s));
        } else {
            if (lane < CLUSTER) barrier_arrive_at(is_empty(s), lane);
        }
    }
};

__device__ __forceinline__ void produce(const Params& p, const Ring& ring, int rank) {
    Slot slot;
    for (int i = blockIdx.x / CLUSTER; i < items_of(p); i += gridDim.x / CLUSTER) {
        const Item x = item_of(p, i, rank);
        const Member& own = member_of(p, x.member);
        const Gemm& g = own.gemm;
        for (int number = x.first; number < x.last; number++, slot.next()) {
            const auto [term, slice] = slice_of(own, number);
            const Source a(left_of(own, term), x.which, g.batch, g.a_batched);
            const Source b(right_of(own, term), x.which, g.batch, g.b_batched);
            barrier_wait(ring.is_empty(slot), slot.phase ^ 1);
            const unsigned bar = ring.is_full(slot);
            barrier_expect(bar, SLOT_BYTES);
#pragma unroll
            for (int box = 0; box < BM / BOX; box++)
                a.copy<A_K>(ring.a(slot) + box * BOX_BYTES, bar, x.row + box * BOX, slice * BOX);
#pragma unroll
            for (int j = 0; j < (BN / BOX + CLUSTER - 1) / CLUSTER; j++) {
                const int box = j * CLUSTER + rank;
                if (BN / BOX % CLUSTER != 0 && box >= BN / BOX) break;
                b.copy<B_K, B_PERMUTED>(ring.b(slot) + box * BOX_BYTES, bar, x.col + box * BOX,
                                        slice * BOX, CLUSTER == 1 ? 0 : (1 << CLUSTER) - 1);
            }
        }
    }
}

// Waits for the threads that share this warpgroup's columns alone.
__device__ __forceinline__ void columns_sync(int consumer) {
    asm volatile("bar.sync %0, %1;" ::"r"(consumer / SHARERS + 1), "n"(128 * SHARERS) : "memory");
}

__device__ __forceinline__ void consume(const Params& p, const Ring& ring, int rank, int consumer,
                                        float* columns) {
    int staged = -1;  // which columns are in shared memory
    Slot slot;
    float sum[BN / 2];
    for (int i = blockIdx.x / CLUSTER; i < items_of(p); i += gridDim.x / CLUSTER) {
        const Item x = item_of(p, i, rank);
        const Member& own = member_of(p, x.member);
        Tile<BN, 64> tile(own, columns, x.row + consumer * BOX, x.col, x.which, x.split);
        if (EPILOGUE_COLUMN && !SPLIT && x.col * MEMBERS + x.member != staged) {
            columns_sync(consumer);
            stage_columns<BN, 128 * SHARERS>(own, columns, x.col, threadIdx.x % (128 * SHARERS));
            columns_sync(consumer);
            staged = x.col * MEMBERS + x.member;
        }
        const bool sums = SUMS && x.col == 0;
        RowSums rows;
        tile.load_first();
        barrier_wait(ring.is_full(slot), slot.phase);
        multiply_box<A_K, B_K>(sum, ring.a(slot) + consumer * BOX_BYTES, ring.b(slot), false);
        if (sums) rows.add(ring.a(slot) + consumer * BOX_BYTES);
        Slot before = slot;
        slot.next();
        for (int slice = x.first + 1; slice < x.last; slice++) {
            barrier_wait(ring.is_full(slot), slot.phase);
            multiply_box<A_K, B_K>(sum, ring.a(slot) + consumer * BOX_BYTES, ring.b(slot), true);
            products_wait<1>();
            ring.release(before);
            if (sums) rows.add(ring.a(slot) + consumer * BOX_BYTES);
            before = slot;
            slot.next();
        }
        products_wait<0>();
        pin(sum);
        ring.release(before);
        tile.finish(sum);
#if SUMS
        if (sums) rows.store(own.sums, parts_of(own.gemm), x.split, x.row + consumer * BOX);
#endif
    }
}

// A block may not end while the other still writes to its memory or its barriers. Each role calls
// this itself: code behind both would be held to the registers of the smaller one.
__device__ __forceinline__ void leave() {
    if constexpr (CLUSTER > 1) cluster_sync();
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1)
    __launch_bounds__(128 * (1 + CONSUMERS), 1) gemm(const __grid_constant__ Params p) {
    extern __shared__ unsigned char shared[];
    __shared__ Barrier full[STAGES], empty[STAGES];
    __shared__ __align__(16) float columns[CONSUMERS / SHARERS][EPILOGUE_COLUMN && !SPLIT ? BN : 4];
    const int rank = CLUSTER == 1 ? 0 : cluster_rank(), group = threadIdx.x / 128;
    const Ring ring = {boxes_start(shared), shared_of(full), shared_of(empty)};
    if (threadIdx.x == 0) {
        for (int i = 0; i < MEMBERS; i++) {
            for (int term = 0; term < TERMS; term++) {
                prefetch_map(left_of(member_of(p, i), term));
                prefetch_map(right_of(member_of(p, i), term));
            }
        }
        for (int i = 0; i < STAGES; i++) {
            barrier_init(ring.full + 8 * i, 1);
            barrier_init(ring.empty + 8 * i, 4 * CONSUMERS * CLUSTER);
        }
        barrier_init_fence();
    }
    if constexpr (CLUSTER > 1)
        cluster_sync();
    else
        __syncthreads();
    if (group == 0) {
        registers_shrink<40>();
        if (threadIdx.x == 0) produce(p, ring, rank);
        __syncwarp();
        leave();
    } else {
        registers_grow<232>();
        consume(p, ring, rank, group - 1, columns[(group - 1) / SHARERS]);
        __syncwarp();
        leave();
    }
}

// Blocks that finish a product of one batch.
__device__ __forceinline__ int product_blocks(const Parts& parts) {
    return ((i64)parts.m * ((parts.n + 7) / 8) + 63) / 64;
}

extern "C" __global__ void __launch_bounds__(256, 2)
    gemm_reduce(const __grid_constant__ Params p) {
    int member = 0, block = blockIdx.x;
#pragma unroll
    for (int i = 1; i < MEMBERS; i++) {
        const Parts before = parts_of(member_of(p, i - 1).gemm);
        const int behind = block - product_blocks(before) - (SUMS ? (before.m + 63) / 64 : 0);
        if (member == i - 1 && behind >= 0) member = i, block = behind;
    }
    const Member& own = member_of(p, member);
    const Parts parts = parts_of(own.gemm);
#if SUMS
    const int blocks = product_blocks(parts);
    if (block >= blocks) return reduce_sums(parts, own.sums, block - blocks);
#endif
    reduce_parts(parts, own.gemm.batch, own.gemm.alpha, own.epi, block);
}
