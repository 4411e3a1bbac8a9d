//! The command line: what all commands share.

use aerogel_recipe::{Recipe, RecipeError};
use aerogel_train::Workspace;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

const EXIT_CODES: &str = "\
Exit codes:
    0  done
   10  stopped on request (first Ctrl-C or SIGTERM), saved; the same command goes on
   20  the recipe or the command line is wrong
   21  the plan needs more memory than it may take
   22  the data is missing or wrong
   23  storage failed
   30  a loss or gradient is not finite
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

/// Options of all commands.
#[derive(Args)]
pub struct Shared {
    /// Folder of runs
    #[arg(long, global = true, value_name = "DIR", default_value = "runs")]
    pub runs: PathBuf,
    /// Folder of prepared data
    #[arg(long, global = true, value_name = "DIR", default_value = "data")]
    pub data: PathBuf,
    /// No progress, only results and warnings
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

impl Shared {
    /// Where runs and prepared data lie.
    pub fn workspace(&self) -> Workspace {
        Workspace { runs: self.runs.clone(), data: self.data.clone() }
    }
}

/// The commands, in the order of use.
#[derive(Subcommand)]
pub enum Command {
    Prepare(crate::prepare::PrepareArgs),
    Plan(crate::plan::PlanArgs),
    Train(crate::train::TrainArgs),
    Eval(crate::eval::EvalArgs),
    Sample(crate::sample::SampleArgs),
    Inspect(crate::inspect::InspectArgs),
    Doctor(crate::doctor::DoctorArgs),
    /// List every key of a recipe: type, default, meaning
    #[command(after_help = "Example: aerogel keys | grep optimizer")]
    Keys,
}

/// A recipe and what is changed of it.
#[derive(Args)]
pub struct RecipeArgs {
    /// The recipe's file
    #[arg(value_name = "RECIPE")]
    pub path: PathBuf,
    /// Changes of the recipe, as in model.layers=4
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Take the recipe's [tiny] form, on data made on the spot
    #[arg(long)]
    pub tiny: bool,
}

impl RecipeArgs {
    /// The resolved recipe.
    pub fn load(&self) -> Result<Recipe, RecipeError> {
        Recipe::load(&self.path, &self.overrides, self.tiny)
    }
}
