//! Where dropout is, and what it does.

use super::common::{gpt2, sparse};
use aerogel_graph::expr::Site;
use aerogel_graph::{Expr, Graph, Op};
use aerogel_models::{ModelConfig, decode_graph, eval_graph, train_graph};

/// Streams of the draws, and each expression that has one.
fn draws(g: &Graph) -> Vec<(String, Expr)> {
    let mut found = vec![];
    for node in g.nodes() {
        let Op::Map(map) = &node.op else { continue };
        let mut stack = vec![&map.expr];
        while let Some(e) = stack.pop() {
            if let Expr::Rand(stream) = e {
                found.push((stream.clone(), map.expr.clone()));
            }
            stack.extend(e.children());
        }
    }
    found
}

#[test]
fn one_stream_a_residual_add_and_none_elsewhere() {
    for base in [sparse(), gpt2()] {
        let config = ModelConfig { dropout: 0.25, embed_dropout: 0.5, ..base };
        let streams: Vec<_> =
            draws(&train_graph(&config, 1).unwrap()).into_iter().map(|d| d.0).collect();
        let blocks = ["h.0.attn.dropout", "h.0.mlp.dropout", "h.1.attn.dropout", "h.1.mlp.dropout"];
        assert_eq!(streams[0], "embed.dropout");
        assert_eq!(streams[1..], blocks);
        assert!(draws(&eval_graph(&config, 1).unwrap()).is_empty());
        assert!(draws(&decode_graph(&config, 1).unwrap().graph).is_empty());
        let off = ModelConfig { dropout: 0.0, embed_dropout: 0.0, ..config };
        assert!(draws(&train_graph(&off, 1).unwrap()).is_empty());
    }
}

#[test]
fn a_dropped_update_leaves_the_stream_and_a_kept_one_is_scaled() {
    let config = ModelConfig { dropout: 0.25, ..gpt2() };
    let (_, expr) = draws(&train_graph(&config, 1).unwrap()).remove(0);
    // h = 10, product = 1, bias = 2.
    let eval =
        |draw: f64| expr.eval(&Site { ins: &[10.0, 1.0, 2.0], rand: &|_| draw, coord: &|_| 0.0 });
    assert_eq!([eval(0.0), eval(0.2499)], [10.0, 10.0]);
    assert!((eval(0.25) - 14.0).abs() < 1e-12 && (eval(0.99) - 14.0).abs() < 1e-12);
}
