//! `inspect`: what a run's checkpoints hold, and whether they are whole.

use crate::args::Shared;
use crate::show;
use aerogel_store::{Checkpoint, Checkpoints, RealFs, StoreError};
use aerogel_train::{Exit, find_run};
use clap::Args;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// List the checkpoints of a run, verify their checksums, show their tensors
#[derive(Args)]
#[command(after_help = "Example: aerogel inspect quick\n\n\
    Ends with 23 where a checkpoint is damaged.")]
pub struct InspectArgs {
    /// A run (its name or folder), or the folder of one checkpoint
    #[arg(value_name = "RUN|CHECKPOINT")]
    what: String,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Inspects, and shows it.
pub fn run(args: &InspectArgs, shared: &Shared) -> anyhow::Result<Exit> {
    let (folder, only) = match step_folder(Path::new(&args.what)) {
        Some((folder, step)) => (folder, Some(step)),
        None => (find_run(&args.what, &shared.workspace())?.join("checkpoints"), None),
    };
    let checkpoints = Checkpoints::new(Arc::new(RealFs), folder);
    let steps = match only {
        Some(step) => vec![step],
        None => checkpoints.list()?,
    };
    let mut found = vec![];
    for step in steps {
        found.push((step, verified(&checkpoints, step)));
    }
    let text = if args.json { object(&found) } else { page(&found) };
    std::io::stdout().write_all(text.as_bytes())?;
    let damaged = found.iter().any(|(_, result)| result.is_err());
    Ok(if damaged { Exit::Storage } else { Exit::Done })
}

/// The folder of checkpoints and the step, where a path leads to one checkpoint.
fn step_folder(path: &Path) -> Option<(std::path::PathBuf, u64)> {
    let path = path.canonicalize().ok()?;
    let step = path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
    Some((path.parent()?.to_owned(), step))
}

type Found = Vec<(u64, Result<Checkpoint, StoreError>)>;

fn verified(checkpoints: &Checkpoints, step: u64) -> Result<Checkpoint, StoreError> {
    let checkpoint = checkpoints.open(step)?;
    checkpoint.verify()?;
    Ok(checkpoint)
}

fn size(checkpoint: &Checkpoint) -> u64 {
    checkpoint.manifest().tensors.values().map(|t| t.bytes()).sum()
}

fn page(found: &Found) -> String {
    if found.is_empty() {
        return "no checkpoint yet\n".to_owned();
    }
    let mut text = String::new();
    for (step, result) in found {
        text += &match result {
            Ok(c) => format!("step {step}: good, {}\n", show::bytes(size(c))),
            Err(e) => format!("step {step}: {e}\n"),
        };
    }
    let Some(newest) = found.iter().rev().find_map(|(_, r)| r.as_ref().ok()) else { return text };
    let manifest = newest.manifest();
    let (run, plan) = (&manifest.run_hash, &manifest.plan_hash);
    text += &format!("\ntensors of step {} (run {run}, plan {plan})\n", newest.step());
    let rows: Vec<Vec<String>> = manifest
        .tensors
        .iter()
        .map(|(name, t)| {
            let axes = t.axes.iter().zip(&t.shape).map(|(n, s)| format!("{n}={s}"));
            let axes = axes.collect::<Vec<_>>().join(" ");
            let dtype = format!("{:?}", t.dtype).to_lowercase();
            vec![name.clone(), dtype, axes, show::count(t.bytes())]
        })
        .collect();
    text + &show::table(&rows)
}

fn object(found: &Found) -> String {
    let steps: Vec<Value> = found
        .iter()
        .map(|(step, result)| match result {
            Err(e) => json!({ "step": step, "good": false, "error": e.to_string() }),
            Ok(c) => {
                let tensors: serde_json::Map<String, Value> = c
                    .manifest()
                    .tensors
                    .iter()
                    .map(|(name, t)| {
                        let facts = json!({
                            "dtype": t.dtype, "axes": t.axes, "shape": t.shape,
                            "size_bytes": t.bytes(), "blake3": t.blake3,
                        });
                        (name.clone(), facts)
                    })
                    .collect();
                json!({
                    "step": step, "good": true, "size_bytes": size(c),
                    "run_hash": c.manifest().run_hash, "plan_hash": c.manifest().plan_hash,
                    "tensors": tensors,
                })
            }
        })
        .collect();
    format!("{}\n", json!({ "checkpoints": steps }))
}
