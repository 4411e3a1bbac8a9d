//! Every recipe in its tiny form, from data to samples.

use super::bin::{Place, recipe, recipes};

/// The first bytes of a PNG.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

#[test]
fn every_recipe_is_covered() {
    let entries = std::fs::read_dir(recipes()).unwrap();
    let names = entries.map(|e| e.unwrap().path());
    let mut names: Vec<String> = names
        .filter(|p| p.extension().is_some_and(|e| e == "toml"))
        .map(|p| p.file_stem().unwrap().to_str().unwrap().replace('-', "_"))
        .collect();
    names.sort();
    assert_eq!(names, COVERED);
}

macro_rules! tiny {
    ($($name:ident),* $(,)?) => {
        const COVERED: &[&str] = &[$(stringify!($name)),*];
        $(#[test]
        fn $name() {
            whole_way(&stringify!($name).replace('_', "-"));
        })*
    };
}

tiny![
    arxiv_bpe,
    arxiv_gpt2_124m,
    cifar10_15m,
    cifar10_cpu,
    cifar10_dense,
    cifar10_strided,
    copy_rows,
    dense_70b,
    enwik8_fixed,
    gpt2_124m,
    imagenet64_strided,
    quick,
    shakespeare,
];

/// Evaluated alone and in the run: one rank sums in another order than several do.
fn is_same(alone: &serde_json::Value, in_run: &serde_json::Value, exactly: bool) {
    let (a, b) = (alone.as_f64().unwrap(), in_run.as_f64().unwrap());
    let tolerance = if exactly { 0.0 } else { 1e-5 * b };
    assert!((a - b).abs() <= tolerance, "{a} alone, {b} in the run");
}

fn whole_way(name: &str) {
    let place = Place::new();
    let file = recipe(name);
    let built = place.good(&["prepare", &file, "--tiny", "--json"]).object();
    assert_eq!(built["outcome"], "built");
    assert!(built["splits"]["train"]["tokens"].as_u64() > Some(0));
    let again = place.good(&["prepare", &file, "--tiny"]).out;
    assert!(again.contains("up to date, nothing to do"), "{again}");

    let plan = place.good(&["plan", &file, "--tiny", "--json"]).object();
    let memory = plan["memory"].as_object().unwrap();
    let kinds = memory.iter().filter(|(k, _)| *k != "total_bytes");
    let sum: u64 = kinds.map(|(_, v)| v.as_u64().unwrap()).sum();
    assert_eq!(Some(sum), memory["total_bytes"].as_u64());

    let trained = place.good(&["train", &file, "--tiny", "--json"]);
    let start = trained.event("start");
    assert_eq!(start["planned_bytes"], plan["planned_bytes"], "of all ranks");
    if start["ranks"] == 1 {
        assert_eq!(start["planned_bytes"], memory["total_bytes"]);
    }
    assert_eq!(start["planned_bytes"], start["allocated_bytes"]);
    assert_eq!(start["plan_hash"], plan["plan_hash"]);
    assert_eq!(start["parameters"], plan["parameters"]);
    let step = trained.event("step");
    assert_eq!(step["step"], start["steps"]);
    let excess = step["resident_bytes"].as_u64().unwrap() as i64
        - start["planned_bytes"].as_u64().unwrap() as i64;
    assert!((1..=200_000_000).contains(&excess.max(1)), "{excess} bytes over the plan");
    assert_eq!(trained.event("done")["parameters_hash"].as_str().unwrap().len(), 64);

    let run = format!("{name}-tiny");
    let scored = place.good(&["eval", &run, "--json"]).object();
    let in_run = trained.event("eval");
    is_same(&scored["bits"], &in_run["bits"], start["ranks"] == 1);
    let by_recipe = place.good(&["eval", &file, "--tiny", "--json"]).object();
    assert_eq!(scored["bits"], by_recipe["bits"]);

    let drawn = place.good(&["sample", &run, "--json", "--count", "2"]).object();
    match drawn["file"].as_str() {
        Some(file) => assert!(std::fs::read(place.path(file)).unwrap().starts_with(PNG)),
        None => assert_eq!(drawn["text"].as_array().unwrap().len(), 2),
    }
    let report = std::fs::read_to_string(place.path(&format!("runs/{run}/report.html"))).unwrap();
    assert!(report.contains(name));
}
