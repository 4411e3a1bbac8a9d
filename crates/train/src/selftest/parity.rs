//! Ten AdamW steps of small models give PyTorch's losses. `crates/models/tests/fixtures/README.md`
//! says how its numbers, the weights and the tokens are made.

use super::failure::Failure;
use super::runner::{Loaded, Runner};
use super::suite::Case;
use crate::error::TrainError;
use aerogel_graph::{Clock, Graph, Place, Role};
use aerogel_machine::Device;
use aerogel_models::{
    AttentionKind, Combine, Family, LayerKind, ModelConfig, WeightInit, shifts_inside, train_graph,
};
use aerogel_passes::{
    Buckets, Compute, Optimizer, Order, Partials, PassError, Shards, Share, UpdateConfig,
    accumulate, backward, copies, cut, precision, section_of, update,
};
use aerogel_plan::Ask;
use serde_json::Value;

/// The models of the file, each in f32 at once and in two micro-batches, and in bf16 in two.
pub const CASES: usize = 3 * 9;

/// How far a loss in f32 may be from PyTorch's, of its size; a gradient's norm; a loss in bf16.
const LOSS: f64 = 1e-4;
const NORM: f64 = 1e-3;
const LOSS_BF16: f64 = 2e-2;

/// A way to train a model of the file.
struct Way {
    model: ModelConfig,
    compute: Compute,
    micro_batches: usize,
}

/// A case of the group; there are [`CASES`] different ones.
pub fn case(_seed: u64, number: usize) -> Case {
    let file: Value =
        serde_json::from_str(include_str!("../../../models/tests/fixtures/losses.json"))
            .expect("the file is one of this repository");
    let (at, way) = (number / 3 % 9, number % 3);
    let (name, model) = file["models"]
        .as_object()
        .and_then(|models| models.iter().nth(at))
        .map(|(name, model)| (name.clone(), model.clone()))
        .expect("it has nine models");
    let (compute, micro_batches, word) = match way {
        0 => (Compute::F32, 1, "f32"),
        1 => (Compute::F32, 2, "f32, two micro-batches"),
        _ => (Compute::Bf16, 2, "bf16, two micro-batches"),
    };
    let way = Way { model: config(&model["config"]), compute, micro_batches };
    let recipe = file["recipe"].clone();
    Case::new(format!("{name}, {word}"), move |bench| way.check(&bench.device, &recipe, &model))
}

/// A model of the file.
fn config(json: &Value) -> ModelConfig {
    let size = |key: &str| json[key].as_u64().unwrap_or(0) as usize;
    let kind = |name: &Value| match name.as_str() {
        Some("local") => LayerKind::Local,
        Some("strided") => LayerKind::Strided,
        Some("block") => LayerKind::Block,
        Some("summary") => LayerKind::Summary,
        _ => LayerKind::Dense,
    };
    let list = |key: &str| json[key].as_array().cloned().unwrap_or_default();
    let sizes: Vec<usize> =
        list("image").iter().filter_map(|n| n.as_u64().map(|n| n as usize)).collect();
    ModelConfig {
        family: match json["family"].as_str() {
            Some("gpt2") => Family::Gpt2,
            _ => Family::SparseTransformer,
        },
        layers: size("layers"),
        heads: size("heads"),
        embed: size("embed"),
        mlp: size("mlp"),
        qk: size("qk"),
        context: size("context"),
        vocab: size("vocab"),
        image: sizes.try_into().ok(),
        attention: match json["attention"].as_str() {
            Some("local") => AttentionKind::Local,
            Some("strided") => AttentionKind::Strided,
            Some("fixed") => AttentionKind::Fixed,
            _ => AttentionKind::Dense,
        },
        combine: match json["combine"].as_str() {
            Some("merged") => Combine::Merged,
            Some("heads") => Combine::Heads,
            _ => Combine::Interleaved,
        },
        cycle: list("cycle").iter().map(kind).collect(),
        stride: size("stride"),
        window: size("window"),
        columns: size("columns"),
        dropout: 0.0,
        embed_dropout: 0.0,
        init: WeightInit::Paper,
    }
}

/// The weights of the fixtures: norms near 1, biases small, the rest of size 0.2.
fn weight(name: &str, element: usize) -> f32 {
    let sum: u64 = (1..).zip(name.bytes()).map(|(i, b)| i * u64::from(b)).sum();
    let frequency = 1.0 + (sum % 1009) as f64 / 1009.0;
    let x = (frequency * (element + 1) as f64).sin();
    let value = match name {
        n if n.ends_with("norm.gain") => 1.0 + 0.1 * x,
        n if n.ends_with("bias") => 0.1 * x,
        _ => 0.2 * x,
    };
    value as f32
}

/// The sections of a step on one rank, as a run makes them: micro-batches, the update, and the
/// copies that follow from loaded parameters.
///
/// # Errors
/// A pass refuses the graph.
pub fn step_sections(
    forward: &Graph,
    compute: Compute,
    micro_batches: usize,
    config: &UpdateConfig,
) -> Result<Vec<Ask>, PassError> {
    let step = backward(&precision(forward, compute)?)?;
    let shards = Shards::default();
    let buckets = Buckets::of(&step, &shards, &Partials::default());
    let micro = cut(&buckets.apply(&step)?, &shards, micro_batches)?;
    let share = Share::whole(&buckets);
    let mut sections = accumulate(&micro, micro_batches, Order::Tree)?;
    sections.push(("update".to_owned(), update(&micro, &share, config)?));
    sections.extend(copies(&micro, &share)?.map(|g| ("weights".to_owned(), g)));
    Ok(sections.into_iter().map(|(name, graph)| Ask { name, graph, calls: 1 }).collect())
}

impl Way {
    /// Trains, and gives the largest error in parts of its bound.
    fn check(&self, runner: &Runner, recipe: &Value, model: &Value) -> Result<f64, Failure> {
        let mut loaded = self.load(runner, recipe)?;
        let mut worst = 0f64;
        for step in 0..recipe["steps"].as_u64().unwrap_or(10) {
            let (loss, norm) = self.step(&mut loaded, recipe, step)?;
            let held: &[(&str, f64, &str, f64)] = match self.compute {
                Compute::F32 => &[
                    ("loss", loss, "f32", LOSS),
                    ("loss", loss, "f64", LOSS),
                    ("gradient norm", norm, "gradient_norms_f64", NORM),
                ],
                _ => &[("loss", loss, "f64", LOSS_BF16)],
            };
            for &(name, got, list, part) in held {
                let wanted = model[list][step as usize].as_f64().unwrap_or(f64::NAN);
                let bound = part * wanted.abs();
                let error = (got - wanted).abs() / bound;
                // NaN is not under it either.
                if error.is_nan() || error > 1.0 {
                    let (name, shown) = (format!("{name} of step"), "of ten steps".to_owned());
                    let element = step as usize;
                    return Err(Failure::Element { name, shown, element, got, wanted, bound });
                }
                worst = worst.max(error);
            }
        }
        Ok(worst)
    }

    /// The device with the weights of the fixtures; moments and sums are 0.
    fn load(&self, runner: &Runner, recipe: &Value) -> Result<Loaded, Failure> {
        let get = |key: &str| recipe[key].as_f64().unwrap_or(0.0);
        let (beta1, beta2) = (get("beta1"), get("beta2"));
        let kind = Optimizer::AdamW { beta1, beta2, epsilon: get("eps") };
        let config = UpdateConfig {
            kind,
            weight_decay: get("weight_decay"),
            clip: get("clip"),
            scale: None,
        };
        let forward = train_graph(&self.model, get("batch") as usize).map_err(TrainError::from)?;
        let asks = step_sections(&forward, self.compute, self.micro_batches, &config)
            .map_err(TrainError::from)?;
        let mut loaded = runner.load(asks)?;
        let program = loaded.program.clone();
        for s in &program.states {
            loaded.device.write_state(&s.name, 0, &vec![0; s.bytes as usize])?;
            for part in s.parts.iter().filter(|_| s.role == Role::Parameter) {
                let count = part.count() as usize;
                let values: Vec<f32> = (0..count).map(|i| weight(&part.name, i)).collect();
                for run in s.runs(part, Place::default()) {
                    let own = &values[run.global as usize..][..run.count as usize];
                    let bytes = bytemuck::cast_slice(own);
                    loaded.device.write_state(&s.name, 4 * run.local, bytes)?;
                }
            }
        }
        if let Some(weights) = program.section("weights") {
            loaded.device.run(weights, Clock::default(), 0)?;
        }
        Ok(loaded)
    }

    /// One step: its loss and the norm of its gradient.
    fn step(&self, loaded: &mut Loaded, recipe: &Value, step: u64) -> Result<(f64, f64), Failure> {
        let Loaded { device, program } = loaded;
        let section = |name: &str| program.section(name).expect("the plan has all sections");
        let sequences = recipe["batch"].as_u64().unwrap_or(0) as usize / self.micro_batches;
        let shift = usize::from(!shifts_inside(self.model.family));
        let tokens = |micro: usize, shift: usize| -> Vec<u32> {
            let rows = micro * sequences..(micro + 1) * sequences;
            let places = shift..self.model.context + shift;
            let all = rows.flat_map(|b| places.clone().map(move |t| (b, t)));
            all.map(|(b, t)| ((5 * b + 3 * t + t * t) % self.model.vocab) as u32).collect()
        };
        let clock = |micro: usize| Clock { seed: 1, step, micro: micro as u64, ..Clock::default() };
        for micro in 0..self.micro_batches {
            let s = section(&section_of(micro, self.micro_batches, Order::Tree));
            let (inputs, targets) = (tokens(micro, 0), tokens(micro, shift));
            let weights = vec![1f32; inputs.len()];
            device.write_input(s, "tokens", bytemuck::cast_slice(&inputs))?;
            device.write_input(s, "targets", bytemuck::cast_slice(&targets))?;
            device.write_input(s, "weights", bytemuck::cast_slice(&weights))?;
            device.run(s, clock(micro), 0)?;
        }
        let s = section("update");
        let rate = recipe["learning_rate"].as_f64().unwrap_or(0.0) as f32;
        device.write_input(s, "rate", &rate.to_le_bytes())?;
        device.run(s, clock(0), 0)?;
        Ok((read(device.as_ref(), s, "loss")?, read(device.as_ref(), s, "grad_norm")?))
    }
}

fn read(device: &dyn Device, section: usize, name: &str) -> Result<f64, Failure> {
    let mut bytes = [0u8; 4];
    device.read_output(section, name, &mut bytes)?;
    Ok(f64::from(f32::from_le_bytes(bytes)))
}
