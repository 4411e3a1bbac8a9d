//! Attention of every pattern: tiny and odd lengths, widths of heads that differ, shared keys.

use super::rng::Rng;
use super::suite::{Case, Tight, rng_of, word};
use super::world::Built;
use aerogel_graph::ops::Attend;
use aerogel_graph::{AxisId, Build, DType, Env, Graph, OpError, Pattern, Type, ValueId, gradients};

const PATTERNS: usize = 11;
const LENGTHS: [usize; 5] = [33, 64, 1, 200, 513];
/// Keys of a query, below which its softmax may be next to constant.
const FEW: usize = 8;
const WIDTHS: [usize; 9] = [64, 16, 128, 32, 24, 40, 72, 80, 96];

/// What is asked for.
#[derive(Clone, Debug)]
struct Shape {
    pattern: Pattern,
    batch: usize,
    queries: usize,
    keys: usize,
    /// Heads of keys, and heads of queries on each.
    heads: [usize; 2],
    /// Of queries and keys, and of values.
    widths: [usize; 2],
    layout: Layout,
}

/// How heads lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// Beside one another in each position's row.
    Rows,
    /// Each head's positions one after another.
    Heads,
    /// All three as windows of one product's rows.
    Windows,
}

/// The case of that number: patterns, dtypes and lengths by turns.
pub fn case(seed: u64, number: usize) -> Case {
    let mut rng = rng_of(seed, number);
    let dtype = [DType::F32, DType::Bf16, DType::F16][number / PATTERNS % 3];
    let shape = Shape::draw(number, &mut rng);
    let (kv, group) = (shape.heads[0], shape.heads[1]);
    let name = format!(
        "{}, {} sequences of {} queries and {} keys, {kv} x {group} heads of {} and {}, {:?}, {}",
        shape.pattern,
        shape.batch,
        shape.queries,
        shape.keys,
        shape.widths[0],
        shape.widths[1],
        shape.layout,
        word(dtype)
    );
    Case::new(name, move |bench| {
        // Gradients of queries that see one key are 0, and of few keys next to it.
        let floor = if shape.most_keys() < FEW { 0.25 } else { 0.0 };
        let tight = Tight { floor, ..Tight::default() };
        bench.hold(dtype, tight, &mut rng, 1, Env::new(), &|dtype| shape.graph(dtype))
    })
}

impl Shape {
    fn draw(number: usize, rng: &mut Rng) -> Shape {
        // bf16, of each width that has kernels of its own on Hopper.
        match number {
            33 => return Shape::many(Pattern::Causal, [136; 2], [128, 128]),
            35 => return Shape::many(Pattern::Local(50), [150; 2], [128, 128]),
            38 => return Shape::many(Pattern::Full, [65, 449], [64, 64]),
            40 => return Shape::many(Pattern::Full, [65, 449], [64, 128]),
            _ => {}
        }
        let length = LENGTHS[(number + number / PATTERNS) % LENGTHS.len()];
        let block = rng.pick(&[5, 16, 32, 64]);
        let columns = rng.pick(&[1, 3, 4]);
        let (window, stride) = (rng.pick(&[2, 7, 50, 128]), rng.pick(&[2, 8, 23, 64]));
        let summary = Pattern::Summary { block, columns };
        let (local, strided) = (Pattern::Local(window), Pattern::Strided(stride));
        let blocks = length.div_ceil(block);
        let (mut queries, mut keys) = (length, length);
        let pattern = match number % PATTERNS {
            0 => Pattern::Causal,
            1 => strided,
            2 => local,
            3 => Pattern::Block(block),
            4 => summary,
            5 => Pattern::Full,
            6 => Pattern::Union(Box::new(local), Box::new(strided)),
            7 => Pattern::PerHead(vec![local, strided, summary]),
            8 => Pattern::Before,
            n => {
                (queries, keys) = (blocks * block, blocks * columns);
                Pattern::Columns { block, columns, strict: n == 9 }
            }
        };
        let width = rng.pick(&WIDTHS);
        let widths = [width, if rng.coin() { width } else { rng.pick(&WIDTHS) }];
        let small = length > 64;
        let heads =
            if small { [1 + rng.below(2), 1] } else { [1 + rng.below(3), rng.pick(&[1, 2, 4])] };
        let heads = if small && rng.coin() { [1, 2] } else { heads };
        let layout = match rng.below(3) {
            0 if queries == keys => Layout::Windows,
            0 | 1 => Layout::Rows,
            _ => Layout::Heads,
        };
        Shape { pattern, batch: 1 + rng.below(2), queries, keys, heads, widths, layout }
    }

    /// So many heads that a block takes several tiles one after another.
    fn many(pattern: Pattern, lengths: [usize; 2], widths: [usize; 2]) -> Shape {
        let ([queries, keys], layout) = (lengths, Layout::Rows);
        Shape { pattern, batch: 30, queries, keys, heads: [11, 1], widths, layout }
    }

    /// The most keys that any query sees.
    fn most_keys(&self) -> usize {
        let seen = |head: usize, i: usize| {
            (0..self.keys).filter(|j| self.pattern.allows(head, i, *j)).count()
        };
        let heads = self.heads[0] * self.heads[1];
        let all = (0..heads).flat_map(|h| (0..self.queries).map(move |i| (h, i)));
        all.map(|(h, i)| seen(h, i)).max().unwrap_or(0)
    }

    /// o, lse, and the gradients of a weighted sum of o.
    fn graph(&self, dtype: DType) -> Built<Graph> {
        let mut g = Graph::new();
        let [kv, group] = self.heads;
        let [dim, width] = self.widths;
        let batch = g.axis("batch", self.batch)?;
        let (query, key) = (g.axis("query", self.queries)?, g.axis("key", self.keys)?);
        let (kv, group) = (g.axis("kv", kv)?, g.axis("group", group)?);
        let (dim, width) = (g.axis("dim", dim)?, g.axis("width", width)?);
        let mut leaves = vec![];
        let ([q, k], v) = match self.layout {
            Layout::Windows => {
                let (leaf, qkv) =
                    self.windows(&mut g, dtype, [batch, query, key, kv, group, dim, width])?;
                leaves.push(("x", leaf));
                qkv
            }
            layout => {
                let rows = layout == Layout::Rows;
                let of = |seq: AxisId, heads: &[AxisId], last: AxisId| -> Vec<AxisId> {
                    let (seq, last) = (&[seq][..], &[last][..]);
                    match rows {
                        true => [&[batch][..], seq, heads, last].concat(),
                        false => [&[batch][..], heads, seq, last].concat(),
                    }
                };
                let q = g.input("q", dtype, &of(query, &[kv, group], dim))?;
                let k = g.input("k", dtype, &of(key, &[kv], dim))?;
                let v = g.input("v", dtype, &of(key, &[kv], width))?;
                leaves.extend([("q", q), ("k", k), ("v", v)]);
                ([q, k], v)
            }
        };
        let op = Attend {
            query,
            key,
            dim,
            heads: [kv, group].into_iter().collect(),
            scale: (self.widths[0] as f64).powf(-0.5) * 2.0,
            pattern: self.pattern.clone(),
            offset: false,
        };
        let (o, lse) = g.attend(op, &[q, k, v])?;
        g.output("o", o);
        g.output("lse", lse);
        let axes: Vec<AxisId> = g.ty(o).axes.to_vec();
        let w = g.input("w", dtype, &axes)?;
        let f32 = Type::new(DType::F32, axes.iter().copied());
        let weighted = g.map_to(&[o, w], f32, &|x| &x[0] * &x[1])?;
        let loss = g.sum(weighted, &axes)?;
        let wrt: Vec<ValueId> = leaves.iter().map(|l| l.1).collect();
        for ((name, _), gradient) in leaves.iter().zip(gradients(&mut g, loss, &wrt)?) {
            let missing = || OpError::new("attend", "a gradient is missing");
            g.output(&format!("d{name}"), gradient.ok_or_else(missing)?);
        }
        Ok(g)
    }

    /// Queries, keys and values side by side, as one product makes them.
    #[allow(clippy::type_complexity, reason = "the value that is cut, and its parts")]
    fn windows(
        &self,
        g: &mut Graph,
        dtype: DType,
        [batch, query, key, kv, group, dim, width]: [AxisId; 7],
    ) -> Built<(ValueId, ([ValueId; 2], ValueId))> {
        let [heads, groups] = self.heads;
        let sizes =
            [heads * groups * self.widths[0], heads * self.widths[0], heads * self.widths[1]];
        let all = g.axis("all", sizes.iter().sum())?;
        let x = g.input("x", dtype, &[batch, query, all])?;
        let mut start = 0;
        let mut part = |g: &mut Graph, name: &str, size: usize, into: &[AxisId]| {
            let own = g.axis(name, size)?;
            let y = g.slice(x, all, start, own)?;
            start += size;
            g.split(y, own, into)
        };
        let q = part(g, "all.q", sizes[0], &[kv, group, dim])?;
        let k = part(g, "all.k", sizes[1], &[kv, dim])?;
        let v = part(g, "all.v", sizes[2], &[kv, width])?;
        let (k, v) = (g.rename(k, query, key)?, g.rename(v, query, key)?);
        Ok((x, ([q, k], v)))
    }
}
