//! Lists, against the patterns that they are made of.

use crate::kernels::attend::lists::{Lists, Of};
use crate::kernels::attend::seen::{Cut, EMPTY, FULL, Kept, UNIT};
use aerogel_graph::Pattern;
use std::collections::{BTreeMap, BTreeSet};

pub(super) const PATTERNS: [&str; 13] = [
    "full",
    "causal",
    "before",
    "local(50)",
    "local(128)",
    "strided(9)",
    "block(40)",
    "summary(40,3)",
    "columns(40,8)",
    "columns_strict(20,5)",
    "union(local(30),strided(25))",
    "per_head(local(30),block(64),causal)",
    "per_head(union(block(70),summary(35,2)),per_head(before,full))",
];

pub(super) fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Whether a code has a pair, read by query or by key; both must say the same.
pub(super) fn has(masks: &[u32], code: u32, query: usize, key: usize) -> bool {
    if code == FULL || code == EMPTY {
        return code == FULL;
    }
    let of = &masks[code as usize * 256..][..256];
    let by_query = of[2 * query + key / 32] >> (key % 32) & 1;
    assert_eq!(by_query, of[128 + 2 * key + query / 32] >> (query % 32) & 1);
    by_query == 1
}

/// All pairs of positions that a pattern allows, of packed columns.
fn wanted(pattern: &Pattern, head: usize, cut: &Cut) -> BTreeSet<(usize, usize)> {
    let [queries, keys] = cut.lengths;
    let all = (0..cut.columns).flat_map(|c| {
        let pairs = (0..queries).flat_map(move |i| (0..keys).map(move |j| (i, j)));
        let own = pairs.filter(|&(i, j)| pattern.allows(head, i, j));
        own.map(move |(i, j)| (c * queries + i, c * keys + j))
    });
    all.collect()
}

/// The pairs of a unit of queries and one of keys, as positions that exist.
fn pairs(masks: &[u32], code: u32, at: (u32, u32), cut: &Cut) -> Vec<(usize, usize)> {
    let (first_query, first_key) = (at.0 as usize * cut.steps[0], at.1 as usize * cut.steps[1]);
    let mut out = vec![];
    for row in 0..UNIT {
        for column in 0..UNIT {
            if has(masks, code, row, column) {
                let (i, j) = (first_query + row, first_key + column);
                assert!(j < cut.positions()[1], "a key past the end");
                assert!(code == FULL || (row < cut.steps[0] && column < cut.steps[1]));
                out.extend((i < cut.positions()[0]).then_some((i, j)));
            }
        }
    }
    out
}

fn check_tiles(pattern: &Pattern, kept: &Kept, cut: &Cut, of: Of) {
    let lists = Lists::new(kept, of).unwrap();
    let (tile, turned) = match of {
        Of::Rows(tile) => (tile, false),
        Of::Columns(tile) | Of::Band(tile) => (tile, true),
    };
    let [first, entries, order, masks] =
        [&lists.first, &lists.entries, &lists.order, &kept.masks].map(|b| words(b));
    let count = kept.units[usize::from(turned)].div_ceil(tile);
    assert_eq!(lists.tiles, count);
    for head in 0..kept.kinds.len() {
        let mut got = BTreeSet::new();
        let mut work = vec![];
        for t in 0..count {
            let at = head * count + t;
            let list = entries[4 * first[at] as usize..4 * first[at + 1] as usize].chunks(4);
            assert!(list.clone().is_sorted_by(|a, b| a[0] < b[0]), "units rise");
            let mut halves = 0;
            for entry in list {
                for half in 0..2 {
                    let code = entry[1 + half];
                    assert!(half < tile || code == EMPTY);
                    let own = (t * tile + half) as u32;
                    let at = if turned { (entry[0], own) } else { (own, entry[0]) };
                    halves += usize::from(code != EMPTY);
                    let of = pairs(&masks, code, at, cut);
                    assert!(code == EMPTY || !of.is_empty(), "units without a pair are left out");
                    of.into_iter().for_each(|pair| assert!(got.insert(pair), "once each"));
                }
            }
            work.push(halves);
        }
        assert_eq!(got, wanted(pattern, head, cut), "{pattern} {cut:?} {of:?}");
        let ranked = &order[head * count..(head + 1) * count];
        let different: BTreeSet<u32> = ranked.iter().copied().collect();
        assert_eq!(different.len(), count);
        assert!(ranked.is_sorted_by(|&a, &b| work[a as usize] >= work[b as usize]));
    }
}

/// What `attend_band` does with its list: every gradient gets its pairs once, from one owner, and
/// waits in a slot of its own.
fn check_band(pattern: &Pattern, kept: &Kept, cut: &Cut, stretch: usize) {
    let lists = Lists::new(kept, Of::Band(stretch)).unwrap();
    let [first, entries, masks] = [&lists.first, &lists.entries, &kept.masks].map(|b| words(b));
    assert_eq!(lists.tiles, kept.units[0].max(kept.units[1]).div_ceil(stretch));
    for head in 0..kept.kinds.len() {
        let (mut of_queries, mut of_keys) = (BTreeSet::new(), BTreeSet::new());
        let (mut queries_left, mut keys_left) = (BTreeSet::new(), BTreeSet::new());
        for tile in 0..lists.tiles {
            let at = head * lists.tiles + tile;
            let list = entries[4 * first[at] as usize..4 * first[at + 1] as usize].chunks(4);
            assert!(list.clone().is_sorted_by(|a, b| (a[0], a[2]) < (b[0], b[2])));
            let (mut slots, mut key_now) = (BTreeMap::new(), None);
            for visit in list {
                let &[key, code, query, flags] = visit else { unreachable!() };
                let flag = |bit: u32| flags >> bit & 1 == 1;
                assert_eq!(flag(12), key_now != Some(key), "first of a key");
                key_now = (!flag(13)).then_some(key);
                let own = |unit: u32| unit as usize / stretch == tile;
                assert_eq!((flag(10), flag(11)), (own(query), own(key)));
                let of = pairs(&masks, code, (query, key), cut);
                if flag(10) {
                    let slot = flags & 0xff;
                    assert!((slot as usize) < lists.slots);
                    match flag(8) {
                        true => assert_eq!(slots.insert(slot, query), None, "nobody else's"),
                        false => assert_eq!(slots.get(&slot), Some(&query)),
                    }
                    of.iter().for_each(|pair| assert!(of_queries.insert(*pair)));
                    if flag(9) {
                        slots.remove(&slot);
                        assert!(queries_left.insert(query));
                    }
                }
                if flag(11) {
                    of.iter().for_each(|pair| assert!(of_keys.insert(*pair)));
                    assert!(!flag(13) || keys_left.insert(key));
                }
            }
            assert!(slots.is_empty() && key_now.is_none());
        }
        let all = wanted(pattern, head, cut);
        assert!(of_queries == all && of_keys == all, "{pattern} {cut:?}");
        assert_eq!([queries_left.len(), keys_left.len()], kept.units);
    }
}

#[test]
fn lists_say_what_patterns_say() {
    for text in PATTERNS {
        let pattern = Pattern::parse(text).unwrap();
        for lengths in [[190, 190], [333, 100], [64, 200], [1, 65]] {
            let cut = Cut::whole(lengths);
            let kept = Kept::new(&pattern, pattern.head_kinds(), &cut);
            for of in [Of::Rows(1), Of::Rows(2), Of::Columns(1), Of::Columns(2)] {
                check_tiles(&pattern, &kept, &cut, of);
            }
            [1, 3, 4].into_iter().for_each(|n| check_band(&pattern, &kept, &cut, n));
        }
    }
}

#[test]
fn packed_columns_see_nothing_of_one_another() {
    for text in PATTERNS {
        let pattern = Pattern::parse(text).unwrap();
        for (columns, lengths) in
            [(7, [32, 32]), (7, [24, 24]), (3, [96, 96]), (5, [16, 24]), (9, [2, 3]), (1, [50, 64])]
        {
            let cut = Cut::packed(columns, lengths);
            let kept = Kept::new(&pattern, pattern.head_kinds(), &cut);
            let of = [Of::Rows(1), Of::Columns(1)];
            of.into_iter().for_each(|of| check_tiles(&pattern, &kept, &cut, of));
        }
    }
}

#[test]
fn short_columns_meet_in_pairs() {
    let pairs = |text: &str, cut| Kept::new(&Pattern::parse(text).unwrap(), 1, &cut).in_pairs();
    assert!(pairs("causal", Cut::packed(7, [32, 32])));
    assert!(pairs("before", Cut::packed(5, [16, 24])));
    assert!(!pairs("causal", Cut::packed(7, [96, 96])));
    assert!(!pairs("columns_strict(32,8)", Cut::packed(7, [32, 8])), "no pair at all");
}

/// Time is that of the units kept, and equal units share a mask.
#[test]
fn long_patterns_have_few_masks() {
    for (text, masks) in [("causal", 1), ("local(128)", 2), ("block(128)", 1)] {
        let pattern = Pattern::parse(text).unwrap();
        let kept = Kept::new(&pattern, 1, &Cut::whole([1 << 15; 2]));
        assert_eq!(kept.masks.len(), masks * 1024, "{text}");
        let seen = pattern.pairs(0, 1 << 15, 1 << 15) as f64 / 4096.0;
        assert!((kept.kinds[0].len() as f64) < 1.6 * seen + 1024.0);
    }
}
