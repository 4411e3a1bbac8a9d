//! Checks of the repository that the compiler does not make: `cargo run -p xtask -- tidy`.
//!
//! The one type to know is [`Rule`]: a function from a [`Tree`] of files to [`Finding`]s. [`RULES`]
//! lists them, one file each in `rules/`. What a rule finds may be excused in [`EXCEPTIONS`], with
//! a reason; a line there that excuses nothing is a finding itself.
//!
//! Invariant: a rule reads texts and nothing else, so it runs over a made-up tree as well, and each
//! one is shown to fail there, in its own file. Only the count of dependencies asks cargo.
//! `tests/tidy.rs` runs every rule over this repository.

mod exceptions;
mod finding;
mod rules;
mod source;
mod tree;

pub use exceptions::{EXCEPTIONS, Exceptions};
pub use finding::{Finding, TidyError};
pub use rules::{RULES, Rule};
pub use tree::{File, Tree};

use std::path::Path;

/// The root of this repository, wherever the process runs.
pub fn repository() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("the package lies two folders below the root")
}

/// What a rule finds in the tree and no exception excuses.
///
/// # Errors
/// A file cannot be read or parsed, or cargo does not answer.
pub fn check(rule: &Rule, tree: &Tree) -> Result<Vec<Finding>, TidyError> {
    let exceptions = Exceptions::of(tree)?;
    Ok(exceptions.apply(rule.kinds, (rule.find)(tree)?))
}
