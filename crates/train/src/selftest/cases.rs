//! The table of random graphs, op by op. An op that is missing here fails `gradient::every_op` in
//! the tests of the graph crate, which walk the same table.

use super::rng::Rng;
use super::world::{Built, World};
use aerogel_graph::expr::{Bin, Un};
use aerogel_graph::ops::{Attend, Einsum, Fold, Reduce, Scatter, ScatterMode, View};
use aerogel_graph::{AxisId, Build, DType, Expr, Pattern, Type, ValueId};

/// A family of random graphs around one op.
pub struct Case {
    /// The op, as in `Op::NAMES`.
    pub op: &'static str,
    pub name: &'static str,
    /// Variants to build, each on at least 100 random shapes.
    pub variants: usize,
    /// Builds the graph and gives its loss.
    pub build: fn(&mut World) -> Built<ValueId>,
}

macro_rules! cases {
    ($($op:literal $build:ident $variants:expr;)*) => {
        pub const CASES: &[Case] = &[$(Case {
            op: $op,
            name: stringify!($build),
            variants: $variants,
            build: $build,
        }),*];
    };
}
cases! {
    "einsum" einsum_of_two 1;
    "einsum" einsum_of_one 1;
    "map" map_of_one UNARY.len();
    "map" map_of_two BINARY.len();
    "map" map_with_intrinsics 1;
    "reduce" reduce_sum 1;
    "reduce" reduce_max 1;
    "norm" norm 8;
    "attend" attend PATTERNS;
    "merge_attend" merge_attend 3;
    "gather" gather 1;
    "scatter" scatter_add 1;
    "scatter" scatter_set 1;
    "linear_ce" linear_ce_by_token 1;
    "linear_ce" linear_ce_as_end 1;
    "linear_ce" linear_ce_scaled 1;
    "linear_lse" linear_lse 3;
    "view" view 6;
}

const UNARY: [Un; 13] = [
    Un::Neg,
    Un::Exp,
    Un::Ln,
    Un::Tanh,
    Un::Sqrt,
    Un::Rsqrt,
    Un::Recip,
    Un::Sigmoid,
    Un::Erf,
    Un::Abs,
    Un::Floor,
    Un::Sin,
    Un::Cos,
];

const BINARY: [Bin; 10] = [
    Bin::Add,
    Bin::Sub,
    Bin::Mul,
    Bin::Div,
    Bin::Min,
    Bin::Max,
    Bin::Pow,
    Bin::Lt,
    Bin::Le,
    Bin::Eq,
];

/// Batch, contracted, left and right labels, each there or not.
fn einsum_of_two(w: &mut World) -> Built<ValueId> {
    let (mut left, mut right, mut out) = (vec![], vec![], vec![]);
    for name in ["a", "b", "c", "d"] {
        let axis = w.axis(name, 1, 3)?;
        let kind = w.rng.below(4);
        if kind != 3 {
            left.push(axis);
        }
        if kind != 2 {
            right.push(axis);
        }
        if kind != 0 {
            out.push(axis);
        }
    }
    let (x, y) = (w.leaf("x", &left)?, w.leaf("y", &right)?);
    let out = w.order(&out);
    let z = w.g.einsum(&[x, y], &out)?;
    w.loss(&[z])
}

fn einsum_of_one(w: &mut World) -> Built<ValueId> {
    let axes = [w.axis("a", 1, 3)?, w.axis("b", 1, 3)?, w.axis("c", 1, 3)?];
    let x = w.leaf("x", &axes)?;
    let out = Type::new(DType::F32, w.order(&axes));
    let z = w.g.emit(Einsum { out }.into(), &[x])?[0];
    w.loss(&[z])
}

/// An element where the function has no kink, pole or step nearby.
fn argument(f: Un, rng: &mut Rng) -> f64 {
    let sign = if rng.coin() { 1.0 } else { -1.0 };
    match f {
        Un::Ln | Un::Sqrt | Un::Rsqrt => rng.within(0.5, 2.0),
        Un::Recip | Un::Abs => sign * rng.within(0.5, 2.0),
        Un::Floor => rng.below(5) as f64 - 2.0 + rng.within(0.1, 0.9),
        Un::Erf => rng.within(-3.5, 3.5),
        _ => rng.within(-2.0, 2.0),
    }
}

/// f(x) x, so that a function of slope 0 is seen too; the output may have one more axis.
fn map_of_one(w: &mut World) -> Built<ValueId> {
    let f = UNARY[w.variant];
    let axes = [w.axis("i", 1, 4)?, w.axis("j", 1, 3)?];
    let extra = w.axis("k", 1, 2)?;
    let x = w.leaf_of("x", &axes, |rng| argument(f, rng))?;
    let mut out = axes.to_vec();
    if w.rng.coin() {
        out.push(extra);
    }
    let out = Type::new(DType::F32, w.order(&out));
    let y = w.g.map_to(&[x], out, &|v| Expr::un(f, v[0].clone()) * &v[0])?;
    w.loss(&[y])
}

/// f(a, b) a over inputs of different axes. Elements of a and b lie on two grids that never meet.
fn map_of_two(w: &mut World) -> Built<ValueId> {
    let f = BINARY[w.variant];
    let (i, j, k) = (w.axis("i", 1, 3)?, w.axis("j", 1, 3)?, w.axis("k", 1, 2)?);
    let grid = |rng: &mut Rng| 0.4 + 0.2 * rng.below(8) as f64 + rng.within(-0.02, 0.02);
    let signed = f != Bin::Pow;
    let sign = move |rng: &mut Rng| if signed && rng.coin() { -1.0 } else { 1.0 };
    let a = w.leaf_of("a", &[i, j], |rng| sign(rng) * grid(rng))?;
    let b = w.leaf_of("b", &[j, k], |rng| sign(rng) * (grid(rng) + 0.1))?;
    let out = Type::new(DType::F32, w.order(&[i, j, k]));
    let y = w.g.map_to(&[a, b], out, &|v| Expr::bin(f, v[0].clone(), v[1].clone()) * &v[0])?;
    w.loss(&[y])
}

/// Draws, coordinates and a choice; one input is used twice, one is a scalar.
fn map_with_intrinsics(w: &mut World) -> Built<ValueId> {
    let (i, j) = (w.axis("i", 1, 4)?, w.axis("j", 1, 4)?);
    let (x, s) = (w.leaf("x", &[j])?, w.leaf("s", &[])?);
    let out = Type::new(DType::F32, w.order(&[i, j]));
    let y = w.g.map_to(&[x, s, x], out, &|v| {
        let kept = Expr::rand("h.0.drop").lt(0.5).select(0.0, &v[0] * &v[2] * 2.0);
        Expr::Coord(i).lt(2.0).select(kept + Expr::Coord(j) * &v[1], &v[1] * &v[0])
    })?;
    w.loss(&[y])
}

fn reduce_sum(w: &mut World) -> Built<ValueId> {
    reduce(w, Fold::Sum)
}

fn reduce_max(w: &mut World) -> Built<ValueId> {
    reduce(w, Fold::Max)
}

fn reduce(w: &mut World, fold: Fold) -> Built<ValueId> {
    let axes = [w.axis("a", 1, 3)?, w.axis("b", 1, 4)?, w.axis("c", 1, 2)?];
    let x = w.distinct("x", &axes)?;
    let over = w.order(&axes)[..w.rng.below(4)].into();
    let y = w.g.emit(Reduce { fold, over, dtype: DType::F32 }.into(), &[x])?[0];
    let square = w.g.map(&[y], &|v| &v[0] * &v[0])?;
    w.loss(&[y, square])
}

/// Layer or RMS, gain or not, bias or not.
fn norm(w: &mut World) -> Built<ValueId> {
    let variant = w.variant;
    let (a, n, c) = (w.axis("a", 1, 3)?, w.axis("n", 2, 5)?, w.axis("c", 1, 2)?);
    let x = w.leaf("x", &[a, n, c])?;
    let gain = if variant & 2 > 0 { Some(w.leaf("gain", &[n])?) } else { None };
    let bias = if variant & 4 > 0 { Some(w.leaf("bias", &[n])?) } else { None };
    let y = w.g.norm(x, n, variant & 1 > 0, 0.1, gain, bias)?;
    w.loss(&[y])
}

const PATTERNS: usize = 11;

/// Pattern `variant` with random numbers; those of `Columns` need fewer keys than queries.
fn pattern(w: &mut World) -> (Pattern, Option<(usize, usize)>) {
    let rng = &mut w.rng;
    let block = 1 + rng.below(4);
    let columns = 1 + rng.below(block);
    let window = 1 + rng.below(4);
    let stride = 1 + rng.below(3);
    let summary = Pattern::Summary { block, columns };
    let pattern = match w.variant {
        0 => Pattern::Full,
        1 => Pattern::Causal,
        2 => Pattern::Before,
        3 => Pattern::Local(window),
        4 => Pattern::Strided(stride),
        5 => Pattern::Block(block),
        6 => summary,
        7 => Pattern::Union(Box::new(Pattern::Local(window)), Box::new(Pattern::Strided(stride))),
        8 => Pattern::PerHead(vec![Pattern::Local(window), Pattern::Strided(stride), summary]),
        n => return (Pattern::Columns { block, columns, strict: n == 9 }, Some((block, columns))),
    };
    (pattern, None)
}

/// Every pattern, with GQA groups, shared or absent head axes, and any of o and lse in the loss.
fn attend(w: &mut World) -> Built<ValueId> {
    let (pattern, columns) = pattern(w);
    let (query, key) = match columns {
        Some((block, columns)) => {
            let blocks = 1 + w.rng.below(3);
            (w.g.axis("query", blocks * block)?, w.g.axis("key", blocks * columns)?)
        }
        None => (w.axis("query", 1, 6)?, w.axis("key", 1, 6)?),
    };
    let (dim, width) = (w.axis("qk", 1, 3)?, w.axis("v", 1, 3)?);
    let (batch, kv, group) = (w.axis("batch", 1, 2)?, w.axis("kv", 1, 2)?, w.axis("group", 1, 3)?);
    let shared = if w.rng.coin() { vec![batch, kv] } else { vec![kv] };
    let heads = if w.rng.coin() { [kv, group] } else { [group, kv] };
    let with = |more: &[AxisId]| [&shared[..], more].concat();
    let q = w.leaf("q", &with(&[group, query, dim]))?;
    let k = w.leaf("k", &with(&[key, dim]))?;
    let v = w.leaf("v", &with(&[key, width]))?;
    let heads = heads.into_iter().collect();
    let op = Attend { query, key, dim, heads, scale: 0.8, pattern, offset: false };
    let (o, lse) = w.g.attend(op, &[q, k, v])?;
    match w.rng.below(3) {
        0 => w.loss(&[o]),
        1 => w.loss(&[lse]),
        _ => w.loss(&[o, lse]),
    }
}

/// Parts in which some queries see no key: in the first part, or in both.
fn merge_attend(w: &mut World) -> Built<ValueId> {
    let (t, head, width) = (w.axis("t", 1, 4)?, w.axis("head", 1, 2)?, w.axis("v", 1, 3)?);
    let mut parts = vec![];
    for part in ["a", "b"] {
        let o = w.leaf(&format!("o.{part}"), &[t, head, width])?;
        let lse = w.leaf(&format!("lse.{part}"), &[t, head])?;
        let blind = if part == "a" { w.variant.min(1) } else { w.variant / 2 } as f64;
        let lse =
            w.g.map(&[lse], &|x| Expr::Coord(t).lt(blind).select(f64::NEG_INFINITY, &x[0]))?;
        parts.push((o, lse));
    }
    let (o, lse) = w.g.merge_attend(parts[0], parts[1])?;
    if w.rng.coin() { w.loss(&[o, lse]) } else { w.loss(&[lse]) }
}

fn gather(w: &mut World) -> Built<ValueId> {
    let (vocab, d) = (w.axis("vocab", 1, 5)?, w.axis("d", 1, 3)?);
    let (batch, t) = (w.axis("batch", 1, 3)?, w.axis("t", 1, 3)?);
    let table = w.leaf("table", &[vocab, d])?;
    let n = w.size(vocab);
    let ids = w.ids("ids", &[batch, t], n)?;
    let y = w.g.gather(table, vocab, ids)?;
    w.loss(&[y])
}

fn scatter_add(w: &mut World) -> Built<ValueId> {
    let (vocab, d) = (w.axis("vocab", 1, 4)?, w.axis("d", 1, 3)?);
    let (batch, t) = (w.axis("batch", 1, 3)?, w.axis("t", 1, 3)?);
    let n = w.size(vocab);
    let ids = w.ids("ids", &[batch, t], n)?;
    let rows = w.leaf("rows", &[batch, t, d])?;
    let out = Type::new(DType::F32, w.order(&[vocab, d]));
    let op = Scatter { axis: vocab, mode: ScatterMode::Add, out };
    let y = w.g.emit(op.into(), &[ids, rows])?[0];
    w.loss(&[y])
}

fn scatter_set(w: &mut World) -> Built<ValueId> {
    let (vocab, d, t) = (w.axis("vocab", 3, 5)?, w.axis("d", 1, 3)?, w.axis("t", 1, 3)?);
    let mut ids: Vec<f64> = (0..w.size(vocab)).map(|i| i as f64).collect();
    w.rng.shuffle(&mut ids);
    ids.truncate(w.size(t));
    let ids = w.given("ids", DType::U32, &[t], ids)?;
    let (base, rows) = (w.leaf("base", &[vocab, d])?, w.leaf("rows", &[t, d])?);
    let y = w.g.scatter_set(base, vocab, ids, rows)?;
    w.loss(&[y])
}

/// x, w, targets, and the axes embed and vocab.
fn output_layer(w: &mut World) -> Built<([ValueId; 3], [AxisId; 2])> {
    let (embed, vocab) = (w.axis("embed", 1, 4)?, w.axis("vocab", 1, 5)?);
    let (batch, t) = (w.axis("batch", 1, 2)?, w.axis("t", 1, 3)?);
    let (x, matrix) = (w.leaf("x", &[batch, t, embed])?, w.leaf("w", &[vocab, embed])?);
    let n = w.size(vocab);
    let targets = w.ids("targets", &[batch, t], n)?;
    Ok(([x, matrix, targets], [embed, vocab]))
}

fn cross_entropy(w: &mut World) -> Built<ValueId> {
    let ([x, matrix, targets], [embed, vocab]) = output_layer(w)?;
    let tokens = w.g.ty(targets).axes.clone();
    let weights = w.order(&tokens);
    let weights = w.noise("weights", &weights)?;
    w.g.linear_ce(x, matrix, targets, weights, embed, vocab)
}

/// The sum over all tokens.
fn summed(w: &mut World) -> Built<ValueId> {
    let ce = cross_entropy(w)?;
    let tokens = w.g.ty(ce).axes.clone();
    w.g.sum(ce, &tokens)
}

/// Each token has a cotangent of its own.
fn linear_ce_by_token(w: &mut World) -> Built<ValueId> {
    let ce = cross_entropy(w)?;
    w.loss(&[ce])
}

fn linear_ce_as_end(w: &mut World) -> Built<ValueId> {
    let loss = summed(w)?;
    w.g.output("out0", loss);
    Ok(loss)
}

/// The loss goes on through a product, a square and a loss that is weighted.
fn linear_ce_scaled(w: &mut World) -> Built<ValueId> {
    let loss = summed(w)?;
    let s = w.leaf("s", &[])?;
    let y = w.g.map(&[loss, s], &|v| &v[0] * &v[1] + 0.1 * (&v[0] * &v[0]))?;
    w.loss(&[y, loss])
}

/// Either output alone, or both.
fn linear_lse(w: &mut World) -> Built<ValueId> {
    let ([x, matrix, targets], [embed, vocab]) = output_layer(w)?;
    let (lse, target) = w.g.linear_lse(x, matrix, targets, embed, vocab)?;
    match w.variant {
        0 => w.loss(&[lse]),
        1 => w.loss(&[target]),
        _ => w.loss(&[lse, target]),
    }
}

/// Each kind, between two changes of the axis order.
fn view(w: &mut World) -> Built<ValueId> {
    let (a, b, c) = (w.axis("a", 1, 3)?, w.axis("b", 1, 3)?, w.axis("c", 1, 2)?);
    let (na, nb) = (w.size(a), w.size(b));
    let ab = w.g.axis("ab", na * nb)?;
    let long = w.g.axis("long", na + 3)?;
    let other = w.g.axis("other", na)?;
    let mut more = vec![];
    let (from, op) = match w.variant {
        0 => (vec![ab, c], View::Split { axis: ab, into: [a, b].into_iter().collect() }),
        1 => (vec![a, b, c], View::Merge { axes: [a, b].into_iter().collect(), into: ab }),
        2 => (vec![a, c], View::Rename { from: a, to: other }),
        3 => (vec![long, c], View::Slice { axis: long, start: w.rng.below(4), into: a }),
        4 => (vec![a, c], View::Pad { axis: a, before: w.rng.below(4), into: long }),
        _ => {
            let tail = w.g.axis("tail", 3)?;
            more.push(w.leaf("y", &[tail, c])?);
            (vec![a, c], View::Concat { axes: [a, tail].into_iter().collect(), into: long })
        }
    };
    let x = w.leaf("x", &from)?;
    let x = match w.variant {
        1 => {
            let axes = if w.rng.coin() { [a, b, c] } else { [c, a, b] };
            w.g.einsum(&[x], &axes)?
        }
        _ => x,
    };
    more.insert(0, x);
    let y = w.g.emit(op.into(), &more)?[0];
    let y = w.turned(y)?;
    let square = w.g.map(&[y], &|v| &v[0] * &v[0])?;
    w.loss(&[y, square])
}
