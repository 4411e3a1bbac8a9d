//! Decoding token by token gives the logits of the whole sequence.

use super::common::{data, every_attention, gpt2, run, set, sparse, token, weights};
use aerogel_graph::{Build, Graph, Role, Tensor, interpret::Env, verify::verify};
use aerogel_models::{Decode, ModelConfig, decode_graph, eval_graph, shifts_inside, train_graph};

const BATCH: usize = 2;

/// Logits [batch seq vocab] of whole sequences: the output layer of the evaluation graph, undone.
fn logits(config: &ModelConfig) -> Tensor {
    let mut g = eval_graph(config, BATCH).unwrap();
    let node = g.nodes().iter().find(|n| n.op.name() == "linear_ce").unwrap();
    let (hidden, head) = (node.ins[0], node.ins[1]);
    let axes = ["batch", "seq", "vocab"].map(|name| g.axes().find(name).unwrap());
    let logits = g.einsum(&[hidden, head], &axes).unwrap();
    g.output("logits", logits);
    let mut env = weights(&g);
    data(&g, &mut env, config, BATCH);
    run(&g, &env).outputs["logits"].clone()
}

/// One step at `position`; the caches in `env` move on.
fn step(decode: &Decode, env: &mut Env, position: usize, tokens: Vec<f64>) -> Vec<f64> {
    let g = &decode.graph;
    set(g, env, "tokens", tokens);
    set(g, env, "position", vec![position as f64]);
    for p in &decode.positions {
        set(g, env, &p.name, vec![(position / p.stride % p.size) as f64]);
    }
    let run = run(g, env);
    env.extend(run.assigned);
    run.outputs["logits"].data.clone()
}

fn agrees(name: &str, config: &ModelConfig) {
    let whole = logits(config);
    let decode = decode_graph(config, BATCH).unwrap();
    verify(&decode.graph).unwrap();
    let mut env = weights(&decode.graph);
    let vocab = config.vocab;
    for t in 0..config.context {
        // With the shift inside, a step is given the token before; at 0 it is given rubbish.
        let previous = |b: usize| match (shifts_inside(config.family), t) {
            (true, 0) => 7,
            (true, t) => token(vocab, b, t - 1),
            (false, t) => token(vocab, b, t),
        };
        let tokens = (0..BATCH).map(|b| previous(b) as f64).collect();
        let got = step(&decode, &mut env, t, tokens);
        for (b, row) in got.chunks(vocab).enumerate() {
            let wanted = &whole.data[(b * config.context + t) * vocab..][..vocab];
            for (a, b) in row.iter().zip(wanted) {
                assert!((a - b).abs() < 1e-10, "{name} {:?} at {t}: {a} {b}", config.family);
            }
        }
    }
}

#[test]
fn every_pattern_decodes_as_it_trains() {
    let text = ModelConfig { image: None, context: 24, ..sparse() };
    for base in [sparse(), text, gpt2()] {
        for (name, config) in every_attention(&base) {
            agrees(name, &config);
        }
    }
}

fn parameters(g: &Graph) -> Vec<String> {
    let states = g.states().iter().filter(|s| s.role == Role::Parameter);
    let line = |s: &aerogel_graph::State| {
        let ty = g.value(s.value).ty.show(g.axes());
        format!("{} {ty} {:?} {:?}", s.name, s.class, s.init)
    };
    states.map(line).collect()
}

#[test]
fn the_three_graphs_have_the_same_parameters() {
    let text = ModelConfig { image: None, dropout: 0.1, ..sparse() };
    for base in [sparse(), text, gpt2()] {
        for (name, config) in every_attention(&base) {
            let wanted = parameters(&train_graph(&config, 3).unwrap());
            assert_eq!(parameters(&eval_graph(&config, 1).unwrap()), wanted, "{name}");
            assert_eq!(parameters(&decode_graph(&config, 2).unwrap().graph), wanted, "{name}");
        }
    }
}
