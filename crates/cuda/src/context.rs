//! One GPU as a program uses it: a stream, memory, modules, events, graphs.
//!
//! Every call goes to one stream, so what is enqueued runs in order. Memory is released when its
//! owner is dropped, which waits for the stream first.

use crate::error::{CudaError, Library};
use crate::gpu::{Architecture, Gpu};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::ffi::{CStr, c_void};
use std::sync::Arc;

/// Turns the driver's answer into ours.
fn ok<T>(call: &'static str, answer: Result<T, DriverError>) -> Result<T, CudaError> {
    answer.map_err(|e| {
        let text = |found: Result<&CStr, DriverError>| {
            found.map_or_else(|_| String::new(), |s| s.to_string_lossy().into_owned())
        };
        let reason = format!("{}, {}", text(e.error_name()), text(e.error_string()));
        CudaError::Call { call, reason }
    })
}

/// Loads the driver and starts it, once for the process.
fn init() -> Result<(), CudaError> {
    // SAFETY: opens the library, which has no effect beside its own initialisation.
    if !unsafe { sys::is_culib_present() } {
        let advice = "install it, or run on the CPU";
        return Err(CudaError::Missing { library: Library::Driver, advice });
    }
    ok("cuInit", result::init())
}

/// How many GPUs there are.
pub(crate) fn count() -> Result<usize, CudaError> {
    init()?;
    Ok(ok("cuDeviceGetCount", result::device::get_count())?.max(0) as usize)
}

/// What the driver says about a GPU.
pub(crate) fn describe(ordinal: usize) -> Result<Gpu, CudaError> {
    use sys::CUdevice_attribute_enum as Is;
    let have = count()?;
    if ordinal >= have {
        return Err(CudaError::NoGpu { wanted: ordinal, have });
    }
    let device = ok("cuDeviceGet", result::device::get(ordinal as i32))?;
    let name = ok("cuDeviceGetName", result::device::get_name(device))?;
    // SAFETY: `device` is one that the driver gave, here and below.
    let memory = unsafe { result::device::total_mem(device) };
    let attribute = |which| {
        // SAFETY: as above.
        let value = unsafe { result::device::get_attribute(device, which) };
        ok("cuDeviceGetAttribute", value).map(|v| v.max(0) as u32)
    };
    let major = attribute(Is::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Is::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let mut driver_version = 0;
    // SAFETY: writes one integer.
    let version = unsafe { sys::cuDriverGetVersion(&raw mut driver_version) };
    ok("cuDriverGetVersion", version.result())?;
    Ok(Gpu {
        ordinal,
        name,
        architecture: Architecture { capability: (major, minor) },
        multiprocessors: attribute(Is::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory_bytes: ok("cuDeviceTotalMem", memory)? as u64,
        l2_bytes: u64::from(attribute(Is::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
        shared_bytes: attribute(Is::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        driver_version: driver_version.max(0) as u32,
    })
}

/// What all handles of one GPU hold on to.
struct Shared {
    gpu: Gpu,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
}

// SAFETY: the driver's handles may be used from any thread whose current context is this one;
// every method makes it current first.
unsafe impl Send for Shared {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Shared {}

impl Shared {
    /// Makes this the context of the calling thread.
    fn enter(&self) -> Result<(), CudaError> {
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

/// One GPU and one stream on it.
#[derive(Clone)]
pub struct Context(Arc<Shared>);

impl Context {
    /// Opens a GPU.
    ///
    /// # Errors
    /// There is no driver or no such GPU, or it is older than the kernels.
    pub fn new(ordinal: usize) -> Result<Context, CudaError> {
        let gpu = describe(ordinal)?;
        let (major, minor) = gpu.architecture.capability;
        if major < 8 {
            return Err(CudaError::TooOld { name: gpu.name, major, minor });
        }
        let device = ok("cuDeviceGet", result::device::get(ordinal as i32))?;
        // SAFETY: the driver gave the device.
        let context =
            ok("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) })?;
        let made = || {
            // SAFETY: just retained.
            ok("cuCtxSetCurrent", unsafe { result::ctx::set_current(context) })?;
            ok("cuStreamCreate", result::stream::create(result::stream::StreamKind::NonBlocking))
        };
        match made() {
            Ok(stream) => Ok(Context(Arc::new(Shared { gpu, device, context, stream }))),
            Err(e) => {
                // SAFETY: retained above, and given up here.
                let _ = unsafe { result::primary_ctx::release(device) };
                Err(e)
            }
        }
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.0.gpu
    }

    /// Bytes of the GPU's memory that nobody holds.
    ///
    /// # Errors
    /// The GPU does not answer.
    pub fn free_bytes(&self) -> Result<u64, CudaError> {
        self.0.enter()?;
        Ok(ok("cuMemGetInfo", result::mem_get_info())?.0 as u64)
    }

    /// Waits for everything that was enqueued.
    ///
    /// # Errors
    /// Something of it failed: a kernel that read outside of its memory, say. The GPU is of no
    /// further use to this process then.
    pub fn wait(&self) -> Result<(), CudaError> {
        self.0.enter()?;
        // SAFETY: the stream lives as long as `self`.
        ok("cuStreamSynchronize", unsafe { result::stream::synchronize(self.0.stream) })
    }

    /// Memory of the GPU, zeroed.
    ///
    /// # Errors
    /// There is not so much left.
    pub fn allocate(&self, bytes: u64) -> Result<Memory, CudaError> {
        self.0.enter()?;
        let refused = |_| CudaError::Memory {
            bytes,
            free: result::mem_get_info().map_or(0, |m| m.0 as u64),
            total: self.0.gpu.memory_bytes,
        };
        // SAFETY: a new allocation, zeroed before anybody reads it.
        let address = unsafe { result::malloc_sync(bytes.max(1) as usize) }.map_err(refused)?;
        let memory = Memory { shared: self.0.clone(), address, bytes };
        self.fill(&memory, 0, bytes, 0)?;
        Ok(memory)
    }

    /// Pinned memory of the host, zeroed: the GPU copies from and to it while the host goes on.
    ///
    /// # Errors
    /// The system refuses it.
    pub fn pin(&self, bytes: usize) -> Result<Pinned, CudaError> {
        self.0.enter()?;
        // SAFETY: a new allocation; it is zeroed below.
        let data = ok("cuMemHostAlloc", unsafe { result::malloc_host(bytes.max(1), 0) })?;
        let data = data.cast::<u8>();
        // SAFETY: the allocation has this many bytes.
        unsafe { data.write_bytes(0, bytes) };
        Ok(Pinned { shared: self.0.clone(), data, bytes })
    }

    /// Enqueues setting bytes.
    ///
    /// # Errors
    /// The range is not in the memory, or the GPU failed.
    pub fn fill(&self, to: &Memory, first: u64, bytes: u64, value: u8) -> Result<(), CudaError> {
        to.check(first, bytes)?;
        self.0.enter()?;
        // SAFETY: the range lies in an allocation that outlives the stream's work: dropping it
        // waits for the stream.
        let filled = unsafe {
            result::memset_d8_async(to.address + first, value, bytes as usize, self.0.stream)
        };
        ok("cuMemsetD8Async", filled)
    }

    /// Copies bytes to the GPU, after what was enqueued before, and waits.
    ///
    /// # Errors
    /// The range is not in the memory, or the GPU failed.
    pub fn upload(&self, to: &Memory, first: u64, bytes: &[u8]) -> Result<(), CudaError> {
        to.check(first, bytes.len() as u64)?;
        self.0.enter()?;
        // SAFETY: both ranges hold `bytes.len()` bytes, and the copy is over before we return.
        let copied = unsafe { result::memcpy_htod_async(to.address + first, bytes, self.0.stream) };
        ok("cuMemcpyHtoDAsync", copied)?;
        self.wait()
    }

    /// Copies bytes from the GPU, after what was enqueued before, and waits.
    ///
    /// # Errors
    /// The range is not in the memory, or the GPU failed.
    pub fn download(&self, from: &Memory, first: u64, to: &mut [u8]) -> Result<(), CudaError> {
        from.check(first, to.len() as u64)?;
        self.0.enter()?;
        // SAFETY: as for `upload`.
        let copied = unsafe { result::memcpy_dtoh_async(to, from.address + first, self.0.stream) };
        ok("cuMemcpyDtoHAsync", copied)?;
        self.wait()
    }

    /// Enqueues a copy from pinned memory, which must stay as it is until the copy is over.
    ///
    /// # Errors
    /// A range is not in its memory, or the GPU failed.
    pub fn upload_pinned(
        &self,
        to: &Memory,
        first: u64,
        from: &Pinned,
        range: std::ops::Range<usize>,
    ) -> Result<(), CudaError> {
        to.check(first, range.len() as u64)?;
        self.0.enter()?;
        let bytes = &from.bytes()[range];
        // SAFETY: pinned memory lives until its drop, which waits for the stream.
        let copied = unsafe { result::memcpy_htod_async(to.address + first, bytes, self.0.stream) };
        ok("cuMemcpyHtoDAsync", copied)
    }

    /// Enqueues a copy within the GPU.
    ///
    /// # Errors
    /// A range is not in its memory, or the GPU failed.
    pub fn copy(
        &self,
        from: (&Memory, u64),
        to: (&Memory, u64),
        bytes: u64,
    ) -> Result<(), CudaError> {
        from.0.check(from.1, bytes)?;
        to.0.check(to.1, bytes)?;
        self.0.enter()?;
        let (source, target) = (from.0.address + from.1, to.0.address + to.1);
        // SAFETY: both ranges lie in allocations whose drop waits for the stream.
        let copied =
            unsafe { result::memcpy_dtod_async(target, source, bytes as usize, self.0.stream) };
        ok("cuMemcpyDtoDAsync", copied)
    }

    /// Loads machine code.
    ///
    /// # Errors
    /// It is none for this GPU.
    pub fn load(&self, cubin: &[u8]) -> Result<Module, CudaError> {
        self.0.enter()?;
        // SAFETY: the driver reads an ELF image and refuses what is none.
        let module = unsafe { result::module::load_data(cubin.as_ptr().cast()) };
        let module = ok("cuModuleLoadData", module)?;
        Ok(Module(Arc::new(Loaded { shared: self.0.clone(), module })))
    }

    /// Enqueues a kernel. Arguments are passed by value, each as its bytes.
    ///
    /// # Safety
    /// The arguments are those of the kernel, in number and size, and every address among them is
    /// valid for what the kernel does with a grid and blocks of these sizes.
    ///
    /// # Errors
    /// The grid or the block is too large for the GPU.
    pub unsafe fn launch(
        &self,
        function: &Function,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        arguments: &[&[u8]],
    ) -> Result<(), CudaError> {
        self.0.enter()?;
        let mut pointers: Vec<*mut c_void> =
            arguments.iter().map(|bytes| bytes.as_ptr().cast_mut().cast()).collect();
        // SAFETY: forwarded; the driver copies the arguments before it returns.
        let launched = unsafe {
            result::launch_kernel(
                function.function,
                grid.into(),
                block.into(),
                shared_bytes,
                self.0.stream,
                &mut pointers,
            )
        };
        ok("cuLaunchKernel", launched)
    }

    /// Records what `enqueue` enqueues instead of running it.
    ///
    /// # Errors
    /// Something in it cannot be recorded, or failed by itself.
    pub fn capture<E: From<CudaError>>(
        &self,
        enqueue: impl FnOnce() -> Result<(), E>,
    ) -> Result<Graph, E> {
        self.0.enter()?;
        let stream = self.0.stream;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `self`; the capture is ended below in any case.
        let begun = unsafe { result::stream::begin_capture(stream, mode) };
        ok("cuStreamBeginCapture", begun)?;
        let enqueued = enqueue();
        // SAFETY: begun above.
        let graph = unsafe { result::stream::end_capture(stream) };
        enqueued?;
        let graph = ok("cuStreamEndCapture", graph)?;
        // SAFETY: the graph is ours, and of no more use once it is instantiated.
        let exec = unsafe {
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            ok("cuGraphInstantiate", exec)?
        };
        Ok(Graph { shared: self.0.clone(), exec })
    }

    /// Enqueues a recorded graph.
    ///
    /// # Errors
    /// The GPU failed.
    pub fn replay(&self, graph: &Graph) -> Result<(), CudaError> {
        self.0.enter()?;
        // SAFETY: graph and stream live.
        ok("cuGraphLaunch", unsafe { result::graph::launch(graph.exec, self.0.stream) })
    }

    /// A mark in the stream.
    ///
    /// # Errors
    /// The GPU failed.
    pub fn mark(&self) -> Result<Event, CudaError> {
        self.0.enter()?;
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        let event = Event {
            shared: self.0.clone(),
            event: ok("cuEventCreate", result::event::create(flags))?,
        };
        self.record(&event)?;
        Ok(event)
    }

    /// Moves a mark to here.
    ///
    /// # Errors
    /// The GPU failed.
    pub fn record(&self, event: &Event) -> Result<(), CudaError> {
        self.0.enter()?;
        // SAFETY: event and stream live.
        ok("cuEventRecord", unsafe { result::event::record(event.event, self.0.stream) })
    }
}

/// Memory of a GPU.
pub struct Memory {
    shared: Arc<Shared>,
    address: u64,
    bytes: u64,
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

    fn check(&self, first: u64, bytes: u64) -> Result<(), CudaError> {
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
    shared: Arc<Shared>,
    data: *mut u8,
    bytes: usize,
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

struct Loaded {
    shared: Arc<Shared>,
    module: sys::CUmodule,
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
pub struct Module(Arc<Loaded>);

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
        // Beyond 48 KiB a kernel has to be allowed more.
        if shared_bytes > 48 << 10 {
            let most =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a loaded module.
            let set = unsafe {
                result::function::set_function_attribute(function, most, shared_bytes as i32)
            };
            ok("cuFuncSetAttribute", set)?;
        }
        Ok(Function { function, _module: self.clone() })
    }
}

/// A kernel.
#[derive(Clone)]
pub struct Function {
    function: sys::CUfunction,
    _module: Module,
}

// SAFETY: a handle of the driver, used under its context.
unsafe impl Send for Function {}

/// Work that was recorded.
pub struct Graph {
    shared: Arc<Shared>,
    exec: sys::CUgraphExec,
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
    shared: Arc<Shared>,
    event: sys::CUevent,
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
