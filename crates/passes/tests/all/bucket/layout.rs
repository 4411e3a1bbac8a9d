//! Every parameter lies in one bucket, the same for all graphs of a model.

use super::super::support::{environment, states};
use super::*;
use aerogel_graph::verify::verify;
use aerogel_graph::{
    Build, Clock, DType, Env, Init, ParamClass, Place, Role, Rounding, Type, interpret, text,
};
use aerogel_models::{decode_graph, eval_graph};
use aerogel_passes::Bucket;
use std::collections::BTreeMap;

const FAMILIES: [Family; 2] = [Family::Gpt2, Family::SparseTransformer];
const COMPUTES: [Compute; 2] = [Compute::F32, Compute::Bf16];

/// The training step, its buckets, and the other graphs of the model.
fn graphs(family: Family, compute: Compute) -> (Graph, Vec<(&'static str, Graph)>) {
    let train = whole(family, compute);
    let eval = precision(&eval_graph(&model(family), 4).unwrap(), compute).unwrap();
    let decode = precision(&decode_graph(&model(family), 3).unwrap().graph, compute).unwrap();
    (train.clone(), vec![("train", train), ("eval", eval), ("decode", decode)])
}

#[test]
fn every_parameter_is_in_one_bucket_and_aligned() {
    for family in FAMILIES {
        for compute in COMPUTES {
            for ranks in [1, 2, 4] {
                let g = whole(family, compute);
                let buckets = Buckets::of(&g, &zero(ranks, 3), &Partials::default());
                check(&g, &buckets, ranks);
            }
        }
    }
}

fn check(g: &Graph, buckets: &Buckets, ranks: usize) {
    let mut found = BTreeMap::new();
    for b in &buckets.list {
        let mut end = 0;
        for t in &b.tensors {
            assert_eq!(found.insert(t.name.as_str(), t.class), None, "{} is there twice", t.name);
            assert!(t.first >= end && t.first % 16 == 0, "{}", t.name);
            assert!(t.count < b.chunk || t.first % b.chunk == 0, "{} starts a chunk", t.name);
            assert_eq!(t.class.is_some_and(ParamClass::decays), b.decays, "{}", t.name);
            end = t.first + t.count;
        }
        assert!(end <= b.chunks * b.chunk && b.chunks * b.chunk < end + b.chunk, "{}", b.name);
        assert_eq!(b.elements % (b.chunk * ranks), 0, "{}: cuts fall on chunks", b.name);
        assert!(b.elements < end + b.chunk * ranks, "{} is no longer than it must be", b.name);
        let same = buckets.list.iter().filter(|o| o.name == b.name).count();
        assert_eq!(same, 1, "{} is one", b.name);
    }
    for s in g.states().iter().filter(|s| s.role == Role::Parameter) {
        assert_eq!(found.remove(s.name.as_str()), Some(s.class), "{}", s.name);
    }
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_table_that_two_layers_read_has_a_bucket_of_its_own() {
    for compute in COMPUTES {
        for (family, tied) in [(Family::Gpt2, true), (Family::SparseTransformer, false)] {
            let buckets =
                Buckets::of(&whole(family, compute), &Shards::default(), &Partials::default());
            let of = |name: &str| {
                let has = |b: &&Bucket| b.tensors.iter().any(|t| t.name == name);
                buckets.list.iter().find(has).unwrap()
            };
            let table = of("embed.token.weight");
            assert_eq!(table.name == "bucket.embed.token.weight.matrices", tied, "{compute:?}");
            if tied {
                assert_eq!(table.tensors.len(), 1);
            }
            assert_eq!(table.copy.is_some(), compute == Compute::Bf16);
            // Gains and biases are read as they are; so are places, which a map adds.
            assert!(buckets.list.iter().filter(|b| !b.decays).all(|b| b.copy.is_none()));
            let layer = of("h.1.attn.q.weight");
            assert_eq!(layer.name, "bucket.h.1.matrices");
            assert_eq!(layer.tensors.len(), 6, "q, k, v, out, up, down");
            assert_eq!((layer.copy.is_some(), &*layer.scope), (compute == Compute::Bf16, "h.1"));
        }
    }
}

#[test]
fn all_graphs_of_a_model_have_the_same_buckets() {
    for family in FAMILIES {
        for compute in COMPUTES {
            for shards in [Shards::default(), zero(2, 1), zero(4, 3), nodes([2, 1, 1])] {
                let (train, list) = graphs(family, compute);
                let buckets = Buckets::of(&train, &shards, &Partials::default());
                let mut first = None;
                for (name, g) in list {
                    let at = format!("{name} of {family:?} {compute:?} {shards:?}");
                    let g = buckets.apply(&g).unwrap();
                    verify(&g).unwrap_or_else(|e| panic!("{at}: {e}"));
                    let written = text::print(&g);
                    let again = text::parse(&written).unwrap_or_else(|e| panic!("{at}: {e}"));
                    assert_eq!(text::print(&again), written, "{at}");
                    assert_eq!(again.states(), g.states(), "{at}");
                    let held = held(&g);
                    assert_eq!(held.len(), buckets.list.len(), "{at}");
                    assert_eq!(*first.get_or_insert_with(|| held.clone()), held, "{at}");
                }
            }
        }
    }
}

/// The buckets that a graph reads, as text: axes of two graphs have other numbers.
fn held(g: &Graph) -> Vec<String> {
    let axes = g.axes();
    let model = g.states().iter().filter(|s| matches!(s.role, Role::Parameter | Role::Weights));
    model
        .map(|s| {
            let parts: Vec<String> = s
                .parts
                .iter()
                .map(|p| format!("{} [{}] {} {:?}", p.name, axes.names(&p.axes), p.first, p.init))
                .collect();
            let wanted = if s.role == Role::Weights { DType::Bf16 } else { DType::F32 };
            assert_eq!(g.ty(s.value).dtype, wanted, "{}", s.name);
            assert!(!s.parts.is_empty(), "{} is a bucket", s.name);
            format!("{} {:?} {} {parts:?}", s.name, s.role, g.ty(s.value).show(axes))
        })
        .collect()
}

/// Evaluation and decoding read the same numbers from buckets as from single tensors.
#[test]
fn buckets_change_no_bit_of_what_a_model_says() {
    for family in FAMILIES {
        for compute in COMPUTES {
            let (train, list) = graphs(family, compute);
            let buckets = Buckets::of(&train, &Shards::default(), &Partials::default());
            for (name, g) in &list[1..] {
                let bucketed = buckets.apply(g).unwrap();
                let run = |g: &Graph, mut env: Env| {
                    // Row 1 of any table of positions.
                    let places = env.iter_mut().filter(|(name, _)| name.starts_with("position"));
                    places.for_each(|(_, t)| t.data.fill(1.0));
                    interpret(g, &env, Clock::default(), Rounding::Declared).unwrap().outputs
                };
                let wanted = run(g, environment(g));
                let mut env = environment(&bucketed);
                if let Some(copies) = copies(&bucketed, &Share::whole(&buckets)).unwrap() {
                    let masters = states(&copies, Place::default());
                    let clock = Clock::default();
                    let filled = interpret(&copies, &masters, clock, Rounding::Declared).unwrap();
                    env.extend(filled.assigned);
                }
                let got = run(&bucketed, env);
                assert_eq!(got.len(), wanted.len());
                for (output, t) in &wanted {
                    assert_eq!(got[output].data, t.data, "{output} of {name}, {family:?}");
                    assert!(t.data.iter().any(|x| *x != t.data[0]) || t.data.len() == 1);
                }
            }
        }
    }
}

/// A number by itself is a tensor like any other.
#[test]
fn a_parameter_without_axes_lies_in_a_bucket_too() {
    let mut g = Graph::new();
    let batch = g.axis("batch", 3).unwrap();
    let x = g.input("x", DType::F32, &[batch]).unwrap();
    let w = g.parameter("w", ParamClass::Bias, &[], Init::Constant(2.0)).unwrap();
    let y = g.map_to(&[x, w], Type::new(DType::F32, [batch]), &|v| &v[0] * &v[1]).unwrap();
    let loss = g.sum(y, &[batch]).unwrap();
    g.output("loss", loss);
    let g = backward(&g).unwrap();
    let buckets = Buckets::of(&g, &Shards::default(), &Partials::default());
    let bucketed = buckets.apply(&g).unwrap();
    verify(&bucketed).unwrap();
    let mut env = environment(&bucketed);
    env.get_mut("x").unwrap().data = vec![1.0, 2.0, 4.0];
    let run = interpret(&bucketed, &env, Clock::default(), Rounding::Declared).unwrap();
    assert_eq!(run.outputs["loss"].data, [14.0]);
    let grad = &run.outputs["grad.bucket.w.vectors"].data;
    assert_eq!((grad[0], grad[1..].iter().sum::<f64>()), (7.0, 0.0));
}

/// What is lost to borders of chunks in a model of a real size.
#[test]
fn padding_is_a_small_share() {
    let config = ModelConfig {
        layers: 12,
        heads: 12,
        embed: 768,
        mlp: 3072,
        qk: 768,
        context: 1024,
        vocab: 50_257,
        ..model(Family::Gpt2)
    };
    let g = precision(&train_graph(&config, 8).unwrap(), Compute::Bf16).unwrap();
    let g = backward(&g).unwrap();
    for (ranks, most) in [(1, 1e-4), (8, 2e-3)] {
        let buckets = Buckets::of(&g, &zero(ranks, 3), &Partials::default());
        check(&g, &buckets, ranks);
        let stored: usize = buckets.list.iter().map(|b| b.elements).sum();
        let used: usize = buckets.list.iter().flat_map(|b| &b.tensors).map(|t| t.count).sum();
        assert_eq!(used, 124_439_808, "GPT-2 small");
        let share = (stored - used) as f64 / used as f64;
        assert!(share <= most, "{share} of it is padding for {ranks} ranks");
    }
}
