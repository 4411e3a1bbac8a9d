//! `plan`: every byte, FLOP and message of a step, before it runs.

mod fit;
mod object;
mod page;

use crate::args::{RecipeArgs, Shared};
use aerogel_train::{Exit, RunPlan, fits, plan_html};
use clap::Args;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Show every byte, FLOP and message of a training step before it runs
#[derive(Args)]
#[command(
    after_help = "Example: aerogel plan recipes/cifar10-strided.toml train.micro_batch=1\n         \
    aerogel plan recipes/quick.toml 'parallel.mesh={ data = 2, pipe = 2 }' --rank 3\n         \
    aerogel plan recipes/cifar10-strided.toml --fit 16GiB\n\n\
    Nothing is loaded or prepared. `train` allocates exactly the memory that this shows.\n\
    Of several ranks one is shown, rank 0 if none is asked for; parameters and tokens are of all.\n\
    Ends with 21, after the table, where that is more than it may take."
)]
pub struct PlanArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Plan what this rank runs, counted from 0, and nothing else: a rank of thousands is planned
    /// as fast as one of two
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// Write a page with pictures: memory over a step, the pipeline's schedule, communication
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Search for the fastest plan that stays under a limit of one rank's memory, as in 16GiB;
    /// without a size, under memory.budget or what this machine has
    #[arg(long, value_name = "SIZE", num_args = 0..=1, default_missing_value = "")]
    #[arg(conflicts_with_all = ["rank", "html", "why"])]
    fit: Option<String>,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
    /// Say why each derived default of the recipe is what it is
    #[arg(long)]
    why: bool,
}

/// Plans, and shows it.
pub fn run(args: &PlanArgs, shared: &Shared) -> anyhow::Result<Exit> {
    if let Some(limit) = &args.fit {
        return fit::run(&args.recipe, limit, args.json, shared);
    }
    let recipe = args.recipe.load()?;
    let workspace = shared.workspace();
    let plan = match args.rank {
        None => RunPlan::of(&recipe, &workspace)?,
        Some(rank) => RunPlan::of_workspace_rank(&recipe, &workspace, rank)?,
    };
    let rank = args.rank.unwrap_or(0);
    let shown = plan.rank_plan(rank)?;
    if let Some(path) = &args.html {
        write(path, &plan_html(&recipe, &plan, rank)?)?;
    }
    let text = match args.json {
        true => {
            let mut value = object::object(&plan, &shown);
            if args.why {
                value["derived"] = serde_json::to_value(recipe.derived())?;
            }
            format!("{value}\n")
        }
        false => {
            let mut text = page::page(&recipe, &plan, &shown);
            if args.why {
                text += &page::reasons(&recipe);
            }
            if let Some(path) = &args.html {
                text += &format!("pictures: {}\n", path.display());
            }
            text
        }
    };
    std::io::stdout().write_all(text.as_bytes())?;
    // The table is shown either way: it says what takes the memory.
    fits(&plan, &recipe)?;
    Ok(Exit::Done)
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let named = |e: std::io::Error| {
        std::io::Error::new(e.kind(), format!("{} cannot be written: {e}", path.display()))
    };
    std::fs::write(path, text).map_err(named)
}
