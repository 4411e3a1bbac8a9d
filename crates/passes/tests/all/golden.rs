//! Graph text in and out. `AEROGEL_BLESS=1 cargo test -p aerogel-passes` writes the outputs.

use super::support::{network, tile};
use aerogel_graph::verify::verify;
use aerogel_graph::{Graph, Mesh, text};
use aerogel_passes::{
    Buckets, Compute, Optimizer, Order, Partials, Shards, Share, UpdateConfig, backward, copies,
    cut, precision, section_of, update,
};
use std::path::PathBuf;

type Input = fn() -> Graph;
type Pass = fn(&Graph) -> Vec<(String, Graph)>;

fn one(g: Graph) -> Vec<(String, Graph)> {
    vec![("out".to_owned(), g)]
}

fn buckets(g: &Graph, shards: &Shards) -> Buckets {
    Buckets::of(g, shards, &Partials::default())
}

fn updated(
    g: &Graph,
    shards: &Shards,
    kind: Optimizer,
    weight_decay: f64,
    clip: f64,
) -> Vec<(String, Graph)> {
    let config = UpdateConfig { kind, weight_decay, clip, scale: None };
    one(update(g, &Share::whole(&buckets(g, shards)), &config).unwrap())
}

/// Two ranks with pieces of everything, or of the optimizer's memory alone.
fn two_ranks(stage: usize) -> Shards {
    let over = |on: bool| if on { vec![0] } else { vec![] };
    Shards {
        mesh: Mesh(vec![("data".to_owned(), 2)]),
        batch: vec![0],
        optimizer: over(stage >= 1),
        gradients: over(stage >= 2),
        parameters: over(stage >= 3),
    }
}

fn bucketed(g: &Graph, shards: &Shards) -> Vec<(String, Graph)> {
    let buckets = buckets(g, shards);
    one(buckets.apply(&cut(g, shards, 1).unwrap()).unwrap())
}

fn bf16_layer() -> Graph {
    backward(&precision(&network(2, true), Compute::Bf16).unwrap()).unwrap()
}

/// Shares whose logarithms and complements are the same digits on every machine.
const ADAM: Optimizer = Optimizer::AdamW { beta1: 0.5, beta2: 0.75, epsilon: 1e-8 };

fn untied() -> Graph {
    parse("network.in.txt")
}

fn bf16() -> Graph {
    precision(&untied(), Compute::Bf16).unwrap()
}

fn layer() -> Graph {
    parse("layer.in.txt")
}

/// Name of the golden, its input, and the pass.
const GOLDENS: [(&str, Input, Pass); 15] = [
    ("precision-f32", untied, |g| one(precision(g, Compute::F32).unwrap())),
    ("precision-bf16", untied, |g| one(precision(g, Compute::Bf16).unwrap())),
    ("precision-bf16-tied", || parse("tied.in.txt"), |g| one(precision(g, Compute::Bf16).unwrap())),
    ("backward", untied, |g| one(backward(g).unwrap())),
    ("backward-bf16", bf16, |g| one(backward(g).unwrap())),
    ("tile-1", layer, |g| tile(g, 1, Order::Tree).unwrap()),
    ("tile-4", layer, |g| tile(g, 4, Order::Tree).unwrap()),
    ("tile-4-fold", layer, |g| tile(g, 4, Order::Fold).unwrap()),
    ("bucket", layer, |g| bucketed(g, &Shards::default())),
    ("bucket-zero3", layer, |g| bucketed(g, &two_ranks(3))),
    ("bucket-bf16-zero2", bf16_layer, |g| bucketed(g, &two_ranks(2))),
    ("update-adamw", layer, |g| updated(g, &Shards::default(), ADAM, 0.1, 1.0)),
    ("update-adamw-zero1", layer, |g| updated(g, &two_ranks(1), ADAM, 0.1, 1.0)),
    ("update-sgd", layer, |g| {
        updated(g, &Shards::default(), Optimizer::Sgd { momentum: 0.9 }, 0.01, 0.0)
    }),
    ("copies-bf16-zero2", bf16_layer, |g| {
        one(copies(g, &Share::whole(&buckets(g, &two_ranks(2)))).unwrap().unwrap())
    }),
];

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn show(sections: &[(String, Graph)]) -> String {
    let parts: Vec<_> =
        sections.iter().map(|(name, g)| format!("# {name}\n{}", text::print(g))).collect();
    parts.join("\n")
}

/// Compares a text with a file, or writes it.
pub fn golden(name: &str, got: &str) {
    let path = file(name);
    if std::env::var_os("AEROGEL_BLESS").is_some() {
        std::fs::write(&path, got).unwrap();
    }
    let wanted = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; AEROGEL_BLESS=1 writes it", path.display()));
    assert_eq!(got, wanted, "{name}: AEROGEL_BLESS=1 writes what it is now");
}

fn parse(name: &str) -> Graph {
    let text = std::fs::read_to_string(file(name)).unwrap();
    text::parse(&text).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn text_in_text_out() {
    golden("network.in.txt", &text::print(&network(4, false)));
    golden("tied.in.txt", &text::print(&network(4, true)));
    for (name, input, pass) in GOLDENS {
        let sections = pass(&input());
        for (section, g) in &sections {
            verify(g).unwrap_or_else(|e| panic!("{name}, {section}: {e}"));
            let again = text::parse(&text::print(g)).unwrap();
            assert_eq!(text::print(&again), text::print(g), "{name}, {section}");
        }
        golden(&format!("{name}.out.txt"), &show(&sections));
    }
}

#[test]
fn sections_have_the_names_that_the_host_asks_for() {
    let g = layer();
    for (m, order) in [1, 2, 4, 8].map(|m| [(m, Order::Tree), (m, Order::Fold)]).concat() {
        let names: Vec<_> = tile(&g, m, order).unwrap().into_iter().map(|(name, _)| name).collect();
        let mut asked: Vec<_> = (0..m).map(|j| section_of(j, m, order)).collect();
        asked.sort();
        asked.dedup();
        let mut sorted = names.clone();
        sorted.sort();
        assert_eq!(asked, sorted, "{m} micro-batches");
    }
}
