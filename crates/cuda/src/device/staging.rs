//! The way of inputs to the GPU: through pinned memory, so that the host need not wait.

use crate::context::Context;
use crate::error::CudaError;
use crate::handles::{Memory, Pinned};

/// Pinned memory, handed out from start to end and then again.
pub(super) struct Staging {
    ring: Pinned,
    next: usize,
}

/// Parts begin on cache lines.
const LINE: usize = 64;

impl Staging {
    /// Room for so many bytes on their way at a time.
    pub fn new(context: &Context, bytes: usize) -> Result<Staging, CudaError> {
        Ok(Staging { ring: context.pin(bytes)?, next: 0 })
    }

    /// Enqueues a copy of bytes to the GPU.
    pub fn upload(
        &mut self,
        context: &Context,
        to: &Memory,
        first: u64,
        bytes: &[u8],
    ) -> Result<(), CudaError> {
        let room = self.ring.bytes().len();
        for (n, part) in bytes.chunks(room.max(1)).enumerate() {
            if self.next + part.len() > room {
                // What was handed out before may still be on its way.
                context.wait()?;
                self.next = 0;
            }
            let range = self.next..self.next + part.len();
            self.ring.bytes_mut()[range.clone()].copy_from_slice(part);
            context.upload_pinned(to, first + (n * room) as u64, &self.ring, range)?;
            self.next = (self.next + part.len()).next_multiple_of(LINE);
        }
        Ok(())
    }
}
