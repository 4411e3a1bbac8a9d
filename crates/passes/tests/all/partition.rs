//! Tensor parallelism: the numbers of the whole graph, the messages that Megatron-LM counts, and
//! what is refused.

use super::support::{difference, environment};
use aerogel_graph::ops::{Collective, Exchange};
use aerogel_graph::verify::verify;
use aerogel_graph::{
    Axes, Build, Clock, Cutter, Def, Env, Graph, Mesh, Op, Phase, Place, Rounding, interpret,
    interpret_mesh,
};
use aerogel_models::{
    AttentionKind, Combine, Family, LayerKind, ModelConfig, WeightInit, train_graph,
};
use aerogel_passes::{Partitioned, PassError, Tensor, backward, partition};

const CLOCK: Clock = Clock { seed: 3, step: 1, micro: 0, place: Place([0; 4]) };

fn config(family: Family, attention: AttentionKind, combine: Combine) -> ModelConfig {
    ModelConfig {
        family,
        layers: 2,
        heads: 8,
        embed: 16,
        mlp: 12,
        qk: 16,
        context: 8,
        vocab: 8,
        image: None,
        attention,
        combine,
        cycle: match attention {
            AttentionKind::Dense => vec![LayerKind::Dense],
            AttentionKind::Local => vec![LayerKind::Local],
            AttentionKind::Strided => vec![LayerKind::Strided, LayerKind::Local],
            AttentionKind::Fixed => vec![LayerKind::Block, LayerKind::Summary],
        },
        stride: 4,
        window: 3,
        columns: 1,
        dropout: 0.25,
        embed_dropout: 0.25,
        init: WeightInit::Code,
    }
}

/// Every kind of attention, interleaved, merged and by head.
fn models() -> Vec<(String, Graph)> {
    use AttentionKind::{Dense, Fixed, Local, Strided};
    use Combine::{Heads, Interleaved, Merged};
    let kinds = [
        (Family::SparseTransformer, Dense, Interleaved),
        (Family::SparseTransformer, Local, Interleaved),
        (Family::SparseTransformer, Strided, Interleaved),
        (Family::SparseTransformer, Strided, Merged),
        (Family::SparseTransformer, Strided, Heads),
        (Family::SparseTransformer, Fixed, Interleaved),
        (Family::SparseTransformer, Fixed, Merged),
        (Family::SparseTransformer, Fixed, Heads),
        (Family::Gpt2, Dense, Interleaved),
        (Family::Gpt2, Strided, Heads),
    ];
    let named = |(family, attention, combine)| {
        let g = train_graph(&config(family, attention, combine), 2).unwrap();
        (format!("{family:?} {attention:?} {combine:?}"), backward(&g).unwrap())
    };
    kinds.into_iter().map(named).collect()
}

fn gpt2() -> Graph {
    let config = config(Family::Gpt2, AttentionKind::Dense, Combine::Interleaved);
    backward(&train_graph(&config, 2).unwrap()).unwrap()
}

fn mesh(ranks: usize) -> Mesh {
    Mesh(vec![("tensor".to_owned(), ranks)])
}

/// The axes in `what`, of "heads mlp vocab seq", over `ranks`.
fn spec(ranks: usize, what: &str) -> Tensor {
    let has = |word: &str| what.split(' ').any(|w| w == word);
    let (heads, mlp, vocab, seq) = (has("heads"), has("mlp"), has("vocab"), has("seq"));
    Tensor { mesh: mesh(ranks), over: 0, heads, mlp, vocab, seq }
}

/// The piece of a whole tensor that lies at a place of the mesh, if its axes are cut there.
fn piece(axes: &Axes, whole: &aerogel_graph::Tensor, place: Place) -> aerogel_graph::Tensor {
    let mut out = aerogel_graph::Tensor::full(axes, &whole.axes, 0.0);
    let starts: Vec<usize> =
        whole.axes.iter().map(|&a| axes[a].piece(0, place) as usize * axes[a].size).collect();
    let strides = whole.strides(&whole.axes);
    let start: usize = starts.iter().zip(&strides).map(|(x, s)| x * s).sum();
    let sizes = out.sizes.clone();
    aerogel_graph::tensor::for_each(&sizes, &[&strides], |i, at| {
        out.data[i] = whole.data[start + at[0]];
    });
    out
}

fn environments(g: &Graph, whole: &Env) -> Vec<Env> {
    let mesh = &g.axes().mesh;
    let rank = |r: usize| {
        let cut = |(name, t): (&String, &_)| (name.clone(), piece(g.axes(), t, mesh.place(r)));
        whole.iter().map(cut).collect()
    };
    (0..mesh.ranks()).map(rank).collect()
}

fn largest(t: &aerogel_graph::Tensor) -> f64 {
    t.data.iter().fold(f64::MIN_POSITIVE, |m, x| m.max(x.abs()))
}

/// Runs both graphs and holds every output of every rank to the whole's, relative to the largest
/// gradient: that of a key bias is 0 but for rounding.
fn assert_same(name: &str, whole: &Graph, p: &Partitioned, over: u8, mode: Rounding, within: f64) {
    verify(&p.graph).unwrap_or_else(|e| panic!("{name}: {e}"));
    let env = environment(whole);
    let wanted = interpret(whole, &env, CLOCK, mode).unwrap().outputs;
    let runs = interpret_mesh(&p.graph, &environments(&p.graph, &env), CLOCK, mode).unwrap();
    let (axes, mesh) = (p.graph.axes(), &p.graph.axes().mesh);
    let grads = wanted.iter().filter(|(output, _)| output.starts_with("grad."));
    let scale = grads.map(|(_, t)| largest(t)).fold(0.0, f64::max);
    assert_eq!(p.graph.outputs.len(), wanted.len());
    for (output, tensor) in &wanted {
        for rank in 0..mesh.ranks() {
            let mut got = runs[rank].outputs[output].clone();
            if p.partial.contains(output) {
                got.data.fill(0.0);
                for member in mesh.group(rank, &[over]) {
                    let term = &runs[member].outputs[output].data;
                    got.data.iter_mut().zip(term).for_each(|(sum, x)| *sum += x);
                }
            }
            let expected = piece(axes, tensor, mesh.place(rank));
            let own = largest(&expected);
            let error = difference(&got, &expected) * own;
            assert!(error <= within * own.max(scale), "{name}, {output} on {rank}: {error}");
        }
    }
}

#[test]
fn ranks_together_compute_what_one_would() {
    for (name, whole) in models() {
        for ranks in [2, 4] {
            for what in ["heads mlp", "heads mlp seq", "heads", "mlp", "seq", "mlp seq"] {
                let name = format!("{name}, {what} over {ranks}");
                let p =
                    partition(&whole, &spec(ranks, what)).unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_same(&name, &whole, &p, 0, Rounding::Exact, 1e-9);
            }
        }
    }
}
