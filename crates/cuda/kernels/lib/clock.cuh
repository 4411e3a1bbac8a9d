// What may change from run to run of a section besides the contents of its operands. The host
// writes it before a section starts; kernels take its address.
#pragma once
#include "lib/types.cuh"

struct Clock {
    u64 seed;      // of the random numbers
    u64 step;      // of the random numbers: attempted steps so far
    u64 micro;     // number of the micro-batch: which piece in time of the cut axes
    u64 position;  // of the first query in the key sequence, when decoding
};

// Where the draws of a kernel begin: element `first + micro * step` of the whole tensor.
struct Draws {
    u64 first;  // of micro-batch 0, elements
    u64 step;   // from one micro-batch to the next, elements
    // What tells the draws of a kernel apart. They are arguments and no constants, so that layers
    // which differ by nothing else share their machine code.
    u64 stream[4];
};
