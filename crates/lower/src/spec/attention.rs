//! Attention, forward and backward.

use crate::operand::Operand;
use aerogel_graph::Pattern;

/// Shapes of an attention.
///
/// The space of every operand is [batch axes.., kv, group, position, width]: k, v and their
/// gradients have stride 0 on group; the log-sum-exp and its gradient lack width (stride 0).
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Sizes of the batch axes.
    pub batch: Vec<usize>,
    /// Key/value heads.
    pub kv: usize,
    /// Query heads that share a key/value head.
    pub group: usize,
    /// Queries of one run.
    pub queries: usize,
    /// Width of queries and keys.
    pub key_width: usize,
    /// Width of values.
    pub value_width: usize,
    /// Factor on the scores.
    pub scale: f32,
}

impl Attention {
    /// Key/value heads over the whole batch.
    pub fn outer(&self) -> usize {
        self.batch.iter().product::<usize>() * self.kv
    }

    /// Sizes of the space with so many positions and this width.
    pub fn sizes(&self, positions: usize, width: usize) -> Vec<usize> {
        [&self.batch[..], &[self.kv, self.group, positions, width]].concat()
    }

    /// The head that a mask sees, of one of [`Attention::outer`] and a query head that shares it.
    pub fn head(&self, outer: usize, group: usize) -> usize {
        (outer % self.kv) * self.group + group
    }
}

/// Which keys each query sees. It stands beside the shapes because what a backend makes of it,
/// such as lists of tiles, serves every layer and both directions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AttendMask {
    /// The rule, with bounds for whole tiles.
    pub pattern: Pattern,
    /// Heads with rules of their own: 1 if all share one. A rank numbers its heads from 0, since
    /// axes of heads are cut only where every piece has the rules of the first one.
    pub heads: usize,
    /// Positions of queries. In decoding, where [`Call::position`](crate::Call::position) is given,
    /// these are as many as the keys, and the queries of a run are a window of them from there on:
    /// then keys after a query's own position are not seen, and those after the last query's hold
    /// nothing yet and are not read.
    pub queries: usize,
    /// Positions of keys.
    pub keys: usize,
}

/// `o = softmax(scale q k^T, masked) v`, and the log-sum-exp of each row of scores.
#[derive(Clone, Debug, PartialEq)]
pub struct AttendSpec {
    /// Shapes.
    pub attention: Attention,
    /// Queries.
    pub q: Operand,
    /// Keys.
    pub k: Operand,
    /// Values.
    pub v: Operand,
    /// The result; rows that see no key are 0.
    pub o: Operand,
    /// The log-sum-exps, f32; -infinity for rows that see no key.
    pub lse: Operand,
}

impl AttendSpec {
    /// The operands in their order.
    pub fn operands(&self) -> [&Operand; 5] {
        [&self.q, &self.k, &self.v, &self.o, &self.lse]
    }
}

/// The gradients of an attention, whose probabilities are computed again from the log-sum-exps.
#[derive(Clone, Debug, PartialEq)]
pub struct AttendGradSpec {
    /// Shapes.
    pub attention: Attention,
    /// Queries.
    pub q: Operand,
    /// Keys.
    pub k: Operand,
    /// Values.
    pub v: Operand,
    /// The result of the forward.
    pub o: Operand,
    /// Its log-sum-exps, f32.
    pub lse: Operand,
    /// The gradient of the result.
    pub dout: Operand,
    /// The gradient of the queries.
    pub dq: Operand,
    /// The gradient of the keys, a sum over the query heads that share them.
    pub dk: Operand,
    /// The gradient of the values, as well.
    pub dv: Operand,
    /// The gradient of the log-sum-exps, f32, if something else than this backward reads them.
    pub dlse: Option<Operand>,
}

impl AttendGradSpec {
    /// The operands in their order.
    pub fn operands(&self) -> impl Iterator<Item = &Operand> {
        let AttendGradSpec { q, k, v, o, lse, dout, dq, dk, dv, dlse, .. } = self;
        [q, k, v, o, lse, dout, dq, dk, dv].into_iter().chain(dlse)
    }
}
