//! Tensor parallelism: the numbers of the whole graph, the messages that Megatron-LM counts, and
//! what is refused.

#[path = "partition/by_hand.rs"]
mod by_hand;

use super::golden::golden;
use super::support::{accumulators, difference, environment, network, step, tile};
use aerogel_graph::verify::verify;
use aerogel_graph::{
    Axes, Build, Clock, Def, Env, Graph, Mesh, Op, Phase, Place, Rounding, ValueId, interpret,
    interpret_mesh, text,
};
use aerogel_models::{
    AttentionKind, Combine, Family, LayerKind, ModelConfig, WeightInit, eval_graph, train_graph,
};
use aerogel_passes::recompute::{Policy, recompute};
use aerogel_passes::{
    Compute, Order, Partitioned, Shards, Tensor, accumulate, backward, cut, partition, precision,
};

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

/// The difference relative to the largest element, of the tensor or elsewhere.
fn off(got: &aerogel_graph::Tensor, wanted: &aerogel_graph::Tensor, scale: f64) -> f64 {
    difference(got, wanted) * largest(wanted) / largest(wanted).max(scale)
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
            let error = off(&got, &expected, scale);
            assert!(error <= within, "{name}, {output} on {rank}: {error}");
        }
    }
}

/// A message: its kind, phase, scope, bytes on the wire of a rank, and whether it brings a value of
/// the forward to the backward.
struct Message {
    kind: &'static str,
    phase: Phase,
    scope: String,
    wire_bytes: u64,
    again: bool,
}

fn messages(g: &Graph) -> Vec<Message> {
    let message = |node: &aerogel_graph::Node| {
        let Op::Collective(op) = &node.op else { return None };
        let made = match g.value(node.ins[0]).def {
            Def::Node(n, _) => g.node(n).phase,
            _ => Phase::Forward,
        };
        let again = op.kind_name() == "all_gather" && made != node.phase;
        let wire_bytes = op.wire_bytes(g.axes(), g.ty(node.ins[0]));
        let (kind, scope) = (op.kind_name(), node.scope.to_string());
        Some(Message { kind, phase: node.phase, scope, wire_bytes, again })
    };
    g.nodes().iter().filter_map(message).filter(|m| m.kind != "keep").collect()
}

/// How many messages of a kind there are in a phase of layer 0 or 1, and their bytes.
fn of_layer(list: &[Message], layer: usize, phase: Phase, kind: &str, again: bool) -> (usize, u64) {
    let of = |m: &&Message| {
        let here = m.scope.starts_with(&format!("h.{layer}.")) && m.phase == phase;
        here && m.kind == kind && m.again == again
    };
    let found: Vec<_> = list.iter().filter(of).collect();
    (found.len(), found.iter().map(|m| m.wire_bytes).sum())
}

#[test]
fn ranks_together_compute_what_one_would() {
    for (name, whole) in models() {
        for ranks in [2, 4] {
            for what in [
                "heads mlp vocab",
                "heads mlp vocab seq",
                "heads mlp",
                "heads",
                "mlp",
                "vocab",
                "seq",
                "vocab seq",
            ] {
                let name = format!("{name}, {what} over {ranks}");
                let p =
                    partition(&whole, &spec(ranks, what)).unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_same(&name, &whole, &p, 0, Rounding::Exact, 1e-9);
            }
        }
    }
}

#[test]
fn after_recomputation_and_before_tiling() {
    let g = gpt2();
    let bytes = |g: &Graph, v: ValueId| g.ty(v).bytes(g.axes());
    let again = recompute(&g, &Policy::Blocks { every: 1 }, &bytes).unwrap().graph;
    for what in ["heads mlp vocab", "heads mlp vocab seq"] {
        let p = partition(&again, &spec(2, what)).unwrap();
        assert_same(what, &g, &p, 0, Rounding::Exact, 1e-9);
        let shards = Shards { mesh: p.graph.axes().mesh.clone(), ..Shards::default() };
        let cut = cut(&p.graph, &shards, 2).unwrap();
        for (section, g) in accumulate(&cut, 2, Order::Tree).unwrap() {
            verify(&g).unwrap_or_else(|e| panic!("{what}, {section}: {e}"));
            assert_eq!(messages(&g).len(), messages(&p.graph).len(), "{what}, {section}");
        }
    }
}

/// Sections that are tiled before they are cut keep their sums whole.
#[test]
fn after_tiling() {
    let g = gpt2();
    let wanted = step(&g, 2, Order::Tree, Rounding::Exact);
    for what in ["heads mlp vocab", "heads mlp vocab seq"] {
        let sections = tile(&g, 2, Order::Tree).unwrap();
        let mut states = vec![Env::new(); 2];
        let axes = partition(&sections[0].1, &spec(2, what)).unwrap().graph.axes().clone();
        for (j, name) in ["micro.0", "micro.last"].into_iter().enumerate() {
            let section = &sections.iter().find(|(n, _)| n == name).unwrap().1;
            let p = partition(section, &spec(2, what)).unwrap();
            verify(&p.graph).unwrap();
            let mut data = super::support::piece(&g, &environment(&g), j, 2);
            if j == 0 {
                accumulators(section, &mut data, f64::NAN);
            }
            let mut envs = environments(&p.graph, &data);
            envs.iter_mut().zip(states).for_each(|(env, own)| env.extend(own));
            let clock = Clock { micro: j as u64, ..CLOCK };
            let runs = interpret_mesh(&p.graph, &envs, clock, Rounding::Exact).unwrap();
            states = runs.into_iter().map(|run| run.assigned).collect();
        }
        for (rank, own) in states.iter().enumerate() {
            for (name, sum) in own {
                let whole = piece(&axes, &wanted[name], mesh(2).place(rank));
                let error = off(sum, &whole, 1e-3);
                assert!(error <= 1e-9, "{what}, {name} on {rank}: {error}");
            }
        }
    }
}

#[test]
fn without_gradients() {
    let config = config(Family::SparseTransformer, AttentionKind::Fixed, Combine::Merged);
    let g = eval_graph(&config, 2).unwrap();
    let p = partition(&g, &spec(4, "heads mlp vocab seq")).unwrap();
    assert_same("eval", &g, &p, 0, Rounding::Exact, 1e-9);
    assert!(messages(&p.graph).iter().all(|m| m.phase == Phase::Forward && !m.again));
}

#[test]
fn other_axes_of_the_mesh_are_left_alone() {
    let g = gpt2();
    for over in [0, 1] {
        let mut spec = spec(2, "heads mlp vocab seq");
        spec.over = over;
        spec.mesh = Mesh(vec![("node".to_owned(), 2), ("local".to_owned(), 2)]);
        let p = partition(&g, &spec).unwrap();
        assert_same("two axes", &g, &p, over, Rounding::Exact, 1e-9);
        let twin = p.graph.axes().find(["seq/node", "seq/local"][over as usize]).unwrap();
        assert_eq!(p.graph.axes()[twin].global_size(), 8);
    }
}

#[test]
fn one_rank_has_the_graph_as_it_is() {
    let g = gpt2();
    let p = partition(&g, &spec(1, "heads mlp vocab seq")).unwrap();
    assert_eq!((p.graph.nodes(), p.partial), (g.nodes(), vec![]));
    assert_eq!(p.graph.axes().mesh, mesh(1));
}

/// Shoeybi et al. 2019, §3: f and g, two all-reduces of a layer forward and two backward.
#[test]
fn a_layer_takes_two_all_reduces_each_way() {
    for ranks in [2, 4] {
        let p = partition(&gpt2(), &spec(ranks, "heads mlp")).unwrap();
        let list = messages(&p.graph);
        // batch * seq * embed numbers of f32, sent twice, each 2 (n - 1) / n times.
        let published = 4 * (ranks as u64 - 1) * (2 * 8 * 16) / ranks as u64 * 4;
        for layer in 0..2 {
            for phase in [Phase::Forward, Phase::Backward] {
                let found = of_layer(&list, layer, phase, "all_reduce", false);
                assert_eq!(found, (2, published), "layer {layer}, {phase:?}, {ranks} ranks");
            }
        }
        assert_eq!(list.len(), 8, "nothing beside them");
        assert!(p.partial.is_empty(), "{:?}", p.partial);
    }
}

/// Korthikanti et al. 2022, §4.2.2: gathers and reduce-scatters in place of them, of the same
/// bytes, each with its conjugate the other way; what the forward gathered is gathered once more.
#[test]
fn along_the_sequence_gathers_and_scatters_take_their_place() {
    for ranks in [2, 4] {
        let p = partition(&gpt2(), &spec(ranks, "heads mlp vocab seq")).unwrap();
        let list = messages(&p.graph);
        let half = 2 * (ranks as u64 - 1) * (2 * 8 * 16) / ranks as u64 * 4;
        for layer in 0..2 {
            for phase in [Phase::Forward, Phase::Backward] {
                for kind in ["all_gather", "reduce_scatter"] {
                    let found = of_layer(&list, layer, phase, kind, false);
                    assert_eq!(found, (2, half), "layer {layer}, {phase:?}, {kind}");
                }
                let reduces = of_layer(&list, layer, phase, "all_reduce", false);
                assert_eq!(reduces, (0, 0), "layer {layer}, {phase:?}");
            }
            let again = of_layer(&list, layer, Phase::Backward, "all_gather", true);
            assert_eq!(again, (2, half), "layer {layer}");
        }
        // Around the layers: the embedding's rows are scattered, the head's input is gathered, and
        // back; two numbers a token for the loss; and the gradient of the table of positions.
        let mut rest: Vec<_> = list.iter().filter(|m| !m.scope.starts_with("h.")).collect();
        rest.sort_by_key(|m| (m.phase != Phase::Forward, m.kind, m.wire_bytes));
        let rest: Vec<_> = rest.iter().map(|m| (m.phase.name(), m.kind, m.wire_bytes)).collect();
        let token = 2 * (ranks as u64 - 1) * (2 * 8) * 4 / ranks as u64;
        let wanted = [
            ("forward", "all_gather", half / 2),
            ("forward", "all_reduce", token),
            ("forward", "all_reduce", token),
            ("forward", "reduce_scatter", half / 2),
            ("backward", "all_gather", half / 4),
            ("backward", "all_gather", half / 2),
            ("backward", "reduce_scatter", half / 2),
        ];
        assert_eq!(rest, wanted, "{ranks} ranks");
        // What is added over the sequence is a term each: norms, and biases of the residual stream.
        let term = |name: &str| {
            name.contains("norm") || name.ends_with("out.bias") || name.ends_with("down.bias")
        };
        for (name, _) in p.graph.outputs.iter().filter(|o| o.0.starts_with("grad.")) {
            assert_eq!(p.partial.contains(name), term(name), "{name}");
        }
    }
}

#[test]
fn nothing_gathered_is_kept_for_the_backward() {
    let p = partition(&gpt2(), &spec(2, "heads mlp vocab seq")).unwrap();
    let g = &p.graph;
    for node in g.nodes().iter().filter(|n| n.phase == Phase::Backward) {
        for &v in &node.ins {
            let Def::Node(n, _) = g.value(v).def else { continue };
            let made = g.node(n);
            let gathered = matches!(&made.op, Op::Collective(op) if op.kind_name() == "all_gather");
            assert!(!(gathered && made.phase == Phase::Forward), "at {}", node.scope);
        }
    }
}

#[test]
fn bf16_sends_bf16_and_stays_close() {
    for family in [Family::Gpt2, Family::SparseTransformer] {
        let config = config(family, AttentionKind::Strided, Combine::Merged);
        let g = precision(&train_graph(&config, 2).unwrap(), Compute::Bf16).unwrap();
        let whole = backward(&g).unwrap();
        for what in ["heads mlp vocab", "heads mlp vocab seq"] {
            let p = partition(&whole, &spec(4, what)).unwrap();
            assert_same(what, &whole, &p, 0, Rounding::Declared, 2e-2);
            // A layer's messages are half those of f32.
            let f32_graph = backward(&train_graph(&config, 2).unwrap()).unwrap();
            let full = messages(&partition(&f32_graph, &spec(4, what)).unwrap().graph);
            let half = messages(&p.graph);
            for phase in [Phase::Forward, Phase::Backward] {
                for kind in ["all_reduce", "reduce_scatter", "all_gather"] {
                    let (n, bytes) = of_layer(&half, 0, phase, kind, false);
                    assert_eq!((n, 2 * bytes), of_layer(&full, 0, phase, kind, false), "{kind}");
                }
            }
        }
    }
}

#[test]
fn text_of_a_small_network() {
    let g = backward(&network(4, false)).unwrap();
    for (name, what) in [("partition", "mlp"), ("partition-seq", "mlp seq")] {
        let p = partition(&g, &spec(3, what)).unwrap();
        let printed = text::print(&p.graph);
        assert_eq!(text::print(&text::parse(&printed).unwrap()), printed);
        golden(
            &format!("{name}.out.txt"),
            &format!("# partial: {}\n{printed}", p.partial.join(" ")),
        );
    }
}
