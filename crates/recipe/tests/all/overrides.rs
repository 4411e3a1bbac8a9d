//! Overrides on the command line and the tiny form.

use std::path::Path;

use aerogel_recipe::{DataKind, Recipe, Rule, Source};

use crate::support::{TEXT, parse, with};

#[test]
fn a_value_is_toml_or_bare_text() {
    let recipe = with(
        TEXT,
        &[
            "model.layers=6",
            "optimizer.learning_rate = 2e-4",
            "optimizer.kind=sgd",
            "data.paths=[\"a b.txt\", 'c.txt']",
            "sample.prompt=1984: it was a bright cold day",
            "memory.budget=1.5GiB",
            "model.dropout=0",
        ],
    )
    .unwrap();
    assert_eq!(recipe.model.layers, 6);
    assert_eq!(recipe.optimizer.learning_rate, 2e-4);
    assert_eq!(recipe.optimizer.rule, Rule::Sgd { momentum: 0.0 });
    let Source::Text { paths, .. } = &recipe.data.source else { panic!() };
    assert_eq!(paths, &["a b.txt", "c.txt"]);
    assert_eq!(recipe.sample.prompt.as_deref(), Some("1984: it was a bright cold day"));
    assert_eq!(recipe.memory.budget_bytes, Some(3 << 29));
}

#[test]
fn the_last_override_wins_and_quotes_are_optional() {
    let recipe = with(TEXT, &["sample.prompt=\"a\"", "sample.prompt=b"]).unwrap();
    assert_eq!(recipe.sample.prompt.as_deref(), Some("b"));
    let recipe = with(TEXT, &["sample.prompt=b", "sample.prompt=\"a\""]).unwrap();
    assert_eq!(recipe.sample.prompt.as_deref(), Some("a"));
}

#[test]
fn an_empty_override_drops_a_key() {
    let strided =
        TEXT.replace("context = 256", "context = 256\nattention = \"strided\"\nstride = 16");
    assert!(with(&strided, &["model.attention=dense"]).is_err());
    let dense = with(&strided, &["model.attention=dense", "model.stride="]).unwrap();
    assert_eq!(dense, parse(TEXT).unwrap());
}

#[test]
fn sizes_have_binary_and_decimal_units() {
    for (text, wanted) in [
        ("8GiB", 8u64 << 30),
        ("8GB", 8_000_000_000),
        ("512 MiB", 512 << 20),
        ("123", 123),
        ("7B", 7),
    ] {
        let recipe = with(TEXT, &[&format!("memory.budget={text}")]).unwrap();
        assert_eq!(recipe.memory.budget_bytes, Some(wanted), "{text}");
    }
}

#[test]
fn tiny_lies_under_overrides_and_over_the_rest() {
    let tiny = |overrides: &[String]| {
        Recipe::parse(TEXT, "a/b/quick.toml", Path::new("a/b"), overrides, true).unwrap()
    };
    let recipe = tiny(&[]);
    assert!(recipe.tiny);
    assert_eq!((recipe.model.layers, recipe.model.embed, recipe.model.heads), (2, 32, 4));
    assert_eq!(recipe.data.kind(), DataKind::Text);
    assert_eq!(tiny(&["model.layers=3".into()]).model.layers, 3);
    assert_eq!(parse(TEXT).unwrap().model.layers, 4);
}

#[test]
fn name_and_paths_come_from_the_file() {
    let recipe = Recipe::parse(TEXT, "a/b/quick.toml", Path::new("a/b"), &[], false).unwrap();
    assert_eq!(recipe.name, "quick");
    assert_eq!(recipe.path("../data/x.txt"), Path::new("a/b/../data/x.txt"));
}
