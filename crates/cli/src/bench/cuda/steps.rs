//! Training steps of whole models, on random tokens.

use crate::bench::account::{Rates, StepAccount};
use crate::show;
use aerogel_machine::DeviceError;
use aerogel_recipe::Recipe;
use aerogel_train::{Backend, Exit, RunPlan, TrainError, Workspace, time_steps};
use serde_json::{Value, json};
use std::path::Path;

const GPT2: &str = include_str!("../../../../../recipes/gpt2-124m.toml");
const STRIDED: &str = include_str!("../../../../../recipes/cifar10-strided.toml");
const DENSE: &str = include_str!("../../../../../recipes/cifar10-dense.toml");

/// A recipe, and what is changed of it.
pub struct Ask {
    name: &'static str,
    recipe: &'static str,
    changes: &'static [&'static str],
    /// Tokens of an image, where sequences are images.
    image_tokens: Option<u64>,
}

const fn gpt2(name: &'static str, changes: &'static [&'static str]) -> Ask {
    Ask { name, recipe: GPT2, changes, image_tokens: None }
}

const fn cifar10(name: &'static str, recipe: &'static str) -> Ask {
    let changes = &["train.batch=16", "train.micro_batch=16"];
    Ask { name, recipe, changes, image_tokens: Some(3072) }
}

/// 124M as people train it first; 1.5B under 42 GiB, with maps and norms computed again, and under
/// no such limit; the Sparse Transformer of 128 layers and its dense control.
pub const ASKS: [Ask; 6] = [
    gpt2("GPT-2 124M, batch 64", &["train.batch=64", "train.micro_batch=64"]),
    cifar10("CIFAR-10 strided, batch 16", STRIDED),
    cifar10("CIFAR-10 dense, batch 16", DENSE),
    gpt2(
        "GPT-2 1.5B, batch 9, some recomputed",
        &[
            "model.layers=48",
            "model.heads=25",
            "model.embed=1600",
            "train.batch=9",
            "train.micro_batch=9",
            "memory.recompute=budget",
            "memory.activations=14GiB",
        ],
    ),
    gpt2(
        "GPT-2 1.5B, batch 4 × 9, some recomputed",
        &[
            "model.layers=48",
            "model.heads=25",
            "model.embed=1600",
            "train.batch=36",
            "train.micro_batch=9",
            "train.determinism=fast",
            "memory.recompute=budget",
            "memory.activations=14GiB",
        ],
    ),
    gpt2(
        "GPT-2 1.5B, batch 16",
        &[
            "model.layers=48",
            "model.heads=25",
            "model.embed=1600",
            "train.batch=16",
            "train.micro_batch=16",
        ],
    ),
];

/// Memory that is left to the driver, for kernels and recorded graphs.
const LEFT_BYTES: u64 = 1 << 30;
/// Steps before those that are timed.
const WARMUP: usize = 3;

/// What was measured and what was not.
#[derive(Default)]
pub struct Found {
    rows: Vec<Vec<String>>,
    /// Of each step.
    pub accounts: Vec<Value>,
    /// Names, and why.
    pub skipped: Vec<Value>,
}

impl Found {
    /// The table, and a line for each step that was not measured.
    pub fn page(&self) -> String {
        let head = [
            "step",
            "tokens/s",
            "images/s",
            "ms",
            "planned",
            "libraries",
            "start s",
            "floor ms",
            "ratio",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(self.rows.iter().cloned());
        let skipped = self.skipped.iter().filter_map(|s| {
            Some(format!("{} is left out: {}\n", s["name"].as_str()?, s["why"].as_str()?))
        });
        show::table(&rows) + &skipped.collect::<String>()
    }
}

/// Times the steps that fit into the memory that is free.
pub fn measure(
    backend: Backend,
    asks: &[Ask],
    (steps, free_bytes): (usize, u64),
    rates: Rates,
    tell: &dyn Fn(&str),
) -> anyhow::Result<Found> {
    let nowhere = Workspace::under(Path::new("/nonexistent"));
    let mut found = Found::default();
    for ask in asks {
        tell(&format!("steps of {}", ask.name));
        let mut changes: Vec<String> = ask.changes.iter().map(|c| (*c).to_owned()).collect();
        changes.push("sample.count=0".to_owned());
        changes.push(format!("parallel.device={}", backend.name()));
        let recipe = Recipe::parse(ask.recipe, "bench.toml", Path::new("."), &changes, false)?;
        let need_bytes = RunPlan::of(&recipe, &nowhere)?.largest_bytes();
        if need_bytes + LEFT_BYTES > free_bytes {
            let (need, free) = (show::bytes(need_bytes), show::bytes(free_bytes));
            let why = format!("it needs {need}, and of the {free} that are free 1 GiB is left");
            found.skipped.push(json!({"name": ask.name, "why": why}));
            continue;
        }
        match time_steps(&recipe, &nowhere, WARMUP, steps) {
            Ok(times) => {
                let account = StepAccount::new(ask.name, "bf16", &times, rates);
                found.rows.push(cells(ask, &account));
                found.accounts.push(serde_json::to_value(account)?);
            }
            Err(e) if is_memory(&e) => {
                found.skipped.push(json!({"name": ask.name, "why": e.to_string()}));
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(found)
}

fn is_memory(e: &TrainError) -> bool {
    e.exit() == Exit::WillNotFit || matches!(e, TrainError::Device(DeviceError::Arena { .. }))
}

fn cells(ask: &Ask, account: &StepAccount) -> Vec<String> {
    let rate = account.tokens_per_second;
    let images = ask.image_tokens.map(|tokens| format!("{:.1}", rate / tokens as f64));
    vec![
        ask.name.to_owned(),
        show::count(rate.round() as u64),
        images.unwrap_or_default(),
        format!("{:.1}", 1e3 * account.median_seconds),
        show::bytes(account.allocated_bytes),
        show::bytes(account.library_bytes),
        format!("{:.1}", account.startup.seconds),
        format!("{:.1}", 1e3 * account.floor_seconds),
        format!("{:.2}", account.median_seconds / account.floor_seconds),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates = Rates { product_flops_per_second: 1e9, copy_bytes_per_second: 1e9 };

    fn recipe(ask: &Ask) -> Recipe {
        let mut changes: Vec<String> = ask.changes.iter().map(|c| (*c).to_owned()).collect();
        changes.extend(["sample.count=0", "parallel.device=cuda"].map(str::to_owned));
        Recipe::parse(ask.recipe, "bench.toml", Path::new("."), &changes, false).unwrap()
    }

    /// What the table says of them: 42 GiB, with a GiB for the driver, where it recomputes.
    #[test]
    fn steps_need_the_memory_that_they_are_meant_to() {
        for (ask, limit) in ASKS.iter().zip([24, 40, 40, 41, 41, 70]) {
            let nowhere = Workspace::under(Path::new("/nonexistent"));
            let plan = RunPlan::of(&recipe(ask), &nowhere).unwrap();
            let bytes = plan.largest_bytes();
            assert!(bytes <= limit << 30, "{}: {}", ask.name, show::bytes(bytes));
            assert_eq!(plan.backend, Backend::Cuda);
        }
    }

    #[test]
    fn a_small_step_is_a_row_and_one_that_does_not_fit_is_told() {
        let small = Ask { image_tokens: Some(16), ..gpt2("small", &SMALL) };
        let found = measure(Backend::Cpu, &[small], (2, u64::MAX >> 1), RATES, &|_| ()).unwrap();
        let page = found.page();
        assert!(page.contains("images/s") && page.contains("  small  "), "{page}");
        assert_eq!((found.accounts.len(), found.skipped.len()), (1, 0));
        let step = &found.accounts[0];
        assert_eq!((&step["recipe"], &step["tokens_per_step"]), (&"small".into(), &32.into()));
        assert!(
            step["startup"]["seconds"].as_f64() > step["startup"]["first_step_seconds"].as_f64()
        );
        let large = gpt2("large", &SMALL);
        let found = measure(Backend::Cpu, &[large], (2, 1 << 20), RATES, &|_| ()).unwrap();
        assert!(found.accounts.is_empty());
        let page = found.page();
        assert!(page.contains("large is left out: it needs "), "{page}");
    }

    const SMALL: [&str; 9] = [
        "model.layers=1",
        "model.heads=2",
        "model.embed=16",
        "model.context=16",
        "tokenizer.vocab=300",
        "train.batch=2",
        "train.micro_batch=2",
        "parallel.threads=1",
        "eval.sequences=2",
    ];
}
