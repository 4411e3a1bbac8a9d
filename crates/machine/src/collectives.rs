//! Collectives: how the ranks of a mesh exchange bytes.

use aerogel_graph::{DType, Mesh};
use std::sync::Arc;

/// How values of several ranks become one. Sums are in f32 and over a balanced tree of members,
/// that of a binary counter, so that they do not depend on who comes first.
pub use aerogel_graph::ops::Merge;

/// What is exchanged between the members of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// Everybody gets all inputs, merged.
    AllReduce(Merge),
    /// Everybody gets all inputs, one after another.
    AllGather,
    /// Member i gets piece i of the sum of all inputs.
    ReduceScatter,
    /// Member i gets piece i of every input, in the members' order.
    AllToAll,
    /// Everybody gets the input of one member.
    Broadcast {
        /// Its number in the group.
        root: usize,
    },
    /// Member i gets the input of member `(i + members - by) % members`.
    Permute {
        /// How many members further each input goes.
        by: usize,
    },
    /// Nobody goes on before all have come.
    Barrier,
}

impl Pattern {
    /// The word of messages and reports.
    pub fn name(self) -> &'static str {
        match self {
            Pattern::AllReduce(_) => "all_reduce",
            Pattern::AllGather => "all_gather",
            Pattern::ReduceScatter => "reduce_scatter",
            Pattern::AllToAll => "all_to_all",
            Pattern::Broadcast { .. } => "broadcast",
            Pattern::Permute { .. } => "permute",
            Pattern::Barrier => "barrier",
        }
    }
}

/// One call of a collective: all of it must be equal on all members of its group.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// What is exchanged.
    pub pattern: Pattern,
    /// The mesh axes along which the members of a group differ, outermost first.
    pub over: Vec<u8>,
    /// Type of the elements.
    pub dtype: DType,
    /// Elements of one member's input.
    pub elements: usize,
    /// The input is so many rows, each of which is exchanged by itself: pieces are joined, or cut,
    /// inside of each row. 1 where pieces follow one another in memory.
    pub rows: usize,
    /// Where in the program: section, node, op and scope, for messages.
    pub site: Arc<str>,
}

/// A collective did not happen.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CommError {
    /// Members came to different collectives.
    #[error(
        "rank {rank} came to {got}, while rank {other} came to {wanted}: every rank of a group \
         must run the same collectives in the same order"
    )]
    Mismatch {
        /// The rank that differs.
        rank: usize,
        /// What it came to: pattern, size, site.
        got: String,
        /// A rank of its group.
        other: usize,
        /// What that one came to.
        wanted: String,
    },
    /// Members did not come in time.
    #[error(
        "rank {missing} did not come to {call} within {seconds:.1} s (rank {rank} waits there); \
         it was last seen {last}"
    )]
    Missing {
        /// The lowest rank that is missing.
        missing: usize,
        /// The rank that tells.
        rank: usize,
        /// What the others wait in.
        call: String,
        /// What is known of the missing rank.
        last: String,
        /// How long they waited.
        seconds: f64,
    },
    /// A rank ended before the others.
    #[error("rank {rank} is gone ({reason}) while rank {waiting} waits for it in {call}")]
    Gone {
        /// The rank that ended.
        rank: usize,
        /// How: finished, panicked, or its error.
        reason: String,
        /// A rank that waits.
        waiting: usize,
        /// In what.
        call: String,
    },
    /// Another rank found an error first.
    #[error("rank {rank} stopped because of another rank: {cause}")]
    Stopped {
        /// The rank that tells.
        rank: usize,
        /// What the other one found.
        cause: String,
    },
    /// Buffers do not fit the call.
    #[error("{call}: wanted {wanted} bytes of {what}, got {got}")]
    Size {
        /// Pattern and site.
        call: String,
        /// Input or output.
        what: &'static str,
        /// Bytes that the call needs.
        wanted: usize,
        /// Bytes that were given.
        got: usize,
    },
}

/// Bytes and messages of one rank, by pattern and group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Traffic {
    /// `all_gather`, ..., `send`.
    pub pattern: &'static str,
    /// The mesh axes of the group; empty for messages.
    pub over: Vec<u8>,
    /// Calls.
    pub calls: u64,
    /// Bytes of inputs that left this rank for another, each counted once for each receiver, as
    /// the cheapest algorithm (a ring) sends them.
    pub sent_bytes: u64,
}

/// One rank's end of the ties between ranks. Calls block until they are done.
pub trait Collectives: Send + Sync {
    /// The ranks.
    fn mesh(&self) -> &Mesh;

    /// This one.
    fn rank(&self) -> usize;

    /// Takes part in a collective. `input` and `output` hold elements of the call's dtype,
    /// row-major, and do not overlap.
    ///
    /// # Errors
    /// See [`CommError`]; afterwards every call of every rank fails.
    fn exchange(&self, call: &Call, input: &[u8], output: &mut [u8]) -> Result<(), CommError>;

    /// Hands bytes to another rank, which gets them in the order in which they were sent under one
    /// tag; does not wait for it.
    ///
    /// # Errors
    /// The ties are broken.
    fn send(&self, to: usize, tag: u64, site: &str, bytes: &[u8]) -> Result<(), CommError>;

    /// Waits for the next bytes from another rank under a tag.
    ///
    /// # Errors
    /// They do not come, or are not as many.
    fn receive(&self, from: usize, tag: u64, site: &str, bytes: &mut [u8])
    -> Result<(), CommError>;

    /// Tells the others that this rank takes part no more, and why.
    fn leave(&self, reason: &str);

    /// Says where this rank is, so that others can say where it was last seen; also a sign of life.
    fn progress(&self, site: &Arc<str>);

    /// What was exchanged so far.
    fn traffic(&self) -> Vec<Traffic>;

    /// Bytes that the ties hold for themselves (messages on their way).
    fn held_bytes(&self) -> u64;
}

/// The ties of a rank that is alone.
pub struct Alone(Mesh);

impl Alone {
    /// One rank without others.
    pub fn new() -> Alone {
        Alone(Mesh::default())
    }
}

impl Default for Alone {
    fn default() -> Self {
        Alone::new()
    }
}

impl Collectives for Alone {
    fn mesh(&self) -> &Mesh {
        &self.0
    }

    fn rank(&self) -> usize {
        0
    }

    fn exchange(&self, call: &Call, input: &[u8], output: &mut [u8]) -> Result<(), CommError> {
        if input.len() != output.len() {
            return Err(CommError::Size {
                call: format!("{} at {}", call.pattern.name(), call.site),
                what: "output",
                wanted: input.len(),
                got: output.len(),
            });
        }
        output.copy_from_slice(input);
        Ok(())
    }

    fn send(&self, to: usize, _tag: u64, site: &str, _bytes: &[u8]) -> Result<(), CommError> {
        let (reason, call) = ("there is one rank".to_owned(), site.to_owned());
        Err(CommError::Gone { rank: to, reason, waiting: 0, call })
    }

    fn receive(
        &self,
        from: usize,
        tag: u64,
        site: &str,
        _bytes: &mut [u8],
    ) -> Result<(), CommError> {
        self.send(from, tag, site, &[])
    }

    fn leave(&self, _reason: &str) {}

    fn progress(&self, _site: &Arc<str>) {}

    fn traffic(&self) -> Vec<Traffic> {
        vec![]
    }

    fn held_bytes(&self) -> u64 {
        0
    }
}

impl<T: Collectives + ?Sized> Collectives for Box<T> {
    fn mesh(&self) -> &Mesh {
        (**self).mesh()
    }

    fn rank(&self) -> usize {
        (**self).rank()
    }

    fn exchange(&self, call: &Call, input: &[u8], output: &mut [u8]) -> Result<(), CommError> {
        (**self).exchange(call, input, output)
    }

    fn send(&self, to: usize, tag: u64, site: &str, bytes: &[u8]) -> Result<(), CommError> {
        (**self).send(to, tag, site, bytes)
    }

    fn receive(
        &self,
        from: usize,
        tag: u64,
        site: &str,
        bytes: &mut [u8],
    ) -> Result<(), CommError> {
        (**self).receive(from, tag, site, bytes)
    }

    fn leave(&self, reason: &str) {
        (**self).leave(reason);
    }

    fn progress(&self, site: &Arc<str>) {
        (**self).progress(site);
    }

    fn traffic(&self) -> Vec<Traffic> {
        (**self).traffic()
    }

    fn held_bytes(&self) -> u64 {
        (**self).held_bytes()
    }
}
