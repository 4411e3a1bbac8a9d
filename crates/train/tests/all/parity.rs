//! Ten AdamW steps on the device give PyTorch's losses. `crates/models/tests/fixtures/README.md`
//! says how its numbers, the weights and the tokens are made.

use crate::common::step_sections;
use aerogel_cpu::{CpuDevice, CpuTarget};
use aerogel_graph::{Clock, DType, Place, Role};
use aerogel_machine::{Device, Machine, Program};
use aerogel_models::{
    AttentionKind, Combine, Family, LayerKind, ModelConfig, WeightInit, shifts_inside, train_graph,
};
use aerogel_passes::{Compute, Optimizer, Order, UpdateConfig, section_of};
use aerogel_plan::plan;
use serde_json::Value;
use std::sync::Arc;

fn fixtures() -> Value {
    serde_json::from_str(include_str!("../../../models/tests/fixtures/losses.json")).unwrap()
}

/// A model of the file.
fn config(json: &Value) -> ModelConfig {
    let size = |key: &str| json[key].as_u64().unwrap() as usize;
    let kind = |name: &str| match name {
        "dense" => LayerKind::Dense,
        "local" => LayerKind::Local,
        "strided" => LayerKind::Strided,
        "block" => LayerKind::Block,
        "summary" => LayerKind::Summary,
        other => panic!("{other}"),
    };
    let image = json["image"].as_array().map(|list| {
        let sizes: Vec<_> = list.iter().map(|n| n.as_u64().unwrap() as usize).collect();
        sizes.try_into().unwrap()
    });
    let cycle = json["cycle"].as_array().unwrap();
    ModelConfig {
        family: match json["family"].as_str().unwrap() {
            "gpt2" => Family::Gpt2,
            "sparse_transformer" => Family::SparseTransformer,
            other => panic!("{other}"),
        },
        layers: size("layers"),
        heads: size("heads"),
        embed: size("embed"),
        mlp: size("mlp"),
        qk: size("qk"),
        context: size("context"),
        vocab: size("vocab"),
        image,
        attention: match json["attention"].as_str().unwrap() {
            "dense" => AttentionKind::Dense,
            "local" => AttentionKind::Local,
            "strided" => AttentionKind::Strided,
            "fixed" => AttentionKind::Fixed,
            other => panic!("{other}"),
        },
        combine: match json["combine"].as_str().unwrap() {
            "interleaved" => Combine::Interleaved,
            "merged" => Combine::Merged,
            "heads" => Combine::Heads,
            other => panic!("{other}"),
        },
        cycle: cycle.iter().map(|k| kind(k.as_str().unwrap())).collect(),
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

/// The program of a step, as a run plans it.
fn program(
    model: &ModelConfig,
    recipe: &Value,
    compute: Compute,
    micro_batches: usize,
) -> Arc<Program> {
    let get = |key: &str| recipe[key].as_f64().unwrap();
    let batch = get("batch") as usize;
    let kind = Optimizer::AdamW { beta1: get("beta1"), beta2: get("beta2"), epsilon: get("eps") };
    let config = UpdateConfig { kind, weight_decay: get("weight_decay"), clip: get("clip") };
    let forward = train_graph(model, batch).unwrap();
    let asks = step_sections(&forward, compute, micro_batches, &config);
    let machine = Machine::cpu(2, 1 << 30);
    Arc::new(plan(asks, &CpuTarget::new(machine.clone()), &machine).unwrap().program)
}

/// The device with the weights of the fixtures; moments and sums are 0.
fn device(program: &Arc<Program>) -> CpuDevice {
    let mut device = CpuDevice::load(program.clone(), 2).unwrap();
    let mut seen = 0;
    for s in program.states.iter().filter(|s| s.role == Role::Parameter) {
        assert_eq!(s.dtype, DType::F32, "{}", s.name);
        for part in &s.parts {
            let count = part.count();
            let values: Vec<f32> = (0..count as usize).map(|i| weight(&part.name, i)).collect();
            for run in s.runs(part, Place::default()) {
                let own = &values[run.global as usize..][..run.count as usize];
                device.write_state(&s.name, 4 * run.local, bytemuck::cast_slice(own)).unwrap();
                seen += run.count;
            }
        }
    }
    let parts = program.states.iter().filter(|s| s.role == Role::Parameter).flat_map(|s| &s.parts);
    assert_eq!(seen, parts.map(|p| p.count()).sum::<u64>());
    if let Some(weights) = program.section("weights") {
        device.run(weights, Clock::default(), 0).unwrap();
    }
    device
}

/// Mean losses and gradient norms of all steps.
fn train(
    model: &ModelConfig,
    recipe: &Value,
    compute: Compute,
    micro_batches: usize,
) -> Vec<(f64, f64)> {
    let program = program(model, recipe, compute, micro_batches);
    let mut device = device(&program);
    let section = |name: &str| program.section(name).unwrap();
    let sequences = recipe["batch"].as_u64().unwrap() as usize / micro_batches;
    let rate = recipe["learning_rate"].as_f64().unwrap() as f32;
    let shift = usize::from(!shifts_inside(model.family));
    let tokens = |micro: usize, shift: usize| -> Vec<u32> {
        let rows = micro * sequences..(micro + 1) * sequences;
        let all = rows.flat_map(|b| (shift..model.context + shift).map(move |t| (b, t)));
        all.map(|(b, t)| ((5 * b + 3 * t + t * t) % model.vocab) as u32).collect()
    };
    let mut seen = vec![];
    for step in 0..recipe["steps"].as_u64().unwrap() {
        for micro in 0..micro_batches {
            let s = section(&section_of(micro, micro_batches, Order::Tree));
            let (inputs, targets) = (tokens(micro, 0), tokens(micro, shift));
            let weights = vec![1f32; inputs.len()];
            device.write_input(s, "tokens", bytemuck::cast_slice(&inputs)).unwrap();
            device.write_input(s, "targets", bytemuck::cast_slice(&targets)).unwrap();
            device.write_input(s, "weights", bytemuck::cast_slice(&weights)).unwrap();
            device
                .run(s, Clock { seed: 1, step, micro: micro as u64, ..Clock::default() }, 0)
                .unwrap();
        }
        let s = section("update");
        device.write_input(s, "rate", &rate.to_le_bytes()).unwrap();
        device.run(s, Clock { seed: 1, step, micro: 0, ..Clock::default() }, 0).unwrap();
        let read = |name: &str| {
            let mut bytes = [0u8; 4];
            device.read_output(s, name, &mut bytes).unwrap();
            f64::from(f32::from_le_bytes(bytes))
        };
        assert_eq!(read("finite"), 1.0);
        seen.push((read("loss"), read("grad_norm")));
    }
    seen
}

fn relative(got: f64, wanted: &Value) -> f64 {
    (got / wanted.as_f64().unwrap() - 1.0).abs()
}

#[test]
fn ten_steps_in_f32_give_the_losses_of_pytorch() {
    let file = fixtures();
    let models = file["models"].as_object().unwrap();
    assert_eq!(models.len(), 9);
    for (name, model) in models {
        for micro_batches in [1, 2] {
            let seen =
                train(&config(&model["config"]), &file["recipe"], Compute::F32, micro_batches);
            assert_eq!(seen.len(), 10);
            let (mut worst, mut worst_norm) = (0f64, 0f64);
            for (step, (loss, norm)) in seen.into_iter().enumerate() {
                worst = worst.max(relative(loss, &model["f32"][step]));
                worst = worst.max(relative(loss, &model["f64"][step]));
                worst_norm = worst_norm.max(relative(norm, &model["gradient_norms_f64"][step]));
            }
            println!("{name:15} {micro_batches}: losses {worst:.1e}, norms {worst_norm:.1e}");
            assert!(worst < 1e-4, "{name}: {worst} in {micro_batches} micro-batches");
            assert!(worst_norm < 1e-3, "{name}: norms {worst_norm}");
        }
    }
}

#[test]
fn ten_steps_in_bf16_stay_near() {
    let file = fixtures();
    for (name, model) in file["models"].as_object().unwrap() {
        let seen = train(&config(&model["config"]), &file["recipe"], Compute::Bf16, 2);
        let errors =
            seen.iter().enumerate().map(|(step, (loss, _))| relative(*loss, &model["f64"][step]));
        let worst = errors.fold(0f64, f64::max);
        println!("{name:15} bf16: losses {worst:.1e}");
        assert!(worst < 2e-2, "{name}: {worst}");
        assert!(worst > 1e-7, "{name}: bf16 changed nothing");
        assert!(seen[9].0 < seen[0].0, "{name}: {seen:?} does not fall");
    }
}
