//! Unsafe code: where it may stand, and that each block says why it is sound.

use crate::finding::Finding;
use crate::source::{Comment, Source};
use crate::tree::{File, Tree};

/// Crates that are made of kernels. Elsewhere a file needs an exception with its reason.
const KERNEL_CRATES: [&str; 1] = ["crates/cpu/"];
/// How far above the block its reason may end: attributes and the start of the statement fit.
const REASON_LINES_MAX: usize = 4;

pub(super) fn find(tree: &Tree) -> Vec<Finding> {
    tree.rust().flat_map(find_in).collect()
}

fn find_in(file: &File) -> Vec<Finding> {
    let source = Source::of(&file.text);
    let reasons = reasons(&source.comments);
    let mut findings = Vec::new();
    let allowed = KERNEL_CRATES.iter().any(|folder| file.path.starts_with(folder));
    for (i, token) in source.tokens.iter().enumerate().filter(|(_, token)| token.is("unsafe")) {
        if !allowed && findings.iter().all(|f: &Finding| f.kind != "unsafe") {
            let message = "unsafe code outside of kernels";
            findings.push(Finding::new("unsafe", &file.path, token.line, message));
        }
        let next = source.tokens.get(i + 1);
        let needs_reason = next.is_some_and(|next| next.is("{") || next.is("impl"));
        let has_reason = || {
            let near = token.line.saturating_sub(REASON_LINES_MAX)..=token.line;
            reasons.iter().any(|last_line| near.contains(last_line))
        };
        if needs_reason && !has_reason() {
            let message = "no `SAFETY:` comment says why this is sound";
            findings.push(Finding::new("safety", &file.path, token.line, message));
        }
    }
    findings
}

/// The last lines of the comments, each a run of adjacent lines, that give a reason.
fn reasons(comments: &[Comment<'_>]) -> Vec<usize> {
    let mut last_lines: Vec<usize> = Vec::new();
    let mut previous = None;
    for comment in comments {
        let continues = previous == Some(comment.first_line - 1);
        if comment.text.contains("SAFETY:") {
            last_lines.push(comment.last_line);
        } else if let Some(last) = last_lines.last_mut()
            && continues
            && Some(*last) == previous
        {
            *last = comment.last_line;
        }
        previous = Some(comment.last_line);
    }
    last_lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str) -> Vec<(&'static str, usize)> {
        find(&Tree::of(&[(path, text)])).into_iter().map(|f| (f.kind, f.line)).collect()
    }

    #[test]
    fn a_block_without_reason_is_found() {
        let kernel = "crates/cpu/src/kernels/map.rs";
        for text in [
            "unsafe { f() }",
            "// SAFETY: too far away\n\n\n\n\nunsafe { f() }",
            "// sound\nunsafe impl Send for X {}",
            "let s = \"SAFETY: \"; unsafe { f() }",
            "unsafe { f() }\n// SAFETY: too late",
        ] {
            let found = check(kernel, text);
            assert!(found.len() == 1 && found[0].0 == "safety", "{text}: {found:?}");
        }
        for text in [
            "// SAFETY: a reason\nunsafe { f() }",
            "// SAFETY: a reason\n#[x]\n\nlet y =\n    unsafe { f() };",
            "unsafe { f() } // SAFETY: a reason",
            "// SAFETY: a\n// reason\n// of\n// six\n// long\n// lines\nunsafe impl Send for X {}",
            "unsafe fn f() {}",
            "// unsafe { f() }\nlet x = \"unsafe {\";",
        ] {
            assert_eq!(check(kernel, text), [], "{text}");
        }
    }

    #[test]
    fn other_crates_may_have_none() {
        let text = "unsafe fn f() {}\nunsafe fn g() {}\n// SAFETY: a reason\nunsafe { f() }";
        assert_eq!(check("crates/data/src/shard.rs", text), [("unsafe", 1)]);
        assert_eq!(check("crates/cpufreq/src/lib.rs", text), [("unsafe", 1)]);
    }
}
