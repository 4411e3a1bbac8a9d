//! Attention patterns as lists of tiles: which tiles of keys a tile of queries sees.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use aerogel_graph::Coverage;

use crate::kernel::KernelError;

/// Whether a query may see a key: (head, query position, key position).
pub type Predicate = Arc<dyn Fn(usize, usize, usize) -> bool + Send + Sync>;

/// The side of a tile: a panel of the products, and the bits of a mask word.
pub const TILE: usize = 32;

/// Consecutive tiles of keys that a tile of queries sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number of the first key tile.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// Number of the mask that holds for each of them, or [`Entry::FULL`].
    pub mask: u32,
}

impl Entry {
    /// Every pair of the tiles is allowed.
    pub const FULL: u32 = u32::MAX;

    /// The key tiles.
    pub fn tiles(self) -> Range<usize> {
        self.first as usize..(self.first + self.count) as usize
    }
}

/// The allowed pairs of a tile, in both directions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mask {
    /// For each query, one bit per key.
    pub by_query: [u32; TILE],
    /// For each key, one bit per query.
    pub by_key: [u32; TILE],
}

/// The allowed tiles of a pattern; time in attention is proportional to their number.
///
/// Neighbours that are alike make one entry, and masks are kept once each, so the list of a causal
/// or a local pattern grows with the sequence and not with its square.
#[derive(Clone, Debug)]
pub struct BlockList {
    /// Heads with lists of their own: 1 if all share one.
    pub heads: usize,
    /// Queries.
    pub queries: usize,
    /// Keys.
    pub keys: usize,
    /// `rows[head * query_tiles + tile]`: where its entries begin; one more at the end.
    rows: Vec<usize>,
    entries: Vec<Entry>,
    masks: Vec<Mask>,
}

impl BlockList {
    /// Asks the predicate for every pair. `heads` is 1 if all heads share the pattern.
    ///
    /// # Errors
    /// If a size is zero.
    pub fn new(
        heads: usize,
        queries: usize,
        keys: usize,
        allowed: &dyn Fn(usize, usize, usize) -> bool,
    ) -> Result<BlockList, KernelError> {
        BlockList::with_coverage(heads, [queries, keys], allowed, &|_, _, _| Coverage::Partial)
    }

    /// Asks the predicate only for tiles of which `coverage` (of a head, queries `q.0..q.1` and
    /// keys `k.0..k.1`) does not know that they are empty or full. Stretches of keys that it calls
    /// empty or full are not looked into.
    ///
    /// # Errors
    /// If a size is zero, or there are more tiles of keys than 32 bits count.
    pub fn with_coverage(
        heads: usize,
        [queries, keys]: [usize; 2],
        allowed: &dyn Fn(usize, usize, usize) -> bool,
        coverage: &dyn Fn(usize, (usize, usize), (usize, usize)) -> Coverage,
    ) -> Result<BlockList, KernelError> {
        if [heads, queries, keys].contains(&0) || u32::try_from(keys.div_ceil(TILE)).is_err() {
            let what = format!(
                "{heads} heads, {queries} queries and {keys} keys must be positive, keys below 2^37"
            );
            return Err(KernelError::Unsupported { kernel: "attend", what });
        }
        let list =
            BlockList { heads, queries, keys, rows: vec![0], entries: vec![], masks: vec![] };
        let mut builder = Builder { list, known: HashMap::new(), allowed, coverage };
        for head in 0..heads {
            for row in 0..queries.div_ceil(TILE) {
                builder.stretch(head, row, 0..keys.div_ceil(TILE));
                builder.list.rows.push(builder.list.entries.len());
            }
        }
        Ok(builder.list)
    }

    /// The number of query tiles.
    pub fn query_tiles(&self) -> usize {
        self.queries.div_ceil(TILE)
    }

    /// The number of key tiles.
    pub fn key_tiles(&self) -> usize {
        self.keys.div_ceil(TILE)
    }

    /// The tiles of keys that a tile of queries sees, in rising order.
    pub fn row(&self, head: usize, query_tile: usize) -> &[Entry] {
        let head = if self.heads == 1 { 0 } else { head };
        let at = head * self.query_tiles() + query_tile;
        &self.entries[self.rows[at]..self.rows[at + 1]]
    }

    /// The mask of this number; none for [`Entry::FULL`].
    pub fn mask(&self, number: u32) -> Option<&Mask> {
        (number != Entry::FULL).then(|| &self.masks[number as usize])
    }

    /// All tiles kept, over heads.
    pub fn tiles(&self) -> usize {
        self.entries.iter().map(|entry| entry.count as usize).sum()
    }
}

struct Builder<'a> {
    list: BlockList,
    known: HashMap<Mask, u32>,
    allowed: &'a dyn Fn(usize, usize, usize) -> bool,
    coverage: &'a dyn Fn(usize, (usize, usize), (usize, usize)) -> Coverage,
}

impl Builder<'_> {
    /// Key tiles `cols` of a query tile: as one, or by halves.
    fn stretch(&mut self, head: usize, row: usize, cols: Range<usize>) {
        let queries = (row * TILE, ((row + 1) * TILE).min(self.list.queries));
        let keys = (cols.start * TILE, (cols.end * TILE).min(self.list.keys));
        match (self.coverage)(head, queries, keys) {
            Coverage::Empty => {}
            Coverage::Full if keys.1 == cols.end * TILE => self.push(cols, Entry::FULL),
            _ if cols.len() == 1 => self.tile(head, queries, keys, cols.start),
            _ => {
                let middle = cols.start + cols.len() / 2;
                self.stretch(head, row, cols.start..middle);
                self.stretch(head, row, middle..cols.end);
            }
        }
    }

    /// One tile, pair by pair. Keys beyond the last are forbidden ones.
    fn tile(&mut self, head: usize, queries: (usize, usize), keys: (usize, usize), col: usize) {
        let mut mask = Mask { by_query: [0; TILE], by_key: [0; TILE] };
        for (i, query) in (queries.0..queries.1).enumerate() {
            for (j, key) in (keys.0..keys.1).enumerate() {
                let bit = u32::from((self.allowed)(head, query, key));
                mask.by_query[i] |= bit << j;
                mask.by_key[j] |= bit << i;
            }
        }
        let seen = &mask.by_query[..queries.1 - queries.0];
        if seen.iter().all(|&word| word == 0) {
            return;
        }
        if seen.iter().all(|&word| word == u32::MAX) {
            return self.push(col..col + 1, Entry::FULL);
        }
        let masks = &mut self.list.masks;
        let number = *self.known.entry(mask).or_insert_with_key(|mask| {
            masks.push(mask.clone());
            masks.len() as u32 - 1
        });
        self.push(col..col + 1, number);
    }

    fn push(&mut self, cols: Range<usize>, mask: u32) {
        let row_begin = *self.list.rows.last().expect("rows begin with 0");
        if let Some(last) = self.list.entries[row_begin..].last_mut()
            && last.tiles().end == cols.start
            && last.mask == mask
        {
            last.count += cols.len() as u32;
            return;
        }
        self.list.entries.push(Entry { first: cols.start as u32, count: cols.len() as u32, mask });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aerogel_graph::Pattern;

    fn check(list: &BlockList, head: usize, allowed: impl Fn(usize, usize) -> bool) {
        for i in 0..list.queries {
            let mut seen = vec![false; list.key_tiles() * TILE];
            for entry in list.row(head, i / TILE) {
                let keys = entry.tiles().start * TILE..entry.tiles().end * TILE;
                for (j, seen) in keys.clone().zip(&mut seen[keys]) {
                    let (row, col) = (i % TILE, j % TILE);
                    *seen = list.mask(entry.mask).is_none_or(|mask| {
                        let bit = mask.by_query[row] >> col & 1;
                        assert_eq!(bit, mask.by_key[col] >> row & 1);
                        bit == 1
                    });
                }
            }
            for (j, &seen) in seen.iter().enumerate() {
                assert_eq!(seen, j < list.keys && allowed(i, j), "query {i}, key {j}");
            }
        }
    }

    #[test]
    fn a_causal_pattern_keeps_half_the_tiles_and_one_mask() {
        let list = BlockList::new(1, 256, 256, &|_, i, j| j <= i).unwrap();
        assert_eq!((list.tiles(), list.masks.len()), (36, 1));
        check(&list, 0, |i, j| j <= i);
    }

    #[test]
    fn coverage_changes_the_work_and_not_the_list() {
        let patterns =
            ["causal", "before", "local(50)", "strided(9)", "block(40)", "summary(40, 3)", "full"];
        for text in patterns {
            let pattern = Pattern::parse(text).unwrap();
            for [queries, keys] in [[200, 200], [70, 130], [31, 33]] {
                let allowed = |h: usize, i: usize, j: usize| pattern.allows(h, i, j);
                let coverage =
                    |h: usize, q: (usize, usize), k: (usize, usize)| pattern.coverage(h, q, k);
                let list =
                    BlockList::with_coverage(1, [queries, keys], &allowed, &coverage).unwrap();
                check(&list, 0, |i, j| pattern.allows(0, i, j));
            }
        }
    }

    /// The predicate is asked for the tiles on the edge of the pattern alone.
    #[test]
    fn planning_is_proportional_to_the_tiles() {
        for (text, tiles) in [("causal", 1), ("local(128)", 2), ("block(128)", 1)] {
            let pattern = Pattern::parse(text).unwrap();
            let asked = std::cell::Cell::new(0);
            let covered = std::cell::Cell::new(0);
            let allowed = |h: usize, i: usize, j: usize| {
                asked.set(asked.get() + 1);
                pattern.allows(h, i, j)
            };
            let coverage = |h: usize, q: (usize, usize), k: (usize, usize)| {
                covered.set(covered.get() + 1);
                pattern.coverage(h, q, k)
            };
            let n = 4096;
            let list = BlockList::with_coverage(1, [n, n], &allowed, &coverage).unwrap();
            assert!(asked.get() <= tiles * n * TILE, "{text}: {} pairs", asked.get());
            assert!(covered.get() <= n / TILE * 40, "{text}: {} stretches", covered.get());
            assert!(list.entries.len() <= 3 * n / TILE);
        }
    }
}
