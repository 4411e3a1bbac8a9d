//! What a model must learn, and how soon; and what it knows before it has learnt anything.

use crate::common::Log;
use aerogel_data::{Dataset, ImageShape, NoProgress, Sampler, made};
use aerogel_graph::Clock;
use aerogel_recipe::Recipe;
use aerogel_store::Resume;
use aerogel_train::{Event, Opened, Options, Pick, Session, Workspace, evaluate, open_run, train};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Trains a recipe that lies in a folder; gives the events and the run, opened at its end.
fn run(text: &str, dir: &Path, overrides: &[&str], tiny: bool) -> (Vec<Event>, Opened) {
    let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
    let recipe = Recipe::parse(text, "learning.toml", dir, &overrides, tiny).unwrap();
    let workspace = Workspace::under(dir);
    let stop = Arc::new(AtomicBool::new(false));
    let resume = Resume::Never;
    let options = Options { workspace: workspace.clone(), resume, stop, ties: None };
    let mut log = Log::default();
    let outcome = train(&recipe, &options, &mut NoProgress, &mut log).unwrap();
    (log.0, open_run(&outcome.folder, &workspace, &Pick::default()).unwrap())
}

/// Losses of all steps, bits a token.
fn losses(events: &[Event]) -> Vec<f64> {
    let loss = |e: &Event| match e {
        Event::Step { loss_bits, .. } => Some(*loss_bits),
        _ => None,
    };
    events.iter().filter_map(loss).collect()
}

/// Bits a token over a split of images, where `counts` says which positions count.
fn bits_where(
    session: &mut Session,
    data: &Dataset,
    split: &str,
    counts: impl Fn(usize) -> bool,
) -> f64 {
    let tokens = data.split(split).unwrap();
    let context = session.plan.model.context;
    let sampler = Sampler::in_order(tokens, context).unwrap();
    let section = session.plan.program(0).section("eval").unwrap();
    let s = &session.plan.program(0).sections[section];
    let batch = s.axes().size(s.graph.value(s.input("tokens").unwrap()).ty.axes[0]);
    let weights: Vec<f32> =
        (0..batch * context).map(|i| if counts(i % context) { 1.0 } else { 0.0 }).collect();
    let mut rows = vec![0u32; batch * context];
    let (mut nats, mut count) = (0.0, 0.0);
    // Whole batches only: the images are alike.
    for batch_index in 0..sampler.sequences() / batch as u64 {
        for (row, sequence) in rows.chunks_mut(context).enumerate() {
            sampler.read(tokens, batch_index * batch as u64 + row as u64, sequence).unwrap();
        }
        let device = &mut session.ranks[0];
        device.write_input(section, "tokens", bytemuck::cast_slice(&rows)).unwrap();
        device.write_input(section, "targets", bytemuck::cast_slice(&rows)).unwrap();
        device.write_input(section, "weights", bytemuck::cast_slice(&weights)).unwrap();
        device.run(section, Clock::default(), 0).unwrap();
        let read = |name: &str| {
            let mut bytes = [0u8; 4];
            device.read_output(section, name, &mut bytes).unwrap();
            f64::from(f32::from_le_bytes(bytes))
        };
        nats += read("loss");
        count += read("tokens");
    }
    assert!(count > 0.0);
    nats / count / std::f64::consts::LN_2
}

const COPY_ROWS: &str = include_str!("../../../../recipes/copy-rows.toml");

#[test]
fn rows_are_copied_within_150_steps() {
    let dir = tempfile::tempdir().unwrap();
    let (events, mut run) = run(COPY_ROWS, dir.path(), &[], false);
    assert_eq!(losses(&events).len(), 150);
    let later = bits_where(&mut run.session, &run.data, "test", |at| at >= 16);
    let first = bits_where(&mut run.session, &run.data, "test", |at| at < 16);
    println!("rows after the first: {later:.4} bits, the first: {first:.3}");
    assert!(later < 0.1, "{later} bits on the rows after the first");
    // A row of random bytes cannot be known: who knows it has seen the future.
    assert!(first > 7.9, "{first} bits on the first row");
}

const OVERFIT: &str = r#"
[model]
layers = 2
heads = 2
embed = 64
mlp_ratio = 2
attention = "strided"
stride = 24
init = "code"
[data]
kind = "images"
train = "images"
image = [8, 8, 3]
validation = 0
[optimizer]
learning_rate = 3e-3
beta2 = 0.99
weight_decay = 0
[schedule]
kind = "cosine"
warmup = 20
[train]
steps = 500
batch = 16
seed = 1
[sample]
count = 0
[checkpoint]
every = 0
"#;

/// Sixteen images of shaded stripes with some noise, each with its own colours and phases.
fn sixteen_images(folder: &Path) {
    let shape = ImageShape { height: 8, width: 8, channels: 3 };
    let mut state = 7u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    for image in 0..16 {
        let [base, down, right, period] = [100, 9, 9, 5].map(&mut draw);
        let bytes: Vec<u8> = (0..192)
            .map(|at| {
                let (y, x, channel) = (at / 24, at / 3 % 8, at % 3);
                let stripe = if (x + y) % (period + 2) == channel { 60 } else { 0 };
                (base + y * down + x * right + stripe + draw(16)) as u8
            })
            .collect();
        let class = ["even", "odd"][image % 2];
        let path = folder.join(class).join(format!("{image:02}.png"));
        made::write_image(&path, &bytes, shape).unwrap();
    }
}

#[test]
fn sixteen_images_are_overfitted_in_500_steps() {
    let dir = tempfile::tempdir().unwrap();
    sixteen_images(&dir.path().join("images"));
    let (events, mut run) = run(OVERFIT, dir.path(), &[], false);
    let bits = evaluate(&mut run.session, &run.data, "train", 0).unwrap();
    assert_eq!((bits.unit, bits.tokens), ("dimension", 16 * 192));
    let losses = losses(&events);
    let below = losses.iter().position(|l| *l <= 0.05);
    println!("{:.4} bits a dimension; at or under 0.05 from step {below:?}", bits.bits);
    assert_eq!(losses.len(), 500);
    assert!(bits.bits <= 0.05, "{} bits a dimension", bits.bits);
    // Which of the sixteen it is must still be told: 4 bits over 192 dimensions.
    assert!(bits.bits >= 4.0 / 192.0 - 1e-3, "{} bits a dimension", bits.bits);
}

const TEXT: &str = r#"
[model]
layers = 2
heads = 2
embed = 32
context = 64
attention = "dense"
[data]
kind = "text"
paths = ["*.txt"]
validation = 0.1
[optimizer]
learning_rate = 1e-2
[schedule]
warmup = 3
[train]
steps = 30
batch = 8
micro_batch = 4
[eval]
every = 0
sequences = 16
[sample]
count = 0
[checkpoint]
every = 0
[tiny]
"#;

/// The overrides that make each variant of attention.
const VARIANTS: [(&str, &[&str]); 8] = [
    ("dense", &[]),
    ("local", &["model.attention=local", "model.window=16"]),
    ("strided", &["model.attention=strided", "model.stride=8"]),
    ("fixed", &["model.attention=fixed", "model.stride=8"]),
    ("merged strided", &["model.attention=strided", "model.stride=8", "model.combine=merged"]),
    ("merged fixed", &["model.attention=fixed", "model.stride=8", "model.combine=merged"]),
    ("heads strided", &["model.attention=strided", "model.stride=8", "model.combine=heads"]),
    ("heads fixed", &["model.attention=fixed", "model.stride=8", "model.combine=heads"]),
];

/// The first evaluation, bits.
fn first_eval(events: &[Event]) -> f64 {
    let bits = |e: &Event| match e {
        Event::Eval { step: 0, bits_per_token, .. } => Some(*bits_per_token),
        _ => None,
    };
    events.iter().find_map(bits).unwrap()
}

#[test]
fn every_attention_learns_text_from_exactly_eight_bits() {
    for family in ["sparse_transformer", "gpt2"] {
        for (name, overrides) in VARIANTS {
            for compute in ["f32", "bf16"] {
                // Merged and per-head parts in bf16 go through the same casts as the rest.
                if compute == "bf16" && name.contains(' ') {
                    continue;
                }
                let dir = tempfile::tempdir().unwrap();
                let family_override = format!("model.family={family}");
                let compute_override = format!("precision.compute={compute}");
                let all = [overrides, &[&family_override, &compute_override]].concat();
                let (events, _) = run(TEXT, dir.path(), &all, true);
                let (losses, eval) = (losses(&events), first_eval(&events));
                let last = losses.last().unwrap();
                println!("{family} {name} {compute}: {eval:.6} {:.6} -> {last:.3}", losses[0]);
                assert_eq!(losses.len(), 30);
                if family == "sparse_transformer" {
                    assert!((eval - 8.0).abs() < 1e-5, "{name}: {eval} bits before the first step");
                    assert!((losses[0] - 8.0).abs() < 1e-5, "{name}: {} at step 1", losses[0]);
                }
                assert!(*last < 5.0, "{family} {name} {compute}: {last} bits after 30 steps");
            }
        }
    }
}
