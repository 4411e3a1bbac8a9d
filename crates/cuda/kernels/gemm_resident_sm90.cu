// Products on Hopper with a short K (at most 256): B stays in shared memory, A streams past it.
//
// Where K is short, traffic decides: a tile of 128 x 256 with K = 256 would read 192 KiB for 64 KiB
// of results. Here a block copies its BN columns of B once and then makes tile after tile of 64
// rows, so that only A and the results move. The two consumer warpgroups take tiles by turns and
// never wait for each other: one multiplies while the other is in its epilogue.
//
//     panel  ceil(k / 64) slices of B, each BN / 64 boxes of 64 x 64 (8 KiB); stays
//     ring   boxes of A, 64 rows by 64 of K, in the order of tiles, within a tile of K
//     full[s], empty[s]   as in gemm_sm90.cu, but a box has one consumer (4 warps arrive)
//
// -D  A_K, B_K   1: K is contiguous in the operand; 0: M (N) is
//     BN         256 or 128
//     EPILOGUE   <lib/NAME.cuh>
//     B_PERMUTED                see lib/gemm_sm90.cuh
//     BATCHED, N_WHOLE          see lib/gemm_epilogue.cuh; SPLIT is 0
//     MEMBERS                   see lib/gemm_sm90.cuh; BESIDE is 1 where there are several
//
// Launch: 384 threads; grid (walkers, panels, batches), where panels = ceil(n / BN), of members the
// sum, and walkers = max(1, min(ceil(m / 64), multiprocessors / (panels * batches))); dynamic
// shared memory 230,400 bytes (BN = 128: 197,632). k <= 256, splits = 1.
#ifndef EPILOGUE
#define EPILOGUE <lib/gemm_store.cuh>
#endif
#include EPILOGUE
#include "lib/gemm_sm90.cuh"

constexpr int SLICES = 4, PANEL_BOXES = BN / BOX, STAGES = BN == 256 ? 12 : 16;
constexpr int CONSUMERS = 2;

struct Memory {
    unsigned panel, ring, panel_full, full, empty;

    __device__ __forceinline__ unsigned b(int slice) const {
        return panel + slice * PANEL_BOXES * BOX_BYTES;
    }
};

// The product that a block works on, and the first of its columns.
struct Panel {
    int member, col;
};

__device__ __forceinline__ Panel panel_of(const Params& p) {
    int member = 0, panel = blockIdx.y;
#pragma unroll
    for (int i = 1; i < MEMBERS; i++) {
        const int behind = panel - (member_of(p, i - 1).gemm.n + BN - 1) / BN;
        if (member == i - 1 && behind >= 0) member = i, panel = behind;
    }
    return {member, panel * BN};
}

__device__ __forceinline__ void produce(const Gemm& g, int col, const Memory& at) {
    const int slices = (g.k + BOX - 1) / BOX, tiles = (g.m + BOX - 1) / BOX;
    const Source a(g.a, blockIdx.z, g.batch, g.a_batched), b(g.b, blockIdx.z, g.batch, g.b_batched);
    int slot = 0;
    unsigned phase = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x)
        for (int slice = 0; slice < slices; slice++) {
            if (tile == blockIdx.x) {
                const unsigned bar = at.panel_full + 8 * slice;
                barrier_expect(bar, PANEL_BOXES * BOX_BYTES);
                for (int i = 0; i < PANEL_BOXES; i++)
                    b.copy<B_K, B_PERMUTED>(at.b(slice) + i * BOX_BYTES, bar,
                                            col + i * BOX, slice * BOX);
            }
            barrier_wait(at.empty + 8 * slot, phase ^ 1);
            barrier_expect(at.full + 8 * slot, BOX_BYTES);
            a.copy<A_K>(at.ring + slot * BOX_BYTES, at.full + 8 * slot, tile * BOX, slice * BOX);
            if (++slot == STAGES) slot = 0, phase ^= 1;
        }
}

__device__ __forceinline__ void consume(const Member& p, int col, const Memory& at, int consumer,
                                        const float* columns) {
    const Gemm& g = p.gemm;
    const int slices = (g.k + BOX - 1) / BOX, tiles = (g.m + BOX - 1) / BOX;
    float sum[BN / 2];
    for (int turn = consumer;; turn += CONSUMERS) {
        const int number = blockIdx.x + turn * gridDim.x;
        if (number >= tiles) break;
        Tile<BN, 32> tile(p, columns, number * BOX, col, blockIdx.z, 0);
        tile.load_first();
        for (int slice = 0; slice < slices; slice++) {
            const int place = turn * slices + slice, slot = place % STAGES;
            barrier_wait(at.panel_full + 8 * slice, 0);
            barrier_wait(at.full + 8 * slot, place / STAGES & 1);
            multiply_box<A_K, B_K>(sum, at.ring + slot * BOX_BYTES, at.b(slice), slice > 0);
        }
        products_wait<0>();
        pin(sum);
        if (threadIdx.x % 32 < slices)
            barrier_arrive(at.empty + 8 * ((turn * slices + threadIdx.x % 32) % STAGES));
        tile.finish(sum);
    }
}

extern "C" __global__ void __launch_bounds__(128 * (1 + CONSUMERS), 1)
    gemm(const __grid_constant__ Params p) {
    extern __shared__ unsigned char shared[];
    __shared__ Barrier panel_full[SLICES], full[STAGES], empty[STAGES];
    __shared__ __align__(16) float columns[EPILOGUE_COLUMN ? BN : 4];
    const int group = threadIdx.x / 128;
    const unsigned start = boxes_start(shared);
    const Memory at = {start, start + SLICES * PANEL_BOXES * BOX_BYTES, shared_of(panel_full),
                       shared_of(full), shared_of(empty)};
    const Panel panel = panel_of(p);
    const Member& own = member_of(p, panel.member);
    if (threadIdx.x == 0) {
        prefetch_map(own.gemm.a);
        prefetch_map(own.gemm.b);
        for (int i = 0; i < SLICES; i++) barrier_init(at.panel_full + 8 * i, 1);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(at.full + 8 * i, 1);
            barrier_init(at.empty + 8 * i, 4);
        }
        barrier_init_fence();
    }
    stage_columns<BN, 128 * (1 + CONSUMERS)>(own, columns, panel.col, threadIdx.x);
    __syncthreads();
    if (group == 0) {
        registers_shrink<40>();
        if (threadIdx.x == 0) produce(own.gemm, panel.col, at);
    } else {
        registers_grow<232>();
        consume(own, panel.col, at, group - 1, columns);
    }
}
