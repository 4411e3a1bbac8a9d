//! Which document belongs to which split.

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};

/// A part of the data with a purpose of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Trained on.
    Train,
    /// Looked at while training.
    Validation,
    /// Looked at once.
    Test,
}

impl Split {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// `train`, `validation`, `test`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

/// Fraction carved out for validation where the source has no validation files of its own.
pub const DEFAULT_VALIDATION: f64 = 0.05;

/// How much of the data is carved out. Fractions are of documents (of bytes, under the tail
/// rule); a split that the source brings itself is never carved, so a fraction for it is an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SplitSpec {
    /// For validation; by default 0.05, or 0 where the source has validation files.
    pub validation: Option<f64>,
    /// For test; by default 0.
    pub test: Option<f64>,
    /// Decides which documents. Another seed, another choice.
    pub seed: u64,
}

/// The fractions in effect and the key of the choice.
///
/// A document's identity is hashed with the seed to a number in [0, 1): below `test` it is test,
/// below `test + validation` validation, else train. So the choice depends on nothing but seed and
/// identity: files may be added, moved on disk or read in another order.
#[derive(Clone, Debug)]
pub(crate) struct Dealer {
    pub validation: f64,
    pub test: f64,
    key: [u8; 32],
}

impl Dealer {
    pub(crate) fn new(spec: &SplitSpec, has_validation: bool, has_test: bool) -> Result<Self> {
        let default = if has_validation { 0.0 } else { DEFAULT_VALIDATION };
        let validation = fraction("split.validation", spec.validation, has_validation, default)?;
        let test = fraction("split.test", spec.test, has_test, 0.0)?;
        if validation + test >= 1.0 {
            let got = format!("{test} beside a validation fraction of {validation}");
            return Err(DataError::option("split.test", got, "so small that train keeps some"));
        }
        let key = blake3::derive_key("aerogel-data split v1", &spec.seed.to_le_bytes());
        Ok(Self { validation, test, key })
    }

    /// The split of the document with this identity.
    pub(crate) fn deal(&self, identity: &[u8]) -> Split {
        let hash = blake3::keyed_hash(&self.key, identity);
        let head = hash.as_bytes().first_chunk::<8>().expect("a blake3 hash has 32 bytes");
        let draw = (u64::from_le_bytes(*head) >> 11) as f64 / (1u64 << 53) as f64;
        if draw < self.test {
            Split::Test
        } else if draw < self.test + self.validation {
            Split::Validation
        } else {
            Split::Train
        }
    }

    /// The fraction asked for, to name it in an error.
    pub(crate) fn fraction(&self, split: Split) -> f64 {
        match split {
            Split::Train => 1.0 - self.validation - self.test,
            Split::Validation => self.validation,
            Split::Test => self.test,
        }
    }
}

fn fraction(option: &'static str, asked: Option<f64>, own: bool, default: f64) -> Result<f64> {
    match asked {
        None => Ok(default),
        Some(f) if !(0.0..1.0).contains(&f) => {
            Err(DataError::option(option, f, "from 0 to below 1"))
        }
        Some(f) if own && f > 0.0 => Err(DataError::option(
            option,
            f,
            "left out: the source has files of its own for this split",
        )),
        Some(f) => Ok(f),
    }
}
