//! What all kernels share: addresses, scratch, errors, and the [`Kernel`] trait.

use crate::executable::Library;
use crate::pool::Pool;
use aerogel_lower::{LowerError, Operand};

/// The address of an operand's element at the origin of the iteration space.
#[derive(Clone, Copy, Debug)]
pub struct Ptr(*mut u8);

// SAFETY: an address is only data; the kernels that dereference it are unsafe to call and their
// callers vouch for what it points to on all threads.
unsafe impl Send for Ptr {}
// SAFETY: as above.
unsafe impl Sync for Ptr {}

impl Ptr {
    /// Wraps an address; operands that are only read may come from a `*const`.
    pub fn new<T>(address: *const T) -> Ptr {
        Ptr(address.cast_mut().cast())
    }

    /// The address as a number, to compare.
    pub fn address(self) -> usize {
        self.0.addr()
    }

    /// The address of the element `offset` elements further.
    #[inline(always)]
    pub(crate) fn at<T>(self, offset: isize) -> *mut T {
        self.0.cast::<T>().wrapping_offset(offset)
    }
}

/// What may change from run to run besides the contents of the operands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scalars {
    /// Seed of the random numbers.
    pub seed: u64,
    /// Step of the random numbers.
    pub step: u64,
    /// Added to the element number of every random draw: where this piece of a larger logical
    /// tensor (a micro-batch) begins.
    pub element: u64,
    /// The number of the piece.
    pub piece: u64,
    /// Position of the first query in the key sequence, for decoding.
    pub position: usize,
}

/// A prepared kernel.
///
/// `run` gives the same bits for any number of threads and leaves nothing behind in scratch that
/// the next run reads.
pub trait Kernel: Send + Sync {
    /// How many addresses `run` takes.
    fn operands(&self) -> usize;

    /// The scratch that `run` needs on a pool of this many threads.
    fn scratch_bytes(&self, threads: usize) -> usize;

    /// Makes what speeds up many runs, such as machine code: once, while loading. Results and
    /// scratch stay the same.
    fn prepare(&mut self, library: &mut Library) {
        let _ = library;
    }

    /// Runs the kernel.
    ///
    /// # Safety
    /// `ptrs` holds [`Kernel::operands`] addresses in the order that the kernel documents; each is
    /// aligned for its element type, and every element that sizes and strides reach is valid for
    /// reads (inputs, initialised) or writes (outputs) and touched by nobody else during the run.
    /// No output overlaps another operand, except where the kernel allows it. `scratch` has at
    /// least [`Kernel::scratch_bytes`] for this pool.
    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], scalars: &Scalars, scratch: &mut [u8]);
}

/// Why a kernel cannot be prepared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The nodes have no description that a kernel could be made of.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// An output repeats along an axis, so that several results would share one element.
    #[error("{kernel}: output operand {operand} has stride 0 on axis {axis} of size {size}")]
    Overlap {
        /// Which kernel.
        kernel: &'static str,
        /// Which operand.
        operand: usize,
        /// The axis.
        axis: usize,
        /// Its size.
        size: usize,
    },
    /// A tile program is malformed.
    #[error("tile program: instruction {at} {what}")]
    Program {
        /// Index of the instruction.
        at: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A size, type or option that the kernel does not take.
    #[error("{kernel}: {what}")]
    Unsupported {
        /// Which kernel.
        kernel: &'static str,
        /// What is wrong, with the values.
        what: String,
    },
}

/// Refuses an output that several positions would write.
pub(crate) fn check_output(
    kernel: &'static str,
    operand: usize,
    output: &Operand,
    sizes: &[usize],
) -> Result<(), KernelError> {
    for (axis, (&stride, &size)) in output.strides.iter().zip(sizes).enumerate() {
        if stride == 0 && size > 1 {
            return Err(KernelError::Overlap { kernel, operand, axis, size });
        }
    }
    Ok(())
}

/// Every part of scratch starts on a cache line.
const LINE: usize = 64;

/// The scratch bytes of parts of these sizes, with room to align them.
pub(crate) fn scratch_for(parts: &[usize]) -> usize {
    LINE + parts.iter().map(|bytes| bytes.next_multiple_of(LINE)).sum::<usize>()
}

/// Hands out aligned parts of scratch.
pub(crate) struct Carve {
    next: *mut u8,
    left: usize,
}

impl Carve {
    pub(crate) fn new(scratch: &mut [u8]) -> Carve {
        let skip = scratch.as_ptr().align_offset(LINE).min(scratch.len());
        Carve { next: scratch.as_mut_ptr().wrapping_add(skip), left: scratch.len() - skip }
    }

    /// A part of this many bytes, not initialised.
    pub(crate) fn take(&mut self, bytes: usize) -> Ptr {
        let bytes = bytes.next_multiple_of(LINE);
        assert!(bytes <= self.left, "scratch is smaller than scratch_bytes() of the kernel");
        let part = Ptr(self.next);
        self.next = self.next.wrapping_add(bytes);
        self.left -= bytes;
        part
    }

    /// One part of `bytes` for each worker.
    pub(crate) fn per_worker(&mut self, threads: usize, bytes: usize) -> PerWorker {
        let bytes = bytes.next_multiple_of(LINE);
        PerWorker { base: self.take(threads * bytes), bytes }
    }
}

/// Scratch with one part for each worker.
#[derive(Clone, Copy)]
pub(crate) struct PerWorker {
    base: Ptr,
    bytes: usize,
}

impl PerWorker {
    pub(crate) fn of(self, worker: usize) -> Ptr {
        Ptr(self.base.0.wrapping_add(worker * self.bytes))
    }
}

/// `threads` parts of `bytes`, as [`Carve::per_worker`] cuts them.
pub(crate) fn per_worker_bytes(threads: usize, bytes: usize) -> usize {
    threads * bytes.next_multiple_of(LINE)
}
