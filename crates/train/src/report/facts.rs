//! The facts of a run at the head of the page.

use super::history::History;
use super::series::median;
use super::text::{count, duration, escape, metric, number, plural};
use std::fmt::Write;

/// Names and values; the hashes in a line of their own.
pub(super) fn html(history: &History) -> String {
    let mut facts: Vec<(&str, String, String)> = vec![];
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
        facts.push(("device", start.device.clone(), plural(start.threads, "thread")));
    }
    let mut out = String::from("<dl class=\"facts\">\n");
    for (name, value, more) in facts {
        let (value, more) = (escape(&value), escape(&more));
        let _ = writeln!(out, "<div><dt>{name}</dt><dd>{value} <small>{more}</small></dd></div>");
    }
    out.push_str("</dl>\n");
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
