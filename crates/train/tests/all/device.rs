//! The device against the interpreter, op by op. The table of random graphs that checks gradients
//! walks every op; the rest is what needs a planner: aliases, writing in place, pieces of a batch.

use crate::harness::{Rng, alone, bytes_of, check, check_near, fill, numbers_of, planned};
use aerogel_graph::ops::{Attend, Reduce, View};
use aerogel_graph::{
    AxisId, Build, Clock, Cutter, DType, Env, Expr, Graph, Init, OpError, Pattern, Role, StateId,
    Type, ValueId,
};
use aerogel_train::selftest::cases::CASES;
use aerogel_train::selftest::ops::{self, with_gradients};

type Made = Result<(), OpError>;

/// Every op of the table and its gradient, on random shapes.
#[test]
fn every_op_and_its_gradient() {
    let (mut run, mut refused) = (0, 0);
    for case in CASES {
        for variant in 0..case.variants {
            for seed in 0..4 {
                let w = with_gradients(case, variant, seed).unwrap();
                let what = format!("{} variant {variant} seed {seed}", case.name);
                if is_refused(&w.g) {
                    refused += 1;
                    continue;
                }
                run += 1;
                // Sums of cotangents cancel: what they are made of is of magnitude one or more.
                check_near(&what, &w.g, &w.env, w.clock, 8.0);
            }
        }
    }
    assert!(run > 4 * refused, "{run} graphs ran, {refused} were refused");
}

/// Whether the device has no kernel for the graph.
pub fn is_refused(g: &Graph) -> bool {
    let Err(error) = planned(alone(g), 1) else { return false };
    assert!(ops::is_known(&error), "{error}");
    true
}

/// Builds a graph, fills in random data, and checks it.
fn holds(what: &str, build: impl Fn(&mut Graph) -> Made) {
    for seed in 0..3 {
        let mut g = Graph::new();
        build(&mut g).unwrap_or_else(|e| panic!("{what}: {e}"));
        let mut env = Env::new();
        fill(&g, &mut env, &mut Rng(seed), 4);
        check(what, &g, &env, Clock { seed, step: 7, micro: 0, ..Clock::default() });
    }
}

fn input(g: &mut Graph, name: &str, axes: &[AxisId]) -> Result<ValueId, OpError> {
    g.input(name, DType::F32, axes)
}

fn state(g: &mut Graph, name: &str, axes: &[AxisId]) -> Result<(StateId, ValueId), OpError> {
    let ty = Type::new(DType::F32, axes.iter().copied());
    let v = g.state(name, ty, Role::Optimizer, None, Init::Constant(0.0))?;
    Ok((StateId(g.states().len() as u32 - 1), v))
}

#[test]
fn a_product_with_a_long_epilogue_that_exports_what_is_inside() {
    for dtype in [DType::F32, DType::Bf16] {
        holds("epilogue", |g| {
            let (b, m, n, k) =
                (g.axis("b", 3)?, g.axis("m", 37)?, g.axis("n", 29)?, g.axis("k", 65)?);
            let x = g.input("x", dtype, &[b, m, k])?;
            let w = g.input("w", dtype, &[n, k])?;
            let (bias, skip) = (input(g, "bias", &[n])?, input(g, "skip", &[b, m, n])?);
            let y = g.einsum_to(&[x, w], &[b, m, n], DType::F32)?;
            let inner = g.map(&[y, bias], &|v| &v[0] * 0.2 + &v[1])?;
            let act = g.map(&[inner], &|v| &v[0] * (1.702 * &v[0]).sigmoid())?;
            let kept = g.map(&[act], &|v| Expr::rand("drop").lt(0.3).select(0.0, &v[0] / 0.7))?;
            let out = g.map(&[kept, skip], &|v| &v[0] + &v[1])?;
            let half = g.cast(out, DType::Bf16, DType::F32)?;
            [("inner", inner), ("out", out), ("half", half)]
                .into_iter()
                .for_each(|(name, v)| g.output(name, v));
            Ok(())
        });
    }
}

#[test]
fn an_update_of_three_states_in_place() {
    holds("adam", |g| {
        let (a, b) = (g.axis("a", 41)?, g.axis("b", 53)?);
        let list = [a, b];
        let ((w_id, w), (m_id, m), (v_id, v)) =
            (state(g, "w", &list)?, state(g, "m", &list)?, state(g, "v", &list)?);
        let (grad, rate) = (input(g, "grad", &list)?, input(g, "rate", &[])?);
        let m = g.map(&[m, grad], &|x| 0.9 * &x[0] + 0.1 * &x[1])?;
        let v = g.map(&[v, grad], &|x| 0.95 * (&x[0] * &x[0]) + 0.05 * (&x[1] * &x[1]))?;
        let step = g.map(&[m, v, rate], &|x| &x[2] * &x[0] / (x[1].sqrt() + 1e-2))?;
        let w = g.map(&[w, step], &|x| &x[0] - &x[1])?;
        [(w_id, w), (m_id, m), (v_id, v)].into_iter().try_for_each(|(s, v)| g.assign(s, v))
    });
}

/// The states keep their old values until all that need them have read them.
#[test]
fn states_that_change_places_or_leave_as_they_were() {
    holds("swap", |g| {
        let (a, b) = (g.axis("a", 5)?, g.axis("b", 7)?);
        let ((p_id, p), (q_id, q)) = (state(g, "p", &[a, b])?, state(g, "q", &[a, b])?);
        g.assign(p_id, q)?;
        g.assign(q_id, p)?;
        g.output("before", p);
        Ok(())
    });
    holds("old value as an output", |g| {
        let a = g.axis("a", 19)?;
        let (id, p) = state(g, "p", &[a])?;
        let new = g.map(&[p], &|x| &x[0] + 1.0)?;
        g.assign(id, new)?;
        g.output("before", p);
        g.output("after", new);
        Ok(())
    });
    holds("one value in two states, and a state in another", |g| {
        let a = g.axis("a", 19)?;
        let ((p_id, p), (q_id, _), (r_id, _), (_, t)) = (
            state(g, "p", &[a])?,
            state(g, "q", &[a])?,
            state(g, "r", &[a])?,
            state(g, "t", &[a])?,
        );
        let new = g.map(&[p], &|x| &x[0] * 2.0)?;
        g.assign(p_id, new)?;
        g.assign(q_id, new)?;
        g.assign(r_id, t)
    });
    holds("a window of a state into another", |g| {
        let (a, long, b) = (g.axis("a", 4)?, g.axis("long", 9)?, g.axis("b", 5)?);
        let ((wide_id, wide), (id, _)) = (state(g, "wide", &[a, long])?, state(g, "p", &[a, b])?);
        let window = g.slice(wide, long, 3, b)?;
        let new = g.map(&[wide], &|x| &x[0] * 0.5)?;
        g.assign(id, window)?;
        g.assign(wide_id, new)?;
        g.output("window", window);
        Ok(())
    });
}

/// A value may not be written over while another window of it is read by the same kernel.
#[test]
fn a_value_beside_a_window_of_itself() {
    holds("own row", |g| {
        let (a, b) = (g.axis("a", 6)?, g.axis("b", 70)?);
        let (one, row) = (g.axis("one", 1)?, g.axis("row", 70)?);
        let x = input(g, "x", &[a, b])?;
        let x = g.map(&[x], &|v| v[0].tanh())?;
        let sum = g.sum(x, &[a, b])?;
        let last = g.slice(x, a, 5, one)?;
        let last = g.merge(last, &[one, b], row)?;
        let last = g.rename(last, row, b)?;
        let y = g.map(&[x, last, sum], &|v| &v[0] - &v[1] * &v[2])?;
        let z = g.map_to(&[y], Type::new(DType::F32, [b, a]), &|v| &v[0] * 2.0)?;
        g.output("z", z);
        Ok(())
    });
}

/// A reduction must not lie over an operand that it reads for each row.
#[test]
fn a_reduction_beside_an_operand_of_its_own_type() {
    holds("bias", |g| {
        let (a, b) = (g.axis("a", 300)?, g.axis("b", 64)?);
        let (x, bias) = (input(g, "x", &[a, b])?, input(g, "bias", &[b])?);
        let bias = g.map(&[bias], &|v| &v[0] * 2.0)?;
        let more = g.sum(bias, &[b])?;
        let terms = g.map(&[x, bias, more], &|v| &v[0] * &v[1] + &v[2])?;
        let sum = g.emit(
            Reduce {
                fold: aerogel_graph::ops::Fold::Sum,
                over: [a].into_iter().collect(),
                dtype: DType::F32,
            }
            .into(),
            &[terms],
        )?[0];
        g.output("sum", sum);
        Ok(())
    });
}

#[test]
fn a_chain_longer_than_a_region() {
    holds("chain", |g| {
        let (a, b) = (g.axis("a", 13)?, g.axis("b", 21)?);
        let mut x = input(g, "x", &[a, b])?;
        let y = input(g, "y", &[b])?;
        for i in 0..150 {
            x = g.map(&[x, y], &|v| 0.9 * &v[0] + 0.1 * (&v[1] * (i as f64 * 0.1)))?;
        }
        g.output("x", x);
        Ok(())
    });
}

#[test]
fn scalars_and_axes_of_one() {
    holds("scalars", |g| {
        let (one, unit) = (g.axis("one", 1)?, g.axis("unit", 1)?);
        let ((id, s), x) = (state(g, "s", &[])?, input(g, "x", &[one, unit])?);
        let y = g.map(&[x, s], &|v| &v[0] * &v[1])?;
        let sum = g.sum(y, &[one, unit])?;
        let new = g.map(&[sum, s], &|v| &v[0] + &v[1])?;
        let turned = g.einsum(&[y], &[unit, one])?;
        let constant = g.constant(3.5, Type::new(DType::F32, []))?;
        g.assign(id, new)?;
        [("sum", sum), ("turned", turned), ("constant", constant)]
            .into_iter()
            .for_each(|(name, v)| g.output(name, v));
        Ok(())
    });
}

/// Queries, keys and values as windows of one product, heads side by side, grouped.
#[test]
fn attention_on_windows() {
    for pattern in [
        Pattern::Causal,
        Pattern::Local(5),
        Pattern::PerHead(vec![Pattern::Local(4), Pattern::Strided(3)]),
    ] {
        holds("attention", |g| {
            let (batch, seq, key) = (g.axis("batch", 2)?, g.axis("seq", 24)?, g.axis("key", 24)?);
            let (kv, group, dim) = (g.axis("kv", 2)?, g.axis("group", 2)?, g.axis("dim", 8)?);
            let (all, wide, narrow) =
                (g.axis("all", 64)?, g.axis("wide", 32)?, g.axis("narrow", 16)?);
            let value = g.axis("value", 8)?;
            let x = input(g, "x", &[batch, seq, all])?;
            let part = |g: &mut Graph, start, width, heads: &[AxisId]| {
                let y = g.slice(x, all, start, width)?;
                g.split(y, width, heads)
            };
            let q = part(g, 0, wide, &[kv, group, dim])?;
            let k = part(g, 32, narrow, &[kv, dim])?;
            let v = part(g, 48, narrow, &[kv, dim])?;
            let (k, v) = (g.rename(k, seq, key)?, g.rename(v, seq, key)?);
            let v = g.rename(v, dim, value)?;
            let heads = [kv, group].into_iter().collect();
            let op = Attend {
                query: seq,
                key,
                dim,
                heads,
                scale: 0.35,
                pattern: pattern.clone(),
                offset: false,
            };
            let (o, lse) = g.attend(op, &[q, k, v])?;
            let merged = g.merge(o, &[kv, group, value], wide)?;
            g.output("o", merged);
            g.output("lse", lse);
            Ok(())
        });
    }
}

/// Pieces of a batch see the draws and coordinates of the whole.
#[test]
fn pieces_of_a_batch_are_the_whole() {
    const PIECES: usize = 3;
    for outer in [true, false] {
        let mut g = Graph::new();
        let (batch, b) = (g.axis("batch", 12).unwrap(), g.axis("b", 11).unwrap());
        let axes = if outer { [batch, b] } else { [b, batch] };
        let x = input(&mut g, "x", &axes).unwrap();
        let y = g
            .map(&[x], &|v| {
                let kept = Expr::rand("drop").lt(0.4).select(0.0, &v[0] / 0.6);
                kept + Expr::Coord(batch) * 0.5
            })
            .unwrap();
        g.output("y", y);
        let mut env = Env::new();
        fill(&g, &mut env, &mut Rng(3), 1);
        let clock = Clock { seed: 5, step: 2, micro: 0, ..Clock::default() };
        let whole = numbers_of(DType::F32, &check("whole", &g, &env, clock)["output y"]);
        let mut cut = g.clone();
        cut.cut_axis("batch", Cutter::Time, PIECES).unwrap();
        for piece in 0..PIECES {
            // Elements of this piece, in their order in the whole.
            let of = |i: usize| if outer { i / 11 / 4 } else { i % 12 / 4 };
            let own = |data: &[f64]| -> Vec<f64> {
                data.iter().enumerate().filter(|(i, _)| of(*i) == piece).map(|e| *e.1).collect()
            };
            let part = aerogel_graph::Tensor::from_vec(cut.axes(), &axes, own(&env["x"].data));
            let env = Env::from([("x".to_owned(), part)]);
            let got = check("piece", &cut, &env, Clock { micro: piece as u64, ..clock });
            assert_eq!(got["output y"], bytes_of(DType::F32, &own(&whole)), "piece {piece}");
        }
    }
}

/// Views that move bytes between views that do not.
#[test]
fn views_of_views() {
    holds("views", |g| {
        let (a, b, c) = (g.axis("a", 6)?, g.axis("b", 10)?, g.axis("c", 4)?);
        let (ba, long, tail) = (g.axis("ba", 60)?, g.axis("long", 17)?, g.axis("tail", 7)?);
        let x = input(g, "x", &[a, b, c])?;
        let turned = g.einsum(&[x], &[b, a, c])?;
        let merged = g.merge(turned, &[b, a], ba)?;
        let back = g.split(merged, ba, &[b, a])?;
        let window = g.slice(back, b, 2, tail)?;
        let joined = g.concat(&[back, window], &[b, tail], long)?;
        let padded = g.emit(View::Pad { axis: tail, before: 3, into: b }.into(), &[window])?[0];
        let sum = g.map(&[padded, back], &|v| &v[0] + &v[1])?;
        [("joined", joined), ("sum", sum), ("window", window), ("merged", merged)]
            .into_iter()
            .for_each(|(name, v)| g.output(name, v));
        Ok(())
    });
}
