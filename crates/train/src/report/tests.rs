//! The page as a whole, from made-up events and a made-up plan; and its small tools.

use super::series::{Range, extremes, maxima, smooth, ticks};
use super::text::{bytes, count, duration, escape, metric, number};
use super::{Page, base64, html};
use crate::plan_rank::{PipelinePlan, RankPlan, StagePlan, Traffic, Zero};
use aerogel_graph::Mesh;
use aerogel_passes::pipeline::{Kind as Order, Seconds, schedule, timeline};
use aerogel_plan::{Kind, Kinds, Moment, Report, SectionReport, Share};
use serde_json::json;
use std::path::{Path, PathBuf};

#[test]
fn what_could_be_markup_is_escaped() {
    assert_eq!(escape("<a b='\"&'>"), "&lt;a b=&#39;&quot;&amp;&#39;&gt;");
    assert_eq!(escape("a\n\tb\0\r\u{7f}"), "a\n\tb␀␍\u{fffd}");
    assert_eq!(escape("abc\u{202e}def"), "abc\u{fffd}def");
}

#[test]
fn numbers_read_well() {
    assert_eq!(count(1234), "1234");
    assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
    assert_eq!(number(1.23456, 4), "1.235");
    assert_eq!(number(0.000_012_3, 3), "1.23·10⁻⁵");
    assert_eq!(number(-0.5, 2), "−0.50");
    assert_eq!(number(f64::NAN, 3), "–");
    assert_eq!((bytes(999), bytes(1000)), ("999\u{202f}B".into(), "0.977\u{202f}KiB".into()));
    assert_eq!(bytes(3 << 29), "1.50\u{202f}GiB");
    assert_eq!(metric(10_700_000.0, ""), "10.7\u{202f}M");
    assert_eq!(metric(2.5e12, "FLOP/s"), "2.50\u{202f}TFLOP/s");
    assert_eq!(duration(0.00025), "250\u{202f}µs");
    assert_eq!(duration(75.0), "1\u{202f}min 15\u{202f}s");
    assert_eq!(duration(7260.0), "2\u{202f}h 01\u{202f}min");
}

#[test]
fn base64_has_the_known_answers() {
    let answers =
        [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
    for (bytes, text) in answers {
        assert_eq!(base64::encode(bytes.as_bytes()), text);
    }
    assert_eq!(base64::encode(&[0xff, 0xfe, 0xfb]), "//77");
}

#[test]
fn ticks_are_round_and_inside() {
    assert_eq!(ticks(Range::new(0.0, 10.0), 6), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
    let fine = ticks(Range::new(0.9, 2.1), 7).into_iter().map(|t| format!("{t:.9}"));
    let round = [1.0, 1.2, 1.4, 1.6, 1.8, 2.0].map(|t| format!("{t:.9}"));
    assert_eq!(fine.collect::<Vec<_>>(), round);
    for (lo, hi) in [(-3.0, 17.3), (1e-9, 2e-9), (0.0, 1e12), (5.0, 5.0), (f64::NAN, 1.0)] {
        let range = Range::new(lo, hi);
        let found = ticks(range, 7);
        assert!((2..=7).contains(&found.len()), "{lo} to {hi}: {found:?}");
        assert!(found.iter().all(|t| (-1e-9..=1.0 + 1e-9).contains(&range.part(*t))));
    }
}

#[test]
fn fewer_points_keep_the_extremes() {
    let mut points: Vec<_> = (0..100_000).map(|i| (f64::from(i), f64::from(i % 7))).collect();
    points[31_234].1 = 99.0;
    points[77_777].1 = -99.0;
    points[50_000].1 = f64::NAN;
    let kept = extremes(&points, 400);
    assert!(kept.len() <= 802, "{}", kept.len());
    for kept_point in [points[31_234], points[77_777], points[0], points[99_999]] {
        assert!(kept.contains(&kept_point));
    }
    assert!(kept.is_sorted_by(|a, b| a.0 <= b.0) && kept.iter().all(|p| p.1.is_finite()));

    let mut values = vec![1; 10_000];
    values[4321] = 5;
    let kept = maxima(&values, 800);
    assert!(kept.len() <= 800 && kept.iter().any(|k| k.1 == 4321));
    assert_eq!(maxima(&[3, 4], 800), [(0, 0), (1, 1)]);
    assert_eq!(maxima(&[], 800), []);
}

#[test]
fn means_skip_what_is_not_finite() {
    let points = [(0.0, 8.0), (1.0, 1.0), (2.0, f64::NAN), (3.0, 3.0)];
    let means: Vec<f64> = smooth(&points, 1).iter().map(|p| p.1).collect();
    assert_eq!(means, [8.0, 4.5, 2.0, 3.0]);
}

/// A line of the stream.
fn line(value: serde_json::Value) -> String {
    format!("{value}\n")
}

fn start() -> String {
    line(json!({
        "v": 1, "event": "start", "step": 0, "run": "runs/x", "resumed": false, "steps": 2000,
        "parameters": 10_745_088, "tokens_per_step": 16384, "flops_per_step": 1_060_000_000_000u64,
        "planned_bytes": 1_262_485_504u64, "allocated_bytes": 1_262_485_504u64,
        "library_bytes": 4 << 20, "device": "cpu", "threads": 16,
        "run_hash": "9f86d081884c7d65", "plan_hash": "2c26b46b68ffc68f",
    }))
}

/// Noise that is the same each time.
fn noise(i: u64) -> f64 {
    let mixed = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (i << 7);
    (mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f64 / (1u64 << 24) as f64 - 0.5
}

fn step(step: u64, steps: u64) -> String {
    let done = step as f64 / steps as f64;
    let loss = 1.48 + 6.5 * (-30.0 * done).exp() + 0.9 * (1.0 - done).powi(3);
    let rate = 6e-4 * (done * 20.0).min(1.0) * (0.55 + 0.45 * (std::f64::consts::PI * done).cos());
    let norm = 0.4 + 3.0 * (-40.0 * done).exp() + 0.2 * noise(step * 3).abs();
    line(json!({
        "v": 1, "event": "step", "step": step, "loss_bits": loss + 0.16 * noise(step),
        "learning_rate": rate, "grad_norm": norm, "tokens": step * 16384, "seconds": 0.81,
        "tokens_per_second": 20227.0 + 300.0 * noise(step), "resident_bytes": 1_400_000_000u64,
        "eta_seconds": 10.0,
    }))
}

fn eval(step: u64, steps: u64) -> String {
    let done = step as f64 / steps as f64;
    let bits = 1.55 + 6.45 * (-30.0 * done).exp() + 0.85 * (1.0 - done).powi(3);
    line(json!({
        "v": 1, "event": "eval", "step": step, "split": "validation", "bits": bits / 1.0,
        "unit": "byte", "bits_per_token": bits, "perplexity": bits.exp2(), "tokens": 102_400,
        "seconds": 2.5,
    }))
}

fn metrics(steps: u64) -> String {
    let mut out = start() + &eval(0, steps);
    for s in 1..=steps {
        out += &step(s, steps);
        if s.is_multiple_of((steps / 10).max(1)) {
            out += &eval(s, steps);
        }
    }
    out + &line(json!({
        "v": 1, "event": "sample", "step": steps, "file": "samples/step-00002000.txt",
        "text": ["ROMEO:\nWhat light is <b>this</b>, that breaks & so?\u{1}", "JULIET:\nAy me!"],
        "seconds": 1.0,
    })) + &line(json!({
        "v": 1, "event": "warning", "step": 4, "message": "checkpoint 4 is <damaged>",
    }))
}

const MIB: u64 = 1 << 20;

/// A section like that of a transformer: activations pile up, and melt into gradients.
fn micro(blocks: u64) -> SectionReport {
    let ops =
        ["norm", "matmul qkv", "rope", "attention", "matmul out", "norm", "matmul up", "gelu"];
    let mut timeline = vec![];
    let kernels = blocks * ops.len() as u64;
    for i in 0..2 * kernels {
        let forward = i < kernels;
        let depth = if forward { i } else { 2 * kernels - i };
        let alive = Kinds {
            parameters_bytes: 20 * MIB,
            gradients_bytes: if forward { 0 } else { (i - kernels) * 40 * MIB / kernels },
            activations_bytes: depth * 720 * MIB / kernels + i % 3 * 9 * MIB,
            workspace_bytes: if i % 8 == 3 { 48 * MIB } else { 4 * MIB * (i % 2) },
            data_bytes: MIB,
            ..Kinds::default()
        };
        let op = ops[(i % 8) as usize];
        timeline.push(Moment { step: format!("{op} block.{}", i / 8 % blocks), alive });
    }
    section("micro.last", 4, timeline)
}

fn section(name: &str, calls: u64, timeline: Vec<Moment>) -> SectionReport {
    let live = timeline.iter().map(|m| m.alive.total()).max().unwrap_or(0);
    SectionReport {
        name: name.to_owned(),
        calls,
        kernels: timeline.len(),
        flops: 9_000_000_000 * timeline.len() as u64,
        seconds: 0.0012 * timeline.len() as f64,
        transient_bytes: live + live / 50,
        largest_live_bytes: live,
        messages: vec![],
        timeline,
    }
}

fn plan(blocks: u64) -> Report {
    let update: Vec<Moment> = (0..12 * blocks)
        .map(|i| Moment {
            step: format!("adamw block.{}.weight", i / 12),
            alive: Kinds { workspace_bytes: (1 + i % 4) * 6 * MIB, ..Kinds::default() },
        })
        .collect();
    let eval = micro(blocks).timeline.into_iter().take(8 * blocks as usize).collect();
    let sections = vec![micro(blocks), section("update", 1, update), section("eval", 0, eval)];
    let alive = |m: &Moment| m.alive.total();
    let timeline = &sections[0].timeline;
    let (peak_index, peak) =
        timeline.iter().enumerate().max_by_key(|(_, m)| alive(m)).expect("it has kernels");
    let mut kinds = peak.alive;
    kinds.master_bytes += 41 * MIB;
    kinds.optimizer_bytes += 82 * MIB;
    kinds.gradients_bytes += 41 * MIB;
    kinds.holes_bytes = 23 * MIB;
    let names = ["attn matmul f32[batch, heads, q, k]", "mlp gelu f32[batch, sequence, hidden]"];
    let share = |i: usize| Share {
        name: format!("block.{i}.{}", names[i % 2]),
        kind: if i == 3 { Kind::Workspace } else { Kind::Activations },
        bytes: (48 - 5 * i as u64) * MIB,
    };
    Report {
        total_bytes: kinds.total(),
        kinds,
        state_bytes: 164 * MIB,
        peak_section: "micro.last".to_owned(),
        peak_step: peak.step.clone(),
        peak_index,
        peak_values: (0..8).map(share).collect(),
        flops_per_step: sections.iter().map(|s| s.flops * s.calls).sum(),
        seconds: sections.iter().map(|s| s.seconds * s.calls as f64).sum(),
        sections,
        planning_seconds: 0.042,
    }
}

fn page(metrics: String, plan: &Report, samples: PathBuf) -> String {
    page_of_rank(metrics, &alone(plan), samples)
}

fn alone(report: &Report) -> RankPlan<'_> {
    RankPlan {
        rank: 0,
        mesh: Mesh(vec![]),
        axes: vec![],
        zero: Zero::default(),
        report,
        stages: vec![],
        communication: vec![],
        pipeline: None,
    }
}

fn page_of_rank(metrics: String, plan: &RankPlan<'_>, samples: PathBuf) -> String {
    html(&Page {
        name: "shakespeare <char>".to_owned(),
        recipe: "[model]\nfamily = \"gpt\" # <b>\n".to_owned(),
        metrics,
        plan,
        samples,
    })
}

/// Whether each tag that is opened is closed, in order, and text holds no stray mark.
fn check_balance(page: &str) {
    let mut open: Vec<&str> = vec![];
    let mut rest = page.strip_prefix("<!doctype html>").expect("the page begins with its type");
    while let Some(at) = rest.find('<') {
        assert!(!rest[..at].contains('>'), "a stray mark in {:?}", &rest[..at]);
        let end = at + rest[at..].find('>').expect("a tag ends");
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap_or("");
        assert!(!name.is_empty(), "a stray mark before {:?}", &rest[..rest.len().min(40)]);
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "before {:?}", &rest[..rest.len().min(40)]);
        } else if !tag.ends_with('/') && !["meta", "img", "br"].contains(&name) {
            open.push(name);
        }
        if !tag.starts_with('/') && ["style", "script"].contains(&name) {
            // What is inside is no markup.
            let close = format!("</{name}>");
            rest = &rest[rest.find(&close).expect("style and script are closed")..];
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
}

fn check(page: &str) {
    check_balance(page);
    for outside in ["http:", "https:", "src=\"/", "src=\"h", "@import", "url(", "<link", "NaN"] {
        assert!(!page.contains(outside), "the page has {outside}");
    }
    assert!(!page.contains("<b>this") && !page.contains("<char>") && !page.contains("<damaged>"));
    assert_eq!(page.matches("src=").count(), page.matches("src=\"data:image/png;base64,").count());
}

#[test]
fn a_page_shows_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let shape = aerogel_data::ImageShape { height: 28, width: 28, channels: 1 };
    for step in [400u64, 1200, 2000] {
        let pixel = |t: u64, i: u64| {
            let (x, y) = ((i % 28) as f64 - 14.0, (i / 28) as f64 - 14.0);
            let radius = (x * x + y * y).sqrt() - 5.0 - (t % 4) as f64;
            (255.0 * (-radius * radius * step as f64 / 1500.0).exp()) as u32
        };
        let tokens: Vec<Vec<u32>> =
            (0..16).map(|t| (0..784).map(|i| pixel(t, i)).collect()).collect();
        let png = crate::run::grid(&tokens, shape).unwrap();
        std::fs::write(folder.path().join(format!("step-{step:08}.png")), png).unwrap();
    }
    let report = plan(12);
    let text = page(metrics(2000), &report, folder.path().to_owned());
    check(&text);
    for shown in [
        "shakespeare &lt;char&gt;",
        "10.7\u{202f}M",
        "32.8\u{202f}M",
        "mean of 67 steps",
        "9f86d081884c7d65",
        "What light is &lt;b&gt;this&lt;/b&gt;, that breaks &amp; so?␁",
        "checkpoint 4 is &lt;damaged&gt;",
        "family = &quot;gpt&quot; # &lt;b&gt;",
        "block.0.attn matmul f32[batch, heads, q, k]",
    ] {
        assert!(text.contains(shown), "{shown} is not shown");
    }
    let order: Vec<_> = ["step 2000</", "step 1200</", "step 400</"].map(|s| text.find(s)).into();
    assert!(order.iter().all(Option::is_some) && order.is_sorted());
    assert!(text.contains(&format!("peak {}", bytes(report.kinds.total() - 23 * MIB))));
    // To look at the page: set the variable to a file.
    if let Ok(path) = std::env::var("AEROGEL_TEST_REPORT") {
        std::fs::write(path, text).unwrap();
    }
}

#[test]
fn poor_runs_have_a_page_too() {
    let nowhere = || Path::new("no such folder").to_owned();
    let report = plan(2);
    let empty = page(String::new(), &report, nowhere());
    check(&empty);
    assert!(empty.contains("No step was made") && !empty.contains(">Samples<"));

    let one = page(start() + &step(1, 1), &report, nowhere());
    check(&one);
    assert!(one.contains("No held-out data") && one.contains("h.01"));

    let torn = start() + &step(1, 9) + "{\"event\":\"step\",\"st" + "\n[]\n" + &eval(1, 9);
    let torn = page(torn, &report, nowhere());
    check(&torn);
    assert!(torn.contains("could not be read: 2."));

    let broken = json!({"v": 1, "event": "step", "step": 3, "loss_bits": null, "grad_norm": null});
    let broken = start() + &step(1, 9) + &step(2, 9) + &line(broken);
    let broken = page(broken, &report, nowhere());
    check(&broken);
    assert!(broken.contains("Not finite: the loss of 1\u{a0}step"));
}

#[test]
fn a_step_that_was_done_again_counts_once() {
    let again = |loss: f64| line(json!({"event": "step", "step": 2, "loss_bits": loss}));
    let text = start() + &step(1, 9) + &again(7.25) + &again(5.125);
    let history = super::history::History::read(&text);
    let losses: Vec<f64> = history.steps.iter().map(|s| s.loss_bits).collect();
    assert_eq!((losses.len(), losses[1]), (2, 5.125));
}

#[test]
fn plans_of_any_shape_have_a_page() {
    let mut report = plan(2);
    report.peak_section = "eval".to_owned();
    report.peak_index = 3;
    let outside = page(metrics(3), &report, PathBuf::new());
    check(&outside);
    assert!(outside.contains("eval, outside the step"));

    report.sections.clear();
    report.peak_values.clear();
    let none = page(metrics(3), &report, PathBuf::new());
    check(&none);
    assert!(none.contains("The plan has no kernels"));
}

#[test]
fn a_long_run_has_a_small_page() {
    let report = plan(400);
    let text = page(metrics(100_000), &report, PathBuf::new());
    check(&text);
    assert!(text.len() < 600_000, "{} bytes", text.len());
}

/// A rank of a pipeline.
fn piped<'a>(report: &'a Report, kind: Order, stages: usize, micros: usize) -> RankPlan<'a> {
    let schedule = schedule(kind, stages, micros).unwrap();
    let seconds = Seconds::uniform(schedule.virtual_stages(), 0.0011, 0.0023);
    let stage = |stage: usize| StagePlan {
        stage,
        layers: (0..schedule.chunks)
            .map(|c| 4 * (c * stages + stage)..4 * (c * stages + stage) + 4)
            .collect(),
        parameters: 1_234_567,
        slots: schedule.slots[stage].clone(),
        report,
    };
    RankPlan {
        stages: (0..stages).map(stage).collect(),
        communication: vec![
            Traffic { kind: "all_reduce", over: vec!["data".into()], calls: 3, wire_bytes: 900 },
            Traffic { kind: "send", over: vec!["pipe".into()], calls: 16, wire_bytes: 4 * MIB },
        ],
        pipeline: Some(PipelinePlan {
            schedule: "a < b".to_owned(),
            slots: schedule.slots.clone(),
            timeline: timeline(&schedule, &seconds).unwrap(),
            is_uniform: false,
        }),
        ..alone(report)
    }
}

#[test]
fn a_pipeline_is_drawn_with_its_idle_time() {
    let report = plan(4);
    let rank = piped(&report, Order::OneFOneB, 4, 8);
    let text = page_of_rank(metrics(3), &rank, PathBuf::new());
    check(&text);
    // 4 stages, 8 micro-batches: three idle slots of eleven.
    for shown in [
        "a &lt; b",
        "27.3\u{202f}%",
        ">stage 3</span>",
        ">12–15<",
        "4.00\u{202f}MiB",
        "<td>all-reduce</td><td>data</td><td class=\"n\">3</td>",
        "<td>send</td><td>pipe</td><td class=\"n\">16</td>",
    ] {
        assert!(text.contains(shown), "{shown} is not shown");
    }
    // Each action is a box, and so is the idle row behind the actions of a stage.
    let boxes = |class: &str| -> usize {
        let lines = text.lines().filter(|l| l.starts_with(&format!("<path class=\"{class}\"")));
        lines.map(|l| l.matches('Z').count()).sum()
    };
    assert_eq!((boxes("action forward"), boxes("action backward")), (32, 32));
    assert_eq!(text.matches("class=\"cell").count(), 64, "a number in each");

    let chunks = piped(&report, Order::Interleaved { chunks: 2 }, 2, 4);
    let text = page_of_rank(metrics(3), &chunks, PathBuf::new());
    check(&text);
    for shown in ["2\u{a0}chunks on each stage", "0–3, 8–11", "backward, chunk 0", "backward odd"]
    {
        assert!(text.contains(shown), "{shown} is not shown");
    }
}

#[test]
fn a_wide_pipeline_has_a_small_picture() {
    let report = plan(1);
    let rank = piped(&report, Order::OneFOneB, 96, 384);
    let text = page_of_rank(metrics(3), &rank, PathBuf::new());
    check(&text);
    assert!(text.len() < 1_500_000, "{} bytes", text.len());
    assert!(text.contains("Not drawn:"));
    let alone = page(metrics(3), &report, PathBuf::new());
    assert!(!alone.contains("The pipeline") && !alone.contains("Communication"));
}
