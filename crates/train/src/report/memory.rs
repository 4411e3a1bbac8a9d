//! Memory over the kernels of a training step, by kind, and what is alive at the peak.

use super::history::History;
use super::plot::Plot;
use super::series::{Point, Range, maxima, tick_digits, tick_step, ticks};
use super::text::{bytes, count, escape, plural};
use aerogel_plan::{Kind, Kinds, Report, SectionReport};
use std::fmt::Write;

/// Places that the areas have.
const BINS: usize = 800;
const KINDS: usize = Kinds::COUNT;
/// Position of `holes` in [`Kinds::list`].
const HOLES: usize = KINDS - 1;

/// The timeline, the legend and the largest values.
pub(super) fn html(plan: &Report, history: &History) -> String {
    let shown = sections_of_a_step(plan);
    if shown.iter().all(|s| s.timeline.is_empty()) {
        return "<p>The plan has no kernels.</p>\n".to_owned();
    }
    let mut out = String::from("<figure class=\"wide\">\n");
    out += "<p class=\"key\"><b>bytes over the kernels of a step, in order</b></p>\n";
    out += &timeline(plan, &shown);
    out += &legend(plan);
    let _ = writeln!(out, "<figcaption>{}</figcaption>\n</figure>", caption(plan, history));
    out += &largest(plan);
    out
}

/// The micro-batch that is run most often, or the one of the peak, in a pipeline forward and
/// backward of each chunk; then the update; last a section outside the step if the peak is there.
fn sections_of_a_step(plan: &Report) -> Vec<&SectionReport> {
    let is_peak = |s: &&SectionReport| s.name == plan.peak_section;
    let mut shown: Vec<&SectionReport> = vec![];
    for section in plan.sections.iter().filter(|s| s.calls > 0) {
        let same = shown.iter().position(|s| group(&s.name) == group(&section.name));
        let Some(at) = same else {
            shown.push(section);
            continue;
        };
        let is_better = section.calls >= shown[at].calls && !is_peak(&shown[at]);
        if is_peak(&section) || is_better {
            shown[at] = section;
        }
    }
    if let Some(peak) = plan.sections.iter().find(is_peak)
        && !shown.iter().any(|s| s.name == peak.name)
    {
        shown.push(peak);
    }
    shown
}

/// Sections of one group differ in what they add up, and in little else.
fn group(name: &str) -> &str {
    name.find("micro.").map_or(name, |at| &name[..at])
}

/// What outlives sections, by kind: what is there at the peak and not alive in its section only.
fn states(plan: &Report) -> [u64; KINDS] {
    let section = plan.sections.iter().find(|s| s.name == plan.peak_section);
    let alive = section.and_then(|s| s.timeline.get(plan.peak_index));
    let alive = alive.map_or(Kinds::default(), |m| m.alive).list();
    let all = plan.kinds.list();
    let mut states = std::array::from_fn(|k| all[k].1.saturating_sub(alive[k].1));
    states[HOLES] = 0;
    states
}

/// The heights of all layers at a moment, from below: states by kind, then the section's own.
fn layers(states: &[u64; KINDS], alive: &Kinds) -> [u64; 2 * HOLES] {
    let alive = alive.list();
    let mut top = 0;
    std::array::from_fn(|i| {
        top += if i < HOLES { states[i] } else { alive[i - HOLES].1 };
        top
    })
}

fn timeline(plan: &Report, shown: &[&SectionReport]) -> String {
    let states = states(plan);
    let kernels: usize = shown.iter().map(|s| s.timeline.len()).sum();
    let most = plan.total_bytes.max(plan.kinds.total()) as f64;
    let mut plot = Plot::new(Range::new(0.0, kernels as f64), Range::new(0.0, most * 1.16));
    byte_ticks(&mut plot, most);
    plot.x_ticks(true);
    let mut tops: Vec<Vec<Point>> = vec![vec![]; 2 * HOLES];
    let (mut offset, mut borders) = (0, vec![]);
    for section in shown {
        let totals: Vec<u64> = section.timeline.iter().map(|m| m.alive.total()).collect();
        let bins = (BINS * totals.len()).div_ceil(kernels.max(1));
        for (start, i) in maxima(&totals, bins) {
            let moment = &section.timeline[i];
            let heights = layers(&states, &moment.alive);
            let x = (offset + start) as f64;
            for (top, height) in tops.iter_mut().zip(heights) {
                top.push((x, height as f64));
            }
            let all = bytes(heights[2 * HOLES - 1]);
            let at = count(i as u64 + 1);
            let text = format!("{all} · {} {at} · {}", section.name, moment.step.trim());
            plot.read_out((offset + i) as f64 + 0.5, &text);
        }
        let end = offset + totals.len();
        plot.stretch(offset as f64, end as f64, &stretch_name(section, kernels));
        borders.extend((offset > 0).then_some(offset));
        offset = end;
    }
    areas(&mut plot, &tops, kernels, plan);
    for border in borders {
        plot.vertical(border as f64, "border");
    }
    peak(&mut plot, plan, shown);
    let about = format!(
        "Memory over {}; the peak of {} is in {}",
        plural(kernels as u64, "kernel"),
        bytes(plan.total_bytes),
        plan.peak_section
    );
    plot.html("tall timeline", &about)
}

/// The name of a section, and how often it is called where there is room.
fn stretch_name(section: &SectionReport, kernels: usize) -> String {
    match section.calls {
        1.. if 10 * section.timeline.len() < kernels => section.name.clone(),
        0 => format!("{}, outside the step", section.name),
        1 => section.name.clone(),
        n => format!("{} × {}", section.name, count(n)),
    }
}

/// Each layer is painted down to the axis, the highest first: the next one covers its lower part.
fn areas(plot: &mut Plot, tops: &[Vec<Point>], kernels: usize, plan: &Report) {
    let kinds = plan.kinds.list();
    let idle = [(0.0, plan.total_bytes as f64)];
    plot.stairs(&idle, kernels as f64, "holes");
    for i in (0..tops.len()).rev() {
        let below = i.checked_sub(1).map(|b| &tops[b]);
        let empty = match below {
            Some(below) => *below == tops[i],
            None => tops[i].iter().all(|p| p.1 == 0.0),
        };
        if !empty {
            plot.stairs(&tops[i], kernels as f64, &class(kinds[i % HOLES].0));
        }
    }
    plot.horizontal(plan.total_bytes as f64, "arena");
}

fn peak(plot: &mut Plot, plan: &Report, shown: &[&SectionReport]) {
    let before = shown.iter().take_while(|s| s.name != plan.peak_section);
    let before: usize = before.map(|s| s.timeline.len()).sum();
    let all: usize = shown.iter().map(|s| s.timeline.len()).sum();
    let x = (before + plan.peak_index) as f64 + 0.5;
    plot.vertical(x, "peak");
    let used = plan.kinds.total() - plan.kinds.holes_bytes;
    let top = plan.total_bytes as f64;
    let text = format!("peak {} in {}, {}", bytes(used), plan.peak_section, plan.peak_step.trim());
    plot.note(x, top * 1.085, &text, "peak-note");
    // On the other side of the peak, and between the line and the peak's text.
    let side = if x > all as f64 / 2.0 { 0.0 } else { all as f64 };
    plot.note(side, top * 1.005, &format!("arena {}", bytes(plan.total_bytes)), "");
}

/// A kind's name where there is little room.
pub(super) fn short(kind: &str) -> &str {
    kind.strip_prefix("activations ").unwrap_or(kind)
}

/// The class of a kind's colour.
fn class(kind: &str) -> String {
    kind.replace(' ', "-")
}

fn byte_ticks(plot: &mut Plot, most: f64) {
    let power = ((most.max(1.0).log2() / 10.0).floor() as i32).clamp(0, 5);
    let unit = 1024f64.powi(power);
    let name = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][power as usize];
    let range = Range::new(0.0, most / unit);
    let digits = tick_digits(tick_step(range, 6));
    for v in ticks(range, 6) {
        let text = if v == 0.0 { "0".to_owned() } else { format!("{v:.digits$} {name}") };
        plot.y_tick(v * unit, &text);
    }
}

fn share(part: u64, whole: u64) -> String {
    let percent = if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 };
    format!("{percent:.1}%")
}

fn legend(plan: &Report) -> String {
    let total = plan.total_bytes;
    let mut out = String::from("<ul class=\"legend\">\n");
    for (name, size) in plan.kinds.list().into_iter().filter(|k| k.1 > 0) {
        let _ = writeln!(
            out,
            "<li><i class=\"swatch {}\"></i>{} <b>{}</b> <small>{}</small></li>",
            class(name),
            short(name),
            bytes(size),
            share(size, total)
        );
    }
    let _ = writeln!(
        out,
        "<li><i class=\"swatch arena\"></i>arena <b>{}</b> <small>{}</small></li>\n</ul>",
        bytes(total),
        share(total, total)
    );
    out
}

fn caption(plan: &Report, history: &History) -> String {
    let section = plan.sections.iter().find(|s| s.name == plan.peak_section);
    let kernels = section.map_or(0, |s| s.timeline.len()) as u64;
    let mut out = format!(
        "States, {}, lie below what a section holds for a while. The peak is in section \
         <em>{}</em> at kernel {} of {}: <code>{}</code>. Pale: reserved and not in use; the \
         legend is that of the peak.",
        bytes(plan.state_bytes),
        escape(&plan.peak_section),
        count(plan.peak_index as u64 + 1),
        count(kernels),
        escape(plan.peak_step.trim())
    );
    let Some(start) = &history.start else { return out };
    let _ = match start.ranks {
        0 | 1 => write!(out, " Allocated: {}.", bytes(start.allocated_bytes)),
        n => write!(
            out,
            " Shown is one rank; allocated for all {} of them: {}.",
            count(n),
            bytes(start.allocated_bytes)
        ),
    };
    if start.library_bytes > 0 {
        let _ = write!(out, " Taken by libraries beside it: {}.", bytes(start.library_bytes));
    }
    let resident = history.steps.iter().map(|s| s.resident_bytes).max().unwrap_or(0);
    if resident > 0 {
        let _ = write!(out, " The process was resident with {} at most.", bytes(resident));
    }
    out
}

/// As in [`Kinds::list`].
fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Parameters => "parameters",
        Kind::Master => "master",
        Kind::Gradients => "gradients",
        Kind::Optimizer => "optimizer",
        Kind::InFlight => "activations in flight",
        Kind::Activations => "activations",
        Kind::Workspace => "workspace",
        Kind::Data => "data",
        Kind::Holes => "holes",
    }
}

fn largest(plan: &Report) -> String {
    if plan.peak_values.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "<div class=\"scroll\"><table>\n<caption>The largest values alive at the peak, beside the \
         states</caption>\n<thead><tr><th>value</th><th>kind</th><th class=\"n\">bytes</th>\
         <th class=\"n\">of the arena</th></tr></thead>\n<tbody>\n",
    );
    for value in &plan.peak_values {
        let kind = kind_name(value.kind);
        let _ = writeln!(
            out,
            "<tr><td><code>{}</code></td><td class=\"kind\"><i class=\"swatch {}\"></i>{kind}\
             </td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            escape(value.name.trim()),
            class(kind),
            bytes(value.bytes),
            share(value.bytes, plan.total_bytes)
        );
    }
    out.push_str("</tbody>\n</table></div>\n");
    out
}
