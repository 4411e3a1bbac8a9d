//! Whole training steps of small models: micro-batches and update on the device, against the
//! interpreter running the same sections.

use crate::harness::{Loaded, Reference, Rng, fill, numbers_of, same_bits};
use aerogel_graph::{Build, Clock, Env, Graph, Init, Role, Rounding, Tensor, interpret};
use aerogel_models::{
    AttentionKind, Combine, Family, LayerKind, ModelConfig, WeightInit, train_graph,
};
use aerogel_passes::{
    Compute, Optimizer, UpdateConfig, backward, precision, section_of, tile, update,
};
use aerogel_plan::Ask;

const BATCH: usize = 4;
const PIECES: usize = 4;

fn config(family: Family, attention: AttentionKind, combine: Combine) -> ModelConfig {
    ModelConfig {
        family,
        layers: 2,
        heads: 2,
        embed: 16,
        mlp: 24,
        qk: 16,
        context: 16,
        vocab: 11,
        image: None,
        attention,
        combine,
        cycle: match attention {
            AttentionKind::Dense => vec![LayerKind::Dense],
            AttentionKind::Local => vec![LayerKind::Local],
            AttentionKind::Strided => vec![LayerKind::Strided, LayerKind::Local],
            AttentionKind::Fixed => vec![LayerKind::Block, LayerKind::Summary],
        },
        stride: 4,
        window: 4,
        columns: 1,
        dropout: 0.1,
        embed_dropout: 0.1,
        init: WeightInit::Code,
    }
}

/// Weights as they start, an output layer that is not zero, and data.
fn environment(asks: &[Ask]) -> Env {
    let (mut env, mut rng) = (Env::new(), Rng(9));
    for g in asks.iter().map(|a| &a.graph) {
        for s in g.states() {
            let list = &g.ty(s.value).axes;
            let count = g.axes().count(list);
            let data = (0..count).map(|_| match (s.role, s.init) {
                (Role::Parameter, Init::Normal(std)) => std.max(0.05) * rng.value(),
                (Role::Parameter, Init::Constant(c)) => c + 0.05 * rng.value(),
                _ => 0.0,
            });
            let data = data.map(|x| f64::from(x as f32)).collect();
            env.entry(s.name.clone()).or_insert_with(|| Tensor::from_vec(g.axes(), list, data));
        }
    }
    env
}

fn inputs(g: &Graph, env: &mut Env, rng: &mut Rng) {
    g.inputs().iter().for_each(|i| drop(env.remove(&i.name)));
    if g.find_input("rate").is_some() {
        env.insert("rate".to_owned(), Tensor::full(g.axes(), &[], 0.01));
    }
    if let Some(weights) = g.find_input("weights") {
        let t = Tensor::full(g.axes(), &g.ty(weights.value).axes, 1.0);
        env.insert("weights".to_owned(), t);
    }
    fill(g, env, rng, 11);
}

/// The sections of a step in the order of their runs, with the clock's `micro`.
fn order(asks: &[Ask]) -> Vec<(usize, u64)> {
    let find = |name: &str| asks.iter().position(|a| a.name == name).expect("a section");
    let micro = (0..PIECES).map(|j| (find(&section_of(j, PIECES)), j as u64));
    micro.chain([(find("update"), 0)]).collect()
}

fn step_agrees(name: &str, forward: &Graph, compute: Compute) {
    let whole = backward(&precision(forward, compute).unwrap()).unwrap();
    let micros = tile(&whole, PIECES).unwrap();
    let kind = Optimizer::Adam { beta1: 0.9, beta2: 0.95, epsilon: 1e-3 };
    let last = update(&micros[0].1, &UpdateConfig { kind, weight_decay: 0.1, clip: 1.0 }).unwrap();
    let sections = || -> Vec<Ask> {
        let update = ("update".to_owned(), last.clone());
        let all = micros.iter().cloned().chain([update]);
        all.map(|(name, graph)| Ask { name, graph, calls: 1 }).collect()
    };
    let asks = sections();
    let start = environment(&asks);
    let mut first = None;
    for threads in 1..=2 {
        let mut device = Loaded::new(sections(), threads).unwrap_or_else(|e| panic!("{name}: {e}"));
        (0..asks.len()).for_each(|i| device.write_states(i, &start));
        let (mut env, mut rng) = (start.clone(), Rng(4));
        let mut all = vec![];
        for (section, micro) in order(&asks) {
            let g = &asks[section].graph;
            inputs(g, &mut env, &mut rng);
            let clock = Clock { seed: 3, step: 1, micro, ..Clock::default() };
            let got = device.run(section, &env, clock);
            let what = format!("{name} {} of piece {micro}", asks[section].name);
            if threads == 1 {
                near(&what, g, &env, clock, &got);
            }
            // Each section is judged alone: both go on from what the device has.
            for s in g.states() {
                let data = numbers_of(g.ty(s.value).dtype, &got[&format!("state {}", s.name)]);
                env.insert(s.name.clone(), Tensor::from_vec(g.axes(), &g.ty(s.value).axes, data));
            }
            all.push(got);
        }
        match &first {
            None => first = Some(all),
            Some(first) => all.iter().zip(first).for_each(|(a, b)| same_bits(name, a, b)),
        }
    }
}

/// New states and outputs are the interpreter's, to a part of the largest number in the section's
/// results of their kind: the gradient of a key bias is 0 but for rounding.
fn near(what: &str, g: &Graph, env: &Env, clock: Clock, got: &crate::harness::Bytes) {
    let run = interpret(g, env, clock, Rounding::Declared).unwrap();
    let reference = Reference::new(g, env, clock, 0.0);
    let ends = g.assigns.iter().map(|(s, v)| (format!("state {}", g.states()[s.index()].name), *v));
    let ends = ends.chain(g.outputs.iter().map(|(n, v)| (format!("output {n}"), *v)));
    let ends: Vec<_> = ends.collect();
    let sums = |name: &str| name.starts_with("state sum.");
    let largest = ends
        .iter()
        .filter(|e| sums(&e.0) && e.0.contains("grad."))
        .flat_map(|e| &run.values[e.1.index()].data)
        .fold(0.0, |m: f64, x| m.max(x.abs()));
    for (name, v) in ends {
        let floor = if sums(&name) { reference.relative() * largest } else { 0.0 };
        let tolerance = reference.tolerance(v).max(floor).max(1e-7);
        let numbers = numbers_of(g.ty(v).dtype, &got[&name]);
        for (i, (a, b)) in numbers.iter().zip(&run.values[v.index()].data).enumerate() {
            let fits = a == b || (a - b).abs() <= tolerance;
            assert!(fits, "{what}: {name} element {i} is {a}, wanted {b} ± {tolerance:e}");
        }
    }
}

fn every_attention(family: Family, compute: Compute) {
    let mut seen = 0;
    for attention in
        [AttentionKind::Dense, AttentionKind::Local, AttentionKind::Strided, AttentionKind::Fixed]
    {
        for combine in [Combine::Interleaved, Combine::Merged, Combine::Heads] {
            let name = format!("{family:?} {attention:?} {combine:?} {compute:?}");
            // Kinds of one part have nothing to combine.
            let Ok(g) = train_graph(&config(family, attention, combine), BATCH) else { continue };
            step_agrees(&name, &g, compute);
            seen += 1;
        }
    }
    assert!(seen >= 8, "{seen} models");
}

#[test]
fn sparse_transformers_in_f32() {
    every_attention(Family::SparseTransformer, Compute::F32);
}

#[test]
fn sparse_transformers_in_bf16() {
    every_attention(Family::SparseTransformer, Compute::Bf16);
}

#[test]
fn gpt2_in_f32() {
    every_attention(Family::Gpt2, Compute::F32);
}

#[test]
fn gpt2_in_bf16() {
    every_attention(Family::Gpt2, Compute::Bf16);
}
