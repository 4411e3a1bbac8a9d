//! Attention patterns as lists of tiles: which tiles of keys a tile of queries sees.

use std::collections::HashMap;
use std::sync::Arc;

use crate::kernel::KernelError;

/// Whether a query may see a key: (head, query position, key position).
pub type Predicate = Arc<dyn Fn(usize, usize, usize) -> bool + Send + Sync>;

/// The largest tile side: one bit per query in a mask word.
pub const MAX_TILE: usize = 64;

/// A tile of keys that a tile of queries sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number of the key tile.
    pub keys: u32,
    /// Number of its mask, or [`Entry::FULL`].
    pub mask: u32,
}

impl Entry {
    /// Every pair of the tile is allowed.
    pub const FULL: u32 = u32::MAX;
}

/// The allowed tiles of a pattern; time in attention is proportional to their number.
///
/// Masks of partial tiles are kept once each, as one word per key with one bit per query.
#[derive(Clone, Debug)]
pub struct BlockList {
    /// Heads with lists of their own: 1 if all share one.
    pub heads: usize,
    /// Queries.
    pub queries: usize,
    /// Keys.
    pub keys: usize,
    /// Queries in a tile.
    pub tile_queries: usize,
    /// Keys in a tile.
    pub tile_keys: usize,
    /// `rows[head * query_tiles + tile]`: where its entries begin; one more at the end.
    rows: Vec<u32>,
    entries: Vec<Entry>,
    masks: Vec<u64>,
}

impl BlockList {
    /// Evaluates the predicate once for every pair, tile by tile. `heads` is 1 if all heads share
    /// the pattern. Tiles are 64 x 64, smaller for short sequences.
    ///
    /// # Errors
    /// If a size is zero.
    pub fn new(
        heads: usize,
        queries: usize,
        keys: usize,
        allowed: &dyn Fn(usize, usize, usize) -> bool,
    ) -> Result<BlockList, KernelError> {
        let side = |length: usize| length.next_multiple_of(16).min(MAX_TILE);
        BlockList::with_tiles(heads, [queries, keys], [side(queries), side(keys)], allowed)
    }

    /// As [`BlockList::new`] with given tile sides.
    ///
    /// # Errors
    /// If a size is zero or a tile side is over [`MAX_TILE`].
    pub fn with_tiles(
        heads: usize,
        [queries, keys]: [usize; 2],
        [tile_queries, tile_keys]: [usize; 2],
        allowed: &dyn Fn(usize, usize, usize) -> bool,
    ) -> Result<BlockList, KernelError> {
        let sizes = [heads, queries, keys, tile_queries, tile_keys];
        if sizes.contains(&0) || tile_queries > MAX_TILE || tile_keys > MAX_TILE {
            let what = format!(
                "heads, queries, keys and tile sides {sizes:?} must be positive, tiles at most 64"
            );
            return Err(KernelError::Unsupported { kernel: "attend", what });
        }
        let mut list = BlockList {
            heads,
            queries,
            keys,
            tile_queries,
            tile_keys,
            rows: vec![0],
            entries: Vec::new(),
            masks: Vec::new(),
        };
        let mut known = HashMap::new();
        for head in 0..heads {
            for row in 0..queries.div_ceil(tile_queries) {
                for col in 0..keys.div_ceil(tile_keys) {
                    list.add_tile(head, row, col, allowed, &mut known);
                }
                list.rows.push(list.entries.len() as u32);
            }
        }
        Ok(list)
    }

    fn add_tile(
        &mut self,
        head: usize,
        row: usize,
        col: usize,
        allowed: &dyn Fn(usize, usize, usize) -> bool,
        known: &mut HashMap<Vec<u64>, u32>,
    ) {
        let (i0, j0) = (row * self.tile_queries, col * self.tile_keys);
        let rows = self.tile_queries.min(self.queries - i0);
        let cols = self.tile_keys.min(self.keys - j0);
        let word = |j: usize| {
            (0..rows).fold(0, |word, i| word | u64::from(allowed(head, i0 + i, j0 + j)) << i)
        };
        let mut words: Vec<u64> = (0..cols).map(word).collect();
        let full = u64::MAX >> (64 - rows);
        if words.iter().all(|&word| word == 0) {
            return;
        }
        let mask = if words.iter().all(|&word| word == full) {
            Entry::FULL
        } else {
            words.resize(self.tile_keys, 0);
            let number = (self.masks.len() / self.tile_keys) as u32;
            *known.entry(words).or_insert_with_key(|words| {
                self.masks.extend(words);
                number
            })
        };
        self.entries.push(Entry { keys: col as u32, mask });
    }

    /// The number of query tiles.
    pub fn query_tiles(&self) -> usize {
        self.queries.div_ceil(self.tile_queries)
    }

    /// The tiles of keys that a tile of queries sees, in rising order.
    pub fn row(&self, head: usize, query_tile: usize) -> &[Entry] {
        let head = if self.heads == 1 { 0 } else { head };
        let at = head * self.query_tiles() + query_tile;
        &self.entries[self.rows[at] as usize..self.rows[at + 1] as usize]
    }

    /// A mask: one word per key, bit `i` for query `i` of the tile.
    pub fn mask(&self, number: u32) -> Option<&[u64]> {
        let at = number as usize * self.tile_keys;
        (number != Entry::FULL).then(|| &self.masks[at..at + self.tile_keys])
    }

    /// All tiles kept, over heads.
    pub fn tiles(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_causal_pattern_keeps_half_the_tiles_and_one_mask() {
        let list = BlockList::new(1, 256, 256, &|_, i, j| j <= i).unwrap();
        assert_eq!((list.tiles(), list.masks.len()), (10, 64));
        for i in 0..256 {
            let mut seen = vec![false; 256];
            for entry in list.row(0, i / 64) {
                for j in 0..64 {
                    let allowed = list.mask(entry.mask).is_none_or(|m| m[j] >> (i % 64) & 1 == 1);
                    seen[entry.keys as usize * 64 + j] = allowed;
                }
            }
            assert!(seen.iter().enumerate().all(|(j, &seen)| seen == (j <= i)));
        }
    }
}
