//! Every technique with every other: what keeps the bits, what keeps the numbers to a tolerance,
//! and what is refused, on a Sparse Transformer and on GPT-2 with dropout. The table is
//! `docs/composition.md`; `AEROGEL_BLESS=1` writes it.

use crate::case::{GPT2, Outcome, Place, SPARSE};
use aerogel_train::selftest::exact::TECHNIQUES as ALONE;
use aerogel_train::{Pick, TrainError, open_run};
use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::LazyLock;

/// A technique: its name, its keys, and its mesh axes.
struct Technique {
    name: &'static str,
    keys: &'static [&'static str],
    mesh: &'static [(&'static str, usize)],
    /// What it says of how numbers may differ; `None` keeps the bits.
    class: Class,
    /// Techniques of one kind exclude each other.
    kind: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Class {
    Exact,
    Tolerance,
}

const fn exact(
    name: &'static str,
    kind: &'static str,
    keys: &'static [&'static str],
    mesh: &'static [(&'static str, usize)],
) -> Technique {
    Technique { name, keys, mesh, class: Class::Exact, kind }
}

const fn near(
    name: &'static str,
    kind: &'static str,
    keys: &'static [&'static str],
    mesh: &'static [(&'static str, usize)],
) -> Technique {
    Technique { name, keys, mesh, class: Class::Tolerance, kind }
}

const DATA: &[(&str, usize)] = &[("data", 2)];
const PIPE2: &[(&str, usize)] = &[("pipe", 2)];
const PIPE4: &[(&str, usize)] = &[("pipe", 4)];

/// A technique that one rank has as well, by its name there.
fn alone(name: &str) -> Technique {
    let t = ALONE.iter().find(|t| t.name == name).expect("the self-test tries it");
    let class = if t.is_exact { Class::Exact } else { Class::Tolerance };
    Technique { name: t.name, keys: t.keys, mesh: &[], class, kind: t.kind }
}

static TECHNIQUES: LazyLock<Vec<Technique>> = LazyLock::new(|| {
    let interleaved = &["parallel.schedule=interleaved", "parallel.chunks=2"];
    vec![
        alone("recompute cheap"),
        alone("recompute block"),
        alone("recompute 3 blocks"),
        alone("recompute budget"),
        exact("accumulation", "accumulation", &["train.micro_batch=1"], &[]),
        alone("chunks"),
        alone("update in backward"),
        alone("loss scale"),
        exact("bf16", "bf16", &["precision.compute=bf16"], &[]),
        exact("data", "data", &[], DATA),
        exact("zero 1", "data", &["parallel.preset=zero1"], DATA),
        exact("zero 2", "data", &["parallel.preset=zero2"], DATA),
        exact("zero 3", "data", &["parallel.preset=zero3"], DATA),
        exact("hybrid", "data", &["parallel.preset=hybrid"], &[("node", 2), ("local", 2)]),
        near("tensor 2", "tensor", &[], &[("tensor", 2)]),
        near("tensor 4", "tensor", &[], &[("tensor", 4)]),
        exact("gpipe 2", "pipe", &["parallel.schedule=gpipe"], PIPE2),
        exact("1f1b 2", "pipe", &["parallel.schedule=1f1b"], PIPE2),
        exact("interleaved 2", "pipe", interleaved, PIPE2),
        exact("gpipe 4", "pipe", &["parallel.schedule=gpipe"], PIPE4),
        exact("1f1b 4", "pipe", &["parallel.schedule=1f1b"], PIPE4),
        exact("interleaved 4", "pipe", interleaved, PIPE4),
        alone("fast"),
    ]
});

/// What became of a combination.
#[derive(Clone, Debug, PartialEq)]
enum Cell {
    Exact,
    Tolerance,
    Refused(&'static str),
}

/// Why a combination is refused, where it must be.
fn refusal(model: &str, of: &[&Technique]) -> Option<&'static str> {
    let kind = |kind: &str| of.iter().any(|t| t.kind == kind);
    let size = |axis: &str| {
        of.iter().flat_map(|t| t.mesh).filter(|a| a.0 == axis).map(|a| a.1).product::<usize>()
    };
    let data = size("data") * size("node") * size("local");
    let micros = micro_batches(of) / data;
    let interleaved = of.iter().any(|t| t.name.starts_with("interleaved"));
    if interleaved && !micros.is_multiple_of(size("pipe")) {
        return Some("in groups of");
    }
    if kind("update") && kind("scale") {
        return Some("whether a step is skipped");
    }
    if kind("update") && micros > 1 {
        return Some("a gradient is complete only after the last");
    }
    if kind("update") && model == GPT2 {
        return Some("tied");
    }
    if kind("update") && kind("pipe") {
        return Some("pipeline");
    }
    None
}

/// Micro-batches of all ranks: four, eight with accumulation; as few as can be where the update
/// runs inside of the backward.
fn micro_batches(of: &[&Technique]) -> usize {
    let kind = |kind: &str| of.iter().find(|t| t.kind == kind);
    if kind("accumulation").is_some() {
        return 8;
    }
    match (kind("update"), kind("data")) {
        (None, _) => 4,
        (Some(_), Some(data)) => data.mesh.iter().map(|a| a.1).product(),
        (Some(_), None) => 1,
    }
}

fn keys(of: &[&Technique]) -> Vec<String> {
    let mut keys: Vec<String> = of.iter().flat_map(|t| t.keys).map(|k| (*k).to_owned()).collect();
    let axes: Vec<String> =
        of.iter().flat_map(|t| t.mesh).map(|(name, size)| format!("{name}={size}")).collect();
    if !axes.is_empty() {
        keys.push(format!("parallel.mesh={{{}}}", axes.join(",")));
    }
    if of.iter().any(|t| t.name == "recompute budget") {
        // Less than all that is saved, and enough for the largest block.
        let budget = if micro_batches(of) < 4 { "256KiB" } else { "96KiB" };
        keys.push(format!("memory.activations={budget}"));
    }
    keys.extend(numbers(of));
    keys
}

/// The keys that change the numbers: those of the plain run to compare with.
fn numbers(of: &[&Technique]) -> Vec<String> {
    let kind = |kind: &str| of.iter().any(|t| t.kind == kind);
    let mut keys = vec![format!("train.micro_batch={}", 8 / micro_batches(of))];
    if kind("update") {
        keys.push("optimizer.clip=0".to_owned());
    }
    if kind("bf16") {
        keys.push("precision.compute=bf16".to_owned());
    }
    keys
}

/// Runs of one model, the plain ones known already.
struct Matrix<'a> {
    place: Place,
    model: &'a str,
    plain: HashMap<Vec<String>, (Outcome, String)>,
    count: usize,
}

impl Matrix<'_> {
    fn run(&mut self, keys: &[String]) -> Result<(Outcome, String), String> {
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let recipe = self.place.recipe(self.model, &keys)?;
        self.count += 1;
        let runs = format!("runs-{}", self.count);
        match self.place.run(&runs, &recipe, None) {
            Ok(outcome) => Ok((outcome, runs)),
            Err(e @ (TrainError::Pass(_) | TrainError::Pipeline(_))) => Err(e.to_string()),
            Err(e) => panic!("{keys:?}: {e}"),
        }
    }

    fn plain(&mut self, of: &[&Technique]) -> (Outcome, String) {
        let keys = numbers(of);
        if let Some(known) = self.plain.get(&keys) {
            return known.clone();
        }
        let ran = self.run(&keys).unwrap_or_else(|e| panic!("{keys:?}: {e}"));
        self.plain.insert(keys, ran.clone());
        ran
    }

    /// Runs a combination, and says what it kept.
    fn cell(&mut self, of: &[&Technique]) -> Cell {
        let what: Vec<&str> = of.iter().map(|t| t.name).collect();
        let expected = refusal(self.model, of);
        let got = match (self.run(&keys(of)), expected) {
            (Err(e), Some(reason)) => {
                assert!(e.contains(reason), "{what:?}: `{reason}` is not in: {e}");
                return Cell::Refused(reason);
            }
            (Err(e), None) => panic!("{what:?} is refused: {e}"),
            (Ok(_), Some(reason)) => panic!("{what:?} is not refused for `{reason}`"),
            (Ok(got), None) => got,
        };
        assert_eq!(got.0.bytes.0, got.0.bytes.1, "{what:?}: planned = allocated");
        let plain = self.plain(of);
        let class = of.iter().map(|t| t.class).max().unwrap_or(Class::Exact);
        let same = got.0.losses == plain.0.losses && got.0.hash == plain.0.hash;
        if class == Class::Exact {
            let (got, plain) = (&got.0, &plain.0);
            assert!(same, "{what:?}: {:?} and not {:?}", got.losses, plain.losses);
            return Cell::Exact;
        }
        let tolerance = if of.iter().any(|t| t.kind == "bf16") { 5e-3 } else { 1e-5 };
        for (step, (a, b)) in got.0.losses.iter().zip(&plain.0.losses).enumerate() {
            let off = (a / b - 1.0).abs();
            assert!(off <= tolerance, "{what:?}, step {}: {a} and not {b}, {off:e}", step + 1);
        }
        Cell::Tolerance
    }
}

fn cells(model: &str, name: &str, shard: usize) -> String {
    let mut m = Matrix { place: Place::new(), model, plain: HashMap::new(), count: 0 };
    let mut table = format!("## {name}\n\n| | alone |");
    for t in TECHNIQUES.iter() {
        let _ = write!(table, " {} |", t.name);
    }
    let _ = write!(table, "\n|---|---|{}\n", "---|".repeat(TECHNIQUES.len()));
    for (i, a) in TECHNIQUES.iter().enumerate() {
        let _ = write!(table, "| {} | {} |", a.name, sign(&m.cell(&[a])));
        for (j, b) in TECHNIQUES.iter().enumerate() {
            let text = match () {
                () if j <= i => String::new(),
                () if a.kind == b.kind => "–".to_owned(),
                () => sign(&m.cell(&[a, b])),
            };
            let _ = write!(table, " {text} |");
        }
        table.push('\n');
    }
    table += "\nThree at once:\n\n";
    let mut seed = shard as u64;
    let mut seen: Vec<Vec<&str>> = vec![];
    while seen.len() < 10 {
        let mut pick = || {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            &TECHNIQUES[(seed >> 33) as usize % TECHNIQUES.len()]
        };
        let of = [pick(), pick(), pick()];
        let differ = (0..3).all(|i| (0..i).all(|j| of[i].kind != of[j].kind));
        let names: Vec<&str> = of.iter().map(|t| t.name).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        if differ && !seen.contains(&sorted) {
            let _ = writeln!(table, "- {}: {}", names.join(", "), sign(&m.cell(&of)));
            seen.push(sorted);
        }
    }
    table
}

fn sign(cell: &Cell) -> String {
    match cell {
        Cell::Exact => "=".to_owned(),
        Cell::Tolerance => "≈".to_owned(),
        Cell::Refused(reason) => format!("refused: {reason}"),
    }
}

/// The part of the page between two headings is what the test found.
fn held(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/composition.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let start = page.find(&format!("## {name}\n")).expect("the page has the model's heading");
    let end = page[start + 3..].find("\n## ").map_or(page.len(), |e| start + 3 + e + 1);
    if std::env::var_os("AEROGEL_BLESS").is_some() {
        let gap = if end < page.len() { "\n\n" } else { "\n" };
        let page = format!("{}{}{gap}{}", &page[..start], found.trim_end(), &page[end..]);
        std::fs::write(&path, page).unwrap();
        return;
    }
    assert_eq!(page[start..end].trim(), found.trim(), "docs/composition.md is not what was found");
}

#[test]
fn all_pairs_and_ten_triples_of_the_sparse_transformer() {
    held("Sparse Transformer", &cells(SPARSE, "Sparse Transformer", 1));
}

#[test]
fn all_pairs_and_ten_triples_of_gpt2() {
    held("GPT-2", &cells(GPT2, "GPT-2", 2));
}

/// The first gradient of every tensor, by the optimizer's memory of it, to 1e-5 of its norm.
#[test]
fn first_gradients_are_those_of_one_rank() {
    for model in [SPARSE, GPT2] {
        let place = Place::new();
        let moments = |runs: &str, extra: &[&str]| -> Vec<(String, Vec<f32>)> {
            let mut keys = vec![
                "train.steps=1",
                "schedule.warmup=0",
                "optimizer.kind=adam",
                "optimizer.clip=0",
                "eval.every=0",
            ];
            keys.extend(extra);
            let recipe = place.recipe(model, &keys).unwrap();
            place.run(runs, &recipe, None).unwrap();
            let workspace = place.workspace(runs);
            let run = workspace.runs.join("case");
            let session = open_run(&run, &workspace, &Pick::default()).unwrap().session;
            let names = session.tensor_names().into_iter();
            let names = names.filter(|n| n.starts_with("optimizer.m."));
            names.map(|n| (n.clone(), session.tensor(&n).unwrap())).collect()
        };
        let plain = moments("plain", &[]);
        assert!(!plain.is_empty());
        let cases: [(&str, &[&str]); 4] = [
            ("tensor2", &["parallel.mesh={tensor=2}"]),
            ("tensor4", &["parallel.mesh={tensor=4}", "parallel.shard={seq=[]}"]),
            ("fast", &["parallel.mesh={data=2}", "train.determinism=fast"]),
            ("chunks", &["memory.mlp_chunks=2", "memory.loss_chunks=2"]),
        ];
        // A gradient that is zero but for rounding is held to the largest norm.
        let norm = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let largest = plain.iter().map(|t| norm(&t.1)).fold(0.0, f64::max);
        for (name, keys) in cases {
            for ((tensor, a), (_, b)) in moments(name, keys).iter().zip(&plain) {
                let off: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
                let wanted = norm(b).max(1e-3 * largest);
                let off = norm(&off) / wanted;
                assert!(off <= 1e-5, "{name}, {tensor}: {off:e}");
            }
        }
    }
}
