//! The one allocation of a program.

use aerogel_machine::{ALIGN, DeviceError};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Bytes of a large page. A step streams through many operands at once; with pages of 4 KiB the
/// processor spends much of that time on looking up addresses.
const LARGE_PAGE: usize = 2 << 20;

/// Memory of a program: allocated once, zeroed, never moved. Pages that are never touched are never
/// made.
pub(crate) struct Arena {
    base: *mut u8,
    bytes: usize,
    /// What was asked of the system, with room to align.
    mapped: (*mut u8, usize),
}

// SAFETY: the arena is plain memory; the device hands out access under `&mut self` only.
unsafe impl Send for Arena {}

impl Arena {
    pub fn new(bytes: u64) -> Result<Arena, DeviceError> {
        let refused = |reason: &str| DeviceError::Arena { bytes, reason: reason.to_owned() };
        let size = usize::try_from(bytes.max(ALIGN)).map_err(|_| refused("not addressable"))?;
        let room = size.checked_add(LARGE_PAGE).ok_or_else(|| refused("not addressable"))?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new private mapping at an address of the system's choice.
        let mapped =
            unsafe { mmap_anonymous(std::ptr::null_mut(), room, protection, MapFlags::PRIVATE) };
        let mapped = mapped.map_err(|e| refused(&format!("the system gave none: {e}")))?;
        let mapped = mapped.cast::<u8>();
        let base = mapped.wrapping_add(mapped.align_offset(LARGE_PAGE).min(LARGE_PAGE));
        #[cfg(target_os = "linux")]
        if size >= LARGE_PAGE {
            // A wish: where the system has no large pages to give, small ones do.
            // SAFETY: the range lies in the mapping, and the advice changes no contents.
            let _ = unsafe { madvise(base.cast(), size, Advice::LinuxHugepage) };
        }
        Ok(Arena { base, bytes: size, mapped: (mapped, room) })
    }

    pub fn at(&self, offset: u64) -> *mut u8 {
        self.base.wrapping_add(offset as usize)
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is this arena's own, and nobody uses it any more. It cannot fail for
        // a range that was mapped.
        let _ = unsafe { munmap(self.mapped.0.cast(), self.mapped.1) };
    }
}
