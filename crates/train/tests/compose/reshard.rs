//! A checkpoint of any layout goes on in any other.

use crate::case::{Outcome, Place, SPARSE};
use aerogel_store::Resume;
use std::path::Path;

/// Layouts, and whether they keep the bits.
const LAYOUTS: [(&str, &[&str], bool); 8] = [
    ("one", &[], true),
    ("data2", &["parallel.mesh={data=2}"], true),
    ("zero1", &["parallel.mesh={data=4}", "parallel.preset=zero1"], true),
    ("zero3", &["parallel.mesh={data=2}", "parallel.preset=zero3"], true),
    ("hybrid", &["parallel.mesh={node=2,local=2}", "parallel.preset=hybrid"], true),
    ("pipe", &["parallel.mesh={data=2,pipe=2}", "parallel.preset=zero2"], true),
    ("tensor2", &["parallel.mesh={tensor=2}"], false),
    ("all", &["parallel.mesh={data=2,tensor=2,pipe=2}", "parallel.preset=zero1"], false),
];

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

fn near(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a / b - 1.0).abs() <= 1e-5)
}

fn start(place: &Place, name: &str, keys: &[&str]) -> Outcome {
    let mut all = vec!["train.steps=6", "checkpoint.every=3", "eval.every=0"];
    all.extend(keys);
    let recipe = place.recipe(SPARSE, &all).unwrap();
    place.run(name, &recipe, None).unwrap()
}

#[test]
fn every_layout_continues_every_other() {
    let place = Place::new();
    let first: Vec<Outcome> =
        LAYOUTS.iter().map(|(name, keys, _)| start(&place, name, keys)).collect();
    for ((name, _, exact), outcome) in LAYOUTS.iter().zip(&first) {
        assert_eq!(outcome.hash == first[0].hash, *exact, "{name}");
        assert!(near(&outcome.losses, &first[0].losses), "{name}: {outcome:?}");
    }
    for (from, _, from_exact) in &LAYOUTS {
        for (to, keys, to_exact) in &LAYOUTS {
            let what = format!("{from} to {to}");
            let runs = format!("{from}-{to}");
            copy(&place.path().join(from), &place.path().join(&runs));
            let mut all = vec!["train.steps=6", "checkpoint.every=3", "eval.every=0"];
            all.extend(*keys);
            let recipe = place.recipe(SPARSE, &all).unwrap();
            let got = place.resume(&runs, &recipe, Resume::Step(3), None);
            let got = got.unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(got.losses.len(), 3, "{what}");
            if *from_exact && *to_exact {
                assert_eq!(got.losses, first[0].losses[3..], "{what}");
                assert_eq!(got.hash, first[0].hash, "{what}");
            } else {
                assert!(near(&got.losses, &first[0].losses[3..]), "{what}: {got:?}");
            }
            std::fs::remove_dir_all(place.path().join(&runs)).unwrap();
        }
    }
}
