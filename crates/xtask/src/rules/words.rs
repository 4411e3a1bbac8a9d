//! Words that do not belong into what others read.

use crate::finding::Finding;
use crate::tree::Tree;

/// Marks of unfinished work, as whole words.
const UNFINISHED: [&str; 5] = ["TODO", "FIXME", "XXX", "unimplemented!", "todo!"];
/// Beginnings of absolute paths that exist on one machine only.
const MACHINE_PATHS: [&str; 3] = ["/home/", "/Users/", "/root/"];

pub(super) fn find(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files.iter().filter(|file| file.tracked) {
        for (i, line) in file.text.lines().enumerate() {
            for word in words(line) {
                let message = format!("`{word}` does not belong into the project");
                findings.push(Finding::new("word", &file.path, i + 1, message));
            }
        }
    }
    findings
}

fn words(line: &str) -> Vec<&'static str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    // Relative paths and addresses may have such a part.
    let is_path = |c: char| is_word(c) || "-./~}>*".contains(c);
    let unfinished = UNFINISHED.into_iter().filter(|w| occurs(line, w, is_word, is_word));
    let paths = MACHINE_PATHS.into_iter().filter(|w| occurs(line, w, is_path, |_| false));
    unfinished.chain(paths).collect()
}

/// Whether the word stands in the line and neither neighbour belongs to it.
fn occurs(
    line: &str,
    word: &str,
    before: impl Fn(char) -> bool,
    after: impl Fn(char) -> bool,
) -> bool {
    line.match_indices(word).any(|(i, _)| {
        !line[..i].chars().next_back().is_some_and(&before)
            && !line[i + word.len()..].chars().next().is_some_and(&after)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_found_where_it_stands_alone() {
        for word in UNFINISHED.iter().chain(&MACHINE_PATHS) {
            for line in [word.to_string(), format!("// {word} x"), format!("(\"{word}\")")] {
                assert_eq!(words(&line), [*word], "{line}");
            }
        }
    }

    #[test]
    fn parts_of_words_and_of_relative_paths_are_not() {
        for line in ["TODOS", "my_todo!", "XXXX", "https://x.org/root/a", "../home/x"] {
            assert!(words(line).is_empty(), "{line}");
        }
    }

    #[test]
    fn files_that_are_not_tracked_are_nobodys_business() {
        let mut tree = Tree::of(&[("README.md", "a\nTODO"), ("notes.md", "TODO")]);
        tree.files[1].tracked = false;
        let found: Vec<_> = find(&tree).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["README.md:2: `TODO` does not belong into the project [word]"]);
    }
}
