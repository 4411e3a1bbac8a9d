//! The rules, one file each. To add one: write its file, its line here and in `tests/tidy.rs`.

mod dependencies;
mod docs;
mod layers;
mod modules;
mod sizes;
mod unsafety;
mod words;

use crate::finding::{Finding, TidyError};
use crate::tree::Tree;

/// A rule of the house.
pub struct Rule {
    /// One word.
    pub name: &'static str,
    /// What holds if it finds nothing.
    pub claim: &'static str,
    /// The kinds of findings that it makes.
    pub kinds: &'static [&'static str],
    /// Everything in the tree that breaks it.
    pub find: fn(&Tree) -> Result<Vec<Finding>, TidyError>,
}

/// All rules.
pub const RULES: [Rule; 7] = [
    Rule {
        name: "layers",
        claim: "a crate imports only lower floors of the table in ARCHITECTURE.md",
        kinds: &["layer"],
        find: layers::find,
    },
    Rule {
        name: "modules",
        claim: "the modules of a crate form no circle",
        kinds: &["module"],
        find: |tree| Ok(modules::find(tree)),
    },
    Rule {
        name: "dependencies",
        claim: "the default build has at most 170 crates that are not ours",
        kinds: &["dependencies"],
        find: dependencies::find,
    },
    Rule {
        name: "sizes",
        claim: "500 lines a file, 70 a function, 100 characters a line",
        kinds: &["lines", "function", "width"],
        find: |tree| Ok(sizes::find(tree)),
    },
    Rule {
        name: "words",
        claim: "no marks of unfinished work, no paths of one machine",
        kinds: &["word"],
        find: |tree| Ok(words::find(tree)),
    },
    Rule {
        name: "docs",
        claim: "a crate starts with what it is for",
        kinds: &["docs"],
        find: |tree| Ok(docs::find(tree)),
    },
    Rule {
        name: "unsafety",
        claim: "unsafe code stands in kernels, each block with its reason",
        kinds: &["unsafe", "safety"],
        find: |tree| Ok(unsafety::find(tree)),
    },
];
