//! `eval`: what held-out data costs a trained model.

use crate::args::{Shared, backend};
use crate::show;
use aerogel_recipe::Recipe;
use aerogel_train::{
    Backend, Exit, Opened, Pick, Workspace, evaluate, find_run, newest_run, open_run,
};
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Score held-out data: bits a byte or a dimension, perplexity
#[derive(Args)]
#[command(after_help = "Example: aerogel eval quick --split validation --sequences 0")]
pub struct EvalArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Which split to score
    #[arg(long, value_name = "SPLIT", default_value = "validation")]
    #[arg(value_parser = ["validation", "test", "train"])]
    split: String,
    /// Score the first N sequences; 0 scores all [default: eval.sequences of the recipe]
    #[arg(long, value_name = "N")]
    sequences: Option<u64>,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// A run, and a step of it.
#[derive(Args)]
pub struct RunArgs {
    /// A run (its name or folder), or a recipe, for the newest run of it
    #[arg(value_name = "RUN|RECIPE")]
    run: String,
    /// With a recipe: its [tiny] form
    #[arg(long)]
    tiny: bool,
    /// The checkpoint of this step [default: the latest that is good]
    #[arg(long, value_name = "N")]
    step: Option<u64>,
    /// Run on the CPU or on an NVIDIA GPU [default: as it was trained]
    #[arg(long, value_name = "cpu|cuda", value_parser = backend)]
    device: Option<Backend>,
}

impl RunArgs {
    /// The folder of the run.
    fn folder(&self, workspace: &Workspace) -> anyhow::Result<PathBuf> {
        let path = Path::new(&self.run);
        if path.extension().is_some_and(|e| e == "toml") {
            let recipe = Recipe::load(path, &[], self.tiny)?;
            return Ok(newest_run(&recipe, workspace)?);
        }
        if self.tiny {
            let text = format!("--tiny goes with a recipe, and `{}` names a run", self.run);
            return Err(crate::failure::Usage(format!("{text}; leave it out")).into());
        }
        Ok(find_run(&self.run, workspace)?)
    }

    /// Opens the run; what is odd about it is said on stderr.
    pub fn open(&self, shared: &Shared, samples: Option<usize>) -> anyhow::Result<Opened> {
        let workspace = shared.workspace();
        let pick = Pick { step: self.step, samples, backend: self.device };
        let opened = open_run(&self.folder(&workspace)?, &workspace, &pick)?;
        for warning in &opened.warnings {
            eprintln!("warning: {warning}");
        }
        Ok(opened)
    }
}

/// Scores, and shows it.
pub fn run(args: &EvalArgs, shared: &Shared) -> anyhow::Result<Exit> {
    let mut opened = args.run.open(shared, None)?;
    let sequences = args.sequences.unwrap_or(opened.recipe.eval.sequences);
    let e = evaluate(&mut opened.session, &opened.data, &args.split, sequences)?;
    let text = match args.json {
        true => json!({
            "run": opened.folder, "step": opened.step, "split": e.split, "bits": e.bits,
            "unit": e.unit, "bits_per_token": e.bits_per_token, "perplexity": e.perplexity,
            "tokens": e.tokens, "seconds": e.seconds,
        })
        .to_string(),
        false => format!(
            "{} step {}, {}: {:.4} bits a {}, perplexity {:.3} ({} tokens in {})",
            opened.folder.display(),
            opened.step,
            e.split,
            e.bits,
            e.unit,
            e.perplexity,
            show::count(e.tokens),
            show::duration(e.seconds),
        ),
    };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(Exit::Done)
}
