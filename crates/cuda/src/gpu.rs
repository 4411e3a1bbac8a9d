//! Which GPUs there are.

use crate::context;
use crate::error::CudaError;

/// The instruction set of a GPU, which kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Architecture {
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
}

impl Architecture {
    /// Ampere: `mma.sync` and `cp.async`, what all kernels have a form for.
    pub const SM80: Architecture = Architecture { capability: (8, 0) };
    /// Hopper, with the instructions of its own: `wgmma` and the tensor copy engine.
    pub const SM90A: Architecture = Architecture { capability: (9, 0) };

    /// Whether kernels can use what Hopper alone has.
    pub fn is_hopper(self) -> bool {
        self == Architecture::SM90A
    }
}

/// As the compiler names it: `sm_80`, `sm_90a`.
impl std::fmt::Display for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor) = self.capability;
        write!(f, "sm_{major}{minor}{}", if self.is_hopper() { "a" } else { "" })
    }
}

/// A GPU as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its number, from 0.
    pub ordinal: usize,
    /// `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// What kernels are compiled for.
    pub architecture: Architecture,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// All of its memory.
    pub memory_bytes: u64,
    /// Second-level cache.
    pub l2_bytes: u64,
    /// Shared memory that one block may ask for.
    pub shared_bytes: u32,
    /// The version of CUDA that the driver speaks: 1000 major + 10 minor.
    pub driver_version: u32,
}

impl Gpu {
    /// The GPUs of this machine.
    ///
    /// # Errors
    /// There is no driver, or it does not answer.
    pub fn all() -> Result<Vec<Gpu>, CudaError> {
        (0..context::count()?).map(context::describe).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hopper_alone_has_an_a() {
        assert_eq!(Architecture::SM80.to_string(), "sm_80");
        assert_eq!(Architecture::SM90A.to_string(), "sm_90a");
        assert_eq!(Architecture { capability: (10, 3) }.to_string(), "sm_103");
    }
}
