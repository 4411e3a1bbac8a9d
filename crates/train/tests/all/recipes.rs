//! Every recipe trains in its tiny form.

use crate::common::{run, tiny};
use aerogel_store::Resume;
use aerogel_train::{Event, Exit};

fn trains(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (outcome, log) = run(&tiny(name, &[]), dir.path(), Resume::Auto);
    for e in &log.0 {
        println!("{}", serde_json::to_string(&e.line()).unwrap());
    }
    let outcome = outcome.unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(outcome.exit, Exit::Done);
    let first = log.0.iter().find_map(|e| match e {
        Event::Start { planned_bytes, allocated_bytes, .. } => Some((*planned_bytes, *allocated_bytes)),
        _ => None,
    });
    let (planned, allocated) = first.unwrap();
    assert_eq!(planned, allocated, "{name}");
}

#[test]
fn quick() {
    trains("quick.toml");
}

#[test]
fn gpt2() {
    trains("gpt2-124m.toml");
}

#[test]
fn cifar10() {
    trains("cifar10-strided.toml");
}

#[test]
fn enwik8() {
    trains("enwik8-fixed.toml");
}

#[test]
fn arxiv() {
    trains("arxiv-bpe.toml");
}

#[test]
fn imagenet64() {
    trains("imagenet64-strided.toml");
}
