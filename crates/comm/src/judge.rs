//! Who is to blame when a rank waits: asked by those who wait, when they wake and when time is up.

use crate::sign::Sign;
use crate::state::{State, Wait};
use aerogel_machine::CommError;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// What a waiting rank is told.
pub(crate) enum Verdict {
    /// Wait, and ask again after this long.
    Wait(Duration),
    /// It is over: the error, and the ranks that it concerns.
    Broken(CommError, Vec<usize>),
}

/// Everything that is known at one moment.
pub(crate) struct Judge<'a> {
    pub(crate) state: &'a State,
    pub(crate) signs: &'a [Sign],
    pub(crate) timeout: Duration,
    pub(crate) now: Instant,
}

impl Judge<'_> {
    /// On a rank that has been waiting for something since some time.
    pub(crate) fn verdict(&self, rank: usize, wait: Wait, since: Instant) -> Verdict {
        let gone = self.state.find_awaited(wait, |r| self.state.ranks[r].gone.is_some());
        let mut rest = self.timeout.saturating_sub(self.now.saturating_duration_since(since));
        match self.grace(wait, gone.is_some()) {
            Some(Duration::ZERO) => return self.mismatch(wait),
            Some(grace) => rest = rest.min(grace),
            None => {}
        }
        if let Some(gone) = gone {
            return self.gone(gone, rank, wait);
        }
        if !rest.is_zero() {
            return Verdict::Wait(rest);
        }
        let again = (self.timeout / 8).max(Duration::from_millis(1));
        self.silence(rank, since).unwrap_or(Verdict::Wait(again))
    }

    /// How long to wait before members with different calls are judged: until it is clear who the
    /// odd one is, but not for long. `None` if all agree.
    fn grace(&self, wait: Wait, gone: bool) -> Option<Duration> {
        let Wait::Board(board) = wait else { return None };
        let board = &self.state.boards[board];
        let since = board.odd_since?;
        let most = board.parties()[0].len();
        if gone || 2 * most > board.ranks.len() || board.absent().next().is_none() {
            return Some(Duration::ZERO);
        }
        Some((self.timeout / 4).saturating_sub(self.now.saturating_duration_since(since)))
    }

    fn mismatch(&self, wait: Wait) -> Verdict {
        let Wait::Board(board) = wait else { return Verdict::Wait(Duration::ZERO) };
        let board = &self.state.boards[board];
        let parties = board.parties();
        let (other, rank) = (parties[0][0], parties[parties.len() - 1][0]);
        let (got, wanted) = (board.show(rank), board.show(other));
        let error = CommError::Mismatch { rank, got, other, wanted };
        Verdict::Broken(error, board.present().collect())
    }

    fn gone(&self, gone: usize, rank: usize, wait: Wait) -> Verdict {
        let reason = self.state.ranks[gone].gone.clone().unwrap_or_default();
        let call = self.show(rank, wait);
        let error = CommError::Gone { rank: gone, reason, waiting: rank, call };
        Verdict::Broken(error, self.state.company(rank, wait))
    }

    /// After a rank has waited for the whole timeout: follows who waits for whom to those that do
    /// not wait. One of these that gave no sign of life is missing. If there is none, ranks wait
    /// in a circle, which is a mismatch between groups.
    fn silence(&self, rank: usize, since: Instant) -> Option<Verdict> {
        let reached = self.reached(rank);
        let state = self.state;
        let silent = |r: usize| self.signs[r].silence(self.now) >= self.timeout;
        let blocked = |r: usize| !state.ranks[r].waits.is_empty();
        let missing = |&&r: &&usize| !blocked(r) && silent(r) && state.ranks[r].gone.is_none();
        if let Some(&missing) = reached.iter().find(missing) {
            return self.missing(missing, &reached, since);
        }
        let circle = reached.iter().all(|&r| blocked(r) && silent(r));
        circle.then(|| self.circle(&reached)).flatten()
    }

    fn missing(
        &self,
        missing: usize,
        reached: &BTreeSet<usize>,
        since: Instant,
    ) -> Option<Verdict> {
        let (rank, wait) = self.waiter_of(missing, reached)?;
        let error = CommError::Missing {
            missing,
            rank,
            call: self.show(rank, wait),
            last: self.signs[missing].show(self.now),
            seconds: self.now.saturating_duration_since(since).as_secs_f64(),
        };
        Some(Verdict::Broken(error, self.state.company(rank, wait)))
    }

    /// Ranks that wait for one another, in groups that each lack somebody. Of each two such ranks
    /// the waiting one should be ahead of the one that it waits for, so the two where this is least
    /// true are named, and as the odd one of them who stands with fewer.
    fn circle(&self, reached: &BTreeSet<usize>) -> Option<Verdict> {
        let lead = |rank: usize| self.state.ranks[rank].entered as i64;
        let edges = reached.iter().flat_map(|&waiter| {
            self.waits(waiter)
                .flat_map(move |(wait, all)| all.into_iter().map(move |r| (waiter, wait, r)))
        });
        let circular =
            edges.filter(|&(waiter, _, awaited)| self.reached(awaited).contains(&waiter));
        let (waiter, wait, awaited) =
            circular.min_by_key(|&(waiter, _, awaited)| lead(waiter) - lead(awaited))?;
        let of_awaited = self.state.ranks[awaited].waits.first().copied()?;
        let mut two = [(waiter, wait), (awaited, of_awaited)];
        two.sort_by_key(|&(rank, wait)| self.state.company(rank, wait).len());
        let [(rank, wait), (other, of_other)] = two;
        let (got, wanted) = (self.show(rank, wait), self.show(other, of_other));
        let error = CommError::Mismatch { rank, got, other, wanted };
        let all = reached.iter().flat_map(|&r| {
            self.state.ranks[r].waits.iter().flat_map(move |&w| self.state.company(r, w))
        });
        Some(Verdict::Broken(error, all.collect::<BTreeSet<_>>().into_iter().collect()))
    }

    /// A rank and all whom it waits for, and whom these wait for.
    fn reached(&self, rank: usize) -> BTreeSet<usize> {
        let mut reached = BTreeSet::from([rank]);
        let mut open = vec![rank];
        while let Some(rank) = open.pop() {
            for (_, awaited) in self.waits(rank) {
                open.extend(awaited.into_iter().filter(|&r| reached.insert(r)));
            }
        }
        reached
    }

    /// Everything that a rank waits for, and whom it waits for there.
    fn waits(&self, rank: usize) -> impl Iterator<Item = (Wait, Vec<usize>)> {
        self.state.ranks[rank].waits.iter().map(|&wait| (wait, self.state.awaited(wait)))
    }

    /// The lowest rank that waits for this one itself.
    fn waiter_of(&self, rank: usize, reached: &BTreeSet<usize>) -> Option<(usize, Wait)> {
        let waits = reached.iter().flat_map(|&r| self.waits(r).map(move |w| (r, w)));
        let found = waits.into_iter().find(|(_, (_, awaited))| awaited.contains(&rank));
        found.map(|(waiter, (wait, _))| (waiter, wait))
    }

    fn show(&self, rank: usize, wait: Wait) -> String {
        match wait {
            Wait::Board(board) => self.state.boards[board].show(rank),
            Wait::Message { from, tag, bytes } => {
                let site = self.signs[rank].site();
                format!("receive of {bytes} bytes from rank {from} (tag {tag}) at {site}")
            }
        }
    }
}
