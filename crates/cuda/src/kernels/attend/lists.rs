//! Lists of units as kernels read them: `first`, `entries` and `order` of `Params`.

use super::seen::{EMPTY, Kept, Seen};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// Which lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Of {
    /// Units of keys, for each tile of so many units of queries.
    Rows(usize),
    /// Units of queries, for each tile of so many units of keys.
    Columns(usize),
    /// Visits of stretches of so many units of either, for `attend_band`.
    Band(usize),
}

/// Lists of a launch.
#[derive(Debug)]
pub(super) struct Lists {
    /// `u32[kinds * tiles + 1]`.
    pub first: Arc<[u8]>,
    /// Four words each.
    pub entries: Arc<[u8]>,
    /// `u32[kinds][tiles]`: the tile with most work first.
    pub order: Arc<[u8]>,
    /// Of a head.
    pub tiles: usize,
    /// Of gradients that wait in shared memory; `attend_band` alone.
    pub slots: usize,
}

impl Lists {
    /// Makes them. None if more gradients of queries would wait than a visit can number.
    pub fn new(kept: &Kept, of: Of) -> Option<Lists> {
        match of {
            Of::Rows(tile) => {
                let own = |s: &Seen| (s.query, s.key);
                Some(tiles(kept, kept.units[0].div_ceil(tile), tile as u32, own))
            }
            Of::Columns(tile) => {
                let own = |s: &Seen| (s.key, s.query);
                Some(tiles(kept, kept.units[1].div_ceil(tile), tile as u32, own))
            }
            Of::Band(stretch) => band(kept, stretch),
        }
    }
}

/// What grows, tile by tile.
struct Builder {
    first: Vec<u32>,
    entries: Vec<[u32; 4]>,
    order: Vec<u32>,
    work: Vec<usize>,
}

impl Builder {
    fn new() -> Builder {
        Builder { first: vec![0], entries: vec![], order: vec![], work: vec![] }
    }

    fn end_tile(&mut self, work: usize) {
        self.first.push(self.entries.len() as u32);
        self.work.push(work);
    }

    fn end_kind(&mut self) {
        let work = std::mem::take(&mut self.work);
        let mut ranked: Vec<u32> = (0..work.len() as u32).collect();
        ranked.sort_by_key(|&tile| std::cmp::Reverse(work[tile as usize]));
        self.order.extend(ranked);
    }

    fn finish(mut self, tiles: usize, slots: usize) -> Lists {
        if self.entries.is_empty() {
            self.entries.push([0; 4]);
        }
        let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let (first, order) = (bytes(&self.first), bytes(&self.order));
        Lists { first, entries: bytes(self.entries.as_flattened()), order, tiles, slots }
    }
}

/// Lists of tiles of one side; `own` turns what is seen to that side and the other.
fn tiles(kept: &Kept, count: usize, per_tile: u32, own: impl Fn(&Seen) -> (u32, u32)) -> Lists {
    let mut lists = Builder::new();
    for of in &kept.kinds {
        let turned = of.iter().map(|s| {
            let (own, far) = own(s);
            (own / per_tile, far, own % per_tile, s.code)
        });
        let mut all: Vec<(u32, u32, u32, u32)> = turned.collect();
        all.sort_unstable();
        let mut rest = all.as_slice();
        for tile in 0..count as u32 {
            let (of_tile, after) = rest.split_at(rest.partition_point(|s| s.0 == tile));
            rest = after;
            for units in of_tile.chunk_by(|a, b| a.1 == b.1) {
                let mut entry = [units[0].1, EMPTY, EMPTY, 0];
                units.iter().for_each(|&(_, _, half, code)| entry[1 + half as usize] = code);
                lists.entries.push(entry);
            }
            lists.end_tile(of_tile.len());
        }
        lists.end_kind();
    }
    lists.finish(count, 0)
}

// Flags of a visit, beside its slot.
const QUERY_FIRST: u32 = 1 << 8;
const QUERY_LAST: u32 = 1 << 9;
const QUERY_OWN: u32 = 1 << 10;
const KEY_OWN: u32 = 1 << 11;
const KEY_FIRST: u32 = 1 << 12;
const KEY_LAST: u32 = 1 << 13;

/// Key, query, code: in the order in which a stretch visits them.
type Visit = (u32, u32, u32);

fn band(kept: &Kept, stretch: usize) -> Option<Lists> {
    let count = kept.units[0].max(kept.units[1]).div_ceil(stretch);
    let (mut lists, mut slots) = (Builder::new(), 1);
    for of in &kept.kinds {
        let by_query: Vec<Visit> = of.iter().map(|s| (s.key, s.query, s.code)).collect();
        let mut by_key = by_query.clone();
        by_key.sort_unstable();
        for tile in 0..count {
            let own = (tile * stretch) as u32..((tile + 1) * stretch) as u32;
            let mut visits = BTreeSet::new();
            add_own(&mut visits, &by_query, &own, kept.units[0], |v| v.1, |u| (0, u, EMPTY));
            add_own(&mut visits, &by_key, &own, kept.units[1], |v| v.0, |u| (u, 0, EMPTY));
            let visits: Vec<Visit> = visits.into_iter().collect();
            slots = slots.max(flag(&visits, &own, &mut lists.entries)?);
            lists.end_tile(visits.len());
        }
        lists.end_kind();
    }
    Some(lists.finish(count, slots))
}

/// The visits of the own units of one side, which lie together in `all`; one of nothing for a unit
/// that sees nothing, since its gradient is to be written.
fn add_own(
    visits: &mut BTreeSet<Visit>,
    all: &[Visit],
    own: &Range<u32>,
    units: usize,
    side: impl Fn(&Visit) -> u32,
    nothing: impl Fn(u32) -> Visit,
) {
    for unit in own.start..own.end.min(units as u32) {
        let from = &all[all.partition_point(|v| side(v) < unit)..];
        match from.partition_point(|v| side(v) == unit) {
            0 => _ = visits.insert(nothing(unit)),
            count => visits.extend(&from[..count]),
        }
    }
}

/// Writes visits with their flags; returns how many slots they take. A query waits in the lowest
/// slot that is free, from its first visit to its last.
fn flag(visits: &[Visit], own: &Range<u32>, entries: &mut Vec<[u32; 4]>) -> Option<usize> {
    let last: BTreeMap<u32, usize> = visits.iter().enumerate().map(|(n, v)| (v.1, n)).collect();
    let mut free: BTreeSet<u32> = (0..256).collect();
    let (mut held, mut slots) = (BTreeMap::new(), 1);
    for (n, &(key, query, code)) in visits.iter().enumerate() {
        let mut flags = if own.contains(&key) { KEY_OWN } else { 0 };
        if n == 0 || visits[n - 1].0 != key {
            flags |= KEY_FIRST;
        }
        if visits.get(n + 1).is_none_or(|next| next.0 != key) {
            flags |= KEY_LAST;
        }
        if own.contains(&query) {
            flags |= QUERY_OWN;
            let slot = match held.get(&query) {
                Some(&slot) => slot,
                None => {
                    flags |= QUERY_FIRST;
                    let slot = free.pop_first()?;
                    held.insert(query, slot);
                    slot
                }
            };
            slots = slots.max(slot as usize + 1);
            flags |= slot;
            if last[&query] == n {
                flags |= QUERY_LAST;
                held.remove(&query);
                free.insert(slot);
            }
        }
        entries.push([key, code, query, flags]);
    }
    Some(slots)
}
