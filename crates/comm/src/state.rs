//! Everything that ranks share, behind one lock that is never held while bytes are moved.
//!
//! One lock makes what a judge sees true at one moment. It is held for a few hundred nanoseconds.

use crate::board::Board;
use crate::mail::Mail;
use crate::traffic::Counts;
use aerogel_machine::CommError;

/// What a rank waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The absent members of a board.
    Board(usize),
    /// A message.
    Message { from: usize, tag: u64, bytes: usize },
}

/// What is known of one rank.
#[derive(Debug)]
pub(crate) struct Rank {
    /// One entry for each of its threads that is blocked.
    pub(crate) waits: Vec<Wait>,
    /// Calls that it came to, those that wait for others.
    pub(crate) entered: u64,
    /// Why it is gone, if it is.
    pub(crate) gone: Option<String>,
    pub(crate) mail: Mail,
    pub(crate) counts: Counts,
}

impl Rank {
    /// One that has done nothing yet, with counters for so many lists of axes.
    pub(crate) fn new(overs: usize) -> Rank {
        let waits = Vec::with_capacity(4);
        Rank { waits, entered: 0, gone: None, mail: Mail::default(), counts: Counts::new(overs) }
    }
}

/// The first error, which is the last thing that happens.
#[derive(Debug)]
struct Broken {
    error: CommError,
    /// The ranks that are told the error itself; others are told that they were stopped by it.
    hearers: Vec<usize>,
}

/// All boards and ranks.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) boards: Vec<Board>,
    pub(crate) ranks: Vec<Rank>,
    broken: Option<Broken>,
}

impl State {
    pub(crate) fn new(boards: Vec<Board>, ranks: Vec<Rank>) -> State {
        State { boards, ranks, broken: None }
    }

    /// A thread of the rank blocks.
    pub(crate) fn begin(&mut self, rank: usize, wait: Wait) {
        let waits = &mut self.ranks[rank].waits;
        if !waits.contains(&wait) {
            waits.push(wait);
        }
    }

    /// What the rank waited for has come. Whoever brings it says so, since the waiting thread may
    /// not run for a while and must not pass for blocked.
    pub(crate) fn end(&mut self, rank: usize, wait: Wait) {
        self.ranks[rank].waits.retain(|w| *w != wait);
    }

    /// The ranks that something waits for.
    pub(crate) fn awaited(&self, wait: Wait) -> Vec<usize> {
        match wait {
            Wait::Board(board) => self.boards[board].absent().collect(),
            Wait::Message { from, .. } => vec![from],
        }
    }

    /// The first of these that is somehow; without allocation, since every wait begins with it.
    pub(crate) fn find_awaited(&self, wait: Wait, is: impl Fn(usize) -> bool) -> Option<usize> {
        match wait {
            Wait::Board(board) => self.boards[board].absent().find(|&rank| is(rank)),
            Wait::Message { from, .. } => is(from).then_some(from),
        }
    }

    /// The ranks that wait together.
    pub(crate) fn company(&self, rank: usize, wait: Wait) -> Vec<usize> {
        match wait {
            Wait::Board(board) => self.boards[board].present().collect(),
            Wait::Message { .. } => vec![rank],
        }
    }

    /// From now on every call fails. Only the first error counts.
    pub(crate) fn break_with(&mut self, error: CommError, hearers: Vec<usize>) {
        self.broken.get_or_insert(Broken { error, hearers });
    }

    /// Fails if something has broken, with the rank as the one that tells.
    pub(crate) fn hear(&mut self, rank: usize) -> Result<(), CommError> {
        let Some(broken) = &mut self.broken else { return Ok(()) };
        let Some(at) = broken.hearers.iter().position(|&h| h == rank) else {
            return Err(CommError::Stopped { rank, cause: broken.error.to_string() });
        };
        // Once: what it calls later did not find this error.
        broken.hearers.swap_remove(at);
        let mut error = broken.error.clone();
        match &mut error {
            CommError::Missing { rank: teller, .. } | CommError::Gone { waiting: teller, .. } => {
                *teller = rank;
            }
            _ => {}
        }
        Err(error)
    }
}
