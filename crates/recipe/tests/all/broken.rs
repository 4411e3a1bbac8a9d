//! Broken recipes: each ends in one message that says where, what, why and what to do.
//!
//! `broken.txt` holds the cases and the messages, one paragraph each; its head says how.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aerogel_recipe::Recipe;

use crate::support::{IMAGES, MESH, TEXT, snapshot};

#[derive(Default)]
struct Case {
    text: String,
    overrides: Vec<String>,
    tiny: bool,
    ranks: Option<usize>,
}

/// Reads one paragraph, less its message.
fn case(paragraph: &str) -> Case {
    let mut case = Case { text: TEXT.into(), ..Case::default() };
    for line in paragraph.lines() {
        if let Some(text) = line.strip_prefix("override ") {
            case.overrides.push(text.into());
        } else if let Some(ranks) = line.strip_prefix("ranks ") {
            case.ranks = Some(ranks.parse().unwrap());
        } else if let Some((old, new)) = line.split_once(" => ") {
            assert!(case.text.contains(old), "`{old}` is not in the recipe of `{line}`");
            case.text = case.text.replacen(old, &new.replace("\\n", "\n"), 1);
        } else {
            match line {
                "base images" => case.text = IMAGES.into(),
                "base mesh" => case.text = MESH.into(),
                "tiny" => case.tiny = true,
                _ if line.starts_with('!') => {}
                _ => panic!("`{line}` is no line of a case"),
            }
        }
    }
    case
}

#[test]
fn every_broken_recipe_ends_in_its_message() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/all/broken.txt");
    let text = std::fs::read_to_string(path).unwrap();
    let mut paragraphs = text.trim_end().split("\n\n");
    let mut got = paragraphs.next().unwrap().to_string();
    let (mut count, started) = (0, Instant::now());
    for paragraph in paragraphs {
        let Case { text, overrides, tiny, ranks } = case(paragraph);
        let dir = Path::new("");
        let error = Recipe::parse_with_ranks(&text, "recipe.toml", dir, &overrides, tiny, ranks)
            .expect_err(paragraph)
            .to_string();
        assert!(!error.contains('\n'), "one line: {error}");
        assert!(error.contains("; "), "says what to do: {error}");
        let input: Vec<&str> = paragraph.lines().filter(|line| !line.starts_with('!')).collect();
        got += &format!("\n\n{}\n! {error}", input.join("\n"));
        count += 1;
    }
    assert!(count >= 150, "only {count} broken recipes");
    assert!(started.elapsed() < Duration::from_secs(10), "each within a fraction of a second");
    snapshot("broken.txt", &(got + "\n"));
}

#[test]
fn the_bases_of_the_broken_recipes_are_valid() {
    for text in [TEXT, IMAGES, MESH] {
        Recipe::parse(text, "recipe.toml", Path::new(""), &[], false).unwrap();
    }
}

#[test]
fn an_unreadable_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("absent.toml");
    let error = Recipe::load(&path, &[], false).unwrap_err().to_string();
    assert!(error.contains("absent.toml") && error.contains("cannot be read"), "{error}");
    std::fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    let error = Recipe::load(&path, &[], false).unwrap_err().to_string();
    assert!(error.contains("UTF-8"), "{error}");
}

#[test]
fn no_text_panics() {
    use proptest::prelude::*;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    // Damage at a random place of a valid recipe reaches further than random bytes do.
    let strategy = (0..TEXT.len(), 0..12usize, "[-a-z0-9=\\[\\]{}\".,\n]{0,6}", any::<bool>());
    runner
        .run(&strategy, |(start, length, insert, mesh)| {
            // Counted from the end, damage of the longer one falls on its mesh.
            let whole = if mesh { MESH } else { TEXT };
            let start = start + whole.len() - TEXT.len();
            let end = (start + length).min(whole.len());
            let text = format!("{}{insert}{}", &whole[..start], &whole[end..]);
            for tiny in [false, true] {
                let parsed = Recipe::parse(&text, "recipe.toml", Path::new(""), &[], tiny);
                if let Err(error) = parsed {
                    prop_assert!(!error.to_string().contains('\n'));
                }
            }
            Ok(())
        })
        .unwrap();
}
