// How kernels follow one another. On Hopper the blocks of a kernel may take their places while the
// last ones of the kernel before it still run (programmatic dependent launch), so that neither the
// start of a kernel nor its first, empty microseconds are waited for.
#pragma once

// The first statement of every kernel: lets the next one take its places as soon as this one has
// all of its own, and waits until all that came before has been written.
__device__ __forceinline__ void begin_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
