//! The report of a finished run, and of a plan: one self-contained HTML page.
//!
//! Nothing on the page is fetched from elsewhere, and all of it reads without its script, which
//! only adds read-outs under the pointer. Whatever comes from outside (names, recipe, samples,
//! messages) goes through `text::escape`.

mod base64;
mod communication;
mod curves;
mod facts;
mod history;
mod memory;
mod pipeline;
mod plot;
mod samples;
mod sections;
mod series;
#[cfg(test)]
mod tests;
mod text;

use crate::error::TrainError;
use crate::plan::RunPlan;
use crate::plan_rank::RankPlan;
use crate::setup;
use aerogel_recipe::Recipe;
use history::History;
use std::fmt::Write;
use std::path::PathBuf;
use text::{count, escape};

/// What the page shows.
pub(crate) struct Page<'a> {
    /// Name of the run.
    pub name: String,
    /// The resolved recipe.
    pub recipe: String,
    /// The events, one JSON object a line.
    pub metrics: String,
    /// The plan, as one rank has it.
    pub plan: &'a RankPlan<'a>,
    /// The folder of samples.
    pub samples: PathBuf,
}

/// Forbids what the page does not do anyway: to load anything.
const POLICY: &str = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
                      script-src 'unsafe-inline'";

/// The page of a run.
pub(crate) fn html(page: &Page<'_>) -> String {
    let history = History::read(&page.metrics);
    let plan = page.plan;
    let parts = [
        ("Loss", curves::html(&history)),
        ("Memory of a training step", memory::html(plan.report, &history)),
        ("The pipeline", pipeline::html(plan)),
        ("Communication", communication::html(plan)),
        ("Where the time is predicted to go", sections::html(plan.report, &history)),
        ("Samples", samples::html(&page.samples, &history)),
        ("Recipe", recipe(&page.recipe)),
        ("Warnings", warnings(&history)),
    ];
    framed("Training report", &page.name, &facts::of_run(&history), &parts)
}

/// The page of a plan, as one rank has it: memory over a step, the schedule of a pipeline, what
/// ranks exchange. It loads nothing from elsewhere.
///
/// # Errors
/// The mesh has no such rank.
pub fn plan_html(recipe: &Recipe, plan: &RunPlan, rank: usize) -> Result<String, TrainError> {
    let (shown, history) = (plan.rank_plan(rank)?, History::default());
    let parts = [
        ("Memory of a training step", memory::html(shown.report, &history)),
        ("The pipeline", pipeline::html(&shown)),
        ("Communication", communication::html(&shown)),
        ("Where the time is predicted to go", sections::html(shown.report, &history)),
        ("Recipe", self::recipe(&recipe.to_toml())),
    ];
    let name = setup::name(recipe);
    Ok(framed("Training plan", &name, &facts::of_plan(plan, &shown), &parts))
}

/// A page around its parts; empty ones are left out.
fn framed(kicker: &str, name: &str, facts: &str, parts: &[(&str, String)]) -> String {
    let name = escape(name);
    let mut body = String::new();
    let shown = parts.iter().filter(|(_, part)| !part.is_empty());
    for (i, (title, part)) in shown.enumerate() {
        let number = i + 1;
        let _ =
            write!(body, "<section>\n<h2><span>{number}</span> {title}</h2>\n{part}</section>\n");
    }
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <title>{name} – {}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n\
         <header>\n<p class=\"kicker\">{kicker}</p>\n<h1>{name}</h1>\n{facts}</header>\n\
         {body}</main>\n<script>\n{}</script>\n</body>\n</html>\n",
        kicker.to_lowercase(),
        include_str!("report/page.css"),
        include_str!("report/page.js"),
    )
}

fn recipe(toml: &str) -> String {
    let lines = toml.lines().count();
    format!(
        "<details>\n<summary>The resolved recipe, {} lines</summary>\n<pre>{}</pre>\n</details>\n",
        count(lines as u64),
        escape(toml)
    )
}

/// The most warnings that are shown: a run may repeat one at each step.
const WARNINGS_MAX: usize = 50;

fn warnings(history: &History) -> String {
    let all = &history.warnings;
    let mut out = String::new();
    for (step, message) in all.iter().take(WARNINGS_MAX) {
        let _ = writeln!(out, "<li>Step {}: {}</li>", count(*step), escape(message));
    }
    if all.len() > WARNINGS_MAX {
        let _ = writeln!(out, "<li>… and {} more.</li>", count((all.len() - WARNINGS_MAX) as u64));
    }
    if history.unread_lines > 0 {
        let lines = count(history.unread_lines as u64);
        let _ = writeln!(out, "<li>Lines of the metrics that could not be read: {lines}.</li>");
    }
    if out.is_empty() { out } else { format!("<ul class=\"warnings\">\n{out}</ul>\n") }
}
