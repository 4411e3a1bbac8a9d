//! Which sequence comes when: a pure function of seed and position.
//!
//! A **sequence** of a token stream with context `T` is `T + 1` tokens, `T` apart: sequence `i`
//! holds tokens `i*T ..= i*T + T`, so inputs are its first `T` tokens and targets its last `T`,
//! and every token but the first of the stream is a target exactly once an epoch. Of `n` tokens
//! there are `(n - 1) / T` sequences, rounded down: **the last `(n - 1) % T` tokens of the
//! stream are never seen** ([`Sampler::dropped_tokens`] counts them). Where the dataset holds
//! images, a sequence is one image, of `height * width * channels` tokens, and nothing is dropped;
//! inputs and targets are the same bytes and the model shifts them.
//!
//! The **position** counts sequences over the whole run. Position `p` lies in epoch `p / n`, and
//! inside an epoch a keyed permutation of `0..n` says which sequence it is. So a run resumes from
//! one integer, any rank can read any position, and each sequence comes exactly once an epoch.

use crate::dataset::Tokens;
use crate::error::{DataError, Result};

/// Rounds of the Feistel network. Four make a permutation that looks random (Luby and Rackoff
/// 1988) if the round function does; the others pay for a cheap one and for tiny domains.
const ROUNDS: usize = 8;

/// The order of the sequences of one split; see the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sampler {
    sequences: u64,
    stride: u64,
    length: usize,
    dropped_tokens: u64,
    order: Order,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Shuffled(u64),
    InOrder,
}

/// Where a position of the run lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Whole passes over the split before this one.
    pub epoch: u64,
    /// Which sequence of the split.
    pub sequence: u64,
}

impl Sampler {
    /// Every epoch in another order, decided by `seed`: for training.
    ///
    /// # Errors
    /// [`DataError::TooShort`] if the split holds no whole sequence; [`DataError::BadOption`] if
    /// `context` is 0, or is not the number of bytes of an image where the data is images.
    pub fn shuffled(split: &Tokens, context: usize, seed: u64) -> Result<Self> {
        Self::new(split, context, Order::Shuffled(seed))
    }

    /// The sequences as they lie in the split: for evaluation. Errors as for
    /// [`shuffled`](Self::shuffled).
    pub fn in_order(split: &Tokens, context: usize) -> Result<Self> {
        Self::new(split, context, Order::InOrder)
    }

    fn new(split: &Tokens, context: usize, order: Order) -> Result<Self> {
        let tokens = split.len();
        let (length, stride, sequences) = match split.image() {
            Some(shape) if shape.tokens() != context => {
                let wanted = format!("{}: one sequence is one {shape} image", shape.tokens());
                return Err(DataError::option("context", context, wanted));
            }
            _ if context == 0 => return Err(DataError::option("context", 0, "1 or more")),
            Some(_) => (context, context as u64, tokens / context as u64),
            None => (context + 1, context as u64, tokens.saturating_sub(1) / context as u64),
        };
        if sequences == 0 {
            return Err(DataError::TooShort {
                split: split.name().to_owned(),
                tokens,
                needed: length as u64,
                context: context as u64,
            });
        }
        let used = (sequences - 1) * stride + length as u64;
        Ok(Self { sequences, stride, length, dropped_tokens: tokens - used, order })
    }

    /// Sequences in one epoch.
    pub fn sequences(&self) -> u64 {
        self.sequences
    }

    /// Tokens that [`read`](Self::read) fills: `context + 1` of a stream, `context` of an image.
    pub fn sequence_tokens(&self) -> usize {
        self.length
    }

    /// Tokens at the end of the split that no sequence holds.
    pub fn dropped_tokens(&self) -> u64 {
        self.dropped_tokens
    }

    /// The epoch and sequence of a position of the run.
    pub fn place(&self, position: u64) -> Place {
        let (epoch, within) = (position / self.sequences, position % self.sequences);
        let sequence = match self.order {
            Order::InOrder => within,
            Order::Shuffled(seed) => Permutation::new(self.sequences, seed, epoch).apply(within),
        };
        Place { epoch, sequence }
    }

    /// Reads the sequence at a position of the run into `into`, which holds
    /// [`sequence_tokens`](Self::sequence_tokens). `split` is the one the sampler was made for.
    pub fn read(&self, split: &Tokens, position: u64, into: &mut [u32]) -> Result<Place> {
        if into.len() != self.length {
            let wanted = format!("{} tokens, one sequence", self.length);
            return Err(DataError::option("the buffer", into.len(), wanted));
        }
        let place = self.place(position);
        split.read(place.sequence * self.stride, into)?;
        Ok(place)
    }
}

/// A permutation of `0..len`: a Feistel network on the next even number of bits, walked along its
/// cycle until the value is inside (Black and Rogaway 2002), fewer than four steps on average.
#[derive(Clone, Debug)]
pub(crate) struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of an epoch. `len` is 1 or more.
    pub(crate) fn new(len: u64, seed: u64, epoch: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("aerogel-data sequence order v1");
        hasher.update(&seed.to_le_bytes()).update(&epoch.to_le_bytes());
        let mut bytes = [0; 8 * ROUNDS];
        hasher.finalize_xof().fill(&mut bytes);
        let mut keys = [0; ROUNDS];
        for (key, word) in keys.iter_mut().zip(bytes.chunks_exact(8)) {
            *key = word.iter().rev().fold(0, |k, &b| k << 8 | u64::from(b));
        }
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Self { len, half_bits: bits.div_ceil(2).max(1), keys }
    }

    pub(crate) fn apply(&self, value: u64) -> u64 {
        let mut value = self.encrypt(value);
        while value >= self.len {
            value = self.encrypt(value);
        }
        value
    }

    fn encrypt(&self, value: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ mix(right ^ key) & mask);
        }
        left << self.half_bits | right
    }
}

/// The finaliser of splitmix64 (Steele et al. 2014): every bit in moves every bit out.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_once_at_every_small_length() {
        for len in (1..=130).chain([255, 256, 257, 1000, 4096, 4097, 65_537, 1_000_003]) {
            for epoch in 0..2 {
                let permutation = Permutation::new(len, 7, epoch);
                let mut seen = vec![false; len as usize];
                for value in 0..len {
                    let to = permutation.apply(value) as usize;
                    assert!(!std::mem::replace(&mut seen[to], true), "{to} twice of {len}");
                }
            }
        }
    }

    #[test]
    fn first_place_is_spread_evenly_over_epochs() {
        for len in [3u64, 10, 17] {
            let mut counts = vec![0f64; len as usize];
            let epochs = 4000;
            for epoch in 0..epochs {
                counts[Permutation::new(len, 1, epoch).apply(0) as usize] += 1.0;
            }
            let expected = epochs as f64 / len as f64;
            let chi: f64 = counts.iter().map(|c| (c - expected).powi(2) / expected).sum();
            // Five standard deviations above the mean of the chi-squared distribution.
            let degrees = (len - 1) as f64;
            assert!(chi < degrees + 5.0 * (2.0 * degrees).sqrt(), "chi {chi} for {len}");
        }
    }

    #[test]
    fn the_largest_domain_does_not_overflow() {
        let permutation = Permutation::new(u64::MAX, 1, 2);
        assert_ne!(permutation.apply(0), permutation.apply(1));
    }
}
