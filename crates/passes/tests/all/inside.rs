//! Updates inside the backward, three steps through the interpreter: the numbers of a step that
//! accumulates one micro-batch and updates after it, bit by bit.

use super::chunk::peak_bytes;
use super::golden::golden;
use super::models::config;
use super::support::{accumulators, inputs, network, read, states, tensor};
use aerogel_graph::verify::verify;
use aerogel_graph::{
    AxisId, Build, Clock, Def, Env, Graph, Mesh, Phase, Role, Rounding, Tensor, ValueId,
    interpret_mesh, text,
};
use aerogel_models::{AttentionKind, Combine, Family, ModelConfig, train_graph};
use aerogel_passes::{
    Buckets, Compute, Optimizer, Order, Partials, PassError, Shards, Share, UpdateConfig,
    accumulate, backward, chunk, copies, cut, inside, precision, update,
};
use std::collections::BTreeMap;

const STEPS: u64 = 3;
const ADAMW: UpdateConfig = UpdateConfig {
    kind: Optimizer::AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-6 },
    weight_decay: 0.1,
    clip: 0.0,
    scale: None,
};

/// The gradients of a batch of four rows; no layers share a parameter.
fn whole(compute: Compute) -> Graph {
    let kind = AttentionKind::Strided;
    let shape = config(Family::SparseTransformer, kind, Combine::Interleaved);
    let g = train_graph(&ModelConfig { context: 8, ..shape }, 4).unwrap();
    backward(&precision(&g, compute).unwrap()).unwrap()
}

/// Ranks in one row: ZeRO by stage, 0 for copies of everything.
fn zero(ranks: usize, stage: usize) -> Shards {
    let over = |least: usize| if stage >= least { vec![0] } else { vec![] };
    Shards {
        mesh: Mesh(vec![("data".to_owned(), ranks)]),
        batch: vec![0],
        optimizer: over(1),
        gradients: over(2),
        parameters: over(3),
    }
}

/// The graph of a rank's one micro-batch over buckets.
fn micro(whole: &Graph, shards: &Shards) -> (Buckets, Graph) {
    let buckets = Buckets::of(whole, shards, &Partials::default());
    let micro = buckets.apply(&cut(whole, shards, 1).unwrap()).unwrap();
    (buckets, micro)
}

fn sections(
    (buckets, micro): &(Buckets, Graph),
    config: &UpdateConfig,
    in_backward: bool,
) -> Vec<Graph> {
    let share = Share::whole(buckets);
    let list = if in_backward {
        vec![inside(micro, &share, config).unwrap()]
    } else {
        let (_, sum) = accumulate(micro, 1, Order::Tree).unwrap().remove(0);
        let update = update(&sum, &share, config).unwrap();
        vec![sum, update]
    };
    list.iter().for_each(|g| verify(g).unwrap());
    list
}

/// The rows of a rank.
fn rows(g: &Graph, data: &Env, rank: usize) -> Env {
    let axes = g.axes();
    let batch = &axes[axes.find("batch").unwrap()];
    let piece = batch.piece(0, axes.mesh.place(rank)) as usize;
    let cut = |t: &Tensor| {
        let n = t.data.len() / batch.pieces();
        Tensor::from_vec(axes, &t.axes, t.data[piece * n..(piece + 1) * n].to_vec())
    };
    data.iter().map(|(name, t)| (name.clone(), cut(t))).collect()
}

fn run_all(g: &Graph, envs: &mut [Env], step: u64) -> Vec<Env> {
    let clock = Clock { seed: 3, step, ..Clock::default() };
    let runs = interpret_mesh(g, envs, clock, Rounding::Declared).unwrap();
    let keep = |(env, run): (&mut Env, aerogel_graph::interpret::Run)| {
        env.extend(run.assigned);
        run.outputs
    };
    envs.iter_mut().zip(runs).map(keep).collect()
}

/// Bits of all numbers that three steps leave, by name.
fn train(whole: &Graph, shards: &Shards, config: &UpdateConfig, in_backward: bool) -> Bits {
    let micro = micro(whole, shards);
    let list = sections(&micro, config, in_backward);
    let mut envs: Vec<Env> = vec![Env::new(); shards.mesh.ranks()];
    for (rank, env) in envs.iter_mut().enumerate() {
        for g in &list {
            env.extend(states(g, shards.mesh.place(rank)));
            accumulators(g, env, f64::NAN);
        }
    }
    if let Some(copies) = copies(&micro.1, &Share::whole(&micro.0)).unwrap() {
        run_all(&copies, &mut envs, 0);
    }
    let mut left = Bits::new();
    let bits = |t: &Tensor| t.data.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for step in 1..=STEPS {
        let data = inputs(whole, &format!(" of step {step}"));
        let rate = tensor(whole.axes(), &[], &[0.01 / step as f64]);
        for (rank, env) in envs.iter_mut().enumerate() {
            env.extend(rows(&list[0], &data, rank));
            env.insert("rate".to_owned(), rate.clone());
        }
        let mut told = vec![];
        for g in &list {
            told = run_all(g, &mut envs, step);
        }
        for (rank, outputs) in told.iter().enumerate() {
            assert_eq!(outputs.len(), 4);
            assert_eq!(outputs["finite"].data, [1.0]);
            for (name, value) in outputs {
                left.insert(format!("{name} of step {step} on {rank}"), bits(value));
            }
        }
    }
    for s in list.iter().flat_map(Graph::states).filter(|s| s.role != Role::Accumulator) {
        for (rank, env) in envs.iter().enumerate() {
            left.insert(format!("{} on {rank}", s.name), bits(&env[&s.name]));
        }
    }
    left
}

type Bits = BTreeMap<String, Vec<u64>>;

fn assert_same(whole: &Graph, shards: &Shards, config: &UpdateConfig, name: &str) {
    let (wanted, got) = [false, true].map(|i| train(whole, shards, config, i)).into();
    assert!(wanted.keys().eq(got.keys()), "{name}: the same states and outputs");
    for (key, bits) in &wanted {
        assert_eq!(got[key], *bits, "{name}: {key}");
    }
}

#[test]
fn three_steps_are_those_of_the_update_after_the_backward() {
    for compute in [Compute::F32, Compute::Bf16] {
        let whole = whole(compute);
        assert_same(&whole, &Shards::default(), &ADAMW, &format!("{compute:?}, one rank"));
        for stage in 0..=3 {
            let name = format!("{compute:?}, two ranks, ZeRO-{stage}");
            assert_same(&whole, &zero(2, stage), &ADAMW, &name);
        }
    }
}

#[test]
fn every_optimizer_fits() {
    let whole = backward(&network(4, false)).unwrap();
    let (beta1, beta2, epsilon) = (0.9, 0.999, 1e-8);
    for kind in [
        Optimizer::Sgd { momentum: 0.0 },
        Optimizer::Sgd { momentum: 0.9 },
        Optimizer::RmsProp { alpha: 0.99, epsilon, momentum: 0.0 },
        Optimizer::RmsProp { alpha: 0.9, epsilon, momentum: 0.5 },
        Optimizer::Adam { beta1, beta2, epsilon },
    ] {
        for weight_decay in [0.0, 0.1] {
            let config = UpdateConfig { kind, weight_decay, clip: 0.0, scale: None };
            assert_same(&whole, &zero(2, 1), &config, &format!("{config:?}"));
        }
    }
}

#[test]
fn text_out() {
    let whole = backward(&network(4, false)).unwrap();
    let g = sections(&micro(&whole, &zero(2, 2)), &ADAMW, true).remove(0);
    let printed = text::print(&g);
    assert_eq!(text::print(&text::parse(&printed).unwrap()), printed);
    golden("inside-adamw-zero2.out.txt", &printed);
}

#[test]
fn parameters_move() {
    let whole = whole(Compute::F32);
    let micro = micro(&whole, &Shards::default());
    let g = sections(&micro, &ADAMW, true).remove(0);
    let before = [states(&g, Default::default())];
    let mut envs = before.clone();
    envs[0].extend(inputs(&whole, ""));
    envs[0].insert("rate".to_owned(), tensor(g.axes(), &[], &[0.01]));
    run_all(&g, &mut envs, 1);
    for t in micro.0.list.iter().flat_map(|b| &b.tensors) {
        assert_ne!(read(&g, &before, &t.name), read(&g, &envs, &t.name), "{}", t.name);
    }
}

/// The most bytes of whole gradients of buckets that exist at once.
fn gradient_bytes(g: &Graph) -> u64 {
    let is_gradient = |v: ValueId| {
        let Def::Node(n, _) = g.value(v).def else { return false };
        let of_bucket = |a: &AxisId| g.axes()[*a].name.starts_with("bucket.");
        g.node(n).phase == Phase::Backward && g.ty(v).axes.iter().any(of_bucket)
    };
    peak_bytes(g, is_gradient)
}

#[test]
fn gradients_never_exist_all_at_once() {
    for compute in [Compute::F32, Compute::Bf16] {
        let whole = chunk(&whole(compute), 2, 2).unwrap();
        let micro = micro(&whole, &Shards::default());
        let step = sections(&micro, &ADAMW, true).remove(0);
        let names: Vec<&str> = step.outputs.iter().map(|o| o.0.as_str()).collect();
        assert_eq!(names, ["loss", "grad_norm", "tokens", "finite"]);
        assert!(step.states().iter().all(|s| s.role != Role::Accumulator));
        let bytes = micro.0.list.iter().map(|b| 4 * b.elements as u64);
        assert_eq!(gradient_bytes(&micro.1), bytes.clone().sum::<u64>(), "{compute:?}");
        assert_eq!(Some(gradient_bytes(&step)), bytes.max(), "{compute:?}");
    }
}

/// Where the first or the last node of a layer in a phase is.
fn nodes(g: &Graph, layer: &str, phase: Phase) -> Vec<usize> {
    let inside = |scope: &str| scope == layer || scope.starts_with(&format!("{layer}."));
    let list = g.nodes().iter().enumerate();
    list.filter(|(_, n)| n.phase == phase && inside(&n.scope)).map(|(i, _)| i).collect()
}

#[test]
fn each_layer_is_updated_before_the_next_one_is_differentiated() {
    let micro = micro(&whole(Compute::Bf16), &Shards::default());
    let g = sections(&micro, &ADAMW, true).remove(0);
    for (before, after) in [("head", "final_norm"), ("h.1", "h.0"), ("h.0", "embed")] {
        let (updates, next) = (nodes(&g, before, Phase::Update), nodes(&g, after, Phase::Backward));
        assert!(!updates.is_empty() && updates.last() < next.first(), "{before}, {after}");
    }
}

fn refused(whole: &Graph, micro_batches: usize, config: &UpdateConfig) -> String {
    let shards = Shards::default();
    let buckets = Buckets::of(whole, &shards, &Partials::default());
    let micro = buckets.apply(&cut(whole, &shards, micro_batches).unwrap()).unwrap();
    inside(&micro, &Share::whole(&buckets), config).unwrap_err().to_string()
}

#[test]
fn what_needs_all_gradients_first_is_refused() {
    let whole = whole(Compute::F32);
    let error = refused(&whole, 1, &UpdateConfig { clip: 0.5, ..ADAMW });
    assert!(error.contains("clipping to 0.5") && error.contains("set clip to 0"), "{error}");
    let error = refused(&whole, 2, &ADAMW);
    assert!(error.contains("2 micro-batches"), "{error}");
    let error = refused(&whole, 1, &UpdateConfig { weight_decay: -1.0, ..ADAMW });
    assert!(error.contains("weight_decay"), "{error}");
    let gpt2 = config(Family::Gpt2, AttentionKind::Dense, Combine::Interleaved);
    for compute in [Compute::F32, Compute::Bf16] {
        let tied = [network(4, true), train_graph(&gpt2, 4).unwrap()];
        for (g, table) in tied.iter().zip(["embed.token", "embed.token.weight"]) {
            let error = refused(&backward(&precision(g, compute).unwrap()).unwrap(), 1, &ADAMW);
            assert!(error.contains(&format!("layers share `{table}`")), "{error}");
        }
    }
}

#[test]
fn what_is_no_whole_micro_batch_is_refused() {
    let (buckets, micro) = micro(&whole(Compute::F32), &Shards::default());
    let got = |micro: &Graph, share: &Share<'_>| inside(micro, share, &ADAMW).unwrap_err();
    let stages = Share { pipe: Some(0), ..Share::whole(&buckets) };
    let mut part = Share::whole(&buckets);
    part.owned[0] = false;
    for share in [stages, part, Share { has_loss: false, ..Share::whole(&buckets) }] {
        let error = got(&micro, &share);
        assert!(matches!(&error, PassError::Inside { reason } if reason.contains("pipeline")));
    }
    for (i, (name, _)) in micro.outputs.iter().enumerate() {
        let mut less = micro.clone();
        less.outputs.remove(i);
        let error = got(&less, &Share::whole(&buckets));
        assert_eq!(error, PassError::MissingOutput { pass: "inside", name: name.clone() });
    }
    let none = Buckets::of(&Graph::new(), &Shards::default(), &Partials::default());
    assert_eq!(got(&Graph::new(), &Share::whole(&none)), PassError::NoParameters);
}
