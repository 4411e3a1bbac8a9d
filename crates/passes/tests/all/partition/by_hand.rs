//! Graphs that no model has: sums that stay terms, patterns by head, and what is refused.

use super::{assert_same, mesh, messages, spec};
use aerogel_graph::ops::{Attend, Fold, Reduce};
use aerogel_graph::{
    Build, DType, Expr, Graph, Init, OpError, ParamClass, Pattern, Rounding, ValueId,
};
use aerogel_models::{AttentionKind, Combine, Family, train_graph};
use aerogel_passes::{PassError, Tensor, backward, partition};

const INIT: Init = Init::Normal(0.5);

/// x · up, a map with draws and coordinates, · down: the last is a sum over ranks.
fn projected(g: &mut Graph) -> Result<ValueId, OpError> {
    let (batch, seq) = (g.axis("batch", 2)?, g.axis("seq", 4)?);
    let (embed, mlp) = (g.axis("embed", 6)?, g.axis("mlp", 8)?);
    let x = g.input("x", DType::F32, &[batch, seq, embed])?;
    let up = g.parameter("up", ParamClass::Weight, &[mlp, embed], INIT)?;
    let down = g.parameter("down", ParamClass::Weight, &[embed, mlp], INIT)?;
    let h = g.einsum(&[x, up], &[batch, seq, mlp])?;
    let h = g.map(&[h], &|v| {
        let place = Expr::Coord(mlp) + 0.1 * Expr::Coord(seq);
        Expr::rand("hidden").lt(0.5).select(&v[0] * 2.0, &place * 0.1)
    })?;
    g.einsum(&[h, down], &[batch, seq, embed])
}

/// Ends in the loss: a sum of squares with draws and coordinates along the sequence.
fn ended(g: &mut Graph, y: ValueId) -> Result<(), OpError> {
    let axes = g.ty(y).axes.clone();
    let seq = g.axes().find("seq").filter(|s| axes.contains(s));
    let square = g.map(&[y], &|v| {
        let place = seq.map_or(Expr::Const(1.0), |s| 1.0 + Expr::Coord(s));
        (&v[0] + Expr::rand("end")) * &v[0] * place
    })?;
    let loss = g.sum(square, &axes)?;
    g.output("loss", loss);
    Ok(())
}

fn built(f: impl FnOnce(&mut Graph) -> Result<(), OpError>) -> Graph {
    let mut g = Graph::new();
    f(&mut g).unwrap();
    backward(&g).unwrap()
}

/// The kinds of the forward's messages.
fn forward(g: &Graph) -> Vec<&'static str> {
    let list = messages(g).into_iter();
    list.filter(|m| m.phase == aerogel_graph::Phase::Forward).map(|m| m.kind).collect()
}

fn assert_messages(g: &Graph, whole: &[&str], along_seq: &[&str]) {
    for (what, wanted) in [("mlp", whole), ("mlp seq", along_seq)] {
        for ranks in [2, 4] {
            let p = partition(g, &spec(ranks, what)).unwrap();
            assert_same(what, g, &p, 0, Rounding::Exact, 1e-9);
            assert_eq!(forward(&p.graph), wanted, "{what}");
        }
    }
}

#[test]
fn a_sum_stays_terms_through_what_is_linear() {
    let g = built(|g| {
        let y = projected(g)?;
        let axes = g.ty(y).axes.clone();
        let (a, b, c) = (g.axis("outer", 2)?, g.axis("inner", 3)?, g.axis("inner.pair", 6)?);
        let gain = g.parameter("gain", ParamClass::Norm, &[axes[2]], INIT)?;
        let y = g.map(&[y, gain], &|v| Expr::rand("keep").lt(0.5).select(0.0, &v[0] * &v[1]))?;
        let y = g.split(y, axes[2], &[a, b])?;
        let y = g.concat(&[y, y], &[b, b], c)?;
        let y = g.einsum(&[y], &[c, axes[0], axes[1], a])?;
        ended(g, y)
    });
    assert_messages(&g, &["all_reduce"], &["reduce_scatter", "all_reduce"]);
}

#[test]
fn a_sum_is_taken_before_anything_else() {
    let biased = built(|g| {
        let y = projected(g)?;
        let bias = g.parameter("bias", ParamClass::Bias, &[g.ty(y).axes[2]], INIT)?;
        let y = g.add(y, bias)?;
        ended(g, y)
    });
    // One all-reduce more along the sequence: that of the loss, a scalar.
    assert_messages(&biased, &["all_reduce"], &["reduce_scatter", "all_reduce"]);
    let largest = built(|g| {
        let y = projected(g)?;
        let axes = g.ty(y).axes.clone();
        let y = g.emit(
            Reduce { fold: Fold::Max, over: axes[1..2].into(), dtype: DType::F32 }.into(),
            &[y],
        )?[0];
        ended(g, y)
    });
    assert_messages(&largest, &["all_reduce"], &["all_reduce"]);
}

#[test]
fn a_sum_of_all_is_sent_as_one_number() {
    let g = built(|g| {
        let y = projected(g)?;
        let axes = g.ty(y).axes.clone();
        let loss = g.sum(y, &axes)?;
        g.output("loss", loss);
        Ok(())
    });
    for what in ["mlp", "mlp seq"] {
        let p = partition(&g, &spec(2, what)).unwrap();
        assert_same(what, &g, &p, 0, Rounding::Exact, 1e-9);
        let list = messages(&p.graph);
        assert_eq!(list[0].wire_bytes, 4, "{what}");
    }
}

/// Attention of 8 heads in groups of 2 with a pattern for every `kinds`-th head.
fn by_head(kinds: usize, group_first: bool) -> Graph {
    built(|g| {
        let (seq, embed) = (g.axis("seq", 4)?, g.axis("embed", 3)?);
        let (kv, group) = (g.axis("kv", 4)?, g.axis("group", 2)?);
        let (dim, width, key) = (g.axis("dim", 2)?, g.axis("width", 2)?, g.axis("key", 4)?);
        let x = g.input("x", DType::F32, &[seq, embed])?;
        let heads = if group_first { [group, kv] } else { [kv, group] };
        let q = [heads[0], heads[1], dim, embed];
        let q = g.parameter("q", ParamClass::Weight, &q, INIT)?;
        let k = g.parameter("k", ParamClass::Weight, &[kv, dim, embed], INIT)?;
        let v = g.parameter("v", ParamClass::Weight, &[kv, width, embed], INIT)?;
        let q = g.einsum(&[x, q], &[seq, heads[0], heads[1], dim])?;
        let k = g.einsum(&[x, k], &[seq, kv, dim])?;
        let v = g.einsum(&[x, v], &[seq, kv, width])?;
        let (k, v) = (g.rename(k, seq, key)?, g.rename(v, seq, key)?);
        let pattern = Pattern::PerHead((1..=kinds).map(Pattern::Local).collect());
        let heads = heads.into_iter().collect();
        let op = Attend { query: seq, key, dim, heads, scale: 0.5, pattern, offset: false };
        let o = g.scope("attn", |g| g.attend(op, &[q, k, v]))?.0;
        let out = g.parameter("out", ParamClass::Weight, &[embed, kv, group, width], INIT)?;
        let y = g.einsum(&[o, out], &[seq, embed])?;
        ended(g, y)
    })
}

#[test]
fn pieces_of_heads_have_the_patterns_of_the_whole() {
    for (kinds, group_first, ranks) in [(2, false, 4), (4, false, 2), (1, true, 4)] {
        let g = by_head(kinds, group_first);
        for what in ["heads", "heads seq"] {
            let p = partition(&g, &spec(ranks, what)).unwrap();
            assert_same(&format!("{kinds} kinds"), &g, &p, 0, Rounding::Exact, 1e-9);
        }
    }
    assert_eq!(
        refused(&by_head(4, false), &spec(4, "heads")),
        "partition of axis `kv` at `attn`: pattern per_head(local(1),local(2),local(3),local(4)) \
         repeats every 4 heads, and a rank would have 2; `tensor` of 2 would do"
    );
    // Heads of one rank would not be neighbours.
    let text = refused(&by_head(2, true), &spec(2, "heads"));
    assert!(text.ends_with("`tensor` of 1 would do"), "{text}");
}

fn refused(g: &Graph, spec: &Tensor) -> String {
    let error = partition(g, spec).unwrap_err();
    assert!(matches!(error, PassError::Layout { .. }), "{error}");
    error.to_string()
}

#[test]
fn axes_that_do_not_divide_are_refused() {
    let g = by_head(1, false);
    assert_eq!(
        refused(&g, &spec(3, "heads")),
        "partition of axis `kv`: its extent of 4 does not divide into the 3 pieces of `tensor`; \
         2 would do"
    );
    assert_eq!(
        refused(&g, &spec(2, "mlp")),
        "partition of axis `mlp`: the graph has no such axis; do not cut it"
    );
    assert!(refused(&g, &spec(8, "seq")).contains("axis `seq`: its extent of 4"));
    let mut config = super::config(Family::Gpt2, AttentionKind::Strided, Combine::Heads);
    config.heads = 4;
    let sides = backward(&train_graph(&config, 2).unwrap()).unwrap();
    assert_eq!(
        refused(&sides, &spec(4, "heads")),
        "partition of axis `pair` at `h.0.attn`: its extent of 2, as a factor of `kv`, does not \
         divide into the 4 pieces of `tensor`; 2 would do"
    );
}

#[test]
fn a_mesh_that_does_not_fit_is_refused() {
    let g = by_head(1, false);
    let beyond = Tensor { over: 1, ..spec(2, "heads") };
    assert_eq!(refused(&g, &beyond), "partition: the mesh has 1 axes, and no number 1");
    let once = partition(&g, &spec(2, "heads")).unwrap().graph;
    assert!(refused(&once, &spec(2, "heads")).ends_with("it is cut over `tensor` already"));
    assert!(refused(&once, &spec(4, "heads")).contains("give the same one"));
    assert!(partition(&g, &Tensor { mesh: mesh(1), ..spec(1, "heads") }).is_ok());
}

#[test]
fn an_op_that_needs_all_of_a_cut_axis_is_refused() {
    let wide = |f: &dyn Fn(&mut Graph, ValueId) -> Result<ValueId, OpError>| {
        built(|g| {
            let (seq, mlp) = (g.axis("seq", 4)?, g.axis("mlp", 8)?);
            let w = g.parameter("w", ParamClass::Weight, &[seq, mlp], INIT)?;
            let y = g.scope("here", |g| f(g, w))?;
            ended(g, y)
        })
    };
    let norm = wide(&|g, w| g.norm(w, g.ty(w).axes[1], true, 1e-5, None, None));
    assert_eq!(
        refused(&norm, &spec(2, "mlp")),
        "partition of axis `mlp` at `here`: `norm` needs all of it; do not cut it"
    );
    let top = wide(&|g, w| g.maximum(w, &[g.ty(w).axes[1]]));
    assert!(refused(&top, &spec(2, "mlp")).contains("at `here`: `reduce` needs all"));
    let slice = wide(&|g, w| {
        let part = g.axis("part", 3)?;
        g.slice(w, g.ty(w).axes[1], 2, part)
    });
    assert!(refused(&slice, &spec(2, "mlp")).contains("at `here`: `view` needs all"));
    // The cut follows the outermost factor; merged into an inner one it would lie in stripes.
    let inner = wide(&|g, w| {
        let flat = g.axis("flat", 32)?;
        g.merge(w, &g.ty(w).axes.clone(), flat)
    });
    assert!(refused(&inner, &spec(2, "mlp")).contains("at `here`: `view` needs all"));
}

#[test]
fn two_axes_cut_over_the_same_ranks_must_not_meet() {
    let state = built(|g| {
        let (mlp, vocab) = (g.axis("mlp", 4)?, g.axis("vocab", 4)?);
        let y = g.parameter("both", ParamClass::Weight, &[mlp, vocab], INIT)?;
        ended(g, y)
    });
    assert_eq!(
        refused(&state, &spec(2, "mlp vocab")),
        "partition of axis `mlp` at `both`: it meets `vocab`, which is cut over the same ranks; \
         cut one of them"
    );
    let op = built(|g| {
        let (mlp, vocab, seq) = (g.axis("mlp", 4)?, g.axis("vocab", 4)?, g.axis("seq", 3)?);
        let a = g.parameter("a", ParamClass::Weight, &[seq, mlp], INIT)?;
        let b = g.parameter("b", ParamClass::Weight, &[seq, vocab], INIT)?;
        let a = g.scope("meet", |g| g.einsum(&[a, b], &[mlp, vocab]))?;
        ended(g, a)
    });
    assert!(refused(&op, &spec(2, "mlp vocab")).contains("axis `mlp` at `meet`: it meets `vocab`"));
    assert!(partition(&op, &spec(2, "mlp")).is_ok());
}
