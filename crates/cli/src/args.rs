//! Arguments that commands share.

use aerogel_recipe::{Recipe, RecipeError};
use aerogel_train::{Backend, Workspace};
use clap::Args;
use std::path::PathBuf;

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
    /// Run on the CPU or on an NVIDIA GPU: short for parallel.device
    #[arg(long, value_name = "cpu|cuda", value_parser = backend)]
    pub device: Option<Backend>,
    /// Ranks: the product of parallel.mesh, or, without a mesh, so many that share the batch
    #[arg(long, value_name = "N")]
    pub ranks: Option<usize>,
}

impl RecipeArgs {
    /// The resolved recipe.
    pub fn load(&self) -> Result<Recipe, RecipeError> {
        self.load_with(&[])
    }

    /// The same with more changes.
    pub fn load_with(&self, more: &[String]) -> Result<Recipe, RecipeError> {
        let mut overrides = [&self.overrides, more].concat();
        overrides.extend(self.device.iter().map(|d| format!("parallel.device={}", d.name())));
        Recipe::load_with_ranks(&self.path, &overrides, self.tiny, self.ranks)
    }
}

/// Reads `--device`.
pub fn backend(text: &str) -> Result<Backend, String> {
    let names = Backend::NAMES.join(" or ");
    Backend::from_name(text).ok_or_else(|| format!("give {names}"))
}
