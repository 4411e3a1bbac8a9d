//! The pipeline: its schedule over time, and what its stages hold.

use super::memory::short;
use super::plot::Plot;
use super::series::{Range, evenly, tick_digits, tick_step, ticks};
use super::text::{THIN, bytes, count, duration, escape, metric, number, plural};
use crate::plan_rank::{PipelinePlan, RankPlan, StagePlan};
use aerogel_passes::pipeline::{Pass, Span};
use aerogel_plan::Kinds;
use std::fmt::Write;

/// The most actions that are drawn: larger pages are slow.
const ACTIONS_MAX: usize = 16_000;
/// The most stages that are drawn.
const ROWS_MAX: usize = 64;
/// From so many actions of a stage on, boxes have next to no edges.
const DENSE: usize = 100;
/// Places where the pointer reads, and the most stages that it reads of.
const READ_OUTS: usize = 400;
const READ_STAGES_MAX: usize = 8;
/// Height of a row, in the page's unit of text.
const ROW_REM: f64 = 1.6;
/// How much of a row its actions fill.
const FILL: f64 = 0.84;
/// Width of a digit and of the room beside a number, percent of the chart.
const DIGIT_PERCENT: f64 = 0.85;
const ROOM_PERCENT: f64 = 0.45;
/// Narrower boxes have no room for their number on a narrow screen.
const FINE_PERCENT: f64 = 3.6;

/// The picture and the table; nothing where there is no pipeline.
pub(super) fn html(rank: &RankPlan<'_>) -> String {
    let Some(pipeline) = &rank.pipeline else { return String::new() };
    let mut out = String::from("<figure class=\"wide\">\n");
    let (rows, left_out) = rows(pipeline);
    if !rows.is_empty() {
        out += &key(pipeline);
        out += &gantt(pipeline, &rows);
    }
    let caption = caption(pipeline, left_out);
    let _ = writeln!(out, "<figcaption>{caption}</figcaption>\n</figure>");
    out += &table(&rank.stages);
    out
}

/// The stages that are drawn, and how many are not.
fn rows(pipeline: &PipelinePlan) -> (Vec<usize>, usize) {
    let ranks = &pipeline.timeline.ranks;
    let most = (ACTIONS_MAX / longest(pipeline).max(1)).min(ROWS_MAX);
    let rows = if most < 2 { vec![] } else { evenly(ranks.len(), most) };
    let left_out = ranks.len() - rows.len();
    (rows, left_out)
}

/// Actions of the stage that has most.
fn longest(pipeline: &PipelinePlan) -> usize {
    pipeline.timeline.ranks.iter().map(Vec::len).max().unwrap_or(0)
}

fn chunks(pipeline: &PipelinePlan) -> usize {
    pipeline.slots.iter().map(Vec::len).max().unwrap_or(1)
}

fn key(pipeline: &PipelinePlan) -> String {
    let mut out = String::from("<p class=\"key\"><b>stages over the time of a step</b>");
    for (class, name) in [("forward", "forward"), ("backward", "backward")] {
        for chunk in 0..chunks(pipeline).min(2) {
            let tint = tint(chunk);
            let name = match (chunks(pipeline), chunk) {
                (1, _) => name.to_owned(),
                (2, 0) => format!("{name}, chunk 0"),
                (2, _) => "chunk 1".to_owned(),
                (_, 0) => format!("{name}, even chunks"),
                (_, _) => "odd chunks".to_owned(),
            };
            let _ = write!(out, "<span><i class=\"swatch {class}{tint}\"></i>{name}</span>");
        }
    }
    out + "<span><i class=\"swatch holes\"></i>idle</span></p>\n"
}

/// Chunks of one rank are told apart by turns.
fn tint(chunk: usize) -> &'static str {
    if chunk % 2 == 1 { " odd" } else { "" }
}

fn gantt(pipeline: &PipelinePlan, rows: &[usize]) -> String {
    let timeline = &pipeline.timeline;
    let count = rows.len() as f64;
    let total = timeline.total_seconds;
    let mut plot = Plot::new(Range::new(0.0, total), Range::new(0.0, count));
    plot.height_rem(ROW_REM * count);
    let floor = |row: usize| count - 1.0 - row as f64 + (1.0 - FILL) / 2.0;
    let idle: Vec<_> = (0..rows.len()).map(|r| [0.0, total, floor(r), floor(r) + FILL]).collect();
    plot.boxes(&idle, "holes");
    // Edges of many boxes would hide what is between them.
    let dense = if longest(pipeline) > DENSE { " dense" } else { "" };
    for (pass, class) in [(Pass::Forward, "forward"), (Pass::Backward, "backward")] {
        for odd in [0, 1] {
            let mut boxes = vec![];
            for (row, &stage) in rows.iter().enumerate() {
                let is_shown = |s: &&Span| {
                    // Weights are part of the backward.
                    let is_forward = s.action.pass == Pass::Forward;
                    is_forward == (pass == Pass::Forward) && s.action.chunk % 2 == odd
                };
                let spans = timeline.ranks[stage].iter().filter(is_shown);
                let low = floor(row);
                boxes.extend(spans.map(|s| [s.start_seconds, s.end_seconds, low, low + FILL]));
            }
            plot.boxes(&boxes, &format!("action{dense} {class}{}", tint(odd)));
        }
    }
    for (row, &stage) in rows.iter().enumerate() {
        let middle = floor(row) + FILL / 2.0;
        plot.y_name(middle, &format!("stage {stage}"));
        for span in &timeline.ranks[stage] {
            let text = span.action.micro.to_string();
            let percent = 100.0 * (span.end_seconds - span.start_seconds) / total;
            if percent >= DIGIT_PERCENT * text.len() as f64 + ROOM_PERCENT {
                let class = if percent < FINE_PERCENT { "fine" } else { "" };
                plot.inside(span.start_seconds, span.end_seconds, middle, &text, class);
            }
        }
    }
    time_ticks(&mut plot, total);
    read_outs(&mut plot, pipeline);
    let about = format!(
        "Forward and backward of each micro-batch on {}; {} of the time is idle",
        plural(timeline.ranks.len() as u64, "stage"),
        percent(timeline.bubble)
    );
    plot.html("gantt", &about)
}

fn time_ticks(plot: &mut Plot, total: f64) {
    let units = [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")];
    let (unit, name) = units.into_iter().find(|u| total >= u.0).unwrap_or((1e-6, "µs"));
    let range = Range::new(0.0, total / unit);
    let digits = tick_digits(tick_step(range, 7));
    for (i, v) in ticks(range, 7).into_iter().enumerate() {
        let text = if v == 0.0 { "0".to_owned() } else { format!("{v:.digits$}{THIN}{name}") };
        plot.x_tick(v * unit, &text, i % 2 == 1);
    }
}

/// What every stage does at a time.
fn read_outs(plot: &mut Plot, pipeline: &PipelinePlan) {
    let timeline = &pipeline.timeline;
    if timeline.ranks.len() > READ_STAGES_MAX {
        return;
    }
    for i in 0..READ_OUTS {
        let at = timeline.total_seconds * (i as f64 + 0.5) / READ_OUTS as f64;
        let mut text = duration(at);
        for spans in &timeline.ranks {
            let next = spans.partition_point(|s| s.end_seconds <= at);
            match spans.get(next).filter(|s| s.start_seconds <= at) {
                Some(span) => _ = write!(text, " · {}", span.action),
                None => text += " · idle",
            }
        }
        plot.read_out(at, &text);
    }
}

fn percent(share: f64) -> String {
    format!("{}{THIN}%", number(100.0 * share, 3))
}

fn caption(pipeline: &PipelinePlan, left_out: usize) -> String {
    let timeline = &pipeline.timeline;
    let stages = timeline.ranks.len() as u64;
    let micros = timeline.ranks.iter().flatten().map(|s| s.action.micro + 1).max().unwrap_or(0);
    let mut out = format!(
        "Schedule <em>{}</em> over {}, {}",
        escape(&pipeline.schedule),
        plural(stages, "stage"),
        plural(micros as u64, "micro-batch").replace("micro-batchs", "micro-batches")
    );
    if chunks(pipeline) > 1 {
        let _ = write!(out, ", {} on each stage", plural(chunks(pipeline) as u64, "chunk"));
    }
    let _ = write!(
        out,
        ". From the first forward to the last backward it takes {}, and the bubble is <em>{}</em> \
         of the time of all ranks. Numbers are those of micro-batches; seconds are predicted, and \
         messages are taken to need none.",
        duration(timeline.total_seconds),
        percent(timeline.bubble)
    );
    if pipeline.is_uniform {
        out += " One stage was planned, and its seconds stand for those of all.";
    }
    if left_out > 0 {
        let _ = write!(out, " Not drawn: {} more.", plural(left_out as u64, "stage"));
    }
    out
}

fn table(stages: &[StagePlan<'_>]) -> String {
    let lists: Vec<_> = stages.iter().map(|s| s.report.kinds.list()).collect();
    // All but the holes.
    let shown: Vec<usize> =
        (0..Kinds::COUNT - 1).filter(|&k| lists.iter().any(|list| list[k].1 > 0)).collect();
    let mut out = String::from(
        "<div class=\"scroll\"><table class=\"dense\">\n<caption>One rank of each stage</caption>\n\
         <thead><tr><th>stage</th><th>layers</th><th class=\"n\">parameters</th>\
         <th class=\"n\">work</th><th class=\"n\">slots</th>\
         <th class=\"n\">memory</th>",
    );
    let names = lists.first().map(|list| list.map(|k| k.0)).unwrap_or_default();
    for &k in &shown {
        let _ = write!(out, "<th class=\"n\">{}</th>", short(names[k]));
    }
    out += "</tr></thead>\n<tbody>\n";
    for (stage, list) in stages.iter().zip(&lists) {
        let slots: Vec<String> = stage.slots.iter().map(usize::to_string).collect();
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td>",
            stage.stage,
            stage.layers_text(),
            count(stage.parameters),
            metric(stage.report.flops_per_step as f64, "FLOP"),
            slots.join(" + "),
            bytes(stage.report.total_bytes)
        );
        for &k in &shown {
            let _ = write!(out, "<td class=\"n\">{}</td>", bytes(list[k].1));
        }
        out += "</tr>\n";
    }
    out += "</tbody>\n</table></div>\n<p class=\"caption\">Slots are the micro-batches whose \
            activations a rank keeps at most, by chunk; work is that of one step. Behind memory \
            stand its kinds at the peak.</p>\n";
    out
}
