//! What can be wrong with a recipe, and how it is said.

use std::fmt;

use thiserror::Error;

/// Where in the user's input a fault lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line of the recipe, counted from 1.
    Line {
        /// The file's name, as the caller gave it.
        file: String,
        /// Line, counted from 1.
        line: usize,
    },
    /// The recipe as a whole, where something is absent.
    File(
        /// The file's name, as the caller gave it.
        String,
    ),
    /// An override on the command line.
    Override(
        /// The override, as the user wrote it.
        String,
    ),
    /// The number of ranks on the command line.
    Ranks(
        /// Ranks, as the user wrote.
        usize,
    ),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line { file, line } => write!(f, "{file}:{line}"),
            Place::File(file) => write!(f, "{file}"),
            Place::Override(text) => write!(f, "override `{text}`"),
            Place::Ranks(ranks) => write!(f, "--ranks {ranks}"),
        }
    }
}

/// A recipe that cannot be used: where, what, why, and what to do. The program ends with the exit
/// code 20 for all of them.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("{place}: {problem}")]
pub struct RecipeError {
    /// Where the fault lies.
    pub place: Place,
    /// What is wrong; boxed, because errors are rare and results are everywhere.
    pub problem: Box<Problem>,
}

impl RecipeError {
    pub(crate) fn new(place: Place, problem: Problem) -> RecipeError {
        RecipeError { place, problem: Box::new(problem) }
    }
}

/// What is wrong with a recipe. Keys are written `section.key`.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum Problem {
    /// The file cannot be read.
    #[error("the recipe cannot be read: {reason}; give the path of a .toml file")]
    Unreadable {
        /// The operating system's reason.
        reason: String,
    },
    /// The text is not TOML.
    #[error("this is not valid TOML: {reason}; correct this line (texts stand in quotes)")]
    Syntax {
        /// The parser's reason, on one line.
        reason: String,
    },
    /// An override that is not `section.key=value`.
    #[error("{reason}; write section.key=value, as in model.layers=4")]
    OverrideForm {
        /// What is wrong with its form.
        reason: String,
    },
    /// A section that the schema does not have.
    #[error("there is no section [{section}]; {advice}")]
    UnknownSection {
        /// The name that was given.
        section: String,
        /// The nearest section, or all of them.
        advice: String,
    },
    /// A key that the schema does not have.
    #[error("there is no key `{key}` in [{section}]; {advice}")]
    UnknownKey {
        /// The section that it was given in.
        section: String,
        /// The name that was given.
        key: String,
        /// The nearest key, or all keys of the section.
        advice: String,
    },
    /// A value of the wrong type.
    #[error("`{key}` has the wrong type: wanted {wanted}, got {got}; {doc}")]
    Type {
        /// The key.
        key: String,
        /// The type that the schema asks for, with an example.
        wanted: String,
        /// The type and text that were given.
        got: String,
        /// What the key means.
        doc: String,
    },
    /// A word that is not one of the choices.
    #[error("`{key} = \"{got}\"` is not one of its choices; {advice}")]
    Choice {
        /// The key.
        key: String,
        /// The word that was given.
        got: String,
        /// The nearest choice, or all of them.
        advice: String,
    },
    /// A number out of its range.
    #[error("`{key} = {got}` is out of range; it must be {wanted}")]
    Range {
        /// The key.
        key: String,
        /// The value that was given.
        got: String,
        /// The allowed range, in words.
        wanted: String,
    },
    /// A required key that is absent.
    #[error("`{key}` is missing: {reason}; add {example}")]
    Missing {
        /// The key.
        key: String,
        /// Why it is needed.
        reason: String,
        /// A line to add.
        example: String,
    },
    /// Values that are fine alone and not together.
    #[error("{what}: {why}; {advice}")]
    Contradiction {
        /// The values that clash.
        what: String,
        /// The rule that they break.
        why: String,
        /// What to change.
        advice: String,
    },
    /// A key that would change nothing.
    #[error("`{key}` has no effect {because}; {advice}")]
    NoEffect {
        /// The key.
        key: String,
        /// The value that makes it idle.
        because: String,
        /// What to change.
        advice: String,
    },
}
