//! What a rule says.

use std::fmt;
use std::path::PathBuf;

/// One thing that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The word by which an exception names this kind of finding.
    pub kind: &'static str,
    /// A path from the root, or `path::function`; an exception names it, so it has no line number.
    pub place: String,
    /// Where in the file, from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Finding {
    pub(crate) fn new(
        kind: &'static str,
        place: impl Into<String>,
        line: usize,
        message: impl Into<String>,
    ) -> Finding {
        Finding { kind, place: place.into(), line, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { kind, place, line, message } = self;
        // `path:line` is what editors and terminals make a link of.
        match (line, place.split_once("::")) {
            (0, _) => write!(f, "{place}: {message} [{kind}]"),
            (_, Some((path, item))) => write!(f, "{path}:{line}: {item}: {message} [{kind}]"),
            (_, None) => write!(f, "{place}:{line}: {message} [{kind}]"),
        }
    }
}

/// Why the checks could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TidyError {
    /// A file or folder of the tree.
    #[error("cannot read {path}: {error}")]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A file that the rules need is not there.
    #[error("{path} is missing; the rules are read from it")]
    Missing {
        /// From the root.
        path: &'static str,
    },
    /// A file that the rules are read from does not say what it must.
    #[error("{path}:{line}: {message}")]
    Malformed {
        /// From the root.
        path: String,
        /// From 1; 0 where it is not known.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// `cargo tree` failed.
    #[error("`cargo tree` failed; run it by hand to see more: {message}")]
    Cargo {
        /// What it said.
        message: String,
    },
}
