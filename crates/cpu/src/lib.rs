//! Kernels and thread pool for the CPU.
//!
//! A kernel is a plain struct, prepared once from its [`Spec`](aerogel_lower::Spec); running it
//! takes addresses and scratch, and allocates nothing. The one type to know is [`kernel::Kernel`].
//!
//! What speeds up many runs, such as machine code for element-wise programs, is made by
//! [`kernel::Kernel::prepare`] while a device loads.
//!
//! The invariant: the bits of a result depend on shapes, values and the machine's instruction set,
//! never on the number of threads. Work is cut into tasks by shape alone, every output element has
//! one owner, and sums run in a fixed order.
//!
//! Tests: each kernel against a naive f64 twin in `tests/`, unit tests beside `pool`, `math`,
//! `philox`.

mod arena;
mod device;
mod exchange;
pub mod executable;
pub mod kernel;
pub mod kernels;
mod make;
pub mod math;
pub mod peak;
pub mod philox;
pub mod pool;
pub mod simd;
mod target;
mod timer;

pub use device::CpuDevice;
pub use target::CpuTarget;
