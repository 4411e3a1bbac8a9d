//! Which ranks share a batch, and over which of them a bucket is cut.
//!
//! The mesh axes of a batch are listed outermost first. What is cut is cut over the innermost ones,
//! the very innermost first: so the pieces over fewer axes are made of those over more, and ranks
//! that are near each other exchange most. Micro-batches are dealt out in the same order: axes over
//! which gradients are cut run below time (a sum over them comes before one over time), the others
//! above. Either way the sums make one tree, that of a binary counter over all micro-batches, as
//! long as every factor of their number but the outermost is a power of two.

use aerogel_graph::ops::{Collective, Exchange, Merge};
use aerogel_graph::{AxisId, Build, Cutter, Graph, Mesh, OpError, Place, ValueId};

/// How the ranks that share a batch deal out buckets. Each list but `batch` is an end of `batch`,
/// and `parameters` an end of `gradients`, which is one of `optimizer`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shards {
    /// All ranks.
    pub mesh: Mesh,
    /// The mesh axes over which micro-batches are dealt out, outermost first.
    pub batch: Vec<u8>,
    /// Those over which the optimizer's memory is cut (ZeRO-1).
    pub optimizer: Vec<u8>,
    /// Those over which gradients are cut (ZeRO-2).
    pub gradients: Vec<u8>,
    /// Those over which parameters are cut (ZeRO-3).
    pub parameters: Vec<u8>,
}

impl Shards {
    /// Whether the lists are as they must be.
    ///
    /// # Errors
    /// A list names an axis that the mesh lacks, or one twice, or is no end of the list that it
    /// must be an end of.
    pub fn check(&self) -> Result<(), OpError> {
        let fail = |message: String| Err(OpError::new("shards", message));
        let (most, got) = (Place::default().0.len(), self.mesh.0.len());
        if got > most {
            return fail(format!("a mesh has at most {most} axes, got {got}"));
        }
        for (i, m) in self.batch.iter().enumerate() {
            if usize::from(*m) >= got {
                return fail(format!("the mesh has no axis number {m}"));
            }
            if self.batch[..i].contains(m) {
                return fail(format!("the batch is cut twice over axis number {m}"));
            }
        }
        let lists = [
            ("batch", &self.batch),
            ("optimizer", &self.optimizer),
            ("gradients", &self.gradients),
            ("parameters", &self.parameters),
        ];
        for pair in lists.windows(2) {
            let [(outer, longer), (inner, shorter)] = [pair[0], pair[1]];
            if !longer.ends_with(shorter) {
                return fail(format!(
                    "`{inner}` is cut over mesh axes {shorter:?}, which is no end of {longer:?}, \
                     those of `{outer}`"
                ));
            }
        }
        Ok(())
    }

    /// The number of pieces over some axes.
    pub fn pieces(&self, over: &[u8]) -> usize {
        over.iter().map(|&m| self.mesh.size(m)).product()
    }

    /// The mesh axes of the batch that lie above time: those over which gradients are not cut.
    pub(crate) fn above(&self) -> &[u8] {
        &self.batch[..self.batch.len() - self.gradients.len()]
    }

    /// Cuts axis `batch` into micro-batches: by the ranks above time, by time, and by the ranks
    /// below it.
    ///
    /// # Errors
    /// The batch does not divide, or the lists contradict each other.
    pub fn cut_batch(&self, g: &mut Graph, micro_batches: usize) -> Result<(), OpError> {
        self.check()?;
        let by_rank = |g: &mut Graph, over: &[u8]| {
            over.iter().try_for_each(|&m| g.cut_axis("batch", Cutter::Mesh(m), self.mesh.size(m)))
        };
        by_rank(g, self.above())?;
        // One micro-batch is the batch, and not a piece of it.
        if micro_batches != 1 {
            g.cut_axis("batch", Cutter::Time, micro_batches)?;
        }
        by_rank(g, &self.gradients)
    }

    /// The axis of a bucket's piece over some axes, made if it is new.
    pub(crate) fn piece(
        &self,
        g: &mut Graph,
        whole: AxisId,
        over: &[u8],
    ) -> Result<AxisId, OpError> {
        let mut axis = whole;
        for &m in over.iter().rev() {
            let (mesh, size) = self.mesh.0[m as usize].clone();
            let name = format!("{}/{mesh}", g.axes()[axis].name);
            axis = g.piece_of(axis, &name, Cutter::Mesh(m), size)?;
        }
        Ok(axis)
    }

    /// Puts the pieces over `from` together to pieces over `to`, which is an end of `from`.
    pub(crate) fn gather(
        &self,
        g: &mut Graph,
        mut v: ValueId,
        whole: AxisId,
        from: &[u8],
        to: &[u8],
    ) -> Result<ValueId, OpError> {
        for i in 0..from.len() - to.len() {
            let axis = self.piece(g, whole, &from[i..])?;
            let into = self.piece(g, whole, &from[i + 1..])?;
            v = exchange(g, v, Exchange::AllGather { axis, into }, from[i])?;
        }
        Ok(v)
    }

    /// The inverse: sums pieces over `from`, and keeps the piece over `to`, of which `from` is an
    /// end.
    pub(crate) fn scatter(
        &self,
        g: &mut Graph,
        v: ValueId,
        whole: AxisId,
        to: &[u8],
        from: &[u8],
    ) -> Result<ValueId, OpError> {
        let own = |axis, into| Exchange::ReduceScatter { axis, into };
        self.cut(g, v, whole, (to, from), own)
    }

    /// The piece over `to` of what all ranks along the axes that `from` lacks have alike.
    pub(crate) fn keep(
        &self,
        g: &mut Graph,
        v: ValueId,
        whole: AxisId,
        to: &[u8],
        from: &[u8],
    ) -> Result<ValueId, OpError> {
        self.cut(g, v, whole, (to, from), |axis, into| Exchange::Keep { axis, into })
    }

    /// From pieces over `from` to pieces over `to`, axis by axis, the innermost first.
    fn cut(
        &self,
        g: &mut Graph,
        mut v: ValueId,
        whole: AxisId,
        (to, from): (&[u8], &[u8]),
        own: impl Fn(AxisId, AxisId) -> Exchange,
    ) -> Result<ValueId, OpError> {
        for i in (0..to.len() - from.len()).rev() {
            let axis = self.piece(g, whole, &to[i + 1..])?;
            let into = self.piece(g, whole, &to[i..])?;
            v = exchange(g, v, own(axis, into), to[i])?;
        }
        Ok(v)
    }

    /// The sum over some axes, the innermost first.
    pub(crate) fn sum(
        &self,
        g: &mut Graph,
        mut v: ValueId,
        over: &[u8],
    ) -> Result<ValueId, OpError> {
        for &m in over.iter().rev() {
            v = all_reduce(g, v, m)?;
        }
        Ok(v)
    }
}

/// Whether an output is a sum over the batch, and so over micro-batches and ranks.
pub(crate) fn is_sum(output: &str) -> bool {
    output == "loss" || output == "tokens" || output.starts_with("grad.")
}

/// A collective over one mesh axis.
pub(crate) fn exchange(
    g: &mut Graph,
    v: ValueId,
    exchange: Exchange,
    over: u8,
) -> Result<ValueId, OpError> {
    let op = Collective { exchange, over: [over].into_iter().collect() };
    Ok(g.emit(op.into(), &[v])?[0])
}

/// The sum over the ranks along one mesh axis.
pub(crate) fn all_reduce(g: &mut Graph, v: ValueId, over: u8) -> Result<ValueId, OpError> {
    exchange(g, v, Exchange::AllReduce(Merge::Sum), over)
}
