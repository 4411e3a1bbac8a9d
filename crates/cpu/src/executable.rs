//! Machine code that was made while loading: read-only pages that the processor may run.
//!
//! A [`Library`] keeps one [`Executable`] for equal bytes, so the layers of a model share theirs.
//! No page is writable and executable at once. Where the system refuses such pages, or the
//! processor lacks the instructions, nothing is kept and the callers go on without.

use crate::simd::{Level, Simd};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use std::collections::HashMap;
use std::sync::Arc;

/// Code of one function.
#[derive(Debug)]
pub(crate) struct Executable {
    base: *mut u8,
    bytes: usize,
}

// SAFETY: the pages are never written once they exist.
unsafe impl Send for Executable {}
// SAFETY: as above.
unsafe impl Sync for Executable {}

/// What the code takes: see `kernels::tile::native`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arguments {
    /// An address and a step in bytes for each operand; the code advances the addresses.
    pub places: *mut Place,
    /// Where values are that hold for a whole task.
    pub uniforms: *const f32,
    pub rows: usize,
    /// Whole blocks of a row.
    pub blocks: usize,
    /// Whole vectors of a row behind its blocks.
    pub vectors: usize,
    /// The lanes of the last, partial vector; 0 if there is none.
    pub tail: u32,
}

/// Where the rows of an operand are.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Place {
    pub address: *mut u8,
    pub step_bytes: isize,
}

impl Executable {
    fn new(code: &[u8]) -> Option<Executable> {
        let writable = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new private mapping at an address of the system's choice.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), code.len(), writable, MapFlags::PRIVATE)
        };
        let made = Executable { base: base.ok()?.cast(), bytes: code.len() };
        // SAFETY: the mapping is new, at least so long, and still writable; nobody runs it yet.
        unsafe {
            made.base.copy_from_nonoverlapping(code.as_ptr(), code.len());
            mprotect(made.base.cast(), made.bytes, MprotectFlags::READ | MprotectFlags::EXEC)
                .ok()?;
        }
        Some(made)
    }

    /// Runs the code.
    ///
    /// # Safety
    /// The bytes are a function of these arguments in the C convention of System V that reads and
    /// writes nothing but what the caller vouches for.
    #[inline]
    pub unsafe fn call(&self, with: Arguments) {
        #[cfg(target_arch = "x86_64")]
        {
            type Function =
                unsafe extern "sysv64" fn(*mut Place, *const f32, usize, usize, usize, u32);
            let Arguments { places, uniforms, rows, blocks, vectors, tail } = with;
            // SAFETY: the caller vouches for the bytes, which are executable from here on.
            unsafe {
                let function = std::mem::transmute::<*mut u8, Function>(self.base);
                function(places, uniforms, rows, blocks, vectors, tail);
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("no library keeps code here: {with:?}");
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody runs it any more.
        let _ = unsafe { munmap(self.base.cast(), self.bytes) };
    }
}

/// The code that the kernels of a device share.
#[derive(Debug)]
pub struct Library {
    simd: Simd,
    known: HashMap<Box<[u8]>, Arc<Executable>>,
}

impl Library {
    /// An empty library for kernels that run with these instructions.
    pub fn new(simd: Simd) -> Library {
        Library { simd, known: HashMap::new() }
    }

    /// Whether code with AVX-512 is wanted.
    pub(crate) fn takes_avx512(&self) -> bool {
        cfg!(target_arch = "x86_64") && self.simd.level() >= Level::Avx512
    }

    /// How many different functions it has.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Code of these bytes, if it may run.
    pub(crate) fn share(&mut self, code: &[u8]) -> Option<Arc<Executable>> {
        if !self.takes_avx512() || code.is_empty() {
            return None;
        }
        if let Some(known) = self.known.get(code) {
            return Some(known.clone());
        }
        let made = Arc::new(Executable::new(code)?);
        self.known.insert(code.into(), made.clone());
        Some(made)
    }
}
