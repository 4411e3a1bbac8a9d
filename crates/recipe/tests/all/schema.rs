//! The set of keys is frozen: a change of it is a change of the user's language.

use std::collections::HashSet;

use aerogel_recipe::{reference, schema};

use crate::support::snapshot;

#[test]
fn the_keys_are_frozen() {
    let lines = schema()
        .iter()
        .map(|key| format!("{} | {} | {}\n", key.full_name(), key.key_type, key.default));
    snapshot("keys.txt", &lines.collect::<String>());
}

#[test]
fn every_key_is_documented_once() {
    let mut seen = HashSet::new();
    let text = reference();
    for key in schema() {
        assert!(seen.insert(key.full_name()), "{} twice", key.full_name());
        assert!(key.doc.len() > 10, "{} has no meaning", key.full_name());
        assert!(text.contains(key.doc), "{} is not in the reference", key.full_name());
    }
}
