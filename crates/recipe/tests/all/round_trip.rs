//! The resolved form parses back to the same recipe.

use std::path::Path;

use aerogel_recipe::Recipe;
use proptest::prelude::*;

use crate::support::{IMAGES, MESH, TEXT, with};

fn assert_round_trip(recipe: &Recipe) {
    let text = recipe.to_toml();
    let again = Recipe::parse(&text, "recipe.toml", Path::new("somewhere"), &[], recipe.tiny)
        .unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(&again, recipe, "{text}");
    assert_eq!(again.to_toml(), text);
    assert!(again.derived().is_empty(), "every key is explicit: {:?}\n{text}", again.derived());
}

#[test]
fn every_kind_of_every_section() {
    let text: &[&[&str]] = &[
        &[],
        &["model.family=gpt2", "data.kind=jsonl", "data.field=text", "tokenizer.kind=bpe"],
        &["data.kind=parquet", "data.field=a \"b\"\\c\nd", "data.exclude=[\"x\"]"],
        &["data.kind=bin", "tokenizer.vocab=50257", "data.format=nanogpt", "data.test=t*.bin"],
        &["data.kind=bin", "tokenizer.kind=bytes"],
        &["tokenizer.kind=bpe", "tokenizer.path=tokenizer.json"],
        &["data.kind=copy_rows", "data.paths=", "model.context="],
        &["data.kind=cifar10", "model.context="],
        &["model.attention=local", "model.window=9"],
        &["model.attention=strided"],
        &["model.attention=strided", "model.combine=merged", "model.window=5"],
        &["model.attention=fixed", "model.combine=heads", "model.columns=2"],
        &["model.attention=fixed", "model.cycle=[\"summary\",\"local\"]", "model.window=3"],
        &["optimizer.kind=adam", "schedule.kind=constant"],
        &["optimizer.kind=sgd", "optimizer.momentum=0.9", "schedule.kind=linear"],
        &["optimizer.kind=rmsprop", "optimizer.clip=0", "schedule.base_batch=4"],
        &["sample.count=0", "data.validation=0"],
        &["sample.temperature=0", "sample.prompt=\"\"\"a\nb\"\"\"", "memory.budget=3MB"],
        &["data.validation=0", "data.test_fraction=0.25", "data.hint=\"\"\"curl\n -O x\"\"\""],
    ];
    for overrides in text {
        assert_round_trip(&with(TEXT, overrides).unwrap_or_else(|e| panic!("{overrides:?}: {e}")));
    }
    for overrides in [&[][..], &["model.attention=strided", "data.test=data/test"]] {
        assert_round_trip(&with(IMAGES, overrides).unwrap());
    }
    let text: &[&[&str]] = &[
        &[],
        &["parallel.schedule=gpipe", "parallel.timeout_seconds=0.25"],
        &["parallel.schedule=interleaved", "parallel.chunks=2", "parallel.preset=zero3"],
        &["parallel.mesh={zone=2,node=2,data=2}", "parallel.preset=hybrid"],
        &["parallel.mesh={data=2,t=2}", "parallel.shard={heads=[\"t\"],seq=[\"t\"]}"],
        &["parallel.mesh={a=3}", "train.batch=9", "train.micro_batch=1", "train.determinism=fast"],
        &["memory.recompute=cheap", "memory.mlp_chunks=4", "memory.loss_chunks=16"],
        &["memory.recompute=block", "memory.recompute_every=2"],
        &["memory.recompute=budget", "memory.activations=1.5GiB", "memory.budget=4GiB"],
        &["parallel.mesh={data=8}", "memory.update_in_backward=true"],
    ];
    for overrides in text {
        assert_round_trip(&with(MESH, overrides).unwrap_or_else(|e| panic!("{overrides:?}: {e}")));
    }
    let tiny = Recipe::parse(TEXT, "recipe.toml", Path::new("somewhere"), &[], true).unwrap();
    assert_round_trip(&tiny);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn numbers_and_texts_survive(
        rate in 1e-12f64..1e6,
        dropout in 0.0f64..1.0,
        seed in 0u64..i64::MAX as u64,
        steps in 1u64..1_000_000_000,
        budget in 1u64..1 << 50,
        prompt in "\\PC{1,30}",
        stride_log in 0u32..9,
    ) {
        let overrides = [
            format!("optimizer.learning_rate={rate:?}"),
            format!("model.dropout={dropout:?}"),
            format!("train.seed={seed}"),
            format!("train.steps={steps}"),
            format!("memory.budget={budget}"),
            format!("sample.prompt={}", toml::Value::String(prompt)),
            "model.attention=fixed".into(),
            format!("model.stride={}", 1 << stride_log),
        ];
        let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
        assert_round_trip(&with(TEXT, &overrides).unwrap());
    }
}
