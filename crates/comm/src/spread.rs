//! What a member gets where nothing is merged, and how the others cut what they merge.

use crate::merge::Strip;
use aerogel_machine::Pattern;

/// One exchange, seen from one member.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    pub(crate) member: usize,
    pub(crate) members: usize,
    /// Of one input.
    pub(crate) bytes: usize,
    pub(crate) rows: usize,
}

impl Share {
    /// Bytes of the piece of an all_reduce that a member merges, in whole elements. Pieces differ
    /// by at most one element where elements do not divide.
    pub(crate) fn piece(self, member: usize, width: usize) -> std::ops::Range<usize> {
        let elements = (self.bytes / width) as u128;
        let border = |m: usize| (elements * m as u128 / self.members as u128) as usize * width;
        border(member)..border(member + 1)
    }

    /// What this member keeps of a reduce_scatter: its piece of every row.
    pub(crate) fn strip(self) -> Strip {
        let row = self.bytes / self.rows;
        let piece = row / self.members;
        Strip { start: self.member * piece, bytes: piece, stride: row, count: self.rows }
    }

    /// Copies what this member gets. Sizes have been checked.
    pub(crate) fn copy<'a>(
        self,
        pattern: Pattern,
        input: &impl Fn(usize) -> &'a [u8],
        out: &mut [u8],
    ) {
        if out.is_empty() {
            return;
        }
        let row = self.bytes / self.rows.max(1);
        match pattern {
            Pattern::AllGather => {
                for (i, out) in out.chunks_exact_mut(row).enumerate() {
                    let from = i / self.members * row;
                    out.copy_from_slice(&input(i % self.members)[from..from + row]);
                }
            }
            Pattern::AllToAll => {
                let piece = row / self.members;
                for (i, out) in out.chunks_exact_mut(piece).enumerate() {
                    let from = i / self.members * row + self.member * piece;
                    out.copy_from_slice(&input(i % self.members)[from..from + piece]);
                }
            }
            Pattern::Broadcast { root } => out.copy_from_slice(input(root)),
            Pattern::Permute { by } => {
                let back = self.members - by % self.members;
                out.copy_from_slice(input((self.member + back) % self.members));
            }
            Pattern::Barrier | Pattern::AllReduce(_) | Pattern::ReduceScatter => {}
        }
    }
}
