//! What a pattern keeps of the score matrix, by units of 64 queries and 64 keys.

use aerogel_graph::{Coverage, Pattern};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Positions of a unit.
pub(super) const UNIT: usize = 64;
/// A code: every pair of the unit.
pub(super) const FULL: u32 = 0xffff_ffff;
/// A code: no pair.
pub(super) const EMPTY: u32 = 0xffff_fffe;

/// How positions of queries and of keys are cut in units: a unit starts every `steps` positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Cut {
    /// Sequences next to one another; 1 without packing.
    pub columns: usize,
    /// Positions of one of them: queries, keys.
    pub lengths: [usize; 2],
    /// Positions from unit to unit: queries, keys.
    pub steps: [usize; 2],
    /// Whether kernels take columns apart.
    pub packed: bool,
}

impl Cut {
    /// One sequence.
    pub fn whole(lengths: [usize; 2]) -> Cut {
        Cut { columns: 1, lengths, steps: [UNIT; 2], packed: false }
    }

    /// Many short sequences: whole ones in a unit, if they fit.
    pub fn packed(columns: usize, lengths: [usize; 2]) -> Cut {
        let longest = lengths[0].max(lengths[1]);
        let steps = match UNIT / longest {
            0 => [UNIT; 2],
            count => lengths.map(|length| count * length),
        };
        Cut { columns, lengths, steps, packed: true }
    }

    /// All positions: queries, keys.
    pub fn positions(&self) -> [usize; 2] {
        self.lengths.map(|length| length * self.columns)
    }

    /// All units: queries, keys.
    pub fn units(&self) -> [usize; 2] {
        let [queries, keys] = self.positions();
        [queries.div_ceil(self.steps[0]), keys.div_ceil(self.steps[1])]
    }
}

/// A pair of units that has a pair of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seen {
    pub query: u32,
    pub key: u32,
    /// [`FULL`], or the number of a mask.
    pub code: u32,
}

/// All of them, for every kind of head.
#[derive(Debug)]
pub(super) struct Kept {
    /// Units of queries, of keys.
    pub units: [usize; 2],
    /// By kind: rising in queries, then in keys.
    pub kinds: Vec<Vec<Seen>>,
    /// Masks, once each: 64 words of 64 bits by query, then by key. At least one.
    pub masks: Arc<[u8]>,
}

impl Kept {
    /// Asks the pattern about stretches, and for pairs only where that is not enough.
    pub fn new(pattern: &Pattern, kinds: usize, cut: &Cut) -> Kept {
        let mut walk = Walk::new(pattern, cut);
        let units = cut.units();
        let kinds = (0..kinds)
            .map(|head| {
                walk.period = period(pattern, head, cut);
                walk.again.clear();
                (0..units[0]).for_each(|unit| walk.stretch(head, unit, 0..units[1]));
                std::mem::take(&mut walk.out)
            })
            .collect();
        walk.masks.resize(walk.masks.len().max(2 * UNIT), 0);
        let masks = walk.masks.iter().flat_map(|word| word.to_le_bytes()).collect();
        Kept { units, kinds, masks }
    }

    /// Units of keys that a unit of queries sees, on average.
    pub fn mean(&self) -> f64 {
        let seen: usize = self.kinds.iter().map(Vec::len).sum();
        seen as f64 / (self.kinds.len() * self.units[0]).max(1) as f64
    }

    /// Whether every unit of queries sees one unit of keys and the other way round.
    pub fn in_pairs(&self) -> bool {
        let [queries, keys] = self.units;
        let alike = |of: &Vec<Seen>| {
            of.len() == queries && of.iter().zip(0..).all(|(s, n)| (s.query, s.key) == (n, n))
        };
        queries == keys && self.kinds.iter().all(alike)
    }
}

struct Walk<'a> {
    pattern: &'a Pattern,
    cut: &'a Cut,
    known: HashMap<[u64; UNIT], u32>,
    masks: Vec<u64>,
    out: Vec<Seen>,
    /// A shift of queries and keys together that changes nothing.
    period: Option<usize>,
    /// Codes of units that others are shifts of.
    again: HashMap<[usize; 4], u32>,
}

impl<'a> Walk<'a> {
    fn new(pattern: &'a Pattern, cut: &'a Cut) -> Walk<'a> {
        let (known, again) = (HashMap::new(), HashMap::new());
        Walk { pattern, cut, known, masks: vec![], out: vec![], period: None, again }
    }

    /// Units of keys `keys` against a unit of queries: as one, or by halves.
    fn stretch(&mut self, head: usize, unit: usize, keys: Range<usize>) {
        if keys.is_empty() {
            return;
        }
        let [step, key_step] = self.cut.steps;
        let [queries, all] = self.cut.positions();
        let q = (unit * step, ((unit + 1) * step).min(queries));
        let k = (keys.start * key_step, (keys.end * key_step).min(all));
        let whole = key_step == UNIT && k.1 == keys.end * key_step;
        match self.coverage(head, q, k) {
            Coverage::Empty => {}
            Coverage::Full if whole => keys.for_each(|key| self.push(unit, key, FULL)),
            _ if keys.len() == 1 => self.unit(head, (unit, q), (keys.start, k)),
            _ => {
                let middle = usize::midpoint(keys.start, keys.end);
                self.stretch(head, unit, keys.start..middle);
                self.stretch(head, unit, middle..keys.end);
            }
        }
    }

    fn push(&mut self, query: usize, key: usize, code: u32) {
        self.out.push(Seen { query: query as u32, key: key as u32, code });
    }

    /// Packed columns see nothing of one another.
    fn coverage(&self, head: usize, q: (usize, usize), k: (usize, usize)) -> Coverage {
        if self.cut.columns == 1 {
            return self.pattern.coverage(head, q, k);
        }
        let [queries, keys] = self.cut.lengths;
        match q.0 / queries <= (k.1 - 1) / keys && k.0 / keys <= (q.1 - 1) / queries {
            true => Coverage::Partial,
            false => Coverage::Empty,
        }
    }

    /// One unit, pair by pair, unless a shift of it is known.
    fn unit(&mut self, head: usize, q: (usize, (usize, usize)), k: (usize, (usize, usize))) {
        let ((query, q), (key, k)) = (q, k);
        let all = self.cut.positions()[1];
        let shape = [q.1 - q.0, k.1 - k.0];
        let place = self.period.map(|n| [q.0 % n, all + q.0 - k.0, shape[0], shape[1]]);
        let known = place.and_then(|place| self.again.get(&place).copied());
        let code = known.unwrap_or_else(|| self.code(head, q, k));
        if let Some(place) = place {
            self.again.insert(place, code);
        }
        if code != EMPTY {
            self.push(query, key, code);
        }
    }

    /// The code of queries `q` against keys `k`, one unit of either.
    fn code(&mut self, head: usize, q: (usize, usize), k: (usize, usize)) -> u32 {
        let [queries, keys] = self.cut.lengths;
        let (mut by_query, mut by_key) = ([0u64; UNIT], [0u64; UNIT]);
        for (row, i) in (q.0..q.1).enumerate() {
            for (column, j) in (k.0..k.1).enumerate() {
                let own = i / queries == j / keys;
                let seen = own && self.pattern.allows(head, i % queries, j % keys);
                by_query[row] |= u64::from(seen) << column;
                by_key[column] |= u64::from(seen) << row;
            }
        }
        let rows = &by_query[..q.1 - q.0];
        if rows.iter().all(|&word| word == u64::MAX) {
            return FULL;
        }
        if rows.iter().all(|&word| word == 0) {
            return EMPTY;
        }
        let next = self.known.len() as u32;
        let code = *self.known.entry(by_query).or_insert(next);
        if code == next {
            self.masks.extend(by_query.iter().chain(&by_key));
        }
        code
    }
}

/// By how much queries and keys may move together.
fn period(pattern: &Pattern, head: usize, cut: &Cut) -> Option<usize> {
    let [queries, keys] = cut.lengths;
    if cut.columns > 1 {
        return (queries == keys).then_some(queries);
    }
    match pattern {
        Pattern::Full | Pattern::Causal | Pattern::Before => Some(1),
        Pattern::Local(_) | Pattern::Strided(_) => Some(1),
        Pattern::Block(block) | Pattern::Summary { block, .. } => Some(*block),
        Pattern::Columns { .. } => None,
        Pattern::Union(a, b) => {
            let (a, b) = (period(a, head, cut)?, period(b, head, cut)?);
            if b.is_multiple_of(a) { Some(b) } else { a.is_multiple_of(b).then_some(a) }
        }
        Pattern::PerHead(list) => period(&list[head % list.len()], head, cut),
    }
}
