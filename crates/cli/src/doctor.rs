//! `doctor`: what this machine has.

use crate::args::Shared;
use crate::show;
use aerogel_store::{Fs, RealFs};
use aerogel_train::Exit;
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::path::Path;

/// Show what this machine has: cores, vector instructions, memory, disk
#[derive(Args)]
#[command(after_help = "Example: aerogel doctor --json")]
pub struct DoctorArgs {
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Looks, and shows it.
pub fn run(args: &DoctorArgs, shared: &Shared) -> anyhow::Result<Exit> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (memory, available) = (memory("MemTotal:"), memory("MemAvailable:"));
    let runs_bytes = free(&shared.runs);
    let data_bytes = free(&shared.data);
    let (version, os, arch) =
        (env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH);
    let instructions = instructions();
    let parquet = cfg!(feature = "parquet");
    let text = if args.json {
        let value = json!({
            "version": version, "os": os, "arch": arch, "cores": cores,
            "instructions": instructions, "memory_bytes": memory,
            "memory_available_bytes": available, "runs_free_bytes": runs_bytes,
            "data_free_bytes": data_bytes, "parquet": parquet,
        });
        format!("{value}\n")
    } else {
        let size = |n: Option<u64>| n.map_or("unknown".to_owned(), show::bytes);
        format!(
            "aerogel       {version} on {os} {arch}, {} parquet\n\
             cores         {cores}\n\
             instructions  {}\n\
             memory        {}, {} available\n\
             disk          {} free for runs, {} for data\n",
            if parquet { "with" } else { "without" },
            if instructions.is_empty() { "baseline".to_owned() } else { instructions.join(" ") },
            size(memory),
            size(available),
            size(runs_bytes),
            size(data_bytes),
        )
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(Exit::Done)
}

/// A line of the system's account of memory, bytes.
fn memory(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with(name))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// Free bytes of the disk that a folder lies on, or will.
fn free(folder: &Path) -> Option<u64> {
    let there = Path::new(".").join(folder);
    let there = there.ancestors().find(|p| p.is_dir())?;
    RealFs.free_bytes(there).ok()
}

#[cfg(target_arch = "x86_64")]
fn instructions() -> Vec<&'static str> {
    [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512dq", is_x86_feature_detected!("avx512dq")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
    ]
    .into_iter()
    .filter_map(|(name, present)| present.then_some(name))
    .collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn instructions() -> Vec<&'static str> {
    vec![]
}
