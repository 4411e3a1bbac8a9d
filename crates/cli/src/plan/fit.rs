//! `plan --fit`: the fastest plan under a limit, and what the next best would cost.

use crate::args::{RecipeArgs, Shared};
use crate::show;
use aerogel_train::{Choice, Exit, Fit, RunPlan, fit, fits};
use serde_json::{Value, json};
use std::io::Write;

/// How many plans are shown.
const SHOWN: usize = 5;

/// Searches, and shows what was found.
pub fn run(args: &RecipeArgs, limit: &str, as_json: bool, shared: &Shared) -> anyhow::Result<Exit> {
    let limit = (!limit.is_empty()).then(|| format!("memory.budget={limit}"));
    let recipe = args.load_with(limit.as_slice())?;
    let plan = RunPlan::of(&recipe, &shared.workspace())?;
    let found = fit(&recipe, plan.model.vocab)?;
    let text = match as_json {
        true => format!("{}\n", object(&found)),
        false => page(&recipe.name, &found),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    if found.fitting.is_empty() {
        fits(&plan, &recipe)?;
    }
    Ok(Exit::Done)
}

fn object(found: &Fit) -> Value {
    let choice =
        |c: &Choice| json!({ "changes": c.changes, "total_bytes": c.bytes, "seconds": c.seconds });
    json!({
        "budget_bytes": found.budget_bytes,
        "recipe": choice(&found.recipe),
        "fitting": found.fitting.iter().map(choice).collect::<Vec<_>>(),
        "smallest": found.smallest.as_ref().map(choice),
        "planned": found.planned,
    })
}

fn page(name: &str, found: &Fit) -> String {
    let words = |c: &Choice| match c.changes.as_slice() {
        [] => "the recipe as it is".to_owned(),
        changes => changes.join(" "),
    };
    let row = |c: &Choice| vec![words(c), show::bytes(c.bytes), show::duration(c.seconds)];
    let mut text = format!(
        "{name} under {} a rank; {} were made\n\n",
        show::bytes(found.budget_bytes),
        show::plural(found.planned as u64, "plan", "s")
    );
    let head = ["", "memory", "a step"].map(str::to_owned).to_vec();
    match (found.fitting.first(), &found.smallest) {
        (Some(best), _) => {
            let mut rows = vec![head];
            rows.extend(found.fitting.iter().take(SHOWN).map(row));
            text += &show::table(&rows);
            text += &format!("\nThe fastest that fits: {}\n", words(best));
            if let Some(next) = found.fitting.get(1) {
                let more = 100.0 * (next.seconds / best.seconds - 1.0);
                text += &format!("The next best takes {more:.1} % longer: {}\n", words(next));
            }
        }
        (None, smallest) => {
            text += &format!(
                "Nothing that leaves the numbers as they are fits; the recipe needs {}.\n",
                show::bytes(found.recipe.bytes)
            );
            if let Some(c) = smallest {
                text += &show::table(&[head, row(c)]);
                text += &format!("\nThe smallest change that would: {}\n", words(c));
            }
        }
    }
    text
}
