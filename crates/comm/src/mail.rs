//! Messages on their way, and their buffers, which are used again.

use std::collections::VecDeque;

/// A message with the buffer that carries it.
#[derive(Debug, Default)]
pub(crate) struct Letter {
    pub(crate) from: usize,
    pub(crate) tag: u64,
    pub(crate) bytes: Vec<u8>,
    /// Where it was sent.
    pub(crate) site: String,
}

/// What waits for one rank, and what one rank has to write on.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    inbox: VecDeque<Letter>,
    /// Empty letters of this rank. Each carries messages of one size alone, so that a program whose
    /// messages repeat needs no more than are under way at once.
    spare: Vec<Letter>,
    held_bytes: u64,
}

impl Mail {
    /// A letter of this rank for so many bytes.
    pub(crate) fn take_spare(&mut self, bytes: usize) -> Letter {
        if let Some(at) = self.spare.iter().position(|l| l.bytes.len() == bytes) {
            return self.spare.swap_remove(at);
        }
        self.held_bytes += bytes as u64;
        Letter { bytes: vec![0; bytes], ..Letter::default() }
    }

    /// A letter of this rank was read.
    pub(crate) fn give_back(&mut self, letter: Letter) {
        self.spare.push(letter);
    }

    /// A letter for this rank.
    pub(crate) fn deliver(&mut self, letter: Letter) {
        self.inbox.push_back(letter);
    }

    /// The oldest letter for this rank from another under a tag.
    pub(crate) fn take(&mut self, from: usize, tag: u64) -> Option<Letter> {
        let at = self.inbox.iter().position(|l| l.from == from && l.tag == tag)?;
        self.inbox.remove(at)
    }

    /// Bytes of all letters of this rank, on their way or not.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }
}
