//! The hub: what the ties of all ranks share, and how their threads block, wake and break.

use crate::board::{Board, Posted};
use crate::judge::{Judge, Verdict};
use crate::peers::Spot;
use crate::sign::Sign;
use crate::state::{Rank, State, Wait};
use aerogel_graph::Mesh;
use aerogel_machine::CommError;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A board, and which of its members a rank is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    pub(crate) board: usize,
    pub(crate) member: usize,
}

/// Shared by all ranks.
pub(crate) struct Hub {
    pub(crate) mesh: Mesh,
    /// Every list of different mesh axes; the first is empty.
    pub(crate) overs: Vec<Vec<u8>>,
    /// By list of axes and rank.
    pub(crate) seats: Vec<Vec<Seat>>,
    /// The ranks of every board.
    pub(crate) groups: Vec<Arc<[usize]>>,
    pub(crate) signs: Vec<Sign>,
    state: Mutex<State>,
    /// One for each rank, so that those alone wake who have something to do.
    bells: Vec<Condvar>,
    timeout: Duration,
}

impl Hub {
    /// Everything is made here; calls that repeat allocate nothing.
    pub(crate) fn new(mesh: Mesh, timeout: Duration) -> Hub {
        let ranks = mesh.ranks();
        let overs = overs(mesh.0.len() as u8);
        let nowhere = Seat { board: 0, member: 0 };
        let mut seats = vec![vec![nowhere; ranks]; overs.len()];
        let (mut boards, mut groups) = (vec![], vec![]);
        for (over, seats) in overs.iter().zip(&mut seats) {
            let first = |&r: &usize| over.iter().all(|&m| mesh.place(r).0[m as usize] == 0);
            for group in (0..ranks).filter(first).map(|r| mesh.group(r, over)) {
                let board = boards.len();
                for (member, &rank) in group.iter().enumerate() {
                    seats[rank] = Seat { board, member };
                }
                let group: Arc<[usize]> = group.into();
                boards.push(Board::new(&mesh, over, group.clone()));
                groups.push(group);
            }
        }
        let now = Instant::now();
        Hub {
            signs: (0..ranks).map(|_| Sign::new(now)).collect(),
            state: Mutex::new(State::new(
                boards,
                (0..ranks).map(|_| Rank::new(overs.len())).collect(),
            )),
            bells: (0..ranks).map(|_| Condvar::new()).collect(),
            mesh,
            overs,
            seats,
            groups,
            timeout,
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the threads of some ranks. Best called without the lock, which they want first.
    pub(crate) fn ring(&self, ranks: impl IntoIterator<Item = usize>) {
        ranks.into_iter().for_each(|rank| self.bells[rank].notify_all());
    }

    /// A rank found an error of its own.
    pub(crate) fn fail(&self, rank: usize, error: CommError) -> CommError {
        let mut state = self.lock();
        state.break_with(error.clone(), vec![rank]);
        let heard = state.hear(rank);
        drop(state);
        self.ring(0..self.bells.len());
        heard.err().unwrap_or(error)
    }

    /// Blocks until `done` gives something, or an error is found, by this rank or another.
    pub(crate) fn block<'a, T>(
        &self,
        mut state: MutexGuard<'a, State>,
        rank: usize,
        wait: Wait,
        mut done: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<(MutexGuard<'a, State>, T), CommError> {
        let since = Instant::now();
        loop {
            if let Some(found) = done(&mut state) {
                state.end(rank, wait);
                return Ok((state, found));
            }
            state.hear(rank)?;
            state.begin(rank, wait);
            let now = Instant::now();
            let (signs, timeout) = (&self.signs[..], self.timeout);
            match (Judge { state: &state, signs, timeout, now }).verdict(rank, wait, since) {
                Verdict::Wait(time) => {
                    let woken = self.bells[rank].wait_timeout(state, time);
                    state = woken.unwrap_or_else(PoisonError::into_inner).0;
                }
                Verdict::Broken(error, hearers) => {
                    state.break_with(error, hearers);
                    self.ring(0..self.bells.len());
                }
            }
        }
    }

    /// Comes to a board and waits for all others; then `spots` are the buffers of all.
    pub(crate) fn meet(
        &self,
        rank: usize,
        seat: Seat,
        posted: Posted,
        spots: &mut Vec<Spot>,
    ) -> Result<(), CommError> {
        let (wait, group) = (Wait::Board(seat.board), &self.groups[seat.board]);
        let mut state = self.lock();
        state.hear(rank)?;
        state.ranks[rank].entered += 1;
        let now = Instant::now();
        let board = &mut state.boards[seat.board];
        let phase = board.phase;
        if board.post(seat.member, posted, now) {
            board.copy_spots(spots);
            for &other in &**group {
                state.end(other, wait);
                self.signs[other].touch(now);
            }
            drop(state);
            self.ring(group.iter().copied().filter(|&other| other != rank));
            return Ok(());
        }
        if board.odd_since.is_some() {
            // Whoever waits may be able to judge now.
            self.ring(group.iter().copied().filter(|&other| other != rank));
        }
        let met = |state: &mut State| {
            let board = &state.boards[seat.board];
            (board.phase != phase).then(|| board.copy_spots(spots))
        };
        self.block(state, rank, wait, met).map(|_| ())
    }

    /// Ends a phase of an exchange that all members are in: waits for them, whatever happens
    /// elsewhere, since they read this thread's buffers. They all run and none of them blocks for
    /// anything else, so this needs no judge. The last one calls `then` before all go on.
    pub(crate) fn cross(
        &self,
        rank: usize,
        seat: Seat,
        then: impl FnOnce(&mut Board),
    ) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        let board = &mut state.boards[seat.board];
        let phase = board.phase;
        if board.step() {
            then(board);
            let group = self.groups[seat.board].iter().copied();
            self.ring(group.filter(|&other| other != rank));
            return state;
        }
        while state.boards[seat.board].phase == phase {
            state = self.bells[rank].wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    /// A rank ends. Those who wait for it find out at once.
    pub(crate) fn leave(&self, rank: usize, reason: &str) {
        let mut state = self.lock();
        state.ranks[rank].gone.get_or_insert_with(|| reason.to_owned());
        let waiting = |r: &usize| !state.ranks[*r].waits.is_empty();
        let waiting: Vec<usize> = (0..self.bells.len()).filter(waiting).collect();
        drop(state);
        self.ring(waiting);
    }
}

/// Every ordered choice of different axes out of so many: at most 65, of four.
fn overs(axes: u8) -> Vec<Vec<u8>> {
    let mut list = vec![vec![]];
    let mut at = 0;
    while at < list.len() {
        let shorter: Vec<u8> = list[at].clone();
        for axis in (0..axes).filter(|a| !shorter.contains(a)) {
            list.push([&shorter[..], &[axis]].concat());
        }
        at += 1;
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_orders_of_all_choices_of_axes() {
        assert_eq!(overs(2), [vec![], vec![0], vec![1], vec![0, 1], vec![1, 0]]);
        assert_eq!(overs(4).len(), 65);
    }
}
