//! `plan`: every byte and FLOP of a step, before it runs.

use crate::args::{RecipeArgs, Shared};
use crate::show;
use aerogel_plan::Report;
use aerogel_recipe::Recipe;
use aerogel_train::{Exit, RunPlan};
use clap::Args;
use serde_json::{Value, json};
use std::io::Write;

/// Show every byte and FLOP of a training step before it runs
#[derive(Args)]
#[command(
    after_help = "Example: aerogel plan recipes/cifar10-strided.toml train.micro_batch=1\n\n\
    Nothing is loaded or prepared. `train` allocates exactly the memory that this shows.\n\
    Ends with 21, after the table, where that is more than it may take."
)]
pub struct PlanArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
    /// Say why each derived default of the recipe is what it is
    #[arg(long)]
    why: bool,
}

/// Plans, and shows it.
pub fn run(args: &PlanArgs, shared: &Shared) -> anyhow::Result<Exit> {
    let recipe = args.recipe.load()?;
    let plan = RunPlan::of(&recipe, &shared.workspace())?;
    let text = match args.json {
        true => {
            let mut value = object(&plan);
            if args.why {
                value["derived"] = serde_json::to_value(recipe.derived())?;
            }
            format!("{value}\n")
        }
        false => {
            let mut text = page(&recipe, &plan);
            if args.why {
                text += &reasons(&recipe);
            }
            text
        }
    };
    std::io::stdout().write_all(text.as_bytes())?;
    // The table is shown either way: it says what takes the memory.
    plan.fits(&recipe)?;
    Ok(Exit::Done)
}

fn object(plan: &RunPlan) -> Value {
    let report = plan.report();
    let mut memory = serde_json::to_value(report.kinds).unwrap_or_default();
    memory["total_bytes"] = report.total_bytes.into();
    let sections: Vec<Value> = report
        .sections
        .iter()
        .map(|s| {
            json!({
                "name": s.name, "calls": s.calls, "kernels": s.kernels, "flops": s.flops,
                "seconds": s.seconds, "transient_bytes": s.transient_bytes,
                "largest_live_bytes": s.largest_live_bytes,
            })
        })
        .collect();
    json!({
        "parameters": plan.counts.parameters,
        "parameters_without_embeddings": plan.counts.parameters_without_embeddings,
        "vocabulary": plan.model.vocab,
        "tokens_per_step": plan.tokens_per_step,
        "micro_batches": plan.micro_batches,
        "flops_per_step": report.flops_per_step,
        "memory": memory,
        "budget_bytes": plan.budget_bytes,
        "fits": plan.largest_bytes() <= plan.budget_bytes,
        "seconds": report.seconds,
        "planning_seconds": report.planning_seconds,
        "peak": {
            "section": report.peak_section, "step": report.peak_step,
            "index": report.peak_index, "values": report.peak_values,
        },
        "sections": sections,
        "threads": plan.threads,
        "plan_hash": plan.hash(),
    })
}

fn page(recipe: &Recipe, plan: &RunPlan) -> String {
    let (model, report) = (&plan.model, plan.report());
    let mut text = format!(
        "{}: {}, {} layers, {} heads, width {}, context {}, vocabulary {}\n\n",
        recipe.name,
        recipe.model.family.name(),
        model.layers,
        model.heads,
        model.embed,
        model.context,
        show::count(model.vocab as u64),
    );
    let whole = report.seconds * recipe.train.steps as f64;
    text += &format!(
        "parameters  {}, of them {} in the matrices of the blocks\n\
         a step      {} tokens in {} of {}, {}\n\
         predicted   {} a step on {}, {} for {}\n\
         memory      {} ({} bytes), all of it allocated before the first step\n\n",
        show::count(plan.counts.parameters),
        show::count(plan.counts.parameters_without_embeddings),
        show::count(plan.tokens_per_step),
        show::plural(plan.micro_batches as u64, "micro-batch", "es"),
        show::plural(recipe.train.micro_batch as u64, "sequence", "s"),
        show::scaled(report.flops_per_step as f64, "FLOP"),
        show::duration(report.seconds),
        show::plural(plan.threads as u64, "thread", "s"),
        show::duration(whole),
        show::plural(recipe.train.steps, "step", "s"),
        show::bytes(report.total_bytes),
        show::count(report.total_bytes),
    );
    text += &kinds(report);
    text += &peak(report);
    text += &sections(report);
    text +=
        &format!("\nplan {}, made in {}\n", plan.hash(), show::duration(report.planning_seconds));
    text
}

fn kinds(report: &Report) -> String {
    let row = |(name, bytes): (&str, u64)| {
        vec![name.to_owned(), show::bytes(bytes), format!("{} bytes", show::count(bytes))]
    };
    let mut rows: Vec<_> = report.kinds.list().into_iter().filter(|k| k.1 > 0).map(row).collect();
    rows.push(row(("total", report.total_bytes)));
    show::table(&rows)
}

fn peak(report: &Report) -> String {
    let head = format!(
        "\nThe peak is in section {}, at `{}`. Its largest values:\n",
        report.peak_section,
        report.peak_step.trim()
    );
    let rows: Vec<_> = report
        .peak_values
        .iter()
        .take(8)
        .map(|s| vec![s.name.trim().to_owned(), show::bytes(s.bytes)])
        .collect();
    head + &show::table(&rows)
}

fn sections(report: &Report) -> String {
    let names =
        ["section", "calls", "kernels", "FLOP a call", "transient", "largest live", "seconds"];
    let mut rows = vec![names.map(str::to_owned).to_vec()];
    for s in &report.sections {
        rows.push(vec![
            s.name.clone(),
            s.calls.to_string(),
            s.kernels.to_string(),
            show::scaled(s.flops as f64, ""),
            show::bytes(s.transient_bytes),
            show::bytes(s.largest_live_bytes),
            format!("{:.4}", s.seconds),
        ]);
    }
    format!("\n{}", show::table(&rows))
}

fn reasons(recipe: &Recipe) -> String {
    let mut text = String::from("\nDefaults that follow from other keys:\n");
    for d in recipe.derived() {
        text += &format!("  {} = {}: {}\n", d.key, d.value, d.reason);
    }
    text
}
