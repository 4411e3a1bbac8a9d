//! Which GPUs there are.

use crate::error::{CudaError, Library, ok};
use cudarc::driver::{result, sys};

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
        (0..count()?).map(Gpu::new).collect()
    }

    /// What the driver says about one of them.
    ///
    /// # Errors
    /// There is no driver, or no GPU of that number.
    pub fn new(ordinal: usize) -> Result<Gpu, CudaError> {
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
fn count() -> Result<usize, CudaError> {
    init()?;
    Ok(ok("cuDeviceGetCount", result::device::get_count())?.max(0) as usize)
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
