//! `bench`: measurements of this machine, and of a recipe's step on it.

mod account;
mod cpu;
mod cuda;
mod lab;
mod trace;

use crate::args::{RecipeArgs, Shared};
use crate::failure::Usage;
use crate::hardware::Hardware;
use account::StepAccount;
use aerogel_train::{Exit, time_steps};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Measure what this machine reaches, beside its limits
#[derive(Args)]
#[command(after_help = "Example: aerogel bench cpu --json bench.json\n         \
    aerogel bench step recipes/quick.toml\n\n\
    Leave the machine alone meanwhile: other work on it is in the figures.")]
#[command(disable_help_subcommand = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: Bench,
}

/// What is measured.
#[derive(Subcommand)]
enum Bench {
    Cpu(CpuArgs),
    Cuda(CudaArgs),
    Step(StepArgs),
}

/// Products, copies, attention and a training step: about a minute
#[derive(Args)]
#[command(after_help = "Example: aerogel bench cpu --only gemm,peak --threads 1")]
struct CpuArgs {
    /// Smaller sizes and fewer repeats: some seconds, for a first look
    #[arg(long)]
    quick: bool,
    /// Only these, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT")]
    only: Vec<cpu::What>,
    /// Worker threads; else one a core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// All figures as one JSON object to this file; `-`: to stdout, instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Copies, products, attention and training steps on an NVIDIA GPU: under five minutes
#[derive(Args)]
#[command(after_help = "Example: aerogel bench cuda --only copy,gemm\n\n\
    Each figure is beside its floor: the longer of the FLOPs at the rate of a product of 8,192³\n\
    and the bytes at the rate of a copy, both measured just before.")]
struct CudaArgs {
    /// Fewer shapes and repeats: less than a minute, for a first look
    #[arg(long)]
    quick: bool,
    /// Only these, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT")]
    only: Vec<cuda::What>,
    /// All figures as one JSON object to this file, steps by region as well; `-`: to stdout,
    /// instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A recipe's training step by region, each against its floor; its data is not needed
#[derive(Args)]
#[command(after_help = "Example: aerogel bench step recipes/quick.toml precision.compute=bf16\n\n\
    The step runs on random tokens. A floor is the longer of a region's FLOPs at the rate of a\n\
    product of 1024³ and its bytes at the rate of a copy, both measured just before.")]
struct StepArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Steps that are timed, after two that are not
    #[arg(long, value_name = "N", default_value = "20",
        value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// All figures as one JSON object to this file, by section and layer as well; `-`: to stdout,
    /// instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The last step's regions in time to this file, as a Chrome trace: open it in
    /// <https://ui.perfetto.dev> or chrome://tracing
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
}

/// Measures, and shows the figures.
pub fn run(args: &BenchArgs, shared: &Shared) -> anyhow::Result<Exit> {
    let tell = |what: &str| {
        if !shared.quiet {
            eprintln!("measuring {what}");
        }
    };
    let (page, object, json) = match &args.what {
        Bench::Cpu(args) => {
            writable("--json", args.json.as_deref())?;
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let threads = args.threads.map_or(cores, usize::from);
            let plan = cpu::Plan { threads, quick: args.quick, only: args.only.clone() };
            let (page, object) = cpu::measure(&plan, &tell)?;
            (page, object, &args.json)
        }
        Bench::Cuda(args) => {
            writable("--json", args.json.as_deref())?;
            let plan = cuda::Plan { quick: args.quick, only: args.only.clone() };
            let (page, object) = cuda::measure(&plan, &tell)?;
            (page, object, &args.json)
        }
        Bench::Step(args) => {
            writable("--json", args.json.as_deref())?;
            writable("--profile", args.profile.as_deref())?;
            let (page, object) = step(args, shared)?;
            (page, object, &args.json)
        }
    };
    match json.as_deref() {
        Some(path) if is_stdout(path) => writeln!(std::io::stdout(), "{object}")?,
        Some(path) => {
            write(path, &format!("{object}\n"))?;
            std::io::stdout().write_all(page.as_bytes())?;
        }
        None => std::io::stdout().write_all(page.as_bytes())?,
    }
    Ok(Exit::Done)
}

fn step(args: &StepArgs, shared: &Shared) -> anyhow::Result<(String, Value)> {
    let recipe = args.recipe.load()?;
    let dtype = recipe.precision.compute.name();
    let times = time_steps(&recipe, &shared.workspace(), 2, args.steps as usize)?;
    if let Some(path) = &args.profile {
        write(path, &format!("{}\n", trace::chrome(&times.last_step)))?;
    }
    let rates = cpu::rates(times.plan.backend, dtype, times.plan.threads)?;
    let account = StepAccount::new(&recipe.name, dtype, &times, rates);
    let object = json!({
        "version": cpu::VERSION, "aerogel": env!("CARGO_PKG_VERSION"),
        "machine": Hardware::look(), "step": account,
    });
    Ok((account.page(), object))
}

fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}

/// A minute is not to be spent on figures that cannot be written.
fn writable(option: &str, path: Option<&Path>) -> Result<(), Usage> {
    let Some(path) = path.filter(|p| !is_stdout(p)) else { return Ok(()) };
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    if path.is_dir() || !folder.is_dir() {
        let what = if path.is_dir() { path } else { folder };
        let is = if path.is_dir() { "is a folder" } else { "is no folder" };
        return Err(Usage(format!("{option}: {} {is}; name a file in one", what.display())));
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let named = |e: std::io::Error| {
        std::io::Error::new(e.kind(), format!("{} cannot be written: {e}", path.display()))
    };
    std::fs::write(path, text).map_err(named)
}
