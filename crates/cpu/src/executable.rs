//! Machine code that was made while loading: read-only pages that the processor may run.
//!
//! A [`Library`] keeps one function for equal programs, so the layers of a model share theirs. No
//! page is writable and executable at once. Where the system refuses such pages, or the processor
//! lacks the instructions, nothing is kept and the callers go on without.

use crate::simd::{Level, Simd};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use std::collections::HashMap;
use std::hash::Hasher;
use std::sync::Arc;

/// The bytes of a function.
#[derive(Debug)]
pub(crate) struct Function {
    pub code: Vec<u8>,
    /// Elements of a block.
    pub block: usize,
}

/// A function that can be called.
#[derive(Debug)]
pub(crate) struct Executable {
    /// Elements of a block.
    pub block: usize,
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
    fn new(Function { code, block }: &Function) -> Option<Executable> {
        if code.is_empty() {
            return None;
        }
        let writable = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new private mapping at an address of the system's choice.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), code.len(), writable, MapFlags::PRIVATE)
        };
        let made = Executable { block: *block, base: base.ok()?.cast(), bytes: code.len() };
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
    /// By what the function was made of; `None` where there is no code for it.
    known: HashMap<Recipe, Option<Arc<Executable>>>,
}

/// What a function is made of: all that its makers have hashed, byte for byte.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Recipe(Vec<u8>);

impl Hasher for Recipe {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    fn finish(&self) -> u64 {
        self.0.len() as u64 // nobody asks: the bytes themselves are compared
    }
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
        self.known.values().flatten().count()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The function of a recipe, made if it is new; `None` if it cannot be had.
    pub(crate) fn share(
        &mut self,
        recipe: Recipe,
        make: impl FnOnce() -> Option<Function>,
    ) -> Option<Arc<Executable>> {
        if !self.takes_avx512() {
            return None;
        }
        let make = || make().and_then(|function| Executable::new(&function)).map(Arc::new);
        self.known.entry(recipe).or_insert_with(make).clone()
    }
}
