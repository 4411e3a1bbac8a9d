//! What a recipe resolves to: defaults, derived values, patterns of layers, the hash text.

use aerogel_recipe::{Attention, Combine, Image, LayerAttention, Part, Rule, TokenizerKind};

use crate::support::{IMAGES, TEXT, parse, with, with_ranks};

fn attention(overrides: &[&str]) -> Attention {
    with(TEXT, overrides).unwrap().model.attention
}

#[test]
fn defaults_are_filled_in() {
    let recipe = parse(TEXT).unwrap();
    assert_eq!(recipe.train.micro_batch, 8);
    assert_eq!(recipe.micro_batches(), 1);
    assert_eq!(recipe.schedule.warmup, 5);
    assert_eq!(recipe.tokenizer.kind, TokenizerKind::Bytes);
    assert_eq!(recipe.tokenizer.vocab, Some(256));
    assert_eq!(recipe.optimizer.weight_decay, 0.01);
    let rule = Rule::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
    assert_eq!(recipe.optimizer.rule, rule);
    assert_eq!((recipe.eval.every, recipe.checkpoint.every), (10, 10));
    assert_eq!(recipe.sample.tokens, 256);
}

#[test]
fn derived_defaults_give_their_reason_and_given_values_are_not_among_them() {
    let recipe = with(TEXT, &["model.attention=strided", "train.micro_batch=4"]).unwrap();
    let find = |key: &str| recipe.derived().iter().find(|derived| derived.key == key);
    let stride = find("model.stride").unwrap();
    assert_eq!(stride.value, "16");
    assert!(stride.reason.contains("divisor"), "{}", stride.reason);
    assert!(find("model.window").is_some());
    assert!(find("train.micro_batch").is_none());
    assert!(find("model.context").is_none());
}

#[test]
fn images_fix_the_context_and_the_stride() {
    let recipe = with(IMAGES, &["model.attention=strided"]).unwrap();
    assert_eq!(recipe.model.context, 192);
    assert_eq!(recipe.data.image(), Some(Image { height: 8, width: 8, channels: 3 }));
    assert_eq!(recipe.model.attention.layer(1), LayerAttention::One(Part::Strided { stride: 24 }));
    assert_eq!(with(IMAGES, &["model.context=192"]).unwrap().model, parse(IMAGES).unwrap().model);
}

#[test]
fn layers_cycle_through_their_parts() {
    let dense = attention(&[]);
    assert_eq!(dense.layer(3), LayerAttention::One(Part::Dense));
    let strided = attention(&["model.attention=strided"]);
    let (local, far) = (Part::Local { window: 16 }, Part::Strided { stride: 16 });
    for (layer, part) in [(0, local), (1, far), (2, local), (3, far)] {
        assert_eq!(strided.layer(layer), LayerAttention::One(part));
    }
    let cycle = attention(&[
        "model.attention=fixed",
        "model.cycle=[\"summary\", \"dense\", \"block\"]",
        "model.stride=32",
    ]);
    let parts = [
        Part::Summary { stride: 32, columns: 4 },
        Part::Dense,
        Part::Block { length: 32 },
        Part::Summary { stride: 32, columns: 4 },
    ];
    for (layer, part) in parts.into_iter().enumerate() {
        assert_eq!(cycle.layer(layer), LayerAttention::One(part));
    }
    let banded = attention(&[
        "model.attention=local",
        "model.window=8",
        "model.cycle=[\"dense\",\"local\"]",
    ]);
    assert_eq!(banded.parts, [Part::Dense, Part::Local { window: 8 }]);
}

#[test]
fn merged_and_heads_have_both_parts_in_every_layer() {
    let fixed = ["model.attention=fixed", "model.stride=32", "model.columns=8"];
    let parts = [Part::Block { length: 32 }, Part::Summary { stride: 32, columns: 8 }];
    let merged = attention(&[&fixed[..], &["model.combine=merged"]].concat());
    assert_eq!(merged.combine, Combine::Merged);
    assert_eq!(merged.layer(2), LayerAttention::Merged(parts));
    let heads = attention(&[&fixed[..], &["model.combine=heads"]].concat());
    assert_eq!(heads.layer(2), LayerAttention::Heads(parts));
}

#[test]
fn widths_follow_the_ratios() {
    let model = with(TEXT, &["model.mlp_ratio=2.0", "model.qk_ratio=0.5"]).unwrap().model;
    assert_eq!((model.mlp_width(), model.qk_width()), (256, 64));
}

#[test]
fn the_linear_scaling_rule_multiplies_the_rate() {
    let recipe = with(TEXT, &["schedule.base_batch=2"]).unwrap();
    assert_eq!(recipe.peak_learning_rate(), 4e-3);
    assert_eq!(parse(TEXT).unwrap().peak_learning_rate(), 1e-3);
}

#[test]
fn the_hash_text_holds_what_defines_the_numbers_and_nothing_else() {
    let text = parse(TEXT).unwrap().run_hash_text();
    let watching = [
        "train.log_every=1",
        "eval.every=7",
        "sample.count=1",
        "checkpoint.every=3",
        "checkpoint.keep=9",
        "memory.budget=1GiB",
        "parallel.device=cuda",
        "parallel.threads=2",
        "parallel.timeout_seconds=5",
        "parallel.mesh={rows=1,pipe=1}",
        "parallel.preset=zero3",
        "parallel.shard={optimizer=[\"data\"]}",
        "memory.recompute=block",
        "memory.mlp_chunks=2",
        "memory.loss_chunks=2",
        "data.hint=look here",
    ];
    for change in watching {
        assert_eq!(with(TEXT, &[change]).unwrap().run_hash_text(), text, "{change}");
    }
    let defining = [
        "model.layers=5",
        "model.init=code",
        "data.split_seed=1",
        "tokenizer.kind=bpe",
        "optimizer.beta2=0.95",
        "schedule.kind=linear",
        "schedule.base_batch=8",
        "train.steps=101",
        "train.micro_batch=4",
        "train.seed=1",
        "precision.compute=bf16",
        "train.determinism=fast",
    ];
    for change in defining {
        assert_ne!(with(TEXT, &[change]).unwrap().run_hash_text(), text, "{change}");
    }
    // The layout over ranks is not part of the run, nor is an early update.
    let spread = ["train.micro_batch=1", "parallel.preset=zero2"];
    let one = with(TEXT, &spread[..1]).unwrap().run_hash_text();
    assert_eq!(with_ranks(TEXT, &spread, 8).unwrap().run_hash_text(), one);
    let pipeline = ["parallel.mesh={pipe=2}", "parallel.schedule=interleaved", "parallel.chunks=2"];
    let pipeline = [&pipeline[..], &spread[..1]].concat();
    assert_eq!(with(TEXT, &pipeline).unwrap().run_hash_text(), one);
    let early = ["optimizer.clip=0", "memory.update_in_backward=true"];
    let [late, early] = [&early[..1], &early].map(|o| with(TEXT, o).unwrap().run_hash_text());
    assert_eq!(late, early);
    // A default that is spelled out is the same run.
    assert_eq!(with(TEXT, &["train.micro_batch=8"]).unwrap().run_hash_text(), text);
}
