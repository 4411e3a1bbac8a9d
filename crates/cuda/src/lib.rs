//! NVIDIA GPUs: kernels in CUDA C that are compiled where they run.
//!
//! Nothing of CUDA is needed to build this crate, and nothing is loaded before somebody asks for a
//! GPU: the driver, NVRTC and cuBLASLt are found at run time, and where one is missing
//! [`CudaError::Missing`] says which and where it was looked for. Read [`Context`] first: one GPU,
//! one stream, memory that is allocated when a program is loaded and never after.
//!
//! `unsafe` stands where the libraries are called: in `gpu.rs`, `handles.rs`, `context.rs` and
//! `nvrtc.rs`.

mod cache;
mod context;
mod device;
mod error;
mod gpu;
mod handles;
mod kernels;
mod launch;
mod nvrtc;
mod source;
mod target;

pub use cache::{Cache, Cubins};
pub use context::Context;
pub use device::{CudaDevice, sources};
pub use error::{CudaError, Library};
pub use gpu::{Architecture, Gpu};
pub use handles::{Event, Function, Graph, Memory, Module, Pinned};
pub use kernels::Chip;
pub use launch::{Address, Kernel, Launch, Parameters, TensorMap};
pub use nvrtc::{Compiled, Usage, compile, version};
pub use source::{Source, Variant};
pub use target::CudaTarget;
