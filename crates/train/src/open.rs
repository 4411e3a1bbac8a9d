//! A run folder, opened to evaluate or to sample: its recipe, its prepared data, its weights.

use crate::backend::Backend;
use crate::checkpoint;
use crate::error::TrainError;
use crate::plan::RunPlan;
use crate::session::{Session, Ties};
use crate::setup::{self, Workspace, run_hash};
use aerogel_data::Dataset;
use aerogel_recipe::Recipe;
use aerogel_store::{Checkpoint, Checkpoints, RealFs, RunDir, RunRecord};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Samples that are drawn side by side at most: each has caches of its own.
const SAMPLES: usize = 16;

/// Which weights, how many samples will be asked for, and of what device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pick {
    /// The checkpoint of this step; else the latest that verifies.
    pub step: Option<u64>,
    /// Samples to plan for; else as many as the recipe draws.
    pub samples: Option<usize>,
    /// What to run it on; else what the recipe says.
    pub backend: Option<Backend>,
}

/// A run at one of its checkpoints.
pub struct Opened {
    /// The folder of the run.
    pub folder: PathBuf,
    /// The recipe as it was run.
    pub recipe: Recipe,
    /// Its prepared data.
    pub data: Dataset,
    /// The weights, loaded.
    pub session: Session,
    /// Updates that made them.
    pub step: u64,
    /// What a user should know: damaged checkpoints, changed data.
    pub warnings: Vec<String>,
}

/// The folder of a run that is given by its path or its name.
///
/// # Errors
/// There is no such run; the error lists those that are there.
pub fn find_run(run: &str, workspace: &Workspace) -> Result<PathBuf, TrainError> {
    let places = [PathBuf::from(run), workspace.runs.join(run)];
    if let Some(found) = places.into_iter().find(|p| !run.is_empty() && is_run(p)) {
        return Ok(found);
    }
    let what = format!("there is no run `{run}`, as a folder or in {}", workspace.runs.display());
    let mut have = runs(workspace);
    have.sort();
    let advice = match have.as_slice() {
        [] => "train first, or say with --runs where the runs are".to_owned(),
        have => format!("choose one of {}", have.join(", ")),
    };
    Err(TrainError::Contradiction { what, advice })
}

/// The newest run of a recipe.
///
/// # Errors
/// It has none.
pub fn newest_run(recipe: &Recipe, workspace: &Workspace) -> Result<PathBuf, TrainError> {
    let name = setup::name(recipe);
    let number = |folder: &String| -> Option<u64> {
        match folder.strip_prefix(&name)? {
            "" => Some(1),
            rest => rest.strip_prefix('-')?.parse().ok(),
        }
    };
    let own = |folder: &String| {
        let path = workspace.runs.join(folder);
        matches!(record(&path), Ok(record) if record.name == name)
    };
    let mut folders: Vec<String> =
        runs(workspace).into_iter().filter(|f| number(f).is_some()).filter(own).collect();
    folders.sort_by_key(number);
    match folders.last() {
        Some(folder) => Ok(workspace.runs.join(folder)),
        None => find_run(&name, workspace),
    }
}

fn is_run(path: &Path) -> bool {
    RunDir::new(Arc::new(RealFs), path).record().is_file()
}

fn runs(workspace: &Workspace) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(&workspace.runs) else { return vec![] };
    let folders = entries.flatten().filter(|e| is_run(&e.path()));
    folders.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// Opens a run with the data that `prepare` left; nothing is prepared here.
///
/// # Errors
/// The folder is no run, its recipe or data is gone, or it has no such checkpoint.
pub fn open_run(folder: &Path, workspace: &Workspace, pick: &Pick) -> Result<Opened, TrainError> {
    let record = record(folder)?;
    let recipe = recipe(folder, &record.name)?;
    let mut warnings = vec![];
    let checkpoints = RunDir::new(Arc::new(RealFs), folder).checkpoints();
    let checkpoint = find_checkpoint(&checkpoints, folder, pick.step, &mut warnings)?;
    let prepared = workspace.prepared(&recipe);
    let data = Dataset::open(&prepared).map_err(|source| TrainError::Hint {
        source,
        hint: format!(
            "prepare the recipe {} again, or say with --data where its data is",
            recipe.name
        ),
    })?;
    if run_hash(&recipe, &data) != record.run_hash {
        warnings.push(format!(
            "the data in {} was prepared anew since this run: what was held out then may be \
             trained on now, and the other way round",
            prepared.display()
        ));
    }
    let mut planned = recipe.clone();
    // One rank is enough to look at a model, whatever it was trained on.
    planned.parallel.mesh.clear();
    planned.parallel.device = pick.backend.map_or(recipe.parallel.device, Backend::device);
    planned.sample.count = pick.samples.unwrap_or(recipe.sample.count).clamp(1, SAMPLES);
    let plan = RunPlan::new(&planned, data.index().tokenizer.vocabulary as usize)?;
    let mut session = Session::load(plan, Ties::new(Duration::from_secs(60)))?;
    checkpoint::load(&mut session, &checkpoint)?;
    let (folder, step) = (folder.to_owned(), checkpoint.step());
    Ok(Opened { folder, recipe, data, session, step, warnings })
}

fn record(folder: &Path) -> Result<RunRecord, TrainError> {
    let found = RunDir::new(Arc::new(RealFs), folder).read_record()?;
    found.ok_or_else(|| TrainError::Contradiction {
        what: format!("{} is not a run folder: it has no run.json", folder.display()),
        advice: "name a folder that `train` made".to_owned(),
    })
}

/// The resolved recipe that lies in the run folder, under its own name.
fn recipe(folder: &Path, name: &str) -> Result<Recipe, TrainError> {
    let path = RunDir::new(Arc::new(RealFs), folder).recipe();
    let damaged = |reason: String| TrainError::Contradiction {
        what: format!("the recipe of the run cannot be read: {reason}"),
        advice: format!("restore {} from a copy", path.display()),
    };
    let text = std::fs::read_to_string(&path).map_err(|e| damaged(e.to_string()))?;
    let parse = |name: &str, tiny: bool| {
        let file = format!("{name}.toml");
        Recipe::parse(&text, &file, folder, &[], tiny).map_err(|e| damaged(e.to_string()))
    };
    // A tiny form's run is named after its recipe, and its text says by an empty table what it is.
    match name.strip_suffix("-tiny").filter(|_| text.trim_end().ends_with("[tiny]")) {
        Some(whole) => parse(whole, true),
        None => parse(name, false),
    }
}

fn find_checkpoint(
    checkpoints: &Checkpoints,
    folder: &Path,
    step: Option<u64>,
    warnings: &mut Vec<String>,
) -> Result<Checkpoint, TrainError> {
    if let Some(step) = step {
        return Ok(checkpoints.open(step)?);
    }
    let latest = checkpoints.latest()?;
    for s in latest.skipped {
        warnings.push(format!("checkpoint {} is damaged and was skipped: {}", s.step, s.reason));
    }
    latest.checkpoint.ok_or_else(|| TrainError::NoCheckpoint { path: folder.to_owned() })
}
