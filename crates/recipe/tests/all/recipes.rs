//! The recipes of this repository: all parse, plain and tiny, and count what the papers count.

use std::path::{Path, PathBuf};

use aerogel_recipe::{DataKind, Recipe};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes")
}

fn load(name: &str, tiny: bool) -> Recipe {
    Recipe::load(&folder().join(name), &[], tiny).unwrap_or_else(|error| panic!("{error}"))
}

fn names() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".toml"))
        .collect();
    names.sort();
    names
}

#[test]
fn all_parse_plain_and_tiny_and_round_trip() {
    let names = names();
    for wanted in [
        "arxiv-bpe.toml",
        "cifar10-dense.toml",
        "cifar10-strided.toml",
        "enwik8-fixed.toml",
        "gpt2-124m.toml",
        "imagenet64-strided.toml",
        "quick.toml",
        "shakespeare.toml",
    ] {
        assert!(names.iter().any(|name| name == wanted), "{wanted} is absent");
    }
    for name in names {
        for tiny in [false, true] {
            let recipe = load(&name, tiny);
            let again = Recipe::parse(&recipe.to_toml(), &name, &recipe.dir, &[], tiny).unwrap();
            assert_eq!(again, recipe, "{name}");
        }
    }
}

#[test]
fn tiny_forms_resolve_for_ranks_that_can_share_their_batch() {
    for name in names() {
        let alone = load(&name, true);
        // A recipe with a mesh of its own says itself how many there are.
        let shares = |ranks: &usize| alone.ranks() == 1 && alone.train.batch.is_multiple_of(*ranks);
        for ranks in [1, 2, 4].into_iter().filter(shares) {
            let path = folder().join(&name);
            let overrides: &[String] = match alone.train.micro_batch * ranks > alone.train.batch {
                true => &["train.micro_batch=".into()],
                false => &[],
            };
            let recipe = Recipe::load_with_ranks(&path, overrides, true, Some(ranks));
            let recipe = recipe.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(recipe.ranks(), ranks, "{name}");
        }
    }
}

#[test]
fn tiny_forms_are_tiny_and_keep_their_kind() {
    for name in names() {
        let (plain, tiny) = (load(&name, false), load(&name, true));
        assert_eq!(plain.data.kind(), tiny.data.kind(), "{name}");
        assert_eq!(plain.model.family, tiny.model.family, "{name}");
        assert_eq!(plain.model.attention.kind, tiny.model.attention.kind, "{name}");
        assert_eq!(plain.model.attention.combine, tiny.model.attention.combine, "{name}");
        assert!(tiny.model.embed <= 32 && tiny.model.layers <= 4, "{name}");
        let tokens = tiny.train.steps * (tiny.train.batch * tiny.model.context) as u64;
        assert!(tokens <= 20_000, "{name} trains on {tokens} tokens");
    }
}

#[test]
fn data_from_outside_has_a_hint() {
    for name in names().iter().filter(|name| *name != "quick.toml") {
        let recipe = load(name, false);
        if recipe.data.kind() != DataKind::CopyRows {
            assert!(recipe.data.hint.is_some(), "{name} does not say how to get its data");
        }
    }
}

/// The weight matrices of the blocks: queries, keys, values, projection, feed-forward.
fn block_parameters(name: &str) -> usize {
    let model = load(name, false).model;
    let (d, qk, mlp) = (model.embed, model.qk_width(), model.mlp_width());
    model.layers * (2 * d * qk + 2 * d * d + 2 * d * mlp)
}

#[test]
fn block_parameters_are_those_of_the_papers() {
    for (name, wanted) in [
        ("cifar10-strided.toml", 58_720_256),
        ("cifar10-dense.toml", 58_720_256),
        ("enwik8-fixed.toml", 94_371_840),
        ("imagenet64-strided.toml", 150_994_944),
        ("gpt2-124m.toml", 84_934_656),
    ] {
        assert_eq!(block_parameters(name), wanted, "{name}");
    }
}
