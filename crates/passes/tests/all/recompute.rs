//! Recompute on models and small networks: no policy may change a bit. Schedules alone are in
//! `chain`.

#[path = "recompute/chain.rs"]
mod chain;

use super::support::{environment, network, run, step};
use aerogel_graph::verify::verify;
use aerogel_graph::{
    Build, DType, Def, Expr, Graph, Init, Node, Op, OpError, ParamClass, Phase, Rounding, ValueId,
    text,
};
use aerogel_models::{
    AttentionKind, Combine, Family, LayerKind, ModelConfig, WeightInit, train_graph,
};
use aerogel_passes::recompute::{Policy, Recomputed, least_budget_bytes, recompute};
use aerogel_passes::{Compute, Order, backward, precision};
use std::collections::BTreeSet;

fn bytes(g: &Graph, v: ValueId) -> u64 {
    g.ty(v).bytes(g.axes())
}

fn pass(g: &Graph, policy: Policy) -> Recomputed {
    recompute(g, &policy, &bytes).unwrap()
}

fn config(family: Family, attention: AttentionKind, combine: Combine) -> ModelConfig {
    ModelConfig {
        family,
        layers: 4,
        heads: 2,
        embed: 8,
        mlp: 32,
        qk: 8,
        context: 16,
        vocab: 6,
        image: None,
        attention,
        combine,
        cycle: match attention {
            AttentionKind::Strided => vec![LayerKind::Strided, LayerKind::Local],
            _ => vec![LayerKind::Dense],
        },
        stride: 4,
        window: 4,
        columns: 1,
        dropout: 0.1,
        embed_dropout: 0.1,
        init: WeightInit::Code,
    }
}

fn model(family: Family, attention: AttentionKind, combine: Combine) -> Graph {
    train_graph(&config(family, attention, combine), 2).unwrap()
}

fn gpt2() -> Graph {
    model(Family::Gpt2, AttentionKind::Dense, Combine::Interleaved)
}

/// Four residual layers at scopes that `name` gives, the last of which reads a value from inside
/// the first.
fn skipping(name: &dyn Fn(usize) -> String) -> Result<Graph, OpError> {
    let mut g = Graph::new();
    let (batch, seq) = (g.axis("batch", 2)?, g.axis("seq", 3)?);
    let (embed, mlp, vocab) = (g.axis("embed", 4)?, g.axis("mlp", 6)?, g.axis("vocab", 5)?);
    let tokens = g.input("tokens", DType::U32, &[batch, seq])?;
    let weights = g.input("weights", DType::F32, &[batch, seq])?;
    let init = Init::Normal(0.3);
    let table = g.parameter("table", ParamClass::Embedding, &[vocab, embed], init)?;
    let mut h = g.gather(table, vocab, tokens)?;
    let mut inner: Vec<ValueId> = vec![];
    for layer in 0..4 {
        g.at(&name(layer).as_str().into(), Phase::Forward);
        let w = format!("weight.{layer}");
        let w = g.parameter(&w, ParamClass::Weight, &[mlp, embed], init)?;
        let x = g.norm(h, embed, true, 1e-5, None, None)?;
        let y = g.einsum(&[x, w], &[batch, seq, mlp])?;
        let y = g.map(&[y], &|v| v[0].tanh())?;
        inner.push(y);
        let early = inner[if layer == 3 { 0 } else { layer }];
        let y = g.map(&[y, early], &|v| &v[0] * v[1].exp())?;
        let y = g.einsum(&[y, w], &[batch, seq, embed])?;
        let dropped = Expr::rand(&format!("drop.{layer}")).lt(0.5);
        h = g.map(&[h, y], &|v| &v[0] + dropped.clone().select(0.0, &v[1]))?;
    }
    g.at(&"head".into(), Phase::Forward);
    let losses = g.linear_ce(h, table, tokens, weights, embed, vocab)?;
    let loss = g.sum(losses, &[batch, seq])?;
    let count = g.sum(weights, &[batch, seq])?;
    g.output("loss", loss);
    g.output("tokens", count);
    Ok(g)
}

fn graphs() -> Vec<(&'static str, Graph)> {
    let sparse = Family::SparseTransformer;
    let list = vec![
        ("gpt2", gpt2()),
        ("gpt2 in bf16", precision(&gpt2(), Compute::Bf16).unwrap()),
        ("strided", model(sparse, AttentionKind::Strided, Combine::Interleaved)),
        ("merged", model(sparse, AttentionKind::Strided, Combine::Merged)),
        ("skipping", skipping(&|layer| format!("h.{layer}")).unwrap()),
        ("without blocks", skipping(&|_| "layer".to_owned()).unwrap()),
        ("out of order", skipping(&|layer| format!("h.{}", 3 - layer)).unwrap()),
    ];
    // Autodiff leaves a constant that nobody reads, and the pass does not.
    list.into_iter().map(|(name, g)| (name, backward(&g).unwrap().pruned().unwrap())).collect()
}

fn policies(g: &Graph) -> Vec<Policy> {
    let least = least_budget_bytes(g, &bytes);
    let most = pass(g, Policy::None).peak_bytes;
    let mut list = vec![Policy::None, Policy::Cheap];
    list.extend([1, 2, 3, 9].map(|every| Policy::Blocks { every }));
    list.extend((0..=6).map(|i| Policy::Budget { bytes: least + (most - least) * i / 6 }));
    list
}

/// The clones: nodes of the backward that the graph without recomputation has not there.
fn clones<'a>(before: &Graph, after: &'a Graph) -> Vec<&'a Node> {
    let backward = |g: &Graph| -> Vec<(Op, String)> {
        let nodes = g.nodes().iter().filter(|n| n.phase == Phase::Backward);
        nodes.map(|n| (n.op.clone(), n.scope.to_string())).collect()
    };
    let mut old = backward(before).into_iter().peekable();
    let nodes = after.nodes().iter().filter(|n| n.phase == Phase::Backward);
    let is_new =
        |n: &&Node| old.next_if(|(op, scope)| *op == n.op && **scope == *n.scope).is_none();
    let clones = nodes.filter(is_new).collect();
    assert_eq!(old.next(), None, "the backward itself stays as it was");
    clones
}

fn flops<'a>(g: &Graph, nodes: impl IntoIterator<Item = &'a Node>) -> u64 {
    nodes.into_iter().map(|n| n.op.flops(g.axes(), &g.in_types(n), &g.out_types(n))).sum()
}

/// Forward values that nodes of the backward read: no states, no inputs, no casts of parameters.
fn kept(g: &Graph) -> BTreeSet<ValueId> {
    let is_state = |v: &ValueId| matches!(g.value(*v).def, Def::State(_));
    let activation = |v: &ValueId| match g.value(*v).def {
        Def::Node(n, _) => {
            let node = g.node(n);
            node.phase == Phase::Forward && !node.ins.iter().all(is_state)
        }
        _ => false,
    };
    let backward = g.nodes().iter().filter(|n| n.phase == Phase::Backward);
    backward.flat_map(|n| n.ins.iter().copied()).filter(activation).collect()
}

fn in_block(node: &Node) -> bool {
    node.scope.starts_with("h.")
}

#[test]
fn no_policy_changes_a_bit() {
    for (name, g) in graphs() {
        let wanted = run(&g, &mut environment(&g), 0, Rounding::Declared);
        for policy in policies(&g) {
            let at = format!("{name}, {policy:?}");
            let found = pass(&g, policy);
            let out = &found.graph;
            verify(out).unwrap_or_else(|e| panic!("{at}: {e}"));
            assert_eq!(out.pruned().unwrap().nodes().len(), out.nodes().len(), "{at}");
            let got = run(out, &mut environment(out), 0, Rounding::Declared);
            assert_eq!(got.len(), wanted.len());
            wanted.iter().for_each(|(output, t)| assert_eq!(got[output], *t, "{at}: {output}"));
            let clones = clones(&g, out);
            assert_eq!(flops(out, clones.iter().copied()), found.recomputed_flops, "{at}");
            assert!(!clones.iter().any(|n| matches!(n.op, Op::LinearCe(_))), "{at}");
            let cheap = |n: &&Node| matches!(n.op, Op::Map(_) | Op::Norm(_) | Op::View(_));
            assert!(policy != Policy::Cheap || clones.iter().all(cheap), "{at}");
            if let Policy::Budget { bytes } = policy {
                assert!(found.peak_bytes <= bytes, "{at}: {}", found.peak_bytes);
            }
            assert!(found.kept_bytes <= found.peak_bytes, "{at}");
        }
    }
}

#[test]
fn with_every_block_one_value_a_block_is_kept_and_what_its_backward_needs_runs_again() {
    for (name, g) in graphs().into_iter().take(4) {
        let [all, cheap, one, two] =
            [Policy::None, Policy::Cheap, Policy::Blocks { every: 1 }, Policy::Blocks { every: 2 }]
                .map(|policy| pass(&g, policy));
        let counts = [&all, &cheap, &one, &two].map(|r| (kept(&r.graph).len(), r.kept_bytes));
        assert!(counts.is_sorted_by(|a, b| a.0 > b.0 && a.1 > b.1), "{name}: {counts:?}");
        let out = &one.graph;
        let of_blocks = |v: &ValueId| match out.value(*v).def {
            Def::Node(n, _) => in_block(out.node(n)),
            _ => false,
        };
        let inner: Vec<_> = kept(out).into_iter().filter(of_blocks).collect();
        assert_eq!(inner.len(), 4, "{name}");
        inner.iter().for_each(|v| {
            assert_eq!(out.axes().names(&out.ty(*v).axes), "batch seq embed", "{name}");
        });
        // What the backward reads of a block, and what that is computed from inside the block.
        let mut needed: BTreeSet<ValueId> = kept(&g);
        let mut again = vec![];
        for node in g.nodes().iter().rev() {
            let forward = node.phase == Phase::Forward && in_block(node);
            let cast = node.ins.iter().all(|v| matches!(g.value(*v).def, Def::State(_)));
            let block = |n: &Node| n.scope.split('.').nth(1).map(str::to_owned);
            // The output of a block is kept for the next one.
            let readers = |v: &ValueId| g.nodes().iter().filter(|n| n.ins.contains(v)).collect();
            let leaves = |v: &ValueId| {
                let readers: Vec<&Node> = readers(v);
                let forward = readers.iter().filter(|n| n.phase == Phase::Forward);
                forward.into_iter().any(|n| !in_block(n) || block(n) != block(node))
            };
            let wanted = |v: &ValueId| needed.contains(v) && !leaves(v);
            if forward && !cast && node.outs.iter().any(wanted) {
                needed.extend(&node.ins);
                again.push(node);
            }
        }
        assert_eq!(one.recomputed_flops, flops(&g, again), "{name}");
        let forward = g.nodes().iter().filter(|n| n.phase == Phase::Forward);
        assert_eq!(one.forward_flops, flops(&g, forward), "{name}");
    }
}

#[test]
fn a_larger_budget_never_costs_more_and_one_too_small_says_how_much_would_do() {
    for (name, g) in graphs().into_iter().take(5) {
        let (least, all) = (least_budget_bytes(&g, &bytes), pass(&g, Policy::None));
        let mut before = u64::MAX;
        for i in 0..=40 {
            let budget = least + (all.peak_bytes - least) * i / 40;
            let found = pass(&g, Policy::Budget { bytes: budget });
            assert!(found.peak_bytes <= budget, "{name}, {budget}");
            assert!(found.recomputed_flops <= before, "{name}, {budget}");
            before = found.recomputed_flops;
        }
        assert_eq!(before, 0, "{name}");
        for too_small in [least - 1, 0] {
            let error = recompute(&g, &Policy::Budget { bytes: too_small }, &bytes).unwrap_err();
            assert!(error.to_string().contains(&format!("at least {least}")), "{error}");
        }
    }
    let error = recompute(&network(2, false), &Policy::Blocks { every: 0 }, &bytes).unwrap_err();
    assert!(error.to_string().contains("at least 1, got 0"), "{error}");
}

#[test]
fn a_third_of_the_activations_of_128_layers_costs_a_ninth_of_the_step() {
    let small = config(Family::SparseTransformer, AttentionKind::Strided, Combine::Interleaved);
    let image = Some([32, 32, 3]);
    let (context, stride, window) = (3072, 96, 96);
    let large = ModelConfig { layers: 128, embed: 256, mlp: 1024, qk: 128, vocab: 256, ..small };
    let large = ModelConfig { image, context, stride, window, ..large };
    let g = precision(&train_graph(&large, 1).unwrap(), Compute::Bf16).unwrap();
    let g = backward(&g).unwrap();
    let all = pass(&g, Policy::None).peak_bytes;
    let found = pass(&g, Policy::Budget { bytes: all / 3 });
    assert!(found.peak_bytes <= all / 3 && found.kept_bytes <= all / 3);
    let (before, after) = (flops(&g, g.nodes()), flops(&found.graph, found.graph.nodes()));
    assert_eq!(after - before, found.recomputed_flops);
    let ratio = after as f64 / before as f64;
    assert!(ratio <= 1.15, "{ratio} times the FLOPs");
}

#[test]
fn clones_are_cut_into_micro_batches_as_their_originals_are() {
    let g = backward(&network(4, true)).unwrap();
    let wanted = step(&g, 4, Order::Tree, Rounding::Declared);
    for policy in policies(&g) {
        let got = step(&pass(&g, policy).graph, 4, Order::Tree, Rounding::Declared);
        assert_eq!(got, wanted, "{policy:?}");
    }
}

#[test]
fn text_in_text_out() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let text_in = std::fs::read_to_string(folder.join("network.in.txt")).unwrap();
    let g = backward(&precision(&text::parse(&text_in).unwrap(), Compute::Bf16).unwrap()).unwrap();
    let least = least_budget_bytes(&g, &bytes);
    let policies = [
        ("cheap", Policy::Cheap),
        ("blocks-1", Policy::Blocks { every: 1 }),
        ("blocks-2", Policy::Blocks { every: 2 }),
        ("budget-least", Policy::Budget { bytes: least }),
    ];
    for (name, policy) in policies {
        let got = text::print(&pass(&g, policy).graph);
        let again = text::parse(&got).unwrap();
        assert_eq!(text::print(&again), got, "{name}");
        let path = folder.join(format!("recompute-{name}.out.txt"));
        if std::env::var_os("AEROGEL_BLESS").is_some() {
            std::fs::write(&path, &got).unwrap();
        }
        let wanted = std::fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("{}: {e}; AEROGEL_BLESS=1 writes it", path.display()));
        assert_eq!(got, wanted, "{name}: AEROGEL_BLESS=1 writes what it is now");
    }
}
