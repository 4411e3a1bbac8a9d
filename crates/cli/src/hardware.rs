//! What this machine has, as the system and the GPU's driver tell it.

use aerogel_cpu::simd::Simd;
use aerogel_cuda::CudaError;
use serde::Serialize;
use std::path::Path;

/// Instructions that kernels are written for, or will be, as the system calls them.
const FEATURES: [&str; 11] = [
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512_bf16",
    "avx512_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
];
/// Caches of one core that are looked for.
const CACHES: usize = 8;

/// A machine, as far as it can be told without measuring.
#[derive(Clone, Debug, Serialize)]
pub struct Hardware {
    /// What the processor calls itself.
    pub cpu: String,
    /// Operating system.
    pub os: &'static str,
    /// Architecture.
    pub arch: &'static str,
    /// Threads that run at once.
    pub cores: usize,
    /// The instruction set that kernels use.
    pub level: String,
    /// Those of the instructions that matter which the processor has, as the system names them.
    pub features: Vec<String>,
    /// Whether this process may use the tile registers that `amx_bf16` needs; `None` where the
    /// processor has none.
    pub amx_usable: Option<bool>,
    /// Caches of the first core.
    pub caches: Vec<Cache>,
    /// Memory in all.
    pub memory_bytes: Option<u64>,
    /// Memory that is free for use.
    pub memory_available_bytes: Option<u64>,
    /// The GPUs that the driver knows.
    pub gpus: Vec<Gpu>,
    /// Why there are none, in one sentence.
    pub no_gpu: Option<String>,
    /// Version of the compiler NVRTC, which makes the kernels of GPUs.
    pub nvrtc: Option<String>,
    /// Why there is none, in one sentence.
    pub no_nvrtc: Option<String>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// What kernels are compiled for: `sm_90a`.
    pub architecture: String,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// All of its memory.
    pub memory_bytes: u64,
    /// The version of CUDA that its driver speaks.
    pub driver: String,
}

impl Gpu {
    fn of(gpu: aerogel_cuda::Gpu) -> Gpu {
        let (major, minor) = (gpu.driver_version / 1000, gpu.driver_version % 1000 / 10);
        Gpu {
            name: gpu.name,
            architecture: gpu.architecture.to_string(),
            multiprocessors: gpu.multiprocessors,
            memory_bytes: gpu.memory_bytes,
            driver: format!("{major}.{minor}"),
        }
    }
}

/// One cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cache {
    /// 1 is next to the core.
    pub level: u32,
    /// `data`, `instruction` or `unified`.
    pub kind: String,
    /// Its size.
    pub bytes: u64,
    /// The processors that share it, as the system lists them.
    pub shared_by: String,
}

impl Hardware {
    /// Looks.
    pub fn look() -> Hardware {
        let about = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = field(&about, "flags").unwrap_or_default();
        let has = |name: &&str| flags.split_whitespace().any(|f| f == *name) || detected(name);
        let features: Vec<String> =
            FEATURES.iter().filter(|f| has(f)).map(|f| (*f).into()).collect();
        let level = format!("{:?}", Simd::best().level()).to_lowercase();
        let amx = features.iter().any(|f| f == "amx_bf16");
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let (gpus, no_gpu) = parted(aerogel_cuda::Gpu::all());
        let (nvrtc, no_nvrtc) = parted(aerogel_cuda::version());
        Hardware {
            no_gpu: no_gpu.or_else(|| {
                let none = gpus.as_ref().is_some_and(Vec::is_empty);
                none.then(|| "the NVIDIA driver knows no GPU".to_owned())
            }),
            gpus: gpus.into_iter().flatten().map(Gpu::of).collect(),
            nvrtc: nvrtc.map(|(major, minor)| format!("{major}.{minor}")),
            no_nvrtc,
            cpu: field(&about, "model name").unwrap_or("unknown").to_owned(),
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            amx_usable: amx.then(|| level.contains("amx")),
            level,
            features,
            caches: caches(Path::new("/sys/devices/system/cpu/cpu0/cache")),
            memory_bytes: memory_line(&memory, "MemTotal"),
            memory_available_bytes: memory_line(&memory, "MemAvailable"),
        }
    }

    /// The caches that hold data: `L1 48.0 KiB, L2 1.00 MiB, L3 32.0 MiB`.
    pub fn caches_text(&self) -> String {
        let holds = self.caches.iter().filter(|c| c.kind != "instruction");
        let one = |c: &Cache| format!("L{} {}", c.level, crate::show::bytes(c.bytes));
        match holds.map(one).collect::<Vec<_>>() {
            list if list.is_empty() => "unknown".to_owned(),
            list => list.join(", "),
        }
    }
}

/// What is there, or the reason why it is not.
fn parted<T>(found: Result<T, CudaError>) -> (Option<T>, Option<String>) {
    match found {
        Ok(found) => (Some(found), None),
        Err(e) => (None, Some(e.to_string())),
    }
}

/// The first `name : value` of a text.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let pairs = text.lines().filter_map(|l| l.split_once(':'));
    pairs.filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim()).next()
}

fn memory_line(text: &str, name: &str) -> Option<u64> {
    let kib = field(text, name)?.split_whitespace().next()?;
    Some(kib.parse::<u64>().ok()? * 1024)
}

fn caches(folder: &Path) -> Vec<Cache> {
    let cache = |index: usize| {
        let read = |name: &str| {
            let text = std::fs::read_to_string(folder.join(format!("index{index}/{name}"))).ok()?;
            Some(text.trim().to_owned())
        };
        Some(Cache {
            level: read("level")?.parse().ok()?,
            kind: read("type")?.to_lowercase(),
            bytes: size(&read("size")?)?,
            shared_by: read("shared_cpu_list")?,
        })
    };
    (0..CACHES).filter_map(cache).collect()
}

/// `48K`, `2M`, or bytes.
fn size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.strip_suffix('K') {
        Some(digits) => (digits, 1 << 10),
        None => text.strip_suffix('M').map_or((text, 1), |digits| (digits, 1 << 20)),
    };
    digits.parse::<u64>().ok().map(|n| n * unit)
}

/// What the standard library can tell where the system does not.
#[cfg(target_arch = "x86_64")]
fn detected(name: &str) -> bool {
    match name {
        "avx2" => is_x86_feature_detected!("avx2"),
        "fma" => is_x86_feature_detected!("fma"),
        "avx512f" => is_x86_feature_detected!("avx512f"),
        "avx512bw" => is_x86_feature_detected!("avx512bw"),
        "avx512dq" => is_x86_feature_detected!("avx512dq"),
        "avx512vl" => is_x86_feature_detected!("avx512vl"),
        "avx512_bf16" => is_x86_feature_detected!("avx512bf16"),
        "avx512_vnni" => is_x86_feature_detected!("avx512vnni"),
        _ => false,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detected(_: &str) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_writes_is_read() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2\n";
        assert_eq!(field(text, "model name"), Some("Some CPU @ 2 GHz"));
        assert_eq!(field(text, "model"), None);
        assert_eq!(memory_line("MemTotal:       24 kB\n", "MemTotal"), Some(24 * 1024));
        assert_eq!(
            [size("48K"), size("2M"), size("7"), size("x")],
            [Some(48 << 10), Some(2 << 20), Some(7), None]
        );
    }

    #[test]
    fn caches_are_found_in_their_folder() {
        let dir = tempfile::tempdir().unwrap();
        let index = dir.path().join("index1");
        std::fs::create_dir(&index).unwrap();
        for (name, text) in [
            ("level", "2\n"),
            ("type", "Unified\n"),
            ("size", "1024K\n"),
            ("shared_cpu_list", "0-1"),
        ] {
            std::fs::write(index.join(name), text).unwrap();
        }
        let shared_by = "0-1".to_owned();
        let wanted = Cache { level: 2, kind: "unified".to_owned(), bytes: 1 << 20, shared_by };
        assert_eq!(caches(dir.path()), [wanted]);
    }
}
