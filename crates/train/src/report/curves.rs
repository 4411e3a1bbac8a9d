//! The loss over the steps, and below it the learning rate and the gradient norm.

use super::history::{Eval, History, Step};
use super::plot::Plot;
use super::series::{Point, Range, evenly, extremes, quantile, smooth};
use super::text::{count, escape, number, plural, superscript};
use std::fmt::Write;

/// Runs of steps that a line keeps the extremes of.
const BINS: usize = 400;
/// Places where the pointer reads.
const READ_OUTS: usize = 600;
/// From so many steps on, a few high values do not decide the range.
const CLIP_STEPS: usize = 100;

/// The charts; a sentence where no step was made.
pub(super) fn html(history: &History) -> String {
    let steps = &history.steps;
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else {
        return "<p>No step was made.</p>\n".to_owned();
    };
    let held = held_out(history);
    let start = held.first().map_or(first.step, |e| e.step.min(first.step));
    // One step alone lies in the middle between its neighbours.
    let end = if last.step == start { start + 1 } else { last.step };
    let start = if last.step == start { start.saturating_sub(1) } else { start } as f64;
    // Room for the first and the last point.
    let room = (end as f64 - start) * 0.008;
    let x = Range::new(start - room, end as f64 + room);
    let unit = history.token_unit();
    let (loss, clipped) = loss_chart(steps, &held, x);
    let (norm, norms_clipped) = norm_chart(steps, x);
    let mut out = String::from("<figure class=\"wide\">\n");
    out += &key(unit, steps, !held.is_empty());
    out += &loss;
    out += &rate_chart(steps, x);
    out += &norm;
    let _ = writeln!(out, "<p class=\"below\">step</p>");
    let caption = caption(steps, &held, unit, &[("loss", clipped), ("norm", norms_clipped)]);
    let _ = writeln!(out, "<figcaption>{caption}</figcaption>");
    out.push_str("</figure>\n");
    out
}

/// The scores of one split: the one that was scored last.
fn held_out(history: &History) -> Vec<&Eval> {
    let Some(last) = history.evals.last() else { return vec![] };
    history.evals.iter().filter(|e| e.split == last.split).collect()
}

fn reach(steps: &[Step]) -> usize {
    if steps.len() < 30 { 0 } else { (steps.len() / 60).clamp(1, 500) }
}

fn key(unit: &str, steps: &[Step], held: bool) -> String {
    let mut out = format!("<p class=\"key\"><b>loss, bits per {unit}</b>");
    out.push_str("<span><i class=\"swatch raw\"></i>training, each step</span>");
    let window = 2 * reach(steps) + 1;
    if window > 1 {
        let _ = write!(out, "<span><i class=\"swatch mean\"></i>mean of {window} steps</span>");
    }
    if held {
        out.push_str("<span><i class=\"swatch dot\"></i>held-out</span>");
    }
    out.push_str("</p>\n");
    out
}

/// A range that the many decide: where a few values lie far above the others, they are cut off.
fn range_of(many: &[Point], few: &[Point]) -> Range {
    let all = || many.iter().chain(few).map(|p| p.1).filter(|v| v.is_finite());
    let (lo, hi) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    let usual = quantile(many.iter().map(|p| p.1), 0.95).unwrap_or(hi);
    let top = lo + (usual - lo) * 1.3;
    let hi = if many.len() >= CLIP_STEPS && top > lo { hi.min(top) } else { hi };
    let margin = (hi - lo) * 0.05;
    Range::new(lo - margin, hi + margin)
}

/// The chart, and what of the loss lies above it.
fn loss_chart(steps: &[Step], held: &[&Eval], x: Range) -> (String, Vec<Point>) {
    let raw: Vec<Point> = steps.iter().map(|s| (s.step as f64, s.loss_bits)).collect();
    let mean = smooth(&raw, reach(steps));
    let scores: Vec<Point> = held.iter().map(|e| (e.step as f64, e.bits_per_token)).collect();
    let y = range_of(&raw, &scores);
    let mut plot = Plot::new(x, y);
    plot.y_ticks(7, 1.0);
    plot.x_ticks(false);
    let thin = extremes(&raw, BINS);
    plot.line(&thin, if reach(steps) > 0 { "raw" } else { "mean" });
    if reach(steps) > 0 {
        plot.line(&extremes(&mean, BINS), "mean");
    }
    let scores_shown = extremes(&scores, BINS);
    plot.line(&scores_shown, "held-line");
    plot.dots(&scores_shown, "held-edge");
    plot.dots(&scores_shown, "held");
    for i in evenly(steps.len(), READ_OUTS) {
        let s = &steps[i];
        let mut text = format!("step {} · loss {}", count(s.step), number(s.loss_bits, 4));
        if reach(steps) > 0 {
            let _ = write!(text, " · mean {}", number(mean[i].1, 4));
        }
        let rate = number(s.learning_rate, 3);
        let _ = write!(text, " · rate {rate} · norm {}", number(s.grad_norm, 3));
        if let Some(e) = held.iter().rfind(|e| e.step <= s.step) {
            let bits = number(e.bits_per_token, 4);
            let _ = write!(text, " · held-out {bits} at {}", count(e.step));
        }
        plot.read_out(s.step as f64, &text);
    }
    let clipped = raw.iter().chain(&scores).copied().filter(|p| p.1 > y.hi).collect();
    let (first, last) = (raw[0].1, raw[raw.len() - 1].1);
    let about =
        format!("Loss over the steps, from {} to {} bits", number(first, 4), number(last, 4));
    (plot.html("tall", &about), clipped)
}

/// A power of ten that the labels leave out, where they would be long.
fn axis_unit(most: f64) -> (f64, String) {
    if most.is_finite() && most > 0.0 && !(0.02..2e4).contains(&most) {
        let exponent = most.log10().floor() as i32;
        (10f64.powi(exponent), format!(", 10{}", superscript(exponent)))
    } else {
        (1.0, String::new())
    }
}

fn rate_chart(steps: &[Step], x: Range) -> String {
    let points: Vec<Point> = steps.iter().map(|s| (s.step as f64, s.learning_rate)).collect();
    let most = points.iter().map(|p| p.1).fold(0.0, f64::max);
    let (unit, name) = axis_unit(most);
    let mut plot = Plot::new(x, Range::new(0.0, most * 1.1));
    plot.y_ticks(5, unit);
    plot.x_ticks(false);
    plot.line(&extremes(&points, BINS), "mean");
    let about = format!("Learning rate over the steps, at most {}", number(most, 3));
    let title = format!("<p class=\"key\"><b>learning rate{}</b></p>\n", escape(&name));
    title + &plot.html("low", &about)
}

/// The chart, and the norms that lie above it.
fn norm_chart(steps: &[Step], x: Range) -> (String, Vec<Point>) {
    let points: Vec<Point> = steps.iter().map(|s| (s.step as f64, s.grad_norm)).collect();
    let hi = range_of(&points, &[]).hi;
    let (unit, name) = axis_unit(hi);
    let mut plot = Plot::new(x, Range::new(0.0, hi));
    plot.y_ticks(5, unit);
    plot.x_ticks(true);
    plot.line(&extremes(&points, BINS), if reach(steps) > 0 { "raw" } else { "mean" });
    if reach(steps) > 0 {
        plot.line(&extremes(&smooth(&points, reach(steps)), BINS), "mean");
    }
    let title = format!("<p class=\"key\"><b>gradient norm{}</b></p>\n", escape(&name));
    let clipped = points.iter().copied().filter(|p| p.1 > hi).collect();
    (title + &plot.html("low", "Norm of the gradient over the steps"), clipped)
}

fn caption(steps: &[Step], held: &[&Eval], unit: &str, clipped: &[(&str, Vec<Point>)]) -> String {
    let mut out = String::from("Training loss of the weights before each update");
    if reach(steps) > 0 {
        out.push_str(", light, and its running mean, dark");
    }
    if !held.is_empty() {
        out.push_str("; held-out loss as points");
    }
    out.push('.');
    for (what, above) in clipped {
        let Some(most) = above.iter().map(|p| p.1).reduce(f64::max) else { continue };
        let (values, most) = (plural(above.len() as u64, "value"), number(most, 4));
        let _ = write!(out, " Above the chart of the {what}: {values}, up to {most}.");
    }
    let broken = steps.iter().filter(|s| !s.loss_bits.is_finite()).count();
    if broken > 0 {
        let _ = write!(out, " Not finite: the loss of {}.", plural(broken as u64, "step"));
    }
    if let Some(skipped) = steps.last().map(|s| s.skipped).filter(|&n| n > 0) {
        let _ = write!(out, " Skipped for an overflow: {}.", plural(skipped, "step"));
    }
    match held.last() {
        Some(e) => {
            let _ = write!(
                out,
                " Last score on {}: {} bits per {unit}",
                escape(&e.split),
                number(e.bits_per_token, 4)
            );
            if e.unit != unit {
                let _ = write!(out, ", {} bits per {}", number(e.bits, 4), escape(&e.unit));
            }
            let tokens = plural(e.tokens, unit);
            let _ = write!(out, ", perplexity {}, over {tokens}.", number(e.perplexity, 4));
        }
        None => out.push_str(" No held-out data was scored."),
    }
    out
}
