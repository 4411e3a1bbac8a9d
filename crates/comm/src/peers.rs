//! The buffers of the members of an exchange, as other members see them.
//!
//! A member posts where its buffers lie and stays in the exchange until all members have read. In
//! between they read its input, and the piece of its output that it has finished, in place.

use std::ops::Range;

/// Where the buffers of one member lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot {
    pub(crate) input: *const u8,
    pub(crate) output: *mut u8,
}

// SAFETY: a spot is two addresses; whoever follows them answers for it (`Peers::new`).
unsafe impl Send for Spot {}

/// The buffers of all members.
#[derive(Clone, Copy)]
pub(crate) struct Peers<'a> {
    spots: &'a [Spot],
    /// Bytes of each input.
    input: usize,
    /// Bytes of each output.
    output: usize,
}

impl<'a> Peers<'a> {
    /// Views of the buffers that the members posted.
    ///
    /// # Safety
    /// For as long as views are used, every spot has to point to `input` bytes that nobody writes
    /// and `output` bytes that members of this exchange alone touch, and no two of these overlap.
    pub(crate) unsafe fn new(spots: &'a [Spot], input: usize, output: usize) -> Peers<'a> {
        Peers { spots, input, output }
    }

    /// All of an output.
    pub(crate) fn output_range(&self) -> Range<usize> {
        0..self.output
    }

    /// What a member brought.
    pub(crate) fn input(&self, member: usize) -> &'a [u8] {
        // SAFETY: by the contract of `new` these bytes are there and nobody writes them.
        unsafe { std::slice::from_raw_parts(self.spots[member].input, self.input) }
    }

    /// A part of a member's output, to write.
    ///
    /// # Safety
    /// The member itself calls this, and nobody reads or writes this part meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn output_mut(&self, member: usize, part: Range<usize>) -> &'a mut [u8] {
        assert!(part.start <= part.end && part.end <= self.output, "a part of the output");
        // SAFETY: the part lies in the output, which is there by the contract of `new`; that
        // nobody else touches it is the caller's.
        unsafe {
            let start = self.spots[member].output.add(part.start);
            std::slice::from_raw_parts_mut(start, part.len())
        }
    }

    /// A part of a member's output, to read.
    ///
    /// # Safety
    /// The part is finished: nobody writes it meanwhile, and what was written is visible.
    pub(crate) unsafe fn output(&self, member: usize, part: Range<usize>) -> &'a [u8] {
        assert!(part.start <= part.end && part.end <= self.output, "a part of the output");
        // SAFETY: as for `output_mut`.
        unsafe {
            let start = self.spots[member].output.add(part.start);
            std::slice::from_raw_parts(start, part.len())
        }
    }
}

/// Held while others may read this thread's buffers: unwinding would free them under their eyes,
/// and without it the others would wait for ever, so a panic ends the process instead.
pub(crate) struct Bound {
    /// The thread unwinds already, and its destructors communicate.
    unwinding: bool,
}

impl Bound {
    pub(crate) fn new() -> Bound {
        Bound { unwinding: std::thread::panicking() }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.unwinding {
            std::process::abort();
        }
    }
}
