//! Attention patterns element by element: which keys a query sees, for direct patterns and for the
//! forms that models lower them to (split axes, summary columns, merged parts).
//!
//! With v the identity (one column per key) the row of o is the row of probabilities, so its
//! non-zero entries are the allowed keys.

use super::harness::{Built, World, close};
use aerogel_graph::ops::Attend;
use aerogel_graph::{
    AxisId, AxisList, Build, DType, Pattern, Rounding, Tensor, ValueId, interpret,
};

const HEADS: usize = 4;

/// q, k of [head, seq, qk], v of [seq, all]; `all` numbers the keys.
struct Inputs {
    q: ValueId,
    k: ValueId,
    v: ValueId,
    head: AxisId,
    seq: AxisId,
    dim: AxisId,
    all: AxisId,
}

fn inputs(w: &mut World, n: usize) -> Built<Inputs> {
    let (head, dim) = (w.g.axis("head", HEADS)?, w.g.axis("qk", 3)?);
    let (seq, all) = (w.g.axis("seq", n)?, w.g.axis("all", n)?);
    let (q, k) = (w.noise("q", &[head, seq, dim])?, w.noise("k", &[head, seq, dim])?);
    let eye = (0..n * n * HEADS).map(|i| f64::from(u8::from(i / n % n == i % n))).collect();
    let v = w.given("v", DType::F32, &[head, seq, all], eye)?;
    Ok(Inputs { q, k, v, head, seq, dim, all })
}

fn op(query: AxisId, key: AxisId, i: &Inputs, pattern: Pattern) -> Attend {
    let heads: AxisList = [i.head].into_iter().collect();
    Attend { query, key, dim: i.dim, heads, scale: 1.3, pattern, offset: false }
}

/// (o, lse), both along `seq`.
type Part = (ValueId, ValueId);

/// A way to write attention in graph calls.
type Lower<'a> = dyn Fn(&mut World, &Inputs) -> Built<Part> + 'a;

/// One attend over all keys.
fn direct(w: &mut World, i: &Inputs, pattern: &Pattern) -> Built<Part> {
    let key = w.g.axis("key", w.size(i.seq))?;
    let (k, v) = (w.g.rename(i.k, i.seq, key)?, w.g.rename(i.v, i.seq, key)?);
    w.g.attend(op(i.seq, key, i, pattern.clone()), &[i.q, k, v])
}

/// `seq` as (outer, inner); attention along one of them with the other as a batch axis.
fn split(w: &mut World, i: &Inputs, inner: usize, along_outer: bool, p: Pattern) -> Built<Part> {
    let rows = w.size(i.seq) / inner;
    let (row, col) = (w.g.axis("row", rows)?, w.g.axis("col", inner)?);
    let (along, keys) = if along_outer { (row, rows) } else { (col, inner) };
    let key = w.g.axis(if along_outer { "row.key" } else { "col.key" }, keys)?;
    let mut parts = [i.q, i.k, i.v];
    for part in &mut parts {
        *part = w.g.split(*part, i.seq, &[row, col])?;
    }
    let (k, v) = (w.g.rename(parts[1], along, key)?, w.g.rename(parts[2], along, key)?);
    let (o, lse) = w.g.attend(op(along, key, i, p), &[parts[0], k, v])?;
    Ok((w.g.merge(o, &[row, col], i.seq)?, w.g.merge(lse, &[row, col], i.seq)?))
}

/// Attention over the last `columns` keys of each block.
fn summary(w: &mut World, i: &Inputs, block: usize, columns: usize, strict: bool) -> Built<Part> {
    let blocks = w.size(i.seq) / block;
    let (outer, inner) = (w.g.axis("block", blocks)?, w.g.axis("inner", block)?);
    let last = w.g.axis("last", columns)?;
    let key = w.g.axis("columns", blocks * columns)?;
    let mut parts = [i.k, i.v];
    for part in &mut parts {
        let cut = w.g.split(*part, i.seq, &[outer, inner])?;
        let kept = w.g.slice(cut, inner, block - columns, last)?;
        *part = w.g.merge(kept, &[outer, last], key)?;
    }
    let pattern = Pattern::Columns { block, columns, strict };
    w.g.attend(op(i.seq, key, i, pattern), &[i.q, parts[0], parts[1]])
}

fn local(w: &mut World, i: &Inputs, window: usize) -> Built<Part> {
    direct(w, i, &Pattern::Local(window))
}

/// Heads as (pair, side): the first side attends by one form, the second by another.
fn by_side(w: &mut World, i: &Inputs, sides: [&Lower<'_>; 2]) -> Built<Part> {
    let (pair, side) = (w.g.axis("pair", HEADS / 2)?, w.g.axis("side", 2)?);
    let one = w.g.axis("one", 1)?;
    let (mut outs, mut sums) = (vec![], vec![]);
    for (number, lower) in sides.into_iter().enumerate() {
        let mut take = |x: ValueId| -> Built<ValueId> {
            let x = w.g.split(x, i.head, &[pair, side])?;
            w.g.slice(x, side, number, one)
        };
        let (q, k, v) = (take(i.q)?, take(i.k)?, take(i.v)?);
        let (o, lse) = lower(w, &Inputs { q, k, v, head: pair, ..*i })?;
        outs.push(o);
        sums.push(lse);
    }
    let mut join = |parts: &[ValueId]| -> Built<ValueId> {
        let x = w.g.concat(parts, &[one, one], side)?;
        w.g.merge(x, &[pair, side], i.head)
    };
    Ok((join(&outs)?, join(&sums)?))
}

fn union(a: Pattern, b: Pattern) -> Pattern {
    Pattern::Union(Box::new(a), Box::new(b))
}

/// Runs a lowering and the direct form; the keys that each query sees must be those of the
/// definition, and the numbers those of the direct form. Also with coarse ops expanded.
fn check(n: usize, definition: &Pattern, lower: &Lower<'_>) {
    let mut w = World::new(n as u64, 0);
    let i = inputs(&mut w, n).unwrap();
    let wanted = direct(&mut w, &i, definition).unwrap();
    let got = lower(&mut w, &i).unwrap();
    for (name, v) in
        [("o", got.0), ("lse", got.1), ("o.wanted", wanted.0), ("lse.wanted", wanted.1)]
    {
        w.g.output(name, v);
    }
    for g in [w.g.expanded(|_| true).unwrap(), w.g.clone()] {
        let run = interpret(&g, &w.env, w.clock, Rounding::Exact).unwrap();
        let out = |name: &str, axes: &[AxisId]| run.outputs[name].permuted(g.axes(), axes);
        let o = out("o", &[i.head, i.seq, i.all]);
        sees(&o, n, definition);
        close(&o, &out("o.wanted", &o.axes), 1e-12, "o");
        let lse = out("lse", &[i.head, i.seq]);
        close(&lse, &out("lse.wanted", &lse.axes), 1e-12, "lse");
    }
}

fn sees(o: &Tensor, n: usize, definition: &Pattern) {
    for head in 0..HEADS {
        for query in 0..n {
            let row = &o.data[(head * n + query) * n..][..n];
            let seen: Vec<usize> = (0..n).filter(|&j| row[j] != 0.0).collect();
            let allowed: Vec<usize> =
                (0..n).filter(|&j| definition.allows(head, query, j)).collect();
            assert_eq!(seen, allowed, "{definition}, {n} positions, head {head}, query {query}");
            let total: f64 = row.iter().sum();
            let wanted = if allowed.is_empty() { 0.0 } else { 1.0 };
            assert!((total - wanted).abs() < 1e-12, "{definition}: a row sums to {total}");
        }
    }
}

/// (positions, block or stride): square, long, short, of one block, of blocks of one.
const SHAPES: [(usize, usize); 7] = [(9, 3), (12, 3), (12, 4), (8, 4), (5, 5), (4, 1), (10, 2)];

#[test]
fn patterns_mean_what_they_say() {
    // Written out here once more, by hand, for six positions and one query each.
    let seen = |p: &Pattern, i: usize| (0..6).filter(|&j| p.allows(0, i, j)).collect::<Vec<_>>();
    let summary = Pattern::Summary { block: 3, columns: 1 };
    assert_eq!(seen(&Pattern::Full, 2), [0, 1, 2, 3, 4, 5]);
    assert_eq!(seen(&Pattern::Causal, 2), [0, 1, 2]);
    assert_eq!(seen(&Pattern::Before, 2), [0, 1]);
    assert_eq!(seen(&Pattern::Local(2), 4), [3, 4]);
    assert_eq!(seen(&Pattern::Strided(2), 5), [1, 3, 5]);
    assert_eq!(seen(&Pattern::Block(3), 4), [3, 4]);
    assert_eq!(seen(&summary, 5), [2, 5]);
    assert_eq!(seen(&summary, 4), [2]);
    assert_eq!(seen(&union(Pattern::Block(3), summary), 4), [2, 3, 4]);
    let columns = |strict| Pattern::Columns { block: 3, columns: 1, strict };
    // Key 0 stands for position 2, key 1 for position 5.
    assert_eq!(seen(&columns(false), 5)[..], [0, 1]);
    assert_eq!(seen(&columns(true), 5)[..], [0]);
    let heads = Pattern::PerHead(vec![Pattern::Causal, Pattern::Local(1)]);
    assert!(heads.allows(2, 3, 0) && !heads.allows(3, 3, 0));
}

#[test]
fn dense_and_local_and_direct_patterns() {
    let summary = Pattern::Summary { block: 4, columns: 2 };
    let list = [
        Pattern::Full,
        Pattern::Causal,
        Pattern::Before,
        Pattern::Local(1),
        Pattern::Local(3),
        Pattern::Strided(3),
        Pattern::Block(4),
        summary.clone(),
        union(Pattern::Local(2), summary),
    ];
    for pattern in list {
        for n in [1, 2, 7, 12] {
            check(n, &pattern, &|w, i| direct(w, i, &pattern));
        }
    }
}

#[test]
fn strided_is_causal_along_rows() {
    for (n, stride) in SHAPES {
        let lower = |w: &mut World, i: &Inputs| split(w, i, stride, true, Pattern::Causal);
        check(n, &Pattern::Strided(stride), &lower);
    }
}

#[test]
fn a_block_is_causal_along_the_inner_axis() {
    for (n, block) in SHAPES {
        let lower = |w: &mut World, i: &Inputs| split(w, i, block, false, Pattern::Causal);
        check(n, &Pattern::Block(block), &lower);
    }
}

#[test]
fn summary_columns_without_the_other_keys() {
    for (n, block) in SHAPES {
        for columns in 1..=block {
            let definition = Pattern::Summary { block, columns };
            check(n, &definition, &|w, i| summary(w, i, block, columns, false));
        }
    }
}

/// The second head of Child et al. as one: the own block and all earlier summaries.
#[test]
fn fixed_is_block_and_strict_columns() {
    for (n, block) in SHAPES {
        for columns in 1..=block {
            let definition = union(Pattern::Block(block), Pattern::Summary { block, columns });
            check(n, &definition, &|w, i| {
                let own = split(w, i, block, false, Pattern::Causal)?;
                let earlier = summary(w, i, block, columns, true)?;
                w.g.merge_attend(own, earlier)
            });
        }
    }
}

/// The window and the column share the query alone, which `Before` leaves to the window.
#[test]
fn merged_strided_is_local_and_what_comes_before_in_the_column() {
    for (n, stride) in SHAPES {
        let definition = union(Pattern::Local(stride), Pattern::Strided(stride));
        check(n, &definition, &|w, i| {
            let window = local(w, i, stride)?;
            let column = split(w, i, stride, true, Pattern::Before)?;
            w.g.merge_attend(window, column)
        });
    }
}

#[test]
fn each_head_follows_its_own_pattern() {
    for (n, l) in SHAPES {
        let pairs = [
            (Pattern::Local(l), Pattern::Strided(l)),
            (Pattern::Block(l), Pattern::Summary { block: l, columns: 1 }),
        ];
        for (a, b) in pairs {
            let pattern = Pattern::PerHead(vec![a.clone(), b.clone()]);
            check(n, &pattern, &|w, i| direct(w, i, &pattern));
            let three = Pattern::PerHead(vec![a.clone(), Pattern::Causal, b]);
            check(n, &union(three.clone(), a.clone()), &|w, i| {
                direct(w, i, &union(three.clone(), a.clone()))
            });
        }
    }
}

/// Each side of the heads in its own lowered form, as one pattern per head.
#[test]
fn heads_are_split_by_side() {
    for (n, l) in SHAPES {
        let strided = Pattern::PerHead(vec![Pattern::Local(l), Pattern::Strided(l)]);
        check(n, &strided, &|w, i| {
            let column = |w: &mut World, i: &Inputs| split(w, i, l, true, Pattern::Causal);
            by_side(w, i, [&|w, i| local(w, i, l), &column])
        });
        for columns in 1..=l {
            let last = Pattern::Summary { block: l, columns };
            let fixed = Pattern::PerHead(vec![Pattern::Block(l), last]);
            check(n, &fixed, &|w, i| {
                let own = |w: &mut World, i: &Inputs| split(w, i, l, false, Pattern::Causal);
                by_side(w, i, [&own, &|w, i| summary(w, i, l, columns, false)])
            });
        }
    }
}

/// The FLOPs of attention follow the pairs that the pattern keeps, heads of a union included.
#[test]
fn pairs_are_counted_head_by_head() {
    let mixed =
        union(Pattern::PerHead(vec![Pattern::Local(1), Pattern::Causal]), Pattern::Block(2));
    let nested = Pattern::PerHead(vec![
        Pattern::PerHead(vec![Pattern::Causal, Pattern::Local(2), Pattern::Local(3)]),
        Pattern::Full,
    ]);
    for pattern in [Pattern::Causal, mixed, nested] {
        let mut w = World::new(1, 0);
        let i = inputs(&mut w, 8).unwrap();
        let attend = op(i.seq, i.all, &i, pattern.clone());
        let slow: u64 = (0..HEADS)
            .flat_map(|h| (0..64).map(move |ij| (h, ij / 8, ij % 8)))
            .filter(|&(h, a, b)| pattern.allows(h, a, b))
            .count() as u64;
        assert_eq!(attend.pairs(w.g.axes(), w.g.ty(i.q)), slow, "{pattern}");
    }
}

/// Decoding: the query's position comes at run time.
#[test]
fn an_offset_moves_the_queries() {
    for at in 0..6 {
        let mut w = World::new(2, 0);
        let (one, key, dim) =
            (w.g.axis("one", 1).unwrap(), w.g.axis("key", 6).unwrap(), w.g.axis("qk", 2).unwrap());
        let all = w.g.axis("all", 6).unwrap();
        let (q, k) = (w.noise("q", &[one, dim]).unwrap(), w.noise("k", &[key, dim]).unwrap());
        let eye = (0..36).map(|i| f64::from(u8::from(i / 6 == i % 6))).collect();
        let v = w.given("v", DType::F32, &[key, all], eye).unwrap();
        let offset = w.given("at", DType::U32, &[], vec![f64::from(at)]).unwrap();
        let pattern = Pattern::Local(3);
        let heads = AxisList::new();
        let op = Attend { query: one, key, dim, heads, scale: 1.0, pattern, offset: true };
        let (o, _) = w.g.attend(op, &[q, k, v, offset]).unwrap();
        w.g.output("o", o);
        for g in [w.g.expanded(|_| true).unwrap(), w.g.clone()] {
            let run = interpret(&g, &w.env, w.clock, Rounding::Exact).unwrap();
            let seen: Vec<i32> =
                (0..6).filter(|&j| run.outputs["o"].data[j as usize] != 0.0).collect();
            let wanted: Vec<i32> = ((at - 2).max(0)..=at).collect();
            assert_eq!(seen, wanted);
        }
    }
}
