//! Work and predicted time of the plan's sections, beside the time that was measured.

use super::history::History;
use super::series::median;
use super::text::{bytes, count, duration, escape, metric, number, plural};
use aerogel_plan::{Report, SectionReport};
use std::fmt::Write;

/// The table, and a sentence that holds the prediction against the clock.
pub(super) fn html(plan: &Report, history: &History) -> String {
    let mut out = String::from(
        "<div class=\"scroll\"><table>\n<thead><tr><th>section</th><th class=\"n\">calls</th>\
         <th class=\"n\">kernels</th><th class=\"n\">work</th><th class=\"n\">time</th>\
         <th class=\"n\">of a step</th><th></th><th class=\"n\">transient</th>\
         <th class=\"n\">largest live</th></tr></thead>\n<tbody>\n",
    );
    for section in &plan.sections {
        out += &row(section, plan.seconds);
    }
    let _ = writeln!(
        out,
        "</tbody>\n<tfoot><tr><td>a training step</td><td></td><td></td><td class=\"n\">{}</td>\
         <td class=\"n\">{}</td><td></td><td></td><td></td><td></td></tr></tfoot>\n</table></div>",
        metric(plan.flops_per_step as f64, "FLOP"),
        duration(plan.seconds)
    );
    let _ = writeln!(out, "<p class=\"caption\">{}</p>", sentence(plan, history));
    out
}

fn row(section: &SectionReport, step_seconds: f64) -> String {
    let seconds = section.seconds * section.calls as f64;
    let percent = if step_seconds > 0.0 { 100.0 * seconds / step_seconds } else { 0.0 };
    let (share, bar) = if section.calls == 0 {
        ("–".to_owned(), String::new())
    } else {
        let bar =
            format!("<i class=\"bar\" style=\"width:{:.1}%\"></i>", percent.clamp(0.0, 100.0));
        (format!("{percent:.1}%"), bar)
    };
    format!(
        "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
         <td class=\"n\">{}</td><td class=\"n\">{share}</td><td class=\"bars\">{bar}</td>\
         <td class=\"n\">{}</td><td class=\"n\">{}</td></tr>\n",
        escape(&section.name),
        count(section.calls),
        count(section.kernels as u64),
        metric(section.flops as f64, "FLOP"),
        duration(section.seconds),
        bytes(section.transient_bytes),
        bytes(section.largest_live_bytes)
    )
}

fn sentence(plan: &Report, history: &History) -> String {
    let mut out = String::from(
        "Work, time and bytes are those of one call; calls are counted in one training step.",
    );
    let measured = median(history.steps.iter().map(|s| s.seconds)).filter(|s| *s > 0.0);
    if let Some(measured) = measured {
        let _ = write!(out, " The median step took {}", duration(measured));
        match history.start.as_ref().filter(|s| s.ranks > 1) {
            // What is predicted is one rank's part, with the machine to itself.
            Some(start) => {
                let (ranks, threads) = (count(start.ranks), plural(start.threads, "thread"));
                let _ = write!(out, " on all {ranks} ranks, which share {threads}.");
            }
            None => out += &held_against(plan, measured),
        }
    }
    let _ = write!(out, " Planning took {}.", duration(plan.planning_seconds));
    out
}

/// The prediction beside the clock.
fn held_against(plan: &Report, measured: f64) -> String {
    let mut out = String::new();
    if plan.seconds > 0.0 {
        let ratio = number(measured / plan.seconds, 3);
        let _ = write!(out, ", {ratio} times what was predicted");
    }
    let speed = metric(plan.flops_per_step as f64 / measured, "FLOP/s");
    let _ = write!(out, ", at {speed}.");
    out
}
