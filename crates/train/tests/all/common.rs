//! Runs in temporary folders.

use aerogel_data::NoProgress;
use aerogel_recipe::Recipe;
use aerogel_store::Resume;
use aerogel_train::{Event, Options, Outcome, Sink, TrainError, Workspace, train};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Keeps all events.
#[derive(Default)]
pub struct Log(pub Vec<Event>);

impl Sink for Log {
    fn event(&mut self, event: &Event) -> Result<(), TrainError> {
        self.0.push(event.clone());
        Ok(())
    }
}

/// A recipe of the repository, in its tiny form.
pub fn tiny(name: &str, overrides: &[&str]) -> Recipe {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes").join(name);
    let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
    Recipe::load(&path, &overrides, true).unwrap()
}

/// Trains under a folder.
pub fn run(recipe: &Recipe, folder: &Path, resume: Resume) -> (Result<Outcome, TrainError>, Log) {
    let options = Options {
        workspace: Workspace::under(folder),
        resume,
        stop: Arc::new(AtomicBool::new(false)),
    };
    let mut log = Log::default();
    let outcome = train(recipe, &options, &mut NoProgress, &mut log);
    (outcome, log)
}
