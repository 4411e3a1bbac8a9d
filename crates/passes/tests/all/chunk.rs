//! Pieces of the sequence through the interpreter: losses and cotangents keep their bits, sums over
//! tokens their digits, and of what a scope has inside one piece exists at a time.

use super::golden::golden;
use super::support::{environment, network, run, step};
use aerogel_graph::verify::verify;
use aerogel_graph::{
    AxisId, Build, Clock, DType, Def, Env, Expr, Graph, Init, Mesh, Op, OpError, ParamClass, Phase,
    Rounding, Tensor, ValueId, interpret_mesh, text,
};
use aerogel_models::{
    AttentionKind, Combine, Family, LayerKind, ModelConfig, WeightInit, train_graph,
};
use aerogel_passes::recompute::{Policy, recompute};
use aerogel_passes::{
    Buckets, Compute, Order, Partials, PassError, Shards, backward, chunk, partition, precision,
};

const BATCH: usize = 2;
const CONTEXT: usize = 16;

fn config(family: Family) -> ModelConfig {
    let (attention, cycle) = match family {
        Family::Gpt2 => (AttentionKind::Dense, vec![LayerKind::Dense]),
        _ => (AttentionKind::Strided, vec![LayerKind::Strided, LayerKind::Local]),
    };
    ModelConfig {
        family,
        layers: 2,
        heads: 2,
        embed: 8,
        mlp: 32,
        qk: 8,
        context: CONTEXT,
        vocab: 12,
        image: None,
        attention,
        combine: Combine::Interleaved,
        cycle,
        stride: 4,
        window: 4,
        columns: 1,
        dropout: 0.25,
        embed_dropout: 0.25,
        init: WeightInit::Code,
    }
}

fn model(family: Family, compute: Compute) -> Graph {
    let g = train_graph(&config(family), BATCH).unwrap();
    backward(&precision(&g, compute).unwrap()).unwrap()
}

fn models() -> Vec<(String, Graph)> {
    let mut list = vec![];
    for family in [Family::Gpt2, Family::SparseTransformer] {
        for compute in [Compute::F32, Compute::Bf16] {
            list.push((format!("{family:?} {compute:?}"), model(family, compute)));
        }
    }
    list
}

/// The numbers of pieces that divide a sequence of 16, of feed-forwards and of the loss.
const PIECES: [(usize, usize); 6] = [(2, 1), (4, 1), (1, 2), (1, 4), (4, 2), (16, 16)];

fn outputs(g: &Graph) -> Env {
    verify(g).unwrap();
    run(g, &mut environment(g), 0, Rounding::Declared)
}

/// The graph with every [batch seq embed] of its backward as an output.
fn with_cotangents(g: &Graph) -> Graph {
    let g = g.pruned().unwrap();
    let mut out = g.clone();
    let wide = ["batch", "seq", "embed"].map(|a| g.axes().find(a).unwrap());
    for node in g.nodes().iter().filter(|n| n.phase == Phase::Backward) {
        for v in node.outs.iter().filter(|v| g.ty(**v).axes.as_slice() == wide) {
            out.output(&format!("d.{}.{}", node.scope, v.0), *v);
        }
    }
    out
}

/// Whether an output is a sum over tokens of a scope in pieces.
fn is_sum_of_pieces(output: &str, family_ties: bool, pieces: (usize, usize)) -> bool {
    let table = if family_ties { "grad.embed.token.weight" } else { "grad.head.weight" };
    (pieces.0 > 1 && output.starts_with("grad.h.") && output.contains(".mlp."))
        || (pieces.1 > 1 && output == table)
}

fn norm(t: &[f64]) -> f64 {
    t.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn off(got: &Tensor, wanted: &Tensor) -> f64 {
    assert_eq!(got.axes.len(), wanted.axes.len());
    let apart: Vec<f64> = got.data.iter().zip(&wanted.data).map(|(x, y)| x - y).collect();
    norm(&apart) / norm(&wanted.data).max(f64::MIN_POSITIVE)
}

#[test]
fn losses_and_cotangents_keep_their_bits() {
    for (name, g) in models() {
        let ties = name.starts_with("Gpt2");
        for g in [g.clone(), with_cotangents(&g)] {
            let wanted = outputs(&g);
            for pieces in PIECES {
                let done = chunk(&g, pieces.0, pieces.1).unwrap();
                let got = outputs(&done);
                assert_eq!(got.len(), wanted.len());
                let mut other_bits = 0;
                for (output, tensor) in &wanted {
                    let at = format!("{name}, {pieces:?}, {output}");
                    if is_sum_of_pieces(output, ties, pieces) {
                        let error = off(&got[output], tensor);
                        assert!(error <= 1e-6, "{at}: {error}");
                        other_bits += usize::from(got[output] != *tensor);
                    } else {
                        assert_eq!(got[output].data, tensor.data, "{at}");
                    }
                }
                assert!(other_bits > 0, "{name}, {pieces:?}: sums are in another order");
            }
        }
    }
}

#[test]
fn one_piece_changes_nothing_and_a_forward_alone_is_cut_too() {
    let g = model(Family::Gpt2, Compute::Bf16);
    assert_eq!(chunk(&g, 1, 1).unwrap(), g);
    let forward = precision(&train_graph(&config(Family::Gpt2), BATCH).unwrap(), Compute::Bf16);
    let forward = forward.unwrap();
    let done = chunk(&forward, 4, 2).unwrap();
    assert_eq!(outputs(&done), outputs(&forward));
    assert!(done.nodes().len() > forward.nodes().len());
    let printed = text::print(&done);
    assert_eq!(text::print(&text::parse(&printed).unwrap()), printed);
}

/// A feed-forward and an output layer, written out in `tests/golden/`.
#[test]
fn text_out() {
    let mut g = Graph::new();
    let build = |g: &mut Graph| {
        let (batch, seq) = (g.axis("batch", 2)?, g.axis("seq", 4)?);
        let (embed, mlp, vocab) = (g.axis("embed", 2)?, g.axis("mlp", 3)?, g.axis("vocab", 5)?);
        let x = g.input("x", DType::F32, &[batch, seq, embed])?;
        let targets = g.input("targets", DType::U32, &[batch, seq])?;
        let weights = g.input("weights", DType::F32, &[batch, seq])?;
        let mut weight =
            |name: &str, class, axes: &[AxisId]| g.parameter(name, class, axes, Init::Normal(0.3));
        let gain = weight("embed.gain", ParamClass::Norm, &[embed])?;
        let up = weight("h.0.mlp.up", ParamClass::Weight, &[mlp, embed])?;
        let head = weight("head.weight", ParamClass::Head, &[vocab, embed])?;
        let x = g.scope("embed", |g| g.map(&[x, gain], &|v| &v[0] * &v[1]))?;
        let up = |g: &mut Graph| {
            let y = g.einsum(&[x, up], &[batch, seq, mlp])?;
            let y =
                g.map(&[y], &|v| v[0].max(0.0) * Expr::rand("drop").lt(0.5).select(0.0, 2.0))?;
            let y = g.einsum(&[y, up], &[batch, seq, embed])?;
            g.add(x, y)
        };
        let y = g.scope("h", |g| g.scope("0", |g| g.scope("mlp", up)))?;
        let loss = g.scope("head", |g| {
            let ce = g.linear_ce(y, head, targets, weights, embed, vocab)?;
            g.sum(ce, &[batch, seq])
        })?;
        g.output("loss", loss);
        Ok::<(), OpError>(())
    };
    build(&mut g).unwrap();
    let done = chunk(&backward(&g).unwrap(), 2, 4).unwrap();
    verify(&done).unwrap();
    golden("chunk.out.txt", &text::print(&done));
}

/// The largest sum of bytes of values that exist at once, of those in `which`, in the order of the
/// nodes: a value is there from its node to the last one that reads it.
pub fn peak_bytes(g: &Graph, which: impl Fn(ValueId) -> bool) -> u64 {
    let mut last = vec![0; g.values().len()];
    for (n, node) in g.nodes().iter().enumerate() {
        node.ins.iter().chain(&node.outs).for_each(|v| last[v.index()] = n);
    }
    g.outputs.iter().for_each(|(_, v)| last[v.index()] = g.nodes().len());
    let (mut now, mut most) = (0, 0);
    for (n, node) in g.nodes().iter().enumerate() {
        let bytes = |v: &ValueId| g.ty(*v).bytes(g.axes());
        now += node.outs.iter().filter(|v| which(**v)).map(bytes).sum::<u64>();
        most = most.max(now);
        let mut gone: Vec<ValueId> = node.ins.iter().chain(&node.outs).copied().collect();
        gone.sort();
        gone.dedup();
        gone.retain(|v| {
            which(*v) && last[v.index()] == n && matches!(g.value(*v).def, Def::Node(..))
        });
        now -= gone.iter().map(bytes).sum::<u64>();
    }
    most
}

/// Whether a value is [batch .. mlp], a piece of the sequence or all of it.
fn is_inner(g: &Graph, v: ValueId) -> bool {
    ["batch", "mlp"].iter().all(|a| g.ty(v).has(g.axes().find(a).unwrap()))
}

fn recomputed(g: &Graph) -> Graph {
    let bytes = |g: &Graph, v: ValueId| g.ty(v).bytes(g.axes());
    recompute(g, &Policy::Blocks { every: 1 }, &bytes).unwrap().graph
}

#[test]
fn one_piece_of_what_is_inside_exists_at_a_time() {
    for (name, g) in models() {
        let forward = |g: &Graph| {
            let mut forward = g.clone();
            forward.outputs.retain(|(output, _)| !output.starts_with("grad."));
            forward.pruned().unwrap()
        };
        let inner = |g: &Graph| peak_bytes(g, |v| is_inner(g, v));
        let (alone, again) = (inner(&forward(&g)), inner(&recomputed(&g)));
        assert!(alone > 0 && again >= alone, "{name}: {alone}, {again}");
        for k in [2, 4, 8] {
            let done = chunk(&g, k, 1).unwrap();
            assert_eq!(inner(&forward(&done)), alone / k as u64, "{name}, forward in {k}");
            let both = recomputed(&done);
            assert_eq!(inner(&both), again / k as u64, "{name}, backward in {k}");
            assert_eq!(outputs(&both), outputs(&done), "{name}, {k}");
            let all = |g: &Graph| peak_bytes(g, |v| matches!(g.value(v).def, Def::Node(..)));
            let (less, more) = (all(&both), all(&recomputed(&g)));
            assert!(less < more, "{name}, {k}: {less} against {more} bytes");
        }
        let done = chunk(&g, 1, 4).unwrap();
        let seq = done.axes().find("seq").unwrap();
        let heads: Vec<_> =
            done.nodes().iter().filter(|n| matches!(n.op, Op::LinearCe(_))).collect();
        assert_eq!(heads.len(), 4, "{name}");
        assert!(heads.iter().all(|n| !done.ty(n.ins[0]).has(seq)), "{name}");
    }
}

/// Of a weight's gradient there are the sum so far, what the next piece adds, and the new sum.
#[test]
fn sums_over_pieces_run_along() {
    let g = model(Family::SparseTransformer, Compute::Bf16);
    let most = |mlp: usize, loss: usize, grad: &str| {
        let mut one = chunk(&g, mlp, loss).unwrap();
        one.outputs.retain(|(name, _)| name == grad);
        let one = one.pruned().unwrap();
        let ty = one.ty(one.outputs[0].1).clone();
        peak_bytes(&one, |v| *one.ty(v) == ty) / ty.bytes(one.axes())
    };
    for k in [2, 4, 16] {
        assert_eq!(most(k, 1, "grad.h.1.mlp.up.weight"), 3);
        assert_eq!(most(1, k, "grad.head.weight"), 3);
    }
}

#[test]
fn after_it_come_recomputation_buckets_and_micro_batches() {
    for (name, g) in models() {
        let buckets = Buckets::of(&g, &Shards::default(), &Partials::default());
        let wanted = step(&buckets.apply(&g).unwrap(), 2, Order::Tree, Rounding::Declared);
        let done = chunk(&g, 4, 2).unwrap();
        assert_eq!(Buckets::of(&done, &Shards::default(), &Partials::default()), buckets);
        let applied = buckets.apply(&recomputed(&done)).unwrap();
        let got = step(&applied, 2, Order::Tree, Rounding::Declared);
        assert_eq!(got.len(), wanted.len());
        for (sum, tensor) in &wanted {
            let error = off(&got[sum], tensor);
            let exact = ["loss", "tokens", ".attn", "final_norm"].iter().any(|w| sum.contains(w));
            assert!(error <= if exact { 0.0 } else { 1e-6 }, "{name}, {sum}: {error}");
        }
    }
}

fn spec(seq: bool) -> aerogel_passes::Tensor {
    let mesh = Mesh(vec![("tensor".to_owned(), 2)]);
    aerogel_passes::Tensor { mesh, over: 0, heads: true, mlp: true, vocab: true, seq }
}

/// Messages of a scope are sent piece by piece.
#[test]
fn after_tensor_parallelism() {
    let g = partition(&model(Family::Gpt2, Compute::F32), &spec(false)).unwrap().graph;
    let done = chunk(&g, 2, 4).unwrap();
    verify(&done).unwrap();
    let envs: Vec<Env> =
        (0..2).map(|r| super::support::states(&g, g.axes().mesh.place(r))).collect();
    let inputs = environment(&g);
    let envs: Vec<Env> = envs
        .into_iter()
        .map(|mut env| {
            for i in g.inputs() {
                env.insert(i.name.clone(), inputs[&i.name].clone());
            }
            env
        })
        .collect();
    let clock = Clock { seed: 3, step: 1, ..Clock::default() };
    let all = |g: &Graph| interpret_mesh(g, &envs, clock, Rounding::Declared).unwrap();
    for (rank, (got, wanted)) in all(&done).iter().zip(all(&g)).enumerate() {
        assert_eq!(got.outputs["loss"], wanted.outputs["loss"]);
        for (name, tensor) in &wanted.outputs {
            let error = off(&got.outputs[name], tensor);
            let near = name.contains(".mlp.") || name == "grad.embed.token.weight";
            assert!(error <= if near { 1e-6 } else { 0.0 }, "{name} on rank {rank}: {error}");
        }
    }
    let messages =
        |g: &Graph| g.nodes().iter().filter(|n| matches!(&n.op, Op::Collective(_))).count();
    assert!(messages(&done) > messages(&g));
}

fn refused(g: &Graph, mlp: usize, loss: usize) -> String {
    chunk(g, mlp, loss).unwrap_err().to_string()
}

#[test]
fn what_needs_all_of_the_sequence_is_refused() {
    let g = model(Family::Gpt2, Compute::F32);
    for (mlp, loss, pieces) in [(3, 1, "3"), (1, 5, "5"), (0, 1, "0"), (1, 0, "0"), (32, 1, "32")] {
        let error = refused(&g, mlp, loss);
        assert!(error.contains(&format!("`seq` of 16 does not divide into {pieces}")), "{error}");
    }
    // The network by hand has a head, and no scope `mlp`.
    let error = chunk(&backward(&network(2, false)).unwrap(), 3, 3).unwrap_err();
    assert_eq!(error, PassError::NoScope { scope: "h.N.mlp" });
    assert!(chunk(&backward(&network(2, false)).unwrap(), 1, 3).is_ok());
    assert!(refused(&Graph::new(), 2, 1).contains("no axis `seq`"));
    let parts = partition(&g, &spec(true)).unwrap().graph;
    let error = refused(&parts, 2, 1);
    assert!(
        error.contains("`collective` at `h.0.mlp") && error.contains("all of `seq`"),
        "{error}"
    );
}

/// A feed-forward with something odd in it.
fn odd(f: impl Fn(&mut Graph, ValueId) -> Result<ValueId, OpError>) -> Graph {
    let mut g = Graph::new();
    let build = |g: &mut Graph| {
        let (seq, embed) = (g.axis("seq", 4)?, g.axis("embed", 2)?);
        let x = g.input("x", DType::F32, &[seq, embed])?;
        let w = g.parameter("w", ParamClass::Norm, &[embed], Init::Constant(1.0))?;
        let y = g.scope("h", |g| {
            g.scope("0", |g| {
                g.scope("mlp", |g| {
                    let x = g.map(&[x, w], &|v| &v[0] * &v[1])?;
                    f(g, x)
                })
            })
        })?;
        let over: Vec<_> = g.ty(y).axes.to_vec();
        let loss = g.sum(y, &over)?;
        g.output("loss", loss);
        Ok::<(), OpError>(())
    };
    build(&mut g).unwrap();
    g
}

#[test]
fn the_op_that_cannot_run_on_a_piece_is_named() {
    let axis = |g: &Graph, name: &str| g.axes().find(name).unwrap();
    let cases: [(&str, &str, Graph); 5] = [
        ("norm", "all of `seq`", odd(|g, x| g.norm(x, axis(g, "seq"), true, 1e-5, None, None))),
        ("reduce", "all of `seq`", odd(|g, x| g.maximum(x, &[axis(g, "seq")]))),
        (
            "view",
            "all of `seq`",
            odd(|g, x| {
                let (block, inside) = (g.axis("block", 2)?, g.axis("inside", 2)?);
                g.split(x, axis(g, "seq"), &[block, inside])
            }),
        ),
        (
            "map",
            "a sum over `seq`",
            odd(|g, x| {
                let sum = g.sum(x, &[axis(g, "seq")])?;
                g.map(&[x, sum], &|v| &v[0] / &v[1])
            }),
        ),
        (
            "map",
            "in the middle",
            odd(|g, x| {
                let sum = g.sum(x, &[axis(g, "seq")])?;
                // Without the axis, the node is none of the scope's along it.
                let root = g.map(&[sum], &|v| v[0].sqrt())?;
                g.map(&[x, root], &|v| &v[0] / &v[1])
            }),
        ),
    ];
    for (op, reason, g) in cases {
        let error = refused(&g, 2, 1);
        assert!(
            error.contains(&format!("`{op}` at `h.0.mlp`")) && error.contains(reason),
            "{error}"
        );
    }
}
