//! The number of crates that somebody who installs the binary has to trust and to build.

use std::collections::BTreeSet;
use std::process::Command;

use crate::finding::{Finding, TidyError};
use crate::tree::Tree;

/// The package of the binary.
const BINARY: &str = "aerogel";
const CRATES_MAX: usize = 170;

pub(super) fn find(tree: &Tree) -> Result<Vec<Finding>, TidyError> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--locked", "--package", BINARY, "--edges", "normal,build"])
        .args(["--prefix", "none", "--format", "{p}"])
        .current_dir(&tree.root)
        .output()
        .map_err(|error| TidyError::Cargo { message: error.to_string() })?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(TidyError::Cargo { message });
    }
    Ok(find_in(&String::from_utf8_lossy(&output.stdout)))
}

fn find_in(lines: &str) -> Vec<Finding> {
    let crates = foreign(lines);
    if crates.len() <= CRATES_MAX {
        return Vec::new();
    }
    let message = format!(
        "the default build of `{BINARY}` has {} crates of others, {CRATES_MAX} are allowed; \
         `cargo tree -p {BINARY} -e normal,build` shows who needs them",
        crates.len()
    );
    vec![Finding::new("dependencies", "Cargo.lock", 0, message)]
}

/// Name and version of every crate that is not ours: ours come with the path of their folder.
fn foreign(lines: &str) -> BTreeSet<&str> {
    lines
        .lines()
        .filter(|line| !line.is_empty() && !line.contains("(/") && !line.contains(":\\"))
        .map(|line| line.trim_end_matches(" (*)").trim_end_matches(" (proc-macro)"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_and_own_crates_do_not_count() {
        let lines = "aerogel v0.1.0 (/src/me/aerogel)\nserde v1.0.0\nserde v1.0.0 (*)\n\
            serde_derive v1.0.0 (proc-macro)\nserde_derive v1.0.0 (proc-macro) (*)\n\n\
            aerogel-graph v0.1.0 (/src/me/graph) (*)\nserde v2.0.0\n";
        let wanted = ["serde v1.0.0", "serde v2.0.0", "serde_derive v1.0.0"];
        assert_eq!(foreign(lines).into_iter().collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn one_crate_too_many_is_found() {
        let tree = |n: usize| (0..n).map(|i| format!("crate{i} v1.0.0\n")).collect::<String>();
        assert_eq!(find_in(&tree(CRATES_MAX)), []);
        assert!(find_in(&tree(CRATES_MAX + 1))[0].message.contains("171 crates"));
    }
}
