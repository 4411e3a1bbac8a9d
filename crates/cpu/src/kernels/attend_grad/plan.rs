//! How the keys are cut into stretches, and which queries see each of them.

use std::ops::Range;

use crate::kernels::pattern::{BlockList, Entry};

/// Tiles of keys of a stretch, at most: their keys, values and gradients stay in the second-level
/// cache. The bits of dq depend on it.
pub(super) const STRETCH: usize = 8;

/// The stretches of a pattern.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Stretches of keys.
    pub stretches: usize,
    heads: usize,
    query_tiles: usize,
    /// By pattern head and stretch: the query tiles that may see it.
    queries: Vec<Range<u32>>,
    /// By pattern head and query tile: how many stretches all tiles before it see.
    slots: Vec<usize>,
}

/// Distinct stretches below `limit` that the entries touch.
fn touched(row: &[Entry], limit: usize) -> usize {
    let (mut count, mut next) = (0, 0);
    for entry in row {
        let tiles = entry.tiles();
        let first = (tiles.start / STRETCH).max(next);
        let end = tiles.end.div_ceil(STRETCH).min(limit);
        if end > first {
            count += end - first;
            next = end;
        }
    }
    count
}

impl Plan {
    pub fn new(pattern: &BlockList) -> Plan {
        let stretches = pattern.key_tiles().div_ceil(STRETCH);
        let (heads, query_tiles) = (pattern.heads, pattern.query_tiles());
        let mut queries = vec![0..0; heads * stretches];
        let mut slots = vec![0];
        for head in 0..heads {
            let queries = &mut queries[head * stretches..][..stretches];
            for tile in 0..query_tiles {
                let row = pattern.row(head, tile);
                for entry in row {
                    let tiles = entry.tiles();
                    for seen in &mut queries[tiles.start / STRETCH..tiles.end.div_ceil(STRETCH)] {
                        let first = if seen.start == seen.end { tile as u32 } else { seen.start };
                        *seen = first..tile as u32 + 1;
                    }
                }
                slots.push(slots[slots.len() - 1] + touched(row, stretches));
            }
        }
        Plan { stretches, heads, query_tiles, queries, slots }
    }

    fn head(&self, head: usize) -> usize {
        if self.heads == 1 { 0 } else { head }
    }

    /// The key tiles of a stretch.
    pub fn tiles(&self, stretch: usize, pattern: &BlockList) -> Range<usize> {
        stretch * STRETCH..((stretch + 1) * STRETCH).min(pattern.key_tiles())
    }

    /// The query tiles of a head that may see a stretch.
    pub fn queries(&self, head: usize, stretch: usize) -> Range<usize> {
        let seen = &self.queries[self.head(head) * self.stretches + stretch];
        seen.start as usize..seen.end as usize
    }

    /// Slots for partial sums of dq, one per query tile and stretch that it sees: those of a query
    /// tile, in the order of the stretches.
    pub fn slots(&self, head: usize, tile: usize) -> Range<usize> {
        let at = self.head(head) * self.query_tiles + tile;
        let base = self.slots[self.head(head) * self.query_tiles];
        self.slots[at] - base..self.slots[at + 1] - base
    }

    /// The most slots that a head has.
    pub fn most_slots(&self) -> usize {
        let per_head = |head: usize| {
            self.slots[(head + 1) * self.query_tiles] - self.slots[head * self.query_tiles]
        };
        (0..self.heads).map(per_head).max().unwrap_or(0)
    }

    /// How many stretches before this one a row of the pattern sees.
    pub fn seen_before(row: &[Entry], stretch: usize) -> usize {
        touched(row, stretch)
    }
}
