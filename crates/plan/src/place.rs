//! Placement: one byte offset for every piece, largest first, each at the lowest free place.

use crate::live::{Home, Live};
use crate::select::happens_before;
use aerogel_graph::StateId;
use aerogel_machine::ALIGN;

/// Offsets for pieces `(bytes, first step, last step)` such that pieces alive at the same step do
/// not overlap; and the end of the highest. Largest first, first fit.
pub fn pack(pieces: &[(u64, usize, usize)], base: u64) -> (Vec<u64>, u64) {
    let mut order: Vec<usize> = (0..pieces.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(pieces[i].0), pieces[i].1, i));
    // Placed pieces, ascending by offset.
    let mut placed: Vec<(u64, usize)> = vec![];
    let mut offsets = vec![base; pieces.len()];
    let mut end = base;
    for i in order {
        let (bytes, from, to) = pieces[i];
        let bytes = bytes.next_multiple_of(ALIGN);
        let mut at = base;
        for &(offset, j) in &placed {
            let (other, f, t) = pieces[j];
            if happens_before(to, f) || happens_before(t, from) {
                continue;
            }
            if at + bytes <= offset {
                break;
            }
            at = at.max(offset + other.next_multiple_of(ALIGN));
        }
        offsets[i] = at;
        end = end.max(at + bytes);
        let position = placed.partition_point(|&(o, _)| o <= at);
        placed.insert(position, (at, i));
    }
    (offsets, end)
}

/// Places all pieces of a section from `base` on; gives the byte offset of each root value.
pub(crate) fn place(
    live: &mut Live,
    base: u64,
    state_offset: impl Fn(StateId) -> u64,
) -> Vec<Option<u64>> {
    let spans: Vec<_> = live.pieces.iter().map(|p| (p.bytes, p.from, p.to)).collect();
    let (offsets, end) = pack(&spans, base);
    live.end_bytes = end;
    live.pieces.iter_mut().zip(offsets).for_each(|(p, o)| p.offset = o);
    live.home
        .iter()
        .map(|home| match home {
            Home::Nowhere => None,
            Home::Piece(p) => Some(live.pieces[*p].offset),
            Home::State(s) => Some(state_offset(*s)),
        })
        .collect()
}
