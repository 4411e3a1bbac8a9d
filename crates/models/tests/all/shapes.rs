//! Names, shapes, classes and initial values of all states, and the shape of every value, of one
//! small model of each family. After an intended change, write what the failure prints to the file.

use super::common::{every_attention, gpt2, sparse, with};
use aerogel_graph::{Build, Graph, Init, text};
use aerogel_models::{AttentionKind, Combine, LayerKind, ModelConfig, WeightInit};
use aerogel_models::{decode_graph, train_graph};
use std::fmt::Write as _;

fn outline(g: &Graph) -> String {
    let mut out = String::new();
    let show = |v| g.value(v).ty.show(g.axes());
    for i in g.inputs() {
        writeln!(out, "input {}: {}", i.name, show(i.value)).unwrap();
    }
    for s in g.states() {
        let class = s.class.map_or(String::new(), |c| format!("{c:?} ").to_lowercase());
        let init = match s.init {
            Init::Constant(c) => format!("{c}"),
            Init::Normal(std) => format!("normal({std:.5})"),
        };
        writeln!(out, "state {}: {} {class}{init}", s.name, show(s.value)).unwrap();
    }
    for n in g.nodes() {
        let outs: Vec<_> = n.outs.iter().map(|&v| show(v)).collect();
        writeln!(out, "{} {} -> {}", n.scope, n.op.name(), outs.join(", ")).unwrap();
    }
    for (name, v) in &g.outputs {
        writeln!(out, "output {name}: {}", show(*v)).unwrap();
    }
    out
}

fn same(got: &str, wanted: &str) {
    for (n, (g, w)) in got.lines().zip(wanted.lines()).enumerate() {
        assert!(g == w, "line {}: `{g}`, wanted `{w}`; the whole:\n{got}", n + 1);
    }
    assert_eq!(got.lines().count(), wanted.lines().count(), "the whole:\n{got}");
}

fn one_layer(base: ModelConfig) -> ModelConfig {
    ModelConfig { layers: 1, dropout: 0.25, ..base }
}

#[test]
fn every_graph_prints_and_parses_back() {
    for base in [sparse(), gpt2()] {
        for (name, config) in every_attention(&one_layer(base)) {
            let graphs =
                [train_graph(&config, 2).unwrap(), decode_graph(&config, 2).unwrap().graph];
            for g in graphs {
                let printed = text::print(&g);
                let parsed = text::parse(&printed).unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(text::print(&parsed), printed, "{name}");
            }
        }
    }
}

#[test]
fn the_sparse_transformer() {
    let base = with(sparse(), AttentionKind::Strided, Combine::Merged, &[LayerKind::Strided]);
    let g = train_graph(&one_layer(base), 2).unwrap();
    same(&outline(&g), include_str!("../golden/sparse_transformer.txt"));
}

#[test]
fn gpt2_trains() {
    let g = train_graph(&one_layer(gpt2()), 2).unwrap();
    same(&outline(&g), include_str!("../golden/gpt2.txt"));
}

#[test]
fn the_sparse_transformer_decodes() {
    let text = ModelConfig { image: None, ..sparse() };
    let base = with(text, AttentionKind::Fixed, Combine::Heads, &[]);
    let decode = decode_graph(&one_layer(base), 2).unwrap();
    let mut got = outline(&decode.graph);
    for p in &decode.positions {
        writeln!(got, "position {} stride {} size {}", p.name, p.stride, p.size).unwrap();
    }
    same(&got, include_str!("../golden/sparse_transformer_decode.txt"));
}

#[test]
fn initial_deviations_are_those_of_paper_and_code() {
    let std = |config: &ModelConfig, name: &str| {
        let g = train_graph(config, 1).unwrap();
        match g.states()[g.find_state(name).unwrap().index()].init {
            Init::Normal(std) => std,
            Init::Constant(c) => panic!("{name} is constant {c}"),
        }
    };
    let near =
        |got: f64, wanted: f64| assert!((got / wanted - 1.0).abs() < 1e-12, "{got} {wanted}");
    let paper = ModelConfig {
        layers: 8,
        embed: 256,
        qk: 128,
        mlp: 512,
        init: WeightInit::Paper,
        ..sparse()
    };
    near(std(&paper, "embed.token.weight"), 0.125 / 16.0);
    near(std(&paper, "embed.position.row.weight"), 0.125 / 768f64.sqrt());
    near(std(&paper, "h.3.attn.q.weight"), 0.125 / 16.0);
    near(std(&paper, "h.3.attn.out.weight"), 0.125 / 16.0 / 4.0);
    near(std(&paper, "h.3.mlp.up.weight"), 0.125 / 16.0);
    near(std(&paper, "h.3.mlp.down.weight"), 0.125 / 512f64.sqrt() / 4.0);
    let code = ModelConfig { init: WeightInit::Code, ..paper };
    near(std(&code, "embed.token.weight"), 0.01);
    near(std(&code, "embed.position.row.weight"), 0.01 / 3f64.sqrt());
    near(std(&code, "h.3.attn.q.weight"), (0.125f64 / 256.0).sqrt());
    near(std(&code, "h.3.mlp.down.weight"), (0.125 * 0.5 / (512.0 * 8.0f64)).sqrt());
    let gpt2 = ModelConfig { layers: 8, ..gpt2() };
    near(std(&gpt2, "h.3.attn.q.weight"), 0.02);
    near(std(&gpt2, "h.3.attn.out.weight"), 0.02 / 4.0);
    near(std(&gpt2, "embed.position.weight"), 0.02);
}
