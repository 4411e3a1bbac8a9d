//! Contradictions that a recipe could carry here: one clear sentence each, no panic.

use super::common::{gpt2, sparse, with};
use aerogel_graph::{Build, DType, Graph};
use aerogel_models::attention::{Form, Heads, Part, attend};
use aerogel_models::{AttentionKind, Combine, LayerKind, ModelConfig};
use aerogel_models::{decode_graph, eval_graph, train_graph};

fn message(config: &ModelConfig) -> String {
    let train = train_graph(config, 1).unwrap_err();
    assert_eq!(eval_graph(config, 1).unwrap_err(), train);
    assert_eq!(decode_graph(config, 1).unwrap_err(), train);
    train.to_string()
}

#[test]
fn each_contradiction_has_its_sentence() {
    use AttentionKind::{Dense, Fixed, Local, Strided};
    use Combine::{Heads, Interleaved, Merged};
    let text = || ModelConfig { image: None, ..sparse() };
    let strided = || with(text(), Strided, Interleaved, &[LayerKind::Strided]);
    let fixed = || with(text(), Fixed, Interleaved, &[LayerKind::Block, LayerKind::Summary]);
    let local = || with(text(), Local, Interleaved, &[LayerKind::Local]);
    let merged = || with(text(), Strided, Merged, &[]);
    let cases = [
        (ModelConfig { layers: 0, ..sparse() }, "`layers` is 0"),
        (ModelConfig { heads: 0, ..sparse() }, "`heads` is 0"),
        (ModelConfig { vocab: 0, ..sparse() }, "`vocab` is 0"),
        (ModelConfig { heads: 3, ..sparse() }, "`heads` = 3 does not divide `embed` = 8"),
        (ModelConfig { qk: 5, ..sparse() }, "`heads` = 2 does not divide `qk` = 5"),
        (ModelConfig { context: 47, ..sparse() }, "has 48 bytes, and `context` is 47"),
        (ModelConfig { context: 1, ..text() }, "needs at least 2 positions"),
        (ModelConfig { dropout: 1.0, ..sparse() }, "`dropout` = 1; a dropout probability"),
        (ModelConfig { embed_dropout: f64::NAN, ..gpt2() }, "`embed_dropout` = NaN"),
        (ModelConfig { cycle: vec![], ..sparse() }, "`cycle` is empty"),
        (ModelConfig { stride: 0, ..strided() }, "`stride` is 0"),
        (ModelConfig { stride: 7, ..strided() }, "`stride` = 7 does not divide `context` = 48"),
        (ModelConfig { stride: 96, ..fixed() }, "`stride` = 96 does not divide `context` = 48"),
        (ModelConfig { columns: 0, ..fixed() }, "`columns` is 0"),
        (ModelConfig { columns: 13, ..fixed() }, "`columns` = 13 is more than `stride` = 12"),
        (ModelConfig { window: 0, ..local() }, "`window` is 0"),
        (ModelConfig { window: 13, ..merged() }, "`window` = 13 is more than `stride` = 12"),
        (ModelConfig { attention: Dense, ..merged() }, "Merged needs two parts, and Dense"),
        (ModelConfig { combine: Heads, ..local() }, "Heads needs two parts, and Local"),
        (
            ModelConfig { heads: 1, ..with(text(), Fixed, Heads, &[]) },
            "`parts` = 2 does not divide `heads` = 1",
        ),
    ];
    for (config, wanted) in cases {
        let got = message(&config);
        assert!(got.contains(wanted), "wanted `{wanted}` in `{got}`");
    }
    let none = train_graph(&sparse(), 0).unwrap_err().to_string();
    assert!(none.contains("`batch` is 0"), "{none}");
}

#[test]
fn attention_alone_refuses_what_does_not_divide() {
    let (strided, block) = (Part::Strided { stride: 4 }, Part::Block { block: 4 });
    let wide = Part::Local { window: 5 };
    let other = Part::Summary { block: 6, columns: 1 };
    let refused = [
        (Form::Merged([wide, strided]), "cannot be merged"),
        (Form::Merged([block, other]), "cannot be merged"),
        (Form::Merged([block, strided]), "cannot be merged"),
        (Form::One(Part::Strided { stride: 0 }), "12 positions do not divide into pieces of 0"),
        (Form::One(Part::Block { block: 5 }), "12 positions do not divide into pieces of 5"),
        (
            Form::One(Part::Summary { block: 4, columns: 5 }),
            "a block of 4 positions cannot have 5 columns",
        ),
        (
            Form::One(Part::Summary { block: 4, columns: 0 }),
            "a block of 4 positions cannot have 0 columns",
        ),
    ];
    for (form, wanted) in refused {
        let mut g = Graph::new();
        let axes = [("seq", 12), ("kv", 2), ("group", 1), ("qk", 3), ("v", 3)];
        let [seq, kv, group, dim, v] = axes.map(|(name, size)| g.axis(name, size).unwrap());
        let q = g.input("q", DType::F32, &[seq, kv, group, dim]).unwrap();
        let k = g.input("k", DType::F32, &[seq, kv, dim]).unwrap();
        let v = g.input("v", DType::F32, &[seq, kv, v]).unwrap();
        let heads = Heads { q, k, v, seq, dim, kv, group };
        let got = attend(&mut g, &form, heads).unwrap_err().to_string();
        assert!(got.contains(wanted), "wanted `{wanted}` in `{got}`");
    }
}
