//! What can go wrong between this program and a GPU.

use cudarc::driver::result::DriverError;
use std::ffi::CStr;

/// A library that is loaded at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// `libcuda`: part of the driver.
    Driver,
    /// `libnvrtc`: the compiler.
    Nvrtc,
}

impl std::fmt::Display for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Library::Driver => "the NVIDIA driver (libcuda.so.1)",
            Library::Nvrtc => "the CUDA compiler NVRTC (libnvrtc.so.13)",
        })
    }
}

/// A GPU could not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// A library is not on this machine.
    #[error("{library} is not on this machine; {advice}")]
    Missing {
        /// Which.
        library: Library,
        /// What to do.
        advice: &'static str,
    },
    /// There is a driver, and no GPU of that number.
    #[error("there is no GPU {wanted}; the driver knows {have}")]
    NoGpu {
        /// The one that was asked for, counted from 0.
        wanted: usize,
        /// How many there are.
        have: usize,
    },
    /// The GPU is older than the kernels.
    #[error("{name} has compute capability {major}.{minor}; the kernels need 8.0 (A100) or later")]
    TooOld {
        /// The GPU.
        name: String,
        /// Compute capability.
        major: u32,
        /// Compute capability.
        minor: u32,
    },
    /// Memory of the GPU, or pinned memory of the host, could not be had.
    #[error("the GPU refused {bytes} bytes: {free} of {total} are free")]
    Memory {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes that nobody holds.
        free: u64,
        /// Bytes of the GPU.
        total: u64,
    },
    /// A call of a library failed.
    #[error("{call} failed: {reason}")]
    Call {
        /// The function.
        call: &'static str,
        /// The library's name and text for the error.
        reason: String,
    },
    /// A kernel did not compile.
    #[error("{file} did not compile for {architecture} with {defines:?}:\n{log}")]
    Compile {
        /// The source.
        file: String,
        /// `sm_80`, `sm_90a`.
        architecture: String,
        /// Its constants.
        defines: Vec<String>,
        /// What the compiler said.
        log: String,
    },
}

/// Turns the driver's answer into ours.
pub(crate) fn ok<T>(call: &'static str, answer: Result<T, DriverError>) -> Result<T, CudaError> {
    answer.map_err(|e| {
        let text = |found: Result<&CStr, DriverError>| {
            found.map_or_else(|_| String::new(), |s| s.to_string_lossy().into_owned())
        };
        let reason = format!("{}, {}", text(e.error_name()), text(e.error_string()));
        CudaError::Call { call, reason }
    })
}
