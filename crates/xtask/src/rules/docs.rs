//! The first words of a crate.

use crate::finding::Finding;
use crate::tree::Tree;

pub(super) fn find(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (folder, manifest) in tree.crates() {
        let roots = ["lib", "main"].map(|root| format!("crates/{folder}/src/{root}.rs"));
        let present: Vec<_> = tree.files.iter().filter(|f| roots.contains(&f.path)).collect();
        if present.is_empty() {
            let message = "the crate has neither src/lib.rs nor src/main.rs";
            findings.push(Finding::new("docs", &manifest.path, 0, message));
        }
        for file in present {
            let first = file.text.lines().next().unwrap_or_default();
            if first.strip_prefix("//!").is_none_or(|docs| docs.trim().is_empty()) {
                let message = "the first line is not `//!` and what the crate is for";
                findings.push(Finding::new("docs", &file.path, 1, message));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str) -> usize {
        find(&Tree::of(&[("crates/x/Cargo.toml", ""), (path, text)])).len()
    }

    #[test]
    fn a_crate_without_first_words_is_found() {
        assert_eq!(check("crates/x/src/lib.rs", "//! What it is for.\nmod a;"), 0);
        assert_eq!(check("crates/x/src/main.rs", "//! What it is for."), 0);
        assert_eq!(check("crates/x/src/lib.rs", "mod a;\n//! Late."), 1);
        assert_eq!(check("crates/x/src/main.rs", "//!\nfn main() {}"), 1);
        assert_eq!(check("crates/x/src/lib.rs", ""), 1);
        assert_eq!(check("crates/x/src/other.rs", "//! What it is for."), 1);
    }
}
