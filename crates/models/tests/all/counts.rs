//! Parameter counts of the paper (Child et al., tables 1 and 2), and the time of building.

use super::common::{gpt2, sparse, with};
use aerogel_graph::{Build, Role};
use aerogel_models::{AttentionKind, Combine, LayerKind, ModelConfig};
use aerogel_models::{parameter_counts, train_graph};
use std::time::{Duration, Instant};

fn cifar10() -> ModelConfig {
    use LayerKind::{Local, Strided};
    ModelConfig {
        layers: 128,
        heads: 2,
        embed: 256,
        mlp: 512,
        qk: 128,
        context: 3072,
        vocab: 256,
        image: Some([32, 32, 3]),
        attention: AttentionKind::Strided,
        cycle: vec![Strided, Local, Local, Local],
        stride: 96,
        window: 96,
        dropout: 0.25,
        ..sparse()
    }
}

fn enwik8() -> ModelConfig {
    ModelConfig {
        layers: 30,
        heads: 8,
        embed: 512,
        mlp: 2048,
        qk: 512,
        context: 12288,
        vocab: 256,
        image: None,
        attention: AttentionKind::Fixed,
        combine: Combine::Merged,
        stride: 128,
        columns: 32,
        dropout: 0.4,
        ..sparse()
    }
}

fn imagenet64() -> ModelConfig {
    ModelConfig {
        layers: 48,
        heads: 16,
        image: Some([64, 64, 3]),
        attention: AttentionKind::Strided,
        combine: Combine::Interleaved,
        cycle: vec![LayerKind::Local, LayerKind::Strided],
        window: 128,
        dropout: 0.01,
        ..enwik8()
    }
}

#[test]
fn counts_are_those_of_the_paper() {
    for (config, millions) in [(cifar10(), 58.72), (enwik8(), 94.37), (imagenet64(), 150.99)] {
        let g = train_graph(&config, 1).unwrap();
        let count = parameter_counts(&g).parameters_without_embeddings as f64 / 1e6;
        assert_eq!((count * 100.0).round() / 100.0, millions);
    }
}

#[test]
fn all_parameters_are_counted_and_gpt2_is_124_million() {
    let config = ModelConfig {
        layers: 12,
        heads: 12,
        embed: 768,
        mlp: 3072,
        qk: 768,
        context: 1024,
        vocab: 50257,
        ..gpt2()
    };
    let g = train_graph(&config, 1).unwrap();
    assert_eq!(parameter_counts(&g).parameters, 124_439_808);
    let states = g.states().iter().filter(|s| s.role == Role::Parameter);
    let sum: usize = states.map(|s| g.axes().count(&g.value(s.value).ty.axes)).sum();
    assert_eq!(sum, 124_439_808);
}

#[test]
fn the_deepest_model_is_built_and_verified_in_a_moment() {
    let from = Instant::now();
    let g = train_graph(&cifar10(), 16).unwrap();
    aerogel_graph::verify::verify(&g).unwrap();
    let took = from.elapsed();
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[test]
fn work_follows_the_kept_pairs() {
    // Attention alone: sparse over dense pairs at 3,072 positions, stride 96.
    let flops = |config: &ModelConfig| -> u64 {
        let g = train_graph(config, 1).unwrap();
        let attends = g.nodes().iter().filter(|n| n.op.name() == "attend");
        attends.map(|n| n.op.flops(g.axes(), &g.in_types(n), &g.out_types(n))).sum()
    };
    let short = ModelConfig { layers: 4, ..cifar10() };
    let dense =
        with(short.clone(), AttentionKind::Dense, Combine::Interleaved, &[LayerKind::Dense]);
    let ratio = flops(&dense) as f64 / flops(&short) as f64;
    // One strided layer keeps (1 + .. + 32) * 96 pairs, three local ones 96 a query but the first.
    let strided = 96.0 * 32.0 * 33.0 / 2.0;
    let local = 3072.0 * 96.0 - 96.0 * 95.0 / 2.0;
    let wanted = 4.0 * (3072.0 * 3073.0 / 2.0) / (strided + 3.0 * local);
    assert!((ratio / wanted - 1.0).abs() < 1e-9, "{ratio} {wanted}");
}
