//! NVIDIA GPUs: kernels in CUDA C that are compiled where they run.
//!
//! Nothing of CUDA is needed to build this crate, and nothing is loaded before somebody asks for a
//! GPU: the driver and NVRTC are found at run time, and where one is missing
//! [`CudaError::Missing`] says which and where it was looked for.
//!
//! The type to know is [`Kernel`]: what a spec of `aerogel-lower` becomes, as plain data, launches
//! with parameters in which addresses are still names. A [`CudaTarget`] makes kernels to know what
//! they need, without a driver; a [`CudaDevice`] makes them again when it loads a program, puts
//! addresses where the names are, and records each section as one graph, short steps side by side
//! where their bytes do not meet. It runs them on the one stream of a [`Context`]. The invariant:
//! memory is allocated when a program is loaded and never after, and
//! which kernel is chosen, and in which order it adds, follows from shapes and from the
//! instructions of the GPU alone, not from how many multiprocessors it has.
//!
//! Tests: `kernels/*/tests.rs` hold parameters to specs without a GPU, ignored ones compile what
//! is generated (`.ci/kernels`), `lab/` times kernels alone, and `aerogel selftest --device cuda`
//! holds whole graphs to the reference.
//!
//! `unsafe` stands where the libraries are called: in `gpu.rs`, `handles.rs`, `context.rs`,
//! `nvrtc.rs` and `device.rs`.

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
