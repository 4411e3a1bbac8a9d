//! `doctor`: what this machine has.

use crate::args::Shared;
use crate::hardware::{Gpu, Hardware};
use crate::show;
use aerogel_store::{Fs, RealFs};
use aerogel_train::Exit;
use clap::Args;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// Show what this machine has: cores, instructions, caches, memory, GPUs, disk
#[derive(Args)]
#[command(after_help = "Example: aerogel doctor --json")]
pub struct DoctorArgs {
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Looks, and shows it.
pub fn run(args: &DoctorArgs, shared: &Shared) -> anyhow::Result<Exit> {
    let hardware = Hardware::look();
    let runs_bytes = free(&shared.runs);
    let data_bytes = free(&shared.data);
    let text = match args.json {
        true => format!("{}\n", object(&hardware, runs_bytes, data_bytes)),
        false => page(&hardware, runs_bytes, data_bytes),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(Exit::Done)
}

fn object(h: &Hardware, runs_bytes: Option<u64>, data_bytes: Option<u64>) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"), "os": h.os, "arch": h.arch, "cpu": h.cpu,
        "cores": h.cores, "instructions": h.features, "level": h.level,
        "amx_usable": h.amx_usable, "caches": h.caches, "memory_bytes": h.memory_bytes,
        "memory_available_bytes": h.memory_available_bytes, "runs_free_bytes": runs_bytes,
        "data_free_bytes": data_bytes, "gpus": h.gpus, "no_gpu": h.no_gpu, "nvrtc": h.nvrtc,
        "no_nvrtc": h.no_nvrtc, "parquet": cfg!(feature = "parquet"),
    })
}

fn page(h: &Hardware, runs_bytes: Option<u64>, data_bytes: Option<u64>) -> String {
    let size = |n: Option<u64>| n.map_or("unknown".to_owned(), show::bytes);
    let amx = match h.amx_usable {
        None => "this processor has none",
        Some(true) => "granted by the system",
        Some(false) => "not granted by the system: kernels do without",
    };
    format!(
        "aerogel       {} on {} {}, {} parquet\n\
         processor     {}\n\
         cores         {}\n\
         instructions  {}\n\
         kernels use   {}\n\
         tiles (AMX)   {amx}\n\
         caches        {}\n\
         memory        {}, {} available\n\
         {}\
         disk          {} free for runs, {} for data\n",
        env!("CARGO_PKG_VERSION"),
        h.os,
        h.arch,
        if cfg!(feature = "parquet") { "with" } else { "without" },
        h.cpu,
        h.cores,
        if h.features.is_empty() { "baseline".to_owned() } else { h.features.join(" ") },
        h.level,
        h.caches_text(),
        size(h.memory_bytes),
        size(h.memory_available_bytes),
        gpus(h),
        size(runs_bytes),
        size(data_bytes),
    )
}

/// A line for each GPU and one for the compiler, or the sentences that say why there is none.
fn gpus(h: &Hardware) -> String {
    let line = |g: &Gpu| {
        format!(
            "GPU           {}: {}, {} multiprocessors, {}, driver of CUDA {}\n",
            g.name,
            g.architecture,
            g.multiprocessors,
            show::bytes(g.memory_bytes),
            g.driver,
        )
    };
    let mut text: String = h.gpus.iter().map(line).collect();
    if let Some(reason) = &h.no_gpu {
        text += &format!("GPU           none: {reason}\n");
    }
    text += &match (&h.nvrtc, &h.no_nvrtc) {
        (Some(version), _) => format!("NVRTC         {version}\n"),
        (None, Some(reason)) => format!("NVRTC         none: {reason}\n"),
        (None, None) => String::new(),
    };
    text
}

/// Free bytes of the disk that a folder lies on, or will.
fn free(folder: &Path) -> Option<u64> {
    let there = Path::new(".").join(folder);
    let there = there.ancestors().find(|p| p.is_dir())?;
    RealFs.free_bytes(there).ok()
}
