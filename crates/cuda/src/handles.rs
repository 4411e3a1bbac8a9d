//! What a context gives out: memory, modules and their kernels, graphs, marks.
//!
//! Each holds on to the GPU that it is of, and gives back what it has when it is dropped, after
//! the stream has come to its end.

use crate::error::{CudaError, ok};
use crate::gpu::Gpu;
use cudarc::driver::{result, sys};
use std::sync::Arc;

/// What all handles of one GPU hold on to.
pub(crate) struct Shared {
    pub gpu: Gpu,
    pub device: sys::CUdevice,
    pub context: sys::CUcontext,
    pub stream: sys::CUstream,
}

// SAFETY: the driver's handles may be used from any thread whose current context is this one;
// every method makes it current first.
unsafe impl Send for Shared {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Shared {}

impl Shared {
    /// Makes this the context of the calling thread.
    pub fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained until `self` is dropped.
        ok("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.context) })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: nobody else has the stream or counts on this retain any more. A failure has
        // nobody to tell.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// A stream beside the GPU's own.
pub(crate) struct Beside {
    pub shared: Arc<Shared>,
    pub stream: sys::CUstream,
}

// SAFETY: a handle of the driver, used under its context.
unsafe impl Send for Beside {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Beside {}

impl Drop for Beside {
    fn drop(&mut self) {
        // SAFETY: ours alone; the driver lets it finish by itself.
        unsafe {
            if self.shared.enter().is_ok() {
                let _ = result::stream::destroy(self.stream);
            }
        }
    }
}

/// Memory of a GPU.
pub struct Memory {
    pub(crate) shared: Arc<Shared>,
    pub(crate) address: u64,
    pub(crate) bytes: u64,
}

impl Memory {
    /// Its address on the GPU.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn check(&self, first: u64, bytes: u64) -> Result<(), CudaError> {
        let within = first.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        let reason = || format!("{bytes} bytes from {first} on are not within {}", self.bytes);
        let call = "a copy";
        if within { Ok(()) } else { Err(CudaError::Call { call, reason: reason() }) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: ours alone; the stream has finished what reads or writes it.
        unsafe {
            if self.shared.enter().is_ok() {
                let _ = result::stream::synchronize(self.shared.stream);
                let _ = result::free_sync(self.address);
            }
        }
    }
}

/// Memory of the host that the GPU can copy by itself.
pub struct Pinned {
    pub(crate) shared: Arc<Shared>,
    pub(crate) data: *mut u8,
    pub(crate) bytes: usize,
}

// SAFETY: plain memory, handed out under borrows of `self` only.
unsafe impl Send for Pinned {}

impl Pinned {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated with this many bytes and zeroed.
        unsafe { std::slice::from_raw_parts(self.data, self.bytes) }
    }

    /// The bytes, to be written. Whoever enqueued a copy of them waits first.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: ours alone; the stream has finished what reads or writes it.
        unsafe {
            if self.shared.enter().is_ok() {
                let _ = result::stream::synchronize(self.shared.stream);
                let _ = result::free_host(self.data.cast());
            }
        }
    }
}

pub(crate) struct Loaded {
    pub shared: Arc<Shared>,
    pub module: sys::CUmodule,
}

// SAFETY: a handle of the driver, used under its context.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: no function of it is left: each holds on to its module.
        unsafe {
            if self.shared.enter().is_ok() {
                let _ = result::stream::synchronize(self.shared.stream);
                let _ = result::module::unload(self.module);
            }
        }
    }
}

/// Loaded machine code.
#[derive(Clone)]
pub struct Module(pub(crate) Arc<Loaded>);

impl Module {
    /// A kernel of it, which may ask for `shared_bytes` of dynamic shared memory.
    ///
    /// # Errors
    /// It has none of that name, or the GPU has not so much shared memory.
    pub fn function(&self, name: &str, shared_bytes: u32) -> Result<Function, CudaError> {
        self.0.shared.enter()?;
        let entry = std::ffi::CString::new(name).unwrap_or_default();
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(self.0.module, entry) };
        let function = ok("cuModuleGetFunction", function).map_err(|e| match e {
            CudaError::Call { call, reason } => {
                CudaError::Call { call, reason: format!("{reason}: `{name}`") }
            }
            other => other,
        })?;
        if shared_bytes > 0 {
            // All of L1 for shared memory, so that as many blocks fit as the kernels are made for.
            let carve =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            // Beyond 48 KiB, static shared memory included, a kernel has to be allowed more;
            // another launch of it may have been allowed more still.
            let most =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a loaded module.
            let known = unsafe { result::function::get_function_attribute(function, most) };
            let allowed = ok("cuFuncGetAttribute", known)?.max(shared_bytes as i32);
            for (attribute, value) in [(carve, 100), (most, allowed)] {
                // SAFETY: as above.
                let set =
                    unsafe { result::function::set_function_attribute(function, attribute, value) };
                ok("cuFuncSetAttribute", set)?;
            }
        }
        Ok(Function { function, _module: self.clone() })
    }
}

/// A kernel.
#[derive(Clone)]
pub struct Function {
    pub(crate) function: sys::CUfunction,
    _module: Module,
}

// SAFETY: a handle of the driver, used under its context.
unsafe impl Send for Function {}

/// Work that was recorded.
pub struct Graph {
    pub(crate) shared: Arc<Shared>,
    pub(crate) exec: sys::CUgraphExec,
}

// SAFETY: a handle of the driver, used under its context.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: ours alone; the stream has finished it.
        unsafe {
            if self.shared.enter().is_ok() {
                let _ = result::stream::synchronize(self.shared.stream);
                let _ = result::graph::exec_destroy(self.exec);
            }
        }
    }
}

/// A mark in the stream.
pub struct Event {
    pub(crate) shared: Arc<Shared>,
    pub(crate) event: sys::CUevent,
}

// SAFETY: a handle of the driver, used under its context.
unsafe impl Send for Event {}

impl Event {
    /// Seconds from this mark to a later one; waits for that one.
    ///
    /// # Errors
    /// The GPU failed.
    pub fn seconds_to(&self, later: &Event) -> Result<f64, CudaError> {
        self.shared.enter()?;
        // SAFETY: both events are recorded on the one stream.
        unsafe {
            ok("cuEventSynchronize", result::event::synchronize(later.event))?;
            let elapsed = result::event::elapsed(self.event, later.event);
            Ok(f64::from(ok("cuEventElapsedTime", elapsed)?) / 1e3)
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: ours alone; the driver lets it finish by itself.
        unsafe {
            if self.shared.enter().is_ok() {
                let _ = result::event::destroy(self.event);
            }
        }
    }
}
