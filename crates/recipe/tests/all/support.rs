//! Small valid recipes, and snapshots that `UPDATE_SNAPSHOTS=1` writes anew.

use std::path::{Path, PathBuf};

use aerogel_recipe::{Recipe, RecipeError};

pub const TEXT: &str = r#"[model]
layers = 4
heads = 4
embed = 128
context = 256

[data]
kind = "text"
paths = ["data/*.txt"]

[optimizer]
learning_rate = 1e-3

[train]
steps = 100
batch = 8

[tiny]
model = { layers = 2, embed = 32 }
"#;

pub const IMAGES: &str = r#"[model]
layers = 4
heads = 4
embed = 128

[data]
kind = "images"
train = "data/train"
image = [8, 8, 3]

[optimizer]
learning_rate = 1e-3

[train]
steps = 100
batch = 8
"#;

/// Eight ranks, of every kind.
pub const MESH: &str = r#"[model]
layers = 8
heads = 4
embed = 128
context = 256

[data]
kind = "text"
paths = ["data/*.txt"]

[optimizer]
learning_rate = 1e-3
clip = 0

[train]
steps = 100
batch = 16
micro_batch = 2

[memory]
recompute = "none"

[parallel]
mesh = { data = 2, tensor = 2, pipe = 2 }
"#;

pub fn parse(text: &str) -> Result<Recipe, RecipeError> {
    with(text, &[])
}

pub fn with(text: &str, overrides: &[&str]) -> Result<Recipe, RecipeError> {
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    Recipe::parse(text, "recipe.toml", Path::new("somewhere"), &overrides, false)
}

/// As [`with`], with the `--ranks` of the command line.
pub fn with_ranks(text: &str, overrides: &[&str], ranks: usize) -> Result<Recipe, RecipeError> {
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    let dir = Path::new("somewhere");
    Recipe::parse_with_ranks(text, "recipe.toml", dir, &overrides, false, Some(ranks))
}

/// Compares `got` with a file of this folder, or writes the file.
pub fn snapshot(name: &str, got: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/all").join(name);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, got).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    let difference = got.lines().zip(wanted.lines()).find(|(got, wanted)| got != wanted);
    assert!(
        got == wanted,
        "{name} differs, first in (got, wanted) {difference:?}; UPDATE_SNAPSHOTS=1 rewrites it"
    );
}
