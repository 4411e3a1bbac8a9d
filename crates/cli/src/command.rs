//! The command line: the commands, and what `--help` says of all of them.

use crate::args::Shared;
use clap::{Parser, Subcommand};

const EXIT_CODES: &str = "\
Exit codes:
    0  done
   10  stopped on request (first Ctrl-C or SIGTERM), saved; the same command goes on
   20  the recipe or the command line is wrong
   21  the plan needs more memory than it may take
   22  the data is missing or wrong
   23  storage failed
   30  a loss or gradient is not finite
   31  a device failed, or does not compute what it should
   32  a rank is silent; the message names it, and what was saved is good
   40  a rank is gone, or ran something else than the others
  101  a bug of aerogel
  130  stopped at once by a second Ctrl-C (143: by a second SIGTERM)

Example: aerogel train recipes/quick.toml";

/// Trains sparse transformers: what is needed is known to the byte before the first step.
#[derive(Parser)]
#[command(name = "aerogel", version, after_help = EXIT_CODES, max_term_width = 100)]
#[command(infer_subcommands = false, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub shared: Shared,
    #[command(subcommand)]
    pub command: Command,
}

/// The commands, in the order of use.
#[derive(Subcommand)]
pub enum Command {
    Prepare(crate::prepare::PrepareArgs),
    Plan(crate::plan::PlanArgs),
    Explain(crate::explain::ExplainArgs),
    Train(crate::train::TrainArgs),
    Eval(crate::eval::EvalArgs),
    Sample(crate::sample::SampleArgs),
    Inspect(crate::inspect::InspectArgs),
    Bench(crate::bench::BenchArgs),
    Doctor(crate::doctor::DoctorArgs),
    Selftest(crate::selftest::SelfTestArgs),
    /// List every key of a recipe: type, default, meaning
    #[command(after_help = "Example: aerogel keys | grep optimizer")]
    Keys,
}
