//! The facts of a run or of a plan at the head of the page.

use super::history::History;
use super::series::median;
use super::text::{bytes, count, duration, escape, metric, number, plural};
use crate::plan::RunPlan;
use crate::plan_rank::RankPlan;
use std::fmt::Write;

/// Name, value, and what more there is to say of it.
type Fact = (&'static str, String, String);

/// Names and values of a run; the hashes in a line of their own.
pub(super) fn of_run(history: &History) -> String {
    let mut facts: Vec<Fact> = vec![];
    if let Some(start) = &history.start {
        let parameters = metric(start.parameters as f64, "");
        facts.push(("parameters", parameters, count(start.parameters)));
    }
    if let Some(last) = history.steps.last() {
        let resumed = match history.resumed {
            0 => String::new(),
            n => format!("continued {}", plural(n, "time")),
        };
        facts.push(("tokens seen", metric(last.tokens as f64, ""), count(last.tokens)));
        facts.push(("steps", count(last.step), resumed));
        let unit = format!("bits per {}", history.token_unit());
        facts.push(("final training loss", number(last.loss_bits, 4), unit));
    }
    if let Some(eval) = history.evals.last() {
        facts.push(("held-out", number(eval.bits, 4), format!("bits per {}", eval.unit)));
    }
    if let Some(speed) = median(history.steps.iter().map(|s| s.tokens_per_second)) {
        facts.push(("speed, median", metric(speed, ""), "tokens per second".to_owned()));
    }
    if history.busy_seconds > 0.0 {
        facts.push(("wall time", duration(history.busy_seconds), String::new()));
    }
    if let Some(start) = &history.start {
        let threads = plural(start.threads, "thread");
        let ranks = match start.ranks {
            0 | 1 => threads,
            n => format!("{}, {threads}", plural(n, "rank")),
        };
        facts.push(("device", start.device.clone(), ranks));
    }
    let mut out = list(&facts);
    if let Some(start) = &history.start {
        let _ = writeln!(
            out,
            "<p class=\"hashes\">run&#160;<code>{}</code> \
             <span>plan&#160;<code>{}</code></span></p>",
            escape(&start.run_hash),
            escape(&start.plan_hash)
        );
    }
    out
}

/// Names and values of a plan.
pub(super) fn of_plan(plan: &RunPlan, shown: &RankPlan<'_>) -> String {
    let (report, ranks) = (shown.report, shown.mesh.ranks() as u64);
    let parameters = plan.counts.parameters;
    let mut facts: Vec<Fact> = vec![
        ("parameters", metric(parameters as f64, ""), count(parameters)),
        (
            "a step",
            metric(plan.tokens_per_step as f64, ""),
            format!("tokens, {} micro-batches of a rank", count(plan.micro_batches as u64)),
        ),
        (
            "memory of a rank",
            bytes(report.total_bytes),
            match shown.is_whole() {
                true => format!("at most {} on any", bytes(plan.largest_bytes())),
                false => count(report.total_bytes),
            },
        ),
        ("work of a rank", metric(report.flops_per_step as f64, "FLOP"), "a step".to_owned()),
        ("predicted", duration(report.seconds), "of computing a step".to_owned()),
    ];
    if ranks == 1 {
        facts[2].2 = "allocated before the first step".to_owned();
        return list(&facts);
    }
    let axes: Vec<String> =
        shown.axes.iter().map(|a| format!("{} {}", a.name, count(a.ranks as u64))).collect();
    facts.insert(0, ("ranks", count(ranks), axes.join(" × ")));
    let place: Vec<String> =
        shown.axes.iter().map(|a| format!("{} {}", escape(&a.name), a.position)).collect();
    let cuts = shown.axes.iter().filter(|a| !a.cuts.is_empty());
    let cuts: Vec<String> =
        cuts.map(|a| format!("{} cuts {}", escape(&a.name), escape(&a.cuts.join(", ")))).collect();
    format!(
        "{}<p class=\"caption\">Shown is rank {} of {ranks}, at {}. Of the axes of the mesh, {}. \
         ZeRO stage {}: {}.</p>\n",
        list(&facts),
        shown.rank,
        place.join(", "),
        cuts.join("; "),
        shown.zero.stage,
        escape(&shown.zero.words)
    )
}

fn list(facts: &[Fact]) -> String {
    let mut out = String::from("<dl class=\"facts\">\n");
    for (name, value, more) in facts {
        let (value, more) = (escape(value), escape(more));
        let _ = writeln!(out, "<div><dt>{name}</dt><dd>{value} <small>{more}</small></dd></div>");
    }
    out + "</dl>\n"
}
