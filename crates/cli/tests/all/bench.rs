//! What `bench` and `doctor` say of a machine.

use super::bin::{Place, SMALL, recipe};
use serde_json::Value;

fn positive(object: &Value, names: &[&str]) {
    for name in names {
        let found = object[name].as_f64();
        assert!(found.is_some_and(|x| x > 0.0 && x.is_finite()), "{name} of {object}");
    }
}

/// A step's times add up, in each of its tables, to what the clock around it said.
fn adds_up(step: &Value) {
    let whole = step["mean_seconds"].as_f64().unwrap();
    let outside = step["outside_seconds"].as_f64().unwrap();
    assert!((0.0..0.5 * whole).contains(&outside), "{outside} of {whole} s outside of kernels");
    for table in ["kinds", "kernels", "regions"] {
        let rows = step[table].as_array().unwrap();
        let sum = |name: &str| rows.iter().map(|r| r[name].as_f64().unwrap()).sum::<f64>();
        let close = |got: f64, wanted: f64| (got - wanted).abs() < 1e-6 * wanted;
        assert!(close(sum("seconds") + outside, whole), "{table}: {} s of {whole}", sum("seconds"));
        assert!(close(sum("flops"), step["flops"].as_f64().unwrap()), "{table}");
        assert!(close(sum("floor_seconds"), step["floor_seconds"].as_f64().unwrap()), "{table}");
        for row in rows {
            positive(row, &["calls", "bytes", "floor_seconds"]);
        }
    }
}

/// What came before the first step adds up.
fn started(step: &Value) {
    let startup = &step["startup"];
    let parts = ["planning_seconds", "loading_seconds", "initial_seconds", "first_step_seconds"];
    positive(startup, &parts);
    let sum: f64 = parts.iter().map(|p| startup[p].as_f64().unwrap()).sum();
    assert!((startup["seconds"].as_f64().unwrap() - sum).abs() < 1e-9, "{startup}");
    assert!(step["library_bytes"].is_u64());
}

#[test]
fn a_quick_bench_has_every_figure() {
    let place = Place::new();
    let ended = place.good(&["bench", "cpu", "--quick", "--threads", "1", "--json", "all.json"]);
    assert!(ended.err.contains("measuring products"), "{}", ended.err);
    for part in ["limit of f32", "copies", "product 512³, bf16", "small-gpt, bf16", "a step"] {
        assert!(ended.out.contains(part), "{part} is not in {}", ended.out);
    }
    let text = std::fs::read_to_string(place.path("all.json")).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&all["version"], &all["threads"], &all["quick"]),
        (&1.into(), &1.into(), &true.into())
    );
    assert_eq!(all["machine"]["cpu"], place.good(&["doctor", "--json"]).object()["cpu"]);
    positive(&all["limits"], &["copy_bytes_per_second"]);
    positive(&all["limits"]["f32"], &["flops_per_second"]);
    let kernels = |name: &str| all[name].as_array().unwrap().clone();
    let (products, attention) = (kernels("products"), kernels("attention"));
    assert_eq!((products.len(), attention.len()), (2, 12));
    for kernel in products.iter().chain(&attention) {
        let figures = ["seconds", "flops", "flops_per_second", "limit_flops_per_second"];
        positive(kernel, &figures);
        assert!(kernel["dtype"] == "f32" || kernel["dtype"] == "bf16");
    }
    let steps = kernels("steps");
    assert_eq!(steps.iter().map(|s| &s["dtype"]).collect::<Vec<_>>(), ["f32", "bf16"]);
    for step in &steps {
        positive(step, &["tokens_per_second", "median_seconds", "allocated_bytes"]);
        started(step);
        assert_eq!((&step["threads"], &step["tokens_per_step"]), (&1.into(), &1024.into()));
        adds_up(step);
    }
}

#[test]
fn one_figure_can_be_asked_for() {
    let place = Place::new();
    let args = ["bench", "cpu", "--quick", "--only", "gemm", "--json", "-", "-q"];
    let ended = place.good(&args);
    let all = ended.object();
    assert_eq!(all["products"].as_array().map(Vec::len), Some(2));
    assert_eq!(all["steps"].as_array().map(Vec::len), Some(0));
    assert_eq!((&all["limits"]["f32"], ended.err.as_str()), (&Value::Null, ""));
}

#[test]
fn a_recipes_step_is_told_by_region_without_its_data() {
    let place = Place::new();
    place.write("small.toml", SMALL);
    let args = ["bench", "step", "small.toml", "--steps", "3", "--profile", "trace.json"];
    let shown = place.good(&args).out;
    let trace: Value = {
        let text = std::fs::read_to_string(place.path("trace.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let events: Vec<&Value> =
        trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["ph"] == "X").collect();
    let of = |track: u64| events.iter().filter(move |e| e["tid"] == track);
    let total = |track: u64| of(track).map(|e| e["dur"].as_f64().unwrap()).sum::<f64>();
    // Regions fill their sections, of which a step has two or more.
    assert!(of(0).count() >= 2 && of(1).count() > 20, "{}", events.len());
    assert!((total(0) / total(1) - 1.0).abs() < 1e-3, "{} of {}", total(1), total(0));
    for part in
        ["small, f32", "attend_grad", "update", "outside of kernels", "a step", "started in"]
    {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let args =
        ["bench", "step", "small.toml", "--steps", "5", "--json", "-", "train.micro_batch=1"];
    let step = place.good(&args).object()["step"].take();
    adds_up(&step);
    let rows = step["regions"].as_array().unwrap();
    let attend = rows.iter().find(|r| r["kernel"] == "attend" && r["section"] == "micro.0");
    let attend = attend.unwrap_or_else(|| panic!("no attend in {rows:?}"));
    assert_eq!((&attend["scope"], attend["calls"].as_f64()), (&"h.0.attn".into(), Some(1.0)));
    // Causal pairs of 32 positions, two heads of width 8: two products and the softmax.
    assert_eq!(attend["flops"], 32 * 33 / 2 * 2 * (4 * 8 + 4));
    assert!(!place.path("data").exists() && !place.path("runs").exists(), "it leaves nothing");
}

#[test]
fn ranks_and_pipelines_are_timed_as_well() {
    let place = Place::new();
    place.write("small.toml", &SMALL.replace("layers = 1", "layers = 2"));
    for mesh in ["parallel.mesh={data=2}", "parallel.mesh={pipe=2}"] {
        let args = ["bench", "step", "small.toml", mesh, "train.micro_batch=1", "--json", "-"];
        let step = place.good(&args).object()["step"].take();
        let kinds = step["kinds"].as_array().unwrap();
        for kind in ["product", "exchange", "update"] {
            assert!(kinds.iter().any(|k| k["kind"] == kind), "{mesh}: no {kind} in {kinds:?}");
        }
    }
}

#[test]
fn what_cannot_be_measured_is_refused_before_it_is() {
    let place = Place::new();
    let cases: [(&[&str], &str); 9] = [
        (&["bench", "cpu", "--only", "gem"], "gemm"),
        (&["bench", "cpu", "--threads", "0"], "1..=1024"),
        (&["bench", "cpu", "--json", "none/all.json"], "is no folder"),
        (&["bench", "cpu", "--json", "."], "is a folder"),
        (&["bench", "cuda", "--only", "gem"], "gemm"),
        (&["bench", "cuda", "--only", "peak"], "[possible values: copy, gemm, attention, step]"),
        (&["bench", "cuda", "--json", "none/all.json"], "is no folder"),
        (&["bench", "step", "none.toml"], "none.toml"),
        (&["bench", "step", &recipe("quick"), "--steps", "0"], "steps"),
    ];
    for (args, word) in cases {
        let ended = place.run(args);
        assert_eq!(ended.code, 20, "{args:?}: {}", ended.err);
        assert!(ended.err.contains(word), "{args:?}: {}", ended.err);
    }
    let large = ["bench", "step", &recipe("quick"), "memory.budget=1000000"];
    assert_eq!(place.run(&large).code, 21);
}

/// One sentence, at once, and nothing else.
#[test]
fn without_a_gpu_there_is_nothing_to_measure() {
    let place = Place::new();
    let machine = place.good(&["doctor", "--json"]).object();
    let Some(reason) = machine["no_gpu"].as_str() else { return };
    for args in [&["bench", "cuda"][..], &["bench", "cuda", "--quick", "--json", "all.json"]] {
        let ended = place.run(args);
        assert_eq!((ended.code, ended.err.trim_end()), (20, format!("error: {reason}").as_str()));
        assert_eq!(ended.out, "");
    }
    assert!(!place.path("all.json").exists());
}

#[test]
fn doctor_tells_what_kernels_can_use() {
    let place = Place::new();
    let machine = place.good(&["doctor", "--json"]).object();
    let level = machine["level"].as_str().unwrap().to_owned();
    assert!(machine["cores"].as_u64() >= Some(1) && !level.is_empty());
    let has = |name: &str| machine["instructions"].as_array().unwrap().contains(&name.into());
    assert_eq!(machine["amx_usable"].is_boolean(), has("amx_bf16"));
    for cache in machine["caches"].as_array().unwrap() {
        positive(cache, &["level", "bytes"]);
    }
    let page = place.good(&["doctor"]).out;
    for line in ["processor", "kernels use", "tiles (AMX)", "caches", "memory", "disk"] {
        assert!(page.contains(&format!("\n{line}  ")), "{line} is not in {page}");
    }
    assert!(page.contains(&format!("kernels use   {level}\n")), "{page}");
}
