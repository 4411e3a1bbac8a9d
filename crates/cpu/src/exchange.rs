//! Collectives of a program, with addresses.

use aerogel_graph::ops::{Collective, Exchange};
use aerogel_graph::{Build, Node, Place};
use aerogel_machine::{Call, Collectives, CommError, Pattern, Section};

/// A collective that is ready to run.
pub(crate) struct Exchanged {
    /// `None` where a rank keeps its own piece of what all have.
    call: Option<Call>,
    /// Byte offset and length of the input.
    from: (u64, usize),
    /// Byte offset and length of the output.
    to: (u64, usize),
    rows: usize,
    /// This rank's number in the group.
    member: usize,
}

impl Exchanged {
    pub fn new(
        s: &Section,
        node: &Node,
        op: &Collective,
        place: Place,
        [from, to]: [u64; 2],
        site: &str,
    ) -> Exchanged {
        let g = &s.graph;
        let (input, output) = (g.ty(node.ins[0]), g.ty(node.outs[0]));
        // Pieces lie inside of the rows that the axes before theirs count.
        let (pattern, axis) = match &op.exchange {
            Exchange::AllReduce(by) => (Some(Pattern::AllReduce(*by)), None),
            Exchange::AllGather { axis, .. } => (Some(Pattern::AllGather), Some(*axis)),
            Exchange::ReduceScatter { axis, .. } => (Some(Pattern::ReduceScatter), Some(*axis)),
            Exchange::Keep { axis, .. } => (None, Some(*axis)),
        };
        let before = axis.and_then(|a| input.axes.iter().position(|&x| x == a)).unwrap_or(0);
        let rows = g.axes().count(&input.axes[..before]);
        let call = pattern.map(|pattern| Call {
            pattern,
            over: op.over.to_vec(),
            dtype: input.dtype,
            elements: g.axes().count(&input.axes),
            rows,
            site: site.into(),
        });
        let bytes = |ty: &aerogel_graph::Type| ty.bytes(g.axes()) as usize;
        Exchanged {
            call,
            from: (from, bytes(input)),
            to: (to, bytes(output)),
            rows,
            member: op.member(&g.axes().mesh, place),
        }
    }

    /// Runs it in the arena that begins at `base`.
    ///
    /// # Safety
    /// Both ranges lie in the arena, do not overlap, and nobody else touches the output.
    pub unsafe fn run(&self, base: *mut u8, ties: &dyn Collectives) -> Result<(), CommError> {
        // SAFETY: the caller vouches for both ranges.
        let (input, output) = unsafe {
            (
                std::slice::from_raw_parts(base.wrapping_add(self.from.0 as usize), self.from.1),
                std::slice::from_raw_parts_mut(base.wrapping_add(self.to.0 as usize), self.to.1),
            )
        };
        if let Some(call) = &self.call {
            return ties.exchange(call, input, output);
        }
        let (row, piece) = (input.len() / self.rows, output.len() / self.rows);
        for (from, to) in input.chunks_exact(row).zip(output.chunks_exact_mut(piece)) {
            to.copy_from_slice(&from[self.member * piece..][..piece]);
        }
        Ok(())
    }
}
