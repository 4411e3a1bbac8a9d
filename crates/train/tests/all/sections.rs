//! Whole training steps of small models: micro-batches and update on the device, against the
//! interpreter running the same sections.

use crate::common::step_sections;
use crate::harness::{Bytes, Reference, Rng, bytes_of, fill, loaded, numbers_of, same_bits};
use aerogel_graph::{Build, Clock, DType, Env, Graph, Init, Place, Role, State, Tensor};
use aerogel_models::{
    AttentionKind, Combine, Family, LayerKind, ModelConfig, WeightInit, train_graph,
};
use aerogel_passes::{Compute, Optimizer, Order, UpdateConfig, section_of};
use aerogel_plan::Ask;
use std::ops::Range;

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
            let mut data = vec![0.0; g.axes().count(list)];
            // What lies between the tensors of a bucket is 0.
            for part in s.parts.iter().filter(|_| s.role == Role::Parameter) {
                for x in &mut data[part.first..][..g.axes().count(&part.axes)] {
                    *x = f64::from(match part.init {
                        Init::Normal(std) => std.max(0.05) * rng.value(),
                        Init::Constant(c) => c + 0.05 * rng.value(),
                    } as f32);
                }
            }
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

/// The sections of a step in the order of their runs, with the clock's `micro`: copies of the
/// parameters that were loaded, if there are any, then all pieces, then the update.
fn order(asks: &[Ask]) -> Vec<(usize, u64)> {
    let maybe = |name: &str| asks.iter().position(|a| a.name == name);
    let find = |name: &str| maybe(name).expect("a section");
    let micro = (0..PIECES).map(|j| (find(&section_of(j, PIECES, Order::Tree)), j as u64));
    maybe("weights").map(|s| (s, 0)).into_iter().chain(micro).chain([(find("update"), 0)]).collect()
}

/// Every copy in bf16 that a section has written is its master, rounded: as far as the rank has it.
pub fn copies_are_rounded(what: &str, g: &Graph, place: Place, got: &Bytes) -> usize {
    let mut copies = 0;
    let states = g.assigns.iter().map(|a| &g.states()[a.0.index()]);
    for s in states.filter(|s| s.role == Role::Weights) {
        let master = s.name.strip_suffix(".bf16").expect("the name of a copy");
        let master = g.find_state(master).expect("what is copied");
        let master = &g.states()[master.index()];
        let numbers = numbers_of(DType::F32, &got[&format!("state {}", master.name)]);
        let start = held(g, master, place).start - held(g, s, place).start;
        let copy = &got[&format!("state {}", s.name)][2 * start..][..2 * numbers.len()];
        assert!(*copy == bytes_of(DType::Bf16, &numbers), "{what}: {} is no copy", s.name);
        copies += 1;
    }
    copies
}

/// Which elements of a state a rank has: of a flat bucket maybe a piece.
fn held(g: &Graph, s: &State, place: Place) -> Range<usize> {
    let list = &g.ty(s.value).axes;
    let count = g.axes().count(list);
    let piece = if s.parts.is_empty() { 0 } else { g.axes()[list[0]].piece(0, place) as usize };
    piece * count..(piece + 1) * count
}

fn step_agrees(name: &str, forward: &Graph, compute: Compute) {
    let kind = Optimizer::Adam { beta1: 0.9, beta2: 0.95, epsilon: 1e-3 };
    let config = UpdateConfig { kind, weight_decay: 0.1, clip: 1.0, scale: None };
    let sections = || step_sections(forward, compute, PIECES, &config);
    let asks = sections();
    let start = environment(&asks);
    let (mut first, mut copies) = (None, 0);
    for threads in 1..=2 {
        let mut device = loaded(sections(), threads).unwrap_or_else(|e| panic!("{name}: {e}"));
        (0..asks.len()).for_each(|i| device.write_states(i, &start).unwrap());
        let (mut env, mut rng) = (start.clone(), Rng(4));
        let mut all = vec![];
        for (section, micro) in order(&asks) {
            let g = &asks[section].graph;
            inputs(g, &mut env, &mut rng);
            let clock = Clock { seed: 3, step: 1, micro, ..Clock::default() };
            let got = device.run(section, &env, clock).unwrap();
            let what = format!("{name} {} of piece {micro}", asks[section].name);
            if threads == 1 {
                near(&what, &Reference::new(g, &env, clock, 0.0), clock.place, &got);
            }
            copies += copies_are_rounded(&what, g, clock.place, &got);
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
    assert_eq!(copies > 0, compute == Compute::Bf16, "{name}: {copies} copies");
}

/// New states and outputs are the interpreter's, to a part of the largest number in the section's
/// results of their kind: the gradient of a key bias is 0 but for rounding.
pub fn near(what: &str, reference: &Reference<'_>, place: Place, got: &Bytes) {
    let g = reference.graph();
    let ends = g.assigns.iter().map(|(s, v)| (format!("state {}", g.states()[s.index()].name), *v));
    let ends = ends.chain(g.outputs.iter().map(|(n, v)| (format!("output {n}"), *v)));
    let ends: Vec<_> = ends.collect();
    let sums = |name: &str| name.starts_with("state sum.");
    let largest = ends
        .iter()
        .filter(|e| sums(&e.0) && e.0.contains("grad."))
        .flat_map(|e| &reference.values(e.1).data)
        .fold(0.0, |m: f64, x| m.max(x.abs()));
    for (name, v) in ends {
        let floor = if sums(&name) { reference.relative() * largest } else { 0.0 };
        let numbers = numbers_of(g.ty(v).dtype, &got[&name]);
        let wanted = &reference.values(v).data;
        for (part, is_tensor) in stretches(g, &name, wanted.len(), place) {
            let tolerance = reference.tolerance_in(v, part.clone()).max(floor).max(1e-7);
            // Between the tensors of a bucket there is nothing but zeros.
            let tolerance = if is_tensor { tolerance } else { 0.0 };
            for i in part {
                let (a, b) = (numbers[i], wanted[i]);
                let fits = a == b || (a - b).abs() <= tolerance;
                assert!(fits, "{what}: {name} element {i} is {a}, wanted {b} ± {tolerance:e}");
            }
        }
    }
}

/// The tensors of a value, and what is between and after them; each tensor is judged by itself.
fn stretches(g: &Graph, name: &str, count: usize, place: Place) -> Vec<(Range<usize>, bool)> {
    let state = name.strip_prefix("state ").and_then(|n| g.find_state(n));
    let Some(state) = state.map(|id| &g.states()[id.index()]).filter(|s| !s.parts.is_empty())
    else {
        return vec![(0..count, true)];
    };
    let own = held(g, state, place);
    let (mut list, mut end) = (vec![], 0);
    for part in &state.parts {
        let next = part.first + g.axes().count(&part.axes);
        list.extend([(end..part.first, false), (part.first..next, true)]);
        end = next;
    }
    list.push((end..own.end.max(end), false));
    let local = |r: Range<usize>| {
        let ends = [r.start, r.end].map(|x| x.clamp(own.start, own.end) - own.start);
        ends[0]..ends[1]
    };
    list.into_iter().map(|(r, is_tensor)| (local(r), is_tensor)).collect()
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
