//! A plan as a page of text.

use crate::show;
use aerogel_plan::{Kinds, Report};
use aerogel_recipe::Recipe;
use aerogel_train::{Backend, PipelinePlan, RankPlan, RunPlan};

/// The page.
pub fn page(recipe: &Recipe, plan: &RunPlan, shown: &RankPlan<'_>) -> String {
    let model = &plan.model;
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
    text += &head(recipe, plan, shown);
    text += &ranks(shown);
    text.push('\n');
    text += &kinds(shown.report);
    text += &peak(shown.report);
    if let Some(pipeline) = &shown.pipeline {
        text += &stages(shown, pipeline);
    }
    text += &communication(shown);
    text += &sections(shown.report);
    let seconds = show::duration(shown.report.planning_seconds);
    text += &format!("\nplan {}, made in {seconds}\n", plan.hash());
    text
}

fn head(recipe: &Recipe, plan: &RunPlan, shown: &RankPlan<'_>) -> String {
    let report = shown.report;
    let whole = report.seconds * recipe.train.steps as f64;
    let (each, predicted) = match shown.mesh.ranks() {
        1 => ("", "a step"),
        _ => (" on a rank", "for a rank's part of a step"),
    };
    let machine = match plan.backend {
        Backend::Cpu => show::plural(plan.threads as u64, "thread", "s"),
        Backend::Cuda => plan.machine.clone(),
    };
    let mut text = format!(
        "parameters  {}, of them {} in the matrices of the blocks\n\
         a step      {} tokens in {} of {}, {}{each}\n\
         predicted   {} {predicted} on {}, {} for {}\n\
         memory      {} ({} bytes){each}, all of it allocated before the first step\n",
        show::count(plan.counts.parameters),
        show::count(plan.counts.parameters_without_embeddings),
        show::count(plan.tokens_per_step),
        show::plural(plan.micro_batches as u64, "micro-batch", "es"),
        show::plural(recipe.train.micro_batch as u64, "sequence", "s"),
        show::scaled(report.flops_per_step as f64, "FLOP"),
        show::duration(report.seconds),
        machine,
        show::duration(whole),
        show::plural(recipe.train.steps, "step", "s"),
        show::bytes(report.total_bytes),
        show::count(report.total_bytes),
    );
    if shown.mesh.ranks() > 1 && shown.is_whole() {
        text += &format!(
            "            {} on the largest rank, {} on all\n",
            show::bytes(plan.largest_bytes()),
            show::bytes(plan.total_bytes()),
        );
    }
    text
}

/// The mesh, where the rank stands in it, and what is cut along which axis.
fn ranks(shown: &RankPlan<'_>) -> String {
    let ranks = shown.mesh.ranks();
    if ranks == 1 {
        return String::new();
    }
    let sizes: Vec<String> = shown.axes.iter().map(|a| format!("{} {}", a.name, a.ranks)).collect();
    let mut text =
        format!("ranks       {ranks}: {}; shown is rank {}\n", sizes.join(" × "), shown.rank);
    for axis in &shown.axes {
        let cuts = match axis.cuts.as_slice() {
            [] => "cuts nothing".to_owned(),
            list => format!("cuts {}", list.join(", ")),
        };
        text += &format!("  {:<8}  position {}, {cuts}\n", axis.name, axis.position);
    }
    text += &format!("ZeRO        stage {}: {}\n", shown.zero.stage, shown.zero.words);
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

/// The schedule, and a row for each stage.
fn stages(shown: &RankPlan<'_>, pipeline: &PipelinePlan) -> String {
    let timeline = &pipeline.timeline;
    let mut text = format!(
        "\nThe pipeline: {} over {} stages. From the first forward to the last backward {}; the \
         bubble is {:.1} % of the time of all ranks{}.\n",
        pipeline.schedule,
        pipeline.slots.len(),
        show::duration(timeline.total_seconds),
        100.0 * timeline.bubble,
        match pipeline.is_uniform {
            true => ", if all stages take the time of this one",
            false => "",
        }
    );
    let lists: Vec<_> = shown.stages.iter().map(|s| s.report.kinds.list()).collect();
    let is_shown = |k: &usize| lists.iter().any(|list| list[*k].1 > 0);
    // All but the holes.
    let kinds: Vec<usize> = (0..Kinds::COUNT - 1).filter(is_shown).collect();
    let mut head: Vec<String> = ["stage", "layers", "parameters", "FLOP a step", "slots", "memory"]
        .map(str::to_owned)
        .into();
    if let Some(list) = lists.first() {
        // `activations in flight` is the one long name.
        head.extend(kinds.iter().map(|&k| list[k].0.replace("activations in ", "in ")));
    }
    let mut rows = vec![head];
    for (stage, list) in shown.stages.iter().zip(&lists) {
        let slots: Vec<String> = stage.slots.iter().map(usize::to_string).collect();
        let mut row = vec![
            stage.stage.to_string(),
            stage.layers_text(),
            show::count(stage.parameters),
            show::scaled(stage.report.flops_per_step as f64, ""),
            slots.join("+"),
            show::bytes(stage.report.total_bytes),
        ];
        row.extend(kinds.iter().map(|&k| show::bytes(list[k].1)));
        rows.push(row);
    }
    text += &show::table(&rows);
    text
}

fn communication(shown: &RankPlan<'_>) -> String {
    if shown.communication.is_empty() {
        return String::new();
    }
    let names = ["exchange", "calls", "bytes a step", ""];
    let mut rows = vec![names.map(str::to_owned).to_vec()];
    let row = |name: String, calls: String, bytes: u64| {
        vec![name, calls, show::count(bytes), show::bytes(bytes)]
    };
    for t in &shown.communication {
        let name = format!("{} over {}", t.kind.replace('_', "-"), t.over.join(" × "));
        rows.push(row(name, show::count(t.calls), t.wire_bytes));
    }
    let sent = shown.communication.iter().filter(|t| t.kind != "receive");
    rows.push(row("sent in all".to_owned(), String::new(), sent.map(|t| t.wire_bytes).sum()));
    format!(
        "\nRank {} sends, in each step (of collectives it receives as much):\n{}",
        shown.rank,
        show::table(&rows)
    )
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

/// Why derived defaults are what they are.
pub fn reasons(recipe: &Recipe) -> String {
    let mut text = String::from("\nDefaults that follow from other keys:\n");
    for d in recipe.derived() {
        text += &format!("  {} = {}: {}\n", d.key, d.value, d.reason);
    }
    text
}
