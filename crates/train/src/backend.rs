//! What a recipe runs on: the one place that names the backends.
//!
//! A plan is made for a backend's machine whether or not it is there; a loader is had only where
//! it is.

use crate::error::TrainError;
use aerogel_cpu::pool::Pool;
use aerogel_cpu::{CpuDevice, CpuTarget};
use aerogel_cuda::{Architecture, Chip, Context, CudaDevice, CudaTarget, Gpu};
use aerogel_machine::{Collectives, Device, DeviceError, Machine, Program, Target};
use aerogel_recipe::Recipe;
use std::sync::Arc;

/// Memory of a GPU that a plan leaves to the driver: its context, loaded kernels and graphs.
const DRIVER_BYTES: u64 = 1 << 30;

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The cores of this machine.
    Cpu,
    /// One NVIDIA GPU, the first that the driver shows.
    Cuda,
}

impl Backend {
    /// The words, as a recipe and the command line write them.
    pub const NAMES: &'static [&'static str] = aerogel_recipe::Device::NAMES;

    /// What the recipe asks for.
    pub fn of(recipe: &Recipe) -> Backend {
        match recipe.parallel.device {
            aerogel_recipe::Device::Cpu => Backend::Cpu,
            aerogel_recipe::Device::Cuda => Backend::Cuda,
        }
    }

    /// The recipe's word for it.
    pub(crate) fn device(self) -> aerogel_recipe::Device {
        match self {
            Backend::Cpu => aerogel_recipe::Device::Cpu,
            Backend::Cuda => aerogel_recipe::Device::Cuda,
        }
    }

    /// The backend of that name.
    pub fn from_name(name: &str) -> Option<Backend> {
        match name {
            "cpu" => Some(Backend::Cpu),
            "cuda" => Some(Backend::Cuda),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.device().name()
    }

    /// What is planned for, with so many threads of the CPU (0: all cores). Without a GPU a plan
    /// is for an H100.
    pub fn machine(self, threads: usize) -> Machine {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if threads == 0 { cores() } else { threads };
        match self {
            Backend::Cpu => Machine::cpu(threads, memory_bytes()),
            // The rates of other GPUs are not known: they would change all predicted times by
            // about the same factor.
            Backend::Cuda => match Gpu::new(0) {
                Ok(Gpu { name, memory_bytes, .. }) => {
                    Machine { name, threads, memory_bytes, ..Machine::h100() }
                }
                Err(_) => Machine { threads, ..Machine::h100() },
            },
        }
    }

    /// Who offers kernels for it.
    pub fn target(self, machine: &Machine) -> Box<dyn Target> {
        match self {
            Backend::Cpu => Box::new(CpuTarget::new(machine.clone())),
            Backend::Cuda => {
                let architecture = Gpu::new(0).map_or(Architecture::SM90A, |g| g.architecture);
                Box::new(CudaTarget::new(machine.clone(), Chip { architecture }))
            }
        }
    }

    /// Memory that each of several ranks may take: those on the CPU share it, and those on GPUs
    /// have one each.
    pub fn share_bytes(self, machine: &Machine, ranks: usize) -> u64 {
        match self {
            Backend::Cpu => machine.memory_bytes / ranks as u64,
            Backend::Cuda => machine.memory_bytes.saturating_sub(DRIVER_BYTES),
        }
    }

    /// Whether so many ranks can run here; asked before anything is prepared for them.
    ///
    /// # Errors
    /// There is no driver or GPU, or there are more ranks than it runs.
    pub fn check(self, ranks: usize) -> Result<(), TrainError> {
        match self {
            Backend::Cpu => Ok(()),
            Backend::Cuda if ranks > 1 => Err(TrainError::Contradiction {
                what: format!("one GPU runs one rank so far, and there are {ranks}"),
                advice: "remove parallel.mesh and --ranks, or use parallel.device = \"cpu\""
                    .to_owned(),
            }),
            Backend::Cuda => Ok(Gpu::new(0).map(drop)?),
        }
    }

    /// What loads the programs of so many ranks.
    ///
    /// # Errors
    /// As [`Backend::check`]; or the threads cannot be had.
    pub fn loader(self, threads: usize, ranks: usize) -> Result<Loader, TrainError> {
        self.check(ranks)?;
        match self {
            Backend::Cpu => {
                let refused = |e: std::io::Error| DeviceError::Unsupported {
                    what: format!("{threads} threads ({e})"),
                    device: self.name().to_owned(),
                };
                Ok(Loader::Cpu(Arc::new(Pool::new(threads).map_err(refused)?)))
            }
            Backend::Cuda => Ok(Loader::Cuda(Context::new(0)?)),
        }
    }
}

/// Where programs are loaded; what devices of one process share.
pub enum Loader {
    /// Threads.
    Cpu(Arc<Pool>),
    /// A GPU.
    Cuda(Context),
}

impl Loader {
    /// A device that runs the program as the rank that `ties` say.
    ///
    /// # Errors
    /// The memory cannot be had, or the program was planned for another machine.
    pub fn load(
        &self,
        program: Arc<Program>,
        ties: Arc<dyn Collectives>,
    ) -> Result<Box<dyn Device>, DeviceError> {
        Ok(match self {
            Loader::Cpu(pool) => Box::new(CpuDevice::load_rank(program, pool.clone(), ties)?),
            Loader::Cuda(context) => Box::new(CudaDevice::load_rank(program, context, ties)?),
        })
    }
}

/// Memory of this machine; all there can be where the system does not tell.
fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("MemTotal:"));
    let kib = line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.map_or(u64::MAX, |k| k * 1024)
}
