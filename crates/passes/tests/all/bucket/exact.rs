//! Three steps on any mesh are those of one rank, bit by bit.

use super::super::support::{accumulators, inputs, read, states, tensor};
use super::*;
use aerogel_graph::{Build, Clock, DType, Env, Role, Rounding, Tensor, interpret_mesh};
use aerogel_passes::section_of;
use std::collections::BTreeMap;

const STEPS: u64 = 3;

/// What a run leaves: numbers by name.
#[derive(PartialEq)]
struct Trained(BTreeMap<String, Vec<f64>>);

impl Trained {
    /// The first name under which two runs have other bits.
    fn differs(&self, other: &Trained) -> Option<&str> {
        assert!(self.0.keys().eq(other.0.keys()), "the same tensors");
        let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        self.0.iter().find(|(k, v)| bits(v) != bits(&other.0[*k])).map(|(k, _)| k.as_str())
    }

    /// The largest difference, over the largest number of the same kind.
    fn error(&self, other: &Trained) -> f64 {
        let kind = |name: &str| {
            let kinds = ["optimizer.m.", "optimizer.v.", "loss", "grad_norm", "tokens"];
            kinds.iter().position(|k| name.starts_with(k))
        };
        let mut scales = BTreeMap::new();
        for (name, list) in &self.0 {
            let scale = scales.entry(kind(name)).or_insert(f64::MIN_POSITIVE);
            *scale = list.iter().fold(*scale, |m: f64, x| m.max(x.abs()));
        }
        let mut error: f64 = 0.0;
        for (name, list) in &self.0 {
            for (a, b) in list.iter().zip(&other.0[name]) {
                error = error.max((a - b).abs() / scales[&kind(name)]);
            }
        }
        error
    }
}

/// The rows of a rank's micro-batch.
fn rows(section: &Graph, data: &Env, rank: usize, j: usize) -> Env {
    let axes = section.axes();
    let batch = &axes[axes.find("batch").unwrap()];
    let piece = batch.piece(j as u64, axes.mesh.place(rank)) as usize;
    let cut = |t: &Tensor| {
        let n = t.data.len() / batch.pieces();
        Tensor::from_vec(axes, &t.axes, t.data[piece * n..(piece + 1) * n].to_vec())
    };
    data.iter().map(|(name, t)| (name.clone(), cut(t))).collect()
}

fn run_all(g: &Graph, envs: &mut [Env], step: u64, j: usize, mode: Rounding) -> Vec<Env> {
    let clock = Clock { seed: 3, step, micro: j as u64, ..Clock::default() };
    let runs = interpret_mesh(g, envs, clock, mode).unwrap();
    let keep = envs.iter_mut().zip(runs);
    keep.map(|(env, run)| {
        env.extend(run.assigned);
        run.outputs
    })
    .collect()
}

fn train(whole: &Graph, shards: &Shards, order: Order, mode: Rounding) -> Trained {
    let step = Step::new(whole, shards, order);
    let first = &step.micros[0].1;
    let mut envs: Vec<Env> = (0..shards.mesh.ranks())
        .map(|rank| {
            let place = shards.mesh.place(rank);
            let mut env = states(first, place);
            env.extend(states(&step.update, place));
            accumulators(first, &mut env, f64::NAN);
            env
        })
        .collect();
    if let Some(copies) = &step.copies {
        run_all(copies, &mut envs, 0, 0, mode);
    }
    let mut left = BTreeMap::new();
    for s in 1..=STEPS {
        let data = inputs(whole, &format!(" of step {s}"));
        for j in 0..step.local {
            let name = section_of(j, step.local, order);
            let section = &step.micros.iter().find(|(n, _)| *n == name).unwrap().1;
            for (rank, env) in envs.iter_mut().enumerate() {
                env.extend(rows(section, &data, rank, j));
            }
            run_all(section, &mut envs, s, j, mode);
        }
        let rate = tensor(step.update.axes(), &[], &[0.01 / s as f64]);
        envs.iter_mut().for_each(|env| _ = env.insert("rate".to_owned(), rate.clone()));
        let outputs = run_all(&step.update, &mut envs, s, 0, mode);
        for name in ["loss", "grad_norm", "tokens", "finite"] {
            let all: Vec<u64> = outputs.iter().map(|o| o[name].data[0].to_bits()).collect();
            assert!(all.iter().all(|x| *x == all[0]), "{name} differs between ranks");
            left.insert(format!("{name} {s}"), outputs[0][name].data.clone());
        }
    }
    for g in [&step.update, first] {
        for part in g.states().iter().flat_map(|s| &s.parts) {
            left.insert(part.name.clone(), read(g, &envs, &part.name).data);
        }
    }
    let applied: Vec<f64> = envs.iter().map(|e| e["optimizer.applied"].data[0]).collect();
    assert!(applied.iter().all(|x| *x == STEPS as f64), "{applied:?}");
    if mode == Rounding::Declared {
        copies_are_rounded_masters(first, &left);
    }
    Trained(left)
}

fn copies_are_rounded_masters(micro: &Graph, left: &BTreeMap<String, Vec<f64>>) {
    for s in micro.states().iter().filter(|s| s.role == Role::Weights) {
        for part in &s.parts {
            let master = &left[part.name.strip_prefix("bf16.").unwrap()];
            let rounded: Vec<f64> = master.iter().map(|x| DType::Bf16.round(*x)).collect();
            assert_eq!(left[&part.name], rounded, "{}", part.name);
        }
    }
}

/// Meshes with the rounding under which one rank has the same bits. A collective of four members
/// adds in f64 here and rounds once, so that of f32 only pairs can be compared; in f64 each
/// addition rounds, whoever does it.
fn same_bits(family: Family, compute: Compute) {
    let whole = whole(family, compute);
    let pairs = [0, 1, 2, 3].map(|stage| zero(2, stage)).into_iter().chain(NODES.map(nodes));
    let fours = [0, 1, 2, 3].map(|stage| zero(4, stage));
    let mut f32_bits = None;
    for (mode, list) in [
        (Rounding::Declared, pairs.collect::<Vec<_>>()),
        (Rounding::Exact, fours.into_iter().collect()),
    ] {
        let one = train(&whole, &Shards::default(), Order::Tree, mode);
        assert!(one.0["loss 3"][0] < one.0["loss 1"][0], "it learns");
        assert!(one.0["grad_norm 1"][0] > CONFIG.clip, "clipping is at work");
        for shards in list {
            let got = train(&whole, &shards, Order::Tree, mode);
            assert_eq!(got.differs(&one), None, "{family:?} {compute:?} {mode:?} {shards:?}");
        }
        f32_bits.get_or_insert(one);
    }
    // The comparison sees the order of sums.
    let folded = train(&whole, &Shards::default(), Order::Fold, Rounding::Declared);
    assert!(folded.differs(&f32_bits.unwrap()).is_some(), "a fold has other bits");
}

#[test]
fn gpt2_in_f32() {
    same_bits(Family::Gpt2, Compute::F32);
}

#[test]
fn gpt2_in_bf16() {
    same_bits(Family::Gpt2, Compute::Bf16);
}

#[test]
fn the_sparse_transformer_in_f32() {
    same_bits(Family::SparseTransformer, Compute::F32);
}

#[test]
fn the_sparse_transformer_in_bf16() {
    same_bits(Family::SparseTransformer, Compute::Bf16);
}

#[test]
fn sums_one_after_another_are_near() {
    for family in [Family::Gpt2, Family::SparseTransformer] {
        let whole = whole(family, Compute::F32);
        let one = train(&whole, &Shards::default(), Order::Tree, Rounding::Declared);
        for shards in [Shards::default(), zero(2, 0), zero(2, 2), zero(4, 3), nodes([2, 1, 1])] {
            let got = train(&whole, &shards, Order::Fold, Rounding::Declared);
            let error = one.error(&got);
            assert!(error <= 1e-6, "{family:?} {shards:?}: {error}");
        }
    }
}

/// What `apply` makes of a step that nobody shares.
#[test]
fn buckets_alone_change_no_bit_of_gradients() {
    for family in [Family::Gpt2, Family::SparseTransformer] {
        for compute in [Compute::F32, Compute::Bf16] {
            let whole = whole(family, compute);
            let buckets = Buckets::of(&whole, &Shards::default(), &Partials::default());
            let bucketed = buckets.apply(&whole).unwrap();
            let mode = Rounding::Declared;
            let mut env = states(&whole, Default::default());
            let data = inputs(&whole, "");
            env.extend(data.clone());
            let wanted = run_all(&whole, std::slice::from_mut(&mut env), 1, 0, mode).remove(0);
            let share = Share::whole(&buckets);
            let mut env = states(&bucketed, Default::default());
            if let Some(copies) = copies(&bucketed, &share).unwrap() {
                env.extend(states(&copies, Default::default()));
                run_all(&copies, std::slice::from_mut(&mut env), 0, 0, mode);
            }
            env.extend(data);
            let got = run_all(&bucketed, std::slice::from_mut(&mut env), 1, 0, mode).remove(0);
            assert_eq!(got["loss"].data, wanted["loss"].data);
            for b in &buckets.list {
                let sums = &got[&format!("grad.{}", b.name)].data;
                assert_eq!(sums.len(), b.elements);
                let mut rest = sums.clone();
                for t in &b.tensors {
                    let range = t.first..t.first + t.count;
                    let name = format!("grad.{}", t.name);
                    assert_eq!(sums[range.clone()], wanted[&name].data, "{name}");
                    rest[range].fill(0.0);
                }
                assert!(rest.iter().all(|x| *x == 0.0), "{} is padded with zeros", b.name);
            }
        }
    }
}
