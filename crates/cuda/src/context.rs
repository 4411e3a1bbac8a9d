//! One GPU as a program uses it: a stream, memory, modules, events, graphs.
//!
//! Every call goes to one stream, so what is enqueued runs in order. Memory is released when its
//! owner is dropped, which waits for the stream first. What is recorded may branch off to streams
//! beside that one, and comes together again before the recording ends.

use crate::error::{CudaError, ok};
use crate::gpu::Gpu;
use crate::handles::{Beside, Event, Function, Graph, Loaded, Memory, Module, Pinned, Shared};
use crate::launch::{MAP_BYTES, TensorMap};
use aerogel_graph::DType;
use cudarc::driver::{result, sys};
use std::ffi::c_void;
use std::sync::Arc;

/// A tensor map: 128 bytes, 64-byte aligned.
#[repr(align(64))]
struct Encoded([u8; MAP_BYTES]);

/// One GPU and one stream on it.
#[derive(Clone)]
pub struct Context {
    shared: Arc<Shared>,
    /// The stream, if it is not the GPU's own.
    beside: Option<Arc<Beside>>,
}

impl Context {
    /// Opens a GPU.
    ///
    /// # Errors
    /// There is no driver or no such GPU, or it is older than the kernels.
    pub fn new(ordinal: usize) -> Result<Context, CudaError> {
        let gpu = Gpu::new(ordinal)?;
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
            Ok(stream) => {
                let shared = Arc::new(Shared { gpu, device, context, stream });
                Ok(Context { shared, beside: None })
            }
            Err(e) => {
                // SAFETY: retained above, and given up here.
                let _ = unsafe { result::primary_ctx::release(device) };
                Err(e)
            }
        }
    }

    /// The same GPU with another stream. Nothing that drops memory waits for it, so it is good for
    /// recordings only: in one, it branches off where it follows a mark of this stream.
    ///
    /// # Errors
    /// The driver has no more streams.
    pub(crate) fn branch(&self) -> Result<Context, CudaError> {
        self.shared.enter()?;
        let kind = result::stream::StreamKind::NonBlocking;
        let stream = ok("cuStreamCreate", result::stream::create(kind))?;
        let beside = Beside { shared: self.shared.clone(), stream };
        Ok(Context { shared: self.shared.clone(), beside: Some(Arc::new(beside)) })
    }

    fn stream(&self) -> sys::CUstream {
        self.beside.as_ref().map_or(self.shared.stream, |beside| beside.stream)
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.shared.gpu
    }

    /// Bytes of the GPU's memory that nobody holds.
    ///
    /// # Errors
    /// The GPU does not answer.
    pub fn free_bytes(&self) -> Result<u64, CudaError> {
        self.shared.enter()?;
        Ok(ok("cuMemGetInfo", result::mem_get_info())?.0 as u64)
    }

    /// Waits for everything that was enqueued.
    ///
    /// # Errors
    /// Something of it failed: a kernel that read outside of its memory, say. The GPU is of no
    /// further use to this process then.
    pub fn wait(&self) -> Result<(), CudaError> {
        self.shared.enter()?;
        // SAFETY: the stream lives as long as `self`.
        ok("cuStreamSynchronize", unsafe { result::stream::synchronize(self.stream()) })
    }

    /// Memory of the GPU, zeroed.
    ///
    /// # Errors
    /// There is not so much left.
    pub fn allocate(&self, bytes: u64) -> Result<Memory, CudaError> {
        self.shared.enter()?;
        let refused = |_| CudaError::Memory {
            bytes,
            free: result::mem_get_info().map_or(0, |m| m.0 as u64),
            total: self.shared.gpu.memory_bytes,
        };
        // SAFETY: a new allocation, zeroed before anybody reads it.
        let address = unsafe { result::malloc_sync(bytes.max(1) as usize) }.map_err(refused)?;
        let memory = Memory { shared: self.shared.clone(), address, bytes };
        self.fill(&memory, 0, bytes, 0)?;
        Ok(memory)
    }

    /// Pinned memory of the host, zeroed: the GPU copies from and to it while the host goes on.
    ///
    /// # Errors
    /// The system refuses it.
    pub fn pin(&self, bytes: usize) -> Result<Pinned, CudaError> {
        self.shared.enter()?;
        // SAFETY: a new allocation; it is zeroed below.
        let data = ok("cuMemHostAlloc", unsafe { result::malloc_host(bytes.max(1), 0) })?;
        let data = data.cast::<u8>();
        // SAFETY: the allocation has this many bytes.
        unsafe { data.write_bytes(0, bytes) };
        Ok(Pinned { shared: self.shared.clone(), data, bytes })
    }

    /// Enqueues setting bytes.
    ///
    /// # Errors
    /// The range is not in the memory, or the GPU failed.
    pub fn fill(&self, to: &Memory, first: u64, bytes: u64, value: u8) -> Result<(), CudaError> {
        to.check(first, bytes)?;
        self.shared.enter()?;
        // SAFETY: the range lies in an allocation that outlives the stream's work: dropping it
        // waits for the stream.
        let filled = unsafe {
            result::memset_d8_async(to.address + first, value, bytes as usize, self.stream())
        };
        ok("cuMemsetD8Async", filled)
    }

    /// Copies bytes to the GPU, after what was enqueued before, and waits.
    ///
    /// # Errors
    /// The range is not in the memory, or the GPU failed.
    pub fn upload(&self, to: &Memory, first: u64, bytes: &[u8]) -> Result<(), CudaError> {
        to.check(first, bytes.len() as u64)?;
        self.shared.enter()?;
        // SAFETY: both ranges hold `bytes.len()` bytes, and the copy is over before we return.
        let copied = unsafe { result::memcpy_htod_async(to.address + first, bytes, self.stream()) };
        ok("cuMemcpyHtoDAsync", copied)?;
        self.wait()
    }

    /// Copies bytes from the GPU, after what was enqueued before, and waits.
    ///
    /// # Errors
    /// The range is not in the memory, or the GPU failed.
    pub fn download(&self, from: &Memory, first: u64, to: &mut [u8]) -> Result<(), CudaError> {
        from.check(first, to.len() as u64)?;
        self.shared.enter()?;
        // SAFETY: as for `upload`.
        let copied = unsafe { result::memcpy_dtoh_async(to, from.address + first, self.stream()) };
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
        self.shared.enter()?;
        let bytes = &from.bytes()[range];
        // SAFETY: pinned memory lives until its drop, which waits for the stream.
        let copied = unsafe { result::memcpy_htod_async(to.address + first, bytes, self.stream()) };
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
        self.shared.enter()?;
        let (source, target) = (from.0.address + from.1, to.0.address + to.1);
        // SAFETY: both ranges lie in allocations whose drop waits for the stream.
        let copied =
            unsafe { result::memcpy_dtod_async(target, source, bytes as usize, self.stream()) };
        ok("cuMemcpyDtoDAsync", copied)
    }

    /// Loads machine code.
    ///
    /// # Errors
    /// It is none for this GPU.
    pub fn load(&self, cubin: &[u8]) -> Result<Module, CudaError> {
        self.shared.enter()?;
        // SAFETY: the driver reads an ELF image and refuses what is none.
        let module = unsafe { result::module::load_data(cubin.as_ptr().cast()) };
        let module = ok("cuModuleLoadData", module)?;
        Ok(Module(Arc::new(Loaded { shared: self.shared.clone(), module })))
    }

    /// A map for the tensor copy engine, as a kernel takes it, of what lies at an address.
    ///
    /// # Errors
    /// The driver refuses sizes, strides or the address.
    pub(crate) fn encode(
        &self,
        map: &TensorMap,
        address: u64,
    ) -> Result<[u8; MAP_BYTES], CudaError> {
        use sys::CUtensorMapDataType_enum as Type;
        use sys::{CUtensorMapInterleave_enum as Interleave, CUtensorMapSwizzle_enum as Swizzle};
        let dtype = match map.dtype {
            DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            DType::U32 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT32,
        };
        let promotion = sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_128B;
        let outside = sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
        let strides = map.strides.map(|elements| map.dtype.bytes() as u64 * elements);
        let steps = [1u32; 5];
        let mut encoded = Encoded([0; MAP_BYTES]);
        // SAFETY: all lists have as many entries as the rank says; the driver writes 128 bytes at
        // an address that is a multiple of 64.
        let answer = unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut encoded).cast(),
                dtype,
                5,
                address as *mut c_void,
                map.sizes.as_ptr(),
                strides.as_ptr(),
                map.tile.as_ptr(),
                steps.as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                promotion,
                outside,
            )
        };
        ok("cuTensorMapEncodeTiled", answer.result()).map_err(|e| match e {
            CudaError::Call { call, reason } => {
                CudaError::Call { call, reason: format!("{reason}: {map:?} at {address:#x}") }
            }
            other => other,
        })?;
        Ok(encoded.0)
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
        self.shared.enter()?;
        let mut pointers: Vec<*mut c_void> =
            arguments.iter().map(|bytes| bytes.as_ptr().cast_mut().cast()).collect();
        // SAFETY: forwarded; the driver copies the arguments before it returns.
        let launched = unsafe {
            result::launch_kernel(
                function.function,
                grid.into(),
                block.into(),
                shared_bytes,
                self.stream(),
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
        self.shared.enter()?;
        let stream = self.stream();
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
        Ok(Graph { shared: self.shared.clone(), exec })
    }

    /// Enqueues a recorded graph.
    ///
    /// # Errors
    /// The GPU failed.
    pub fn replay(&self, graph: &Graph) -> Result<(), CudaError> {
        self.shared.enter()?;
        // SAFETY: graph and stream live.
        ok("cuGraphLaunch", unsafe { result::graph::launch(graph.exec, self.stream()) })
    }

    /// A mark in the stream.
    ///
    /// # Errors
    /// The GPU failed.
    pub fn mark(&self) -> Result<Event, CudaError> {
        let event = self.event(sys::CUevent_flags::CU_EVENT_DEFAULT)?;
        self.record(&event)?;
        Ok(event)
    }

    /// A mark that is nowhere yet and knows no time: for other streams to follow.
    ///
    /// # Errors
    /// The GPU failed.
    pub(crate) fn order(&self) -> Result<Event, CudaError> {
        self.event(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn event(&self, flags: sys::CUevent_flags) -> Result<Event, CudaError> {
        self.shared.enter()?;
        let event = ok("cuEventCreate", result::event::create(flags))?;
        Ok(Event { shared: self.shared.clone(), event })
    }

    /// Lets what is enqueued from here on begin after a mark of another stream.
    ///
    /// # Errors
    /// The GPU failed.
    pub(crate) fn follow(&self, event: &Event) -> Result<(), CudaError> {
        self.shared.enter()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: event and stream live.
        let waits = unsafe { result::stream::wait_event(self.stream(), event.event, flags) };
        ok("cuStreamWaitEvent", waits)
    }

    /// Moves a mark to here.
    ///
    /// # Errors
    /// The GPU failed.
    pub fn record(&self, event: &Event) -> Result<(), CudaError> {
        self.shared.enter()?;
        // SAFETY: event and stream live.
        ok("cuEventRecord", unsafe { result::event::record(event.event, self.stream()) })
    }
}
