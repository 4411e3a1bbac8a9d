//! `prepare`: a recipe's source becomes packed, hashed shards.

use crate::args::{RecipeArgs, Shared};
use crate::progress::Stages;
use crate::{show, signals};
use aerogel_data::{Index, Outcome};
use aerogel_train::{Exit, RunPlan, prepare_data};
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::path::Path;

/// Turn a recipe's data into packed, checksummed shards
#[derive(Args)]
#[command(after_help = "Example: aerogel prepare recipes/quick.toml\n\n\
    The shards go to data/NAME; a second prepare of the same recipe finds them and does nothing.")]
pub struct PrepareArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Prepares, and says what there is.
pub fn run(args: &PrepareArgs, shared: &Shared) -> anyhow::Result<Exit> {
    let recipe = args.recipe.load()?;
    let workspace = shared.workspace();
    // A model that cannot be built is told before work on its data. That it may not fit here does
    // not matter: data can be prepared for another machine.
    RunPlan::of(&recipe, &workspace)?;
    let mut stages = Stages::new(signals::stop_flag()?, shared.quiet);
    let (outcome, data) = prepare_data(&recipe, &workspace, &mut stages)?;
    stages.finish();
    let folder = workspace.prepared(&recipe);
    let text = match args.json {
        true => format!("{}\n", object(outcome, data.index(), &folder)),
        false => lines(outcome, data.index(), &folder),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(Exit::Done)
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Built => "built",
        Outcome::Rebuilt => "rebuilt",
        Outcome::UpToDate => "up_to_date",
    }
}

fn object(outcome: Outcome, index: &Index, folder: &Path) -> serde_json::Value {
    let splits: serde_json::Map<String, serde_json::Value> = index
        .splits
        .iter()
        .map(|(name, s)| {
            let facts = json!({
                "documents": s.documents, "tokens": s.tokens, "bytes": s.bytes,
                "shards": s.shards.len(),
            });
            (name.clone(), facts)
        })
        .collect();
    json!({
        "outcome": word(outcome),
        "folder": folder,
        "splits": splits,
        "vocabulary": index.tokenizer.vocabulary,
        "tokenizer": index.tokenizer.kind,
        "source_files": index.source_files,
        "source_bytes": index.source_bytes,
        "empty_documents": index.skipped.empty_documents,
        "other_files": index.skipped.other_files,
    })
}

fn lines(outcome: Outcome, index: &Index, folder: &Path) -> String {
    let folder = folder.display();
    let mut text = match outcome {
        Outcome::Built => format!("{folder}: built"),
        Outcome::Rebuilt => format!("{folder}: rebuilt, as its source or options had changed"),
        Outcome::UpToDate => format!("{folder}: up to date, nothing to do"),
    };
    text += &format!(
        "\nfrom {} files, {}; {} tokenizer, vocabulary {}\n",
        show::count(index.source_files),
        show::bytes(index.source_bytes),
        index.tokenizer.kind,
        show::count(index.tokenizer.vocabulary.into()),
    );
    let mut rows = vec![];
    for name in ["train", "validation", "test"] {
        let Some(split) = index.splits.get(name) else { continue };
        let ratio = split.bytes.map(|b| b as f64 / split.tokens.max(1) as f64);
        rows.push(vec![
            name.to_owned(),
            format!("{} documents", show::count(split.documents)),
            format!("{} tokens", show::count(split.tokens)),
            ratio.map_or(String::new(), |r| format!("{r:.2} bytes a token")),
        ]);
    }
    text += &show::table(&rows);
    let skipped = index.skipped;
    if skipped.empty_documents + skipped.other_files > 0 {
        text += &format!(
            "left out: {} empty documents, {} files that are no images\n",
            show::count(skipped.empty_documents),
            show::count(skipped.other_files)
        );
    }
    text
}
