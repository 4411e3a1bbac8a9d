//! The report of a finished run: one self-contained HTML page.

use aerogel_plan::Report;
use std::path::PathBuf;

/// What the page shows.
pub(crate) struct Page<'a> {
    /// Name of the run.
    pub name: String,
    /// The resolved recipe.
    pub recipe: String,
    /// The events, one JSON object a line.
    pub metrics: String,
    /// The plan.
    pub plan: &'a Report,
    /// The folder of samples.
    pub samples: PathBuf,
}

/// The page.
pub(crate) fn html(page: &Page<'_>) -> String {
    format!("<!doctype html><title>{}</title>", page.name)
}
