//! A board: where the members of one group meet.

use crate::peers::Spot;
use aerogel_graph::{DType, Mesh};
use aerogel_machine::{Call, Pattern};
use std::sync::Arc;
use std::time::Instant;

/// What all members must agree on.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    pattern: Pattern,
    dtype: DType,
    elements: usize,
    rows: usize,
    site: Arc<str>,
}

impl Want {
    pub(crate) fn of(call: &Call) -> Want {
        let Call { pattern, dtype, elements, rows, .. } = *call;
        Want { pattern, dtype, elements, rows, site: call.site.clone() }
    }

    fn agrees(&self, other: &Want) -> bool {
        let key = |w: &Want| (w.pattern, w.dtype, w.elements, w.rows);
        key(self) == key(other) && self.site == other.site
    }

    /// `all_reduce (sum) of 1024 f32 over [data] at micro node 12`.
    fn show(&self, over: &str) -> String {
        let name = self.pattern.name();
        let detail = match self.pattern {
            Pattern::AllReduce(by) => format!(" ({})", by.name()),
            Pattern::Broadcast { root } => format!(" (from member {root})"),
            Pattern::Permute { by } => format!(" (by {by})"),
            _ => String::new(),
        };
        let rows = if self.rows == 1 { String::new() } else { format!(" in {} rows", self.rows) };
        let (elements, dtype, site) = (self.elements, self.dtype, &self.site);
        format!("{name}{detail} of {elements} {dtype}{rows} over [{over}] at {site}")
    }
}

/// Who stands here, with what.
#[derive(Debug)]
pub(crate) struct Posted {
    pub(crate) want: Want,
    pub(crate) spot: Spot,
}

/// Where one group meets, call after call.
#[derive(Debug)]
pub(crate) struct Board {
    /// The ranks of the group, in the order of its members.
    pub(crate) ranks: Arc<[usize]>,
    /// Names of the mesh axes, for messages.
    over: String,
    posted: Vec<Option<Posted>>,
    /// Members that reached the end of the present phase.
    count: usize,
    /// Grows whenever all have reached the end of one.
    pub(crate) phase: u64,
    /// Who came first to the present call.
    first: usize,
    /// Since when members stand here with different calls.
    pub(crate) odd_since: Option<Instant>,
}

impl Board {
    pub(crate) fn new(mesh: &Mesh, over: &[u8], ranks: Arc<[usize]>) -> Board {
        let names: Vec<&str> = over.iter().map(|&m| mesh.0[m as usize].0.as_str()).collect();
        let over = names.join(" ");
        let posted = ranks.iter().map(|_| None).collect();
        Board { ranks, over, posted, count: 0, phase: 0, first: 0, odd_since: None }
    }

    /// A member comes; true if it is the last one and all agree.
    pub(crate) fn post(&mut self, member: usize, posted: Posted, now: Instant) -> bool {
        if self.count == 0 {
            self.first = member;
        }
        if let Some(first) = &self.posted[self.first]
            && !first.want.agrees(&posted.want)
        {
            self.odd_since.get_or_insert(now);
        }
        self.posted[member] = Some(posted);
        if self.odd_since.is_none() {
            return self.step();
        }
        // Where calls differ the phase must not end: their buffers do not fit one another.
        self.count += 1;
        false
    }

    /// A member reaches the end of a phase; true if it is the last.
    pub(crate) fn step(&mut self) -> bool {
        self.count += 1;
        let last = self.count == self.ranks.len();
        if last {
            self.count = 0;
            self.phase += 1;
        }
        last
    }

    /// All have left: the next call may begin.
    pub(crate) fn clear(&mut self) {
        self.posted.iter_mut().for_each(|p| *p = None);
    }

    /// The buffers of all members, who must be here.
    pub(crate) fn copy_spots(&self, to: &mut Vec<Spot>) {
        to.clear();
        to.extend(self.posted.iter().flatten().map(|p| p.spot));
    }

    /// The ranks that are here.
    pub(crate) fn present(&self) -> impl Iterator<Item = usize> {
        self.posted.iter().zip(&*self.ranks).filter(|(p, _)| p.is_some()).map(|(_, &rank)| rank)
    }

    /// The ranks that are not.
    pub(crate) fn absent(&self) -> impl Iterator<Item = usize> {
        self.posted.iter().zip(&*self.ranks).filter(|(p, _)| p.is_none()).map(|(_, &rank)| rank)
    }

    /// What a rank came to.
    pub(crate) fn show(&self, rank: usize) -> String {
        let at = self.ranks.iter().position(|&r| r == rank);
        let posted = at.and_then(|member| self.posted[member].as_ref());
        posted.map_or_else(|| "nothing".to_owned(), |p| p.want.show(&self.over))
    }

    /// The ranks that are here, by what they came to: the most first, among as many those of the
    /// lower members first.
    pub(crate) fn parties(&self) -> Vec<Vec<usize>> {
        let mut parties: Vec<(&Want, Vec<usize>)> = vec![];
        for (posted, &rank) in self.posted.iter().zip(&*self.ranks) {
            let Some(Posted { want, .. }) = posted else { continue };
            match parties.iter_mut().find(|p| p.0.agrees(want)) {
                Some(party) => party.1.push(rank),
                None => parties.push((want, vec![rank])),
            }
        }
        parties.sort_by_key(|p| std::cmp::Reverse(p.1.len()));
        parties.into_iter().map(|p| p.1).collect()
    }
}
