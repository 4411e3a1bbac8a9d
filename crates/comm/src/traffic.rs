//! Counters of what one rank sent.

use aerogel_machine::{Pattern, Traffic};

const NAMES: [&str; 8] = [
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "broadcast",
    "permute",
    "barrier",
    "send",
];

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    calls: u64,
    sent_bytes: u64,
}

/// By list of mesh axes and pattern.
#[derive(Debug)]
pub(crate) struct Counts(Vec<[Count; NAMES.len()]>);

impl Counts {
    /// Nothing yet, for so many lists of axes.
    pub(crate) fn new(overs: usize) -> Counts {
        Counts(vec![Default::default(); overs])
    }

    /// A call ended.
    pub(crate) fn add(&mut self, over: usize, name: &'static str, sent_bytes: u64) {
        let at = NAMES.iter().position(|&n| n == name).unwrap_or(NAMES.len() - 1);
        let count = &mut self.0[over][at];
        count.calls += 1;
        count.sent_bytes += sent_bytes;
    }

    /// Everything that happened at all, in the order of patterns.
    pub(crate) fn list(&self, overs: &[Vec<u8>]) -> Vec<Traffic> {
        let mut list: Vec<Traffic> = vec![];
        for (counts, over) in self.0.iter().zip(overs) {
            let called = counts.iter().zip(NAMES).filter(|(c, _)| c.calls > 0);
            list.extend(called.map(|(count, pattern)| Traffic {
                pattern,
                over: over.clone(),
                calls: count.calls,
                sent_bytes: count.sent_bytes,
            }));
        }
        list.sort();
        list
    }
}

/// Bytes that a member sends with the cheapest algorithm, those of a ring; of a broadcast the root
/// alone is counted.
pub(crate) fn ring_bytes(pattern: Pattern, bytes: usize, member: usize, members: usize) -> u64 {
    let (n, others) = (bytes as u64, members as u64 - 1);
    match pattern {
        Pattern::AllReduce(_) => 2 * n * others / members as u64,
        Pattern::AllGather => n * others,
        Pattern::ReduceScatter | Pattern::AllToAll => n * others / members as u64,
        Pattern::Broadcast { root } if root == member && members > 1 => n,
        Pattern::Permute { by } if !by.is_multiple_of(members) => n,
        Pattern::Broadcast { .. } | Pattern::Permute { .. } | Pattern::Barrier => 0,
    }
}
