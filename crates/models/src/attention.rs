//! Sparse attention (Child et al. §4), in time proportional to the pairs that a pattern keeps.
//!
//! A part of a pattern is lowered by addressing: keys and values are split, sliced or renamed, and
//! never copied but for the compact keys of summaries.
//!
//! | part | positions that query i sees | lowered to |
//! |---|---|---|
//! | dense | j <= i | causal |
//! | local | i - window < j <= i | a band |
//! | strided | j <= i, (i - j) mod stride = 0 | seq = (row, col): causal along row, col as batch |
//! | block | j <= i, in i's block | seq = (block, inner): causal along inner, block as batch |
//! | summary | j <= i, j in the last `columns` of any block | those columns alone as keys |
//!
//! Two parts are joined by their log-sum-exp where they are disjoint, so a merged form leaves out
//! of the second part what the first has.

use aerogel_graph::ops::Attend;
use aerogel_graph::{AxisId, AxisList, Build, Graph, OpError, Pattern, ValueId};

/// One part of an attention pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All positions so far.
    Dense,
    /// The last positions.
    Local {
        /// How many, the query included.
        window: usize,
    },
    /// Every `stride`-th position back.
    Strided {
        /// Distance of two of them.
        stride: usize,
    },
    /// The query's own block so far.
    Block {
        /// Positions of a block.
        block: usize,
    },
    /// The last positions of every block, up to the query.
    Summary {
        /// Positions of a block.
        block: usize,
        /// How many of them.
        columns: usize,
    },
}

/// The attention of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// All heads have one part.
    One(Part),
    /// All heads see the union of two parts: local and strided with window <= stride, or block and
    /// summary of the same blocks.
    Merged([Part; 2]),
    /// Head `h` has part `h mod 2`.
    Heads([Part; 2]),
}

/// Queries, keys and values of all heads.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// [batch.. seq kv group dim]
    pub q: ValueId,
    /// [batch.. seq kv dim]; in decoding `key` stands for `seq`.
    pub k: ValueId,
    /// [batch.. seq kv width]; in decoding `key` stands for `seq`.
    pub v: ValueId,
    /// Positions of the queries.
    pub seq: AxisId,
    /// The contracted axis.
    pub dim: AxisId,
    /// Heads of keys and values.
    pub kv: AxisId,
    /// Queries that share a head of keys and values.
    pub group: AxisId,
}

/// (o, lse) of a part.
type Attended = (ValueId, ValueId);

impl Part {
    /// The definition: which keys a query may see.
    pub fn pattern(self) -> Pattern {
        match self {
            Part::Dense => Pattern::Causal,
            Part::Local { window } => Pattern::Local(window),
            Part::Strided { stride } => Pattern::Strided(stride),
            Part::Block { block } => Pattern::Block(block),
            Part::Summary { block, columns } => Pattern::Summary { block, columns },
        }
    }
}

impl Form {
    /// The definition: which keys a query of a head may see.
    pub fn pattern(&self) -> Pattern {
        match self {
            Form::One(part) => part.pattern(),
            Form::Merged([a, b]) => Pattern::Union(a.pattern().into(), b.pattern().into()),
            Form::Heads(parts) => Pattern::PerHead(parts.map(Part::pattern).into()),
        }
    }

    /// The parts.
    pub fn parts(&self) -> Vec<Part> {
        match self {
            Form::One(part) => vec![*part],
            Form::Merged(parts) | Form::Heads(parts) => parts.to_vec(),
        }
    }
}

/// Attention of whole sequences: o [batch.. seq kv group width], 0 where a query sees no key.
///
/// # Errors
/// Sizes do not divide: a stride or block and the sequence, or two and the heads; a block has fewer
/// positions than columns; the parts of a merged form are none of the pairs that it allows.
pub fn attend(g: &mut Graph, form: &Form, heads: Heads) -> Result<ValueId, OpError> {
    match *form {
        Form::One(part) => Ok(attend_part(g, part, heads, Keys::All)?.0),
        Form::Merged([a, b]) => {
            want_disjoint(a, b)?;
            let a = attend_part(g, a, heads, Keys::All)?;
            let b = attend_part(g, b, heads, Keys::NotInFirst)?;
            Ok(g.merge_attend(a, b)?.0)
        }
        Form::Heads(parts) => attend_by_head(g, parts, heads),
    }
}

/// Attention of queries that start at the run-time scalar `position`, over a cache of keys and
/// values with axis `key`.
///
/// # Errors
/// There is no axis `key`.
pub fn attend_at(
    g: &mut Graph,
    form: &Form,
    heads: Heads,
    position: ValueId,
) -> Result<ValueId, OpError> {
    let Some(key) = g.axes().find("key") else {
        return Err(OpError::new("attend", "decoding needs keys along an axis `key`"));
    };
    let op = Attend { offset: true, ..attend_op(g, heads, heads.seq, key, form.pattern()) };
    Ok(g.attend(op, &[heads.q, heads.k, heads.v, position])?.0)
}

/// Merging by log-sum-exp counts a key that both parts have twice.
fn want_disjoint(a: Part, b: Part) -> Result<(), OpError> {
    match (a, b) {
        (Part::Local { window }, Part::Strided { stride }) if window <= stride => Ok(()),
        (Part::Block { block }, Part::Summary { block: of, .. }) if block == of => Ok(()),
        _ => Err(OpError::new("attend", format!("{a:?} and {b:?} cannot be merged"))),
    }
}

/// Which keys of a part count.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keys {
    All,
    /// Those that the first part of a merged form has not.
    NotInFirst,
}

fn attend_part(g: &mut Graph, part: Part, heads: Heads, keys: Keys) -> Result<Attended, OpError> {
    let size = g.axes().size(heads.seq);
    match part {
        Part::Dense | Part::Local { .. } => along(g, heads, heads.seq, "key", part.pattern()),
        Part::Strided { stride } => {
            let row = g.axis("row", pieces(size, stride)?)?;
            let col = g.axis("col", stride)?;
            // The query itself is in the window, if that is counted elsewhere.
            let pattern = if keys == Keys::All { Pattern::Causal } else { Pattern::Before };
            folded(g, heads, [row, col], |g, h| along(g, h, row, "key_row", pattern))
        }
        Part::Block { block } => {
            let outer = g.axis("block", pieces(size, block)?)?;
            let inner = g.axis("inner", block)?;
            folded(g, heads, [outer, inner], |g, h| {
                along(g, h, inner, "key_inner", Pattern::Causal)
            })
        }
        Part::Summary { block, columns } => {
            let strict = keys == Keys::NotInFirst;
            summary(g, heads, block, columns, strict)
        }
    }
}

/// How many rows or blocks of `length` positions a sequence has.
fn pieces(positions: usize, length: usize) -> Result<usize, OpError> {
    match length > 0 && positions.is_multiple_of(length) {
        true => Ok(positions / length),
        false => {
            let message = format!("{positions} positions do not divide into pieces of {length}");
            Err(OpError::new("attend", message))
        }
    }
}

/// Attention along one axis that q, k and v have; keys take the name `key_name`.
fn along(
    g: &mut Graph,
    heads: Heads,
    axis: AxisId,
    key_name: &str,
    pattern: Pattern,
) -> Result<Attended, OpError> {
    let key = g.axis(key_name, g.axes().size(axis))?;
    let k = g.rename(heads.k, axis, key)?;
    let v = g.rename(heads.v, axis, key)?;
    let op = attend_op(g, heads, axis, key, pattern);
    g.attend(op, &[heads.q, k, v])
}

fn attend_op(g: &Graph, h: Heads, query: AxisId, key: AxisId, pattern: Pattern) -> Attend {
    let heads: AxisList = [h.kv, h.group].into_iter().collect();
    let scale = 1.0 / (g.axes().size(h.dim) as f64).sqrt();
    Attend { query, key, dim: h.dim, heads, scale, pattern, offset: false }
}

/// Attention with the sequence split in two axes, and o and lse along the sequence again.
fn folded(
    g: &mut Graph,
    heads: Heads,
    into: [AxisId; 2],
    inside: impl FnOnce(&mut Graph, Heads) -> Result<Attended, OpError>,
) -> Result<Attended, OpError> {
    let q = g.split(heads.q, heads.seq, &into)?;
    let k = g.split(heads.k, heads.seq, &into)?;
    let v = g.split(heads.v, heads.seq, &into)?;
    let (o, lse) = inside(g, Heads { q, k, v, ..heads })?;
    Ok((g.merge(o, &into, heads.seq)?, g.merge(lse, &into, heads.seq)?))
}

/// All queries, and as keys the last columns of each block, next to one another.
fn summary(
    g: &mut Graph,
    heads: Heads,
    block: usize,
    columns: usize,
    strict: bool,
) -> Result<Attended, OpError> {
    let blocks = pieces(g.axes().size(heads.seq), block)?;
    if columns == 0 || columns > block {
        let message = format!("a block of {block} positions cannot have {columns} columns");
        return Err(OpError::new("attend", message));
    }
    let outer = g.axis("block", blocks)?;
    let inner = g.axis("inner", block)?;
    let column = g.axis("column", columns)?;
    let key = g.axis("key_column", blocks * columns)?;
    let mut compact = |x: ValueId| -> Result<ValueId, OpError> {
        let x = g.split(x, heads.seq, &[outer, inner])?;
        let x = g.slice(x, inner, block - columns, column)?;
        g.merge(x, &[outer, column], key)
    };
    let (k, v) = (compact(heads.k)?, compact(heads.v)?);
    let pattern = Pattern::Columns { block, columns, strict };
    let op = attend_op(g, heads, heads.seq, key, pattern);
    g.attend(op, &[heads.q, k, v])
}

/// Even heads have the first part, odd heads the second: the heads split in (pair, side).
fn attend_by_head(g: &mut Graph, parts: [Part; 2], heads: Heads) -> Result<ValueId, OpError> {
    let pair = g.axis("pair", g.axes().size(heads.kv) / 2)?;
    let side = g.axis("side", 2)?;
    let one = g.axis("one_side", 1)?;
    let mut outs = vec![];
    for (number, part) in parts.into_iter().enumerate() {
        let mut take = |x: ValueId| -> Result<ValueId, OpError> {
            let x = g.split(x, heads.kv, &[pair, side])?;
            g.slice(x, side, number, one)
        };
        let (q, k, v) = (take(heads.q)?, take(heads.k)?, take(heads.v)?);
        let half = Heads { q, k, v, kv: pair, ..heads };
        outs.push(attend_part(g, part, half, Keys::All)?.0);
    }
    let o = g.concat(&outs, &[one, one], side)?;
    g.merge(o, &[pair, side], heads.kv)
}
