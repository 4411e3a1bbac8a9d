//! Every kernel that a program may ask for, compiled for every architecture that it is meant for,
//! without a GPU: what each takes of a multiprocessor is frozen, and nothing spills.
//!
//! Ignored by default, for it needs NVRTC; `.ci/run` runs it.

use aerogel_cuda::{Architecture, Source, Variant, compile, version};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/usage.txt");

/// Compilations, each with the kernels that are wanted of it.
fn compilations() -> Vec<((Source, Architecture), BTreeSet<String>)> {
    let mut all: BTreeMap<(Source, Architecture), BTreeSet<String>> = BTreeMap::new();
    for variant in Variant::all() {
        for &architecture in &variant.architectures {
            let key = (variant.source.clone(), architecture);
            all.entry(key).or_default().insert(variant.entry.clone());
        }
    }
    all.into_iter().collect()
}

/// A line for each kernel: its name, registers, static shared memory.
fn usage(source: &Source, architecture: Architecture, entries: &BTreeSet<String>) -> Vec<String> {
    let compiled = compile(source, architecture).unwrap_or_else(|e| panic!("{e}"));
    let (file, defines) = (&source.file, source.defines.join(" "));
    let line = |entry: &String| {
        let own = compiled.usage.iter().find(|u| u.entry == *entry);
        let own = own.unwrap_or_else(|| panic!("no {entry} in {file}"));
        assert_eq!(own.spill_bytes, 0, "{file} {entry} spills with {defines}");
        let (registers, shared) = (own.registers, own.shared_bytes);
        format!(
            "{file} {entry} {architecture} {defines}: {registers} registers, {shared} bytes shared"
        )
    };
    entries.iter().map(line).collect()
}

#[test]
#[ignore = "needs NVRTC 13.0"]
fn every_variant_compiles_and_none_spills() {
    assert_eq!(version().unwrap(), (13, 0), "registers are those of one version of the compiler");
    let (list, next) = (compilations(), AtomicUsize::new(0));
    let lines = Mutex::new(BTreeSet::new());
    let work = || {
        while let Some(((source, to), entries)) = list.get(next.fetch_add(1, Ordering::Relaxed)) {
            let made = usage(source, *to, entries);
            lines.lock().unwrap().extend(made);
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
    let lines: Vec<String> = lines.into_inner().unwrap().into_iter().collect();
    let text = lines.join("\n") + "\n";
    if std::env::var_os("AEROGEL_BLESS").is_some() {
        std::fs::write(GOLDEN, text).unwrap();
        return;
    }
    let golden = std::fs::read_to_string(GOLDEN).unwrap_or_default();
    for (line, (got, wanted)) in text.lines().zip(golden.lines()).enumerate() {
        assert_eq!(got, wanted, "line {}: AEROGEL_BLESS=1 writes what it is now", line + 1);
    }
    assert_eq!(text.lines().count(), golden.lines().count(), "as many variants as before");
}
