//! The reasoned exceptions from the rules.

use crate::finding::{Finding, TidyError};
use crate::tree::Tree;

/// Where exceptions stand, from the root.
pub const EXCEPTIONS: &str = "crates/xtask/exceptions.txt";

/// Kinds of findings that can be excused. The rest has no good reason: who thinks to have one
/// changes the table of ARCHITECTURE.md or the rule.
const EXCUSABLE: [&str; 5] = ["lines", "function", "width", "word", "unsafe"];

/// The exceptions of a tree.
pub struct Exceptions(Vec<Exception>);

struct Exception {
    line: usize,
    kind: String,
    place: String,
}

impl Exceptions {
    /// Reads the file of exceptions; a tree without one has none.
    ///
    /// # Errors
    /// A line is not `KIND | PLACE | REASON`.
    pub fn of(tree: &Tree) -> Result<Exceptions, TidyError> {
        let mut exceptions = Vec::new();
        for (i, text) in tree.text(EXCEPTIONS).unwrap_or_default().lines().enumerate() {
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let malformed = |message: String| TidyError::Malformed {
                path: EXCEPTIONS.into(),
                line: i + 1,
                message,
            };
            let fields: Vec<&str> = text.split('|').map(str::trim).collect();
            let &[kind, place, reason] = fields.as_slice() else {
                return Err(malformed("expected `KIND | PLACE | REASON`".into()));
            };
            if !EXCUSABLE.contains(&kind) {
                let kinds = EXCUSABLE.join(", ");
                return Err(malformed(format!("`{kind}` cannot be excused, only {kinds}")));
            }
            if reason.split_whitespace().count() < 3 {
                return Err(malformed(
                    "an exception needs a reason, in three words at least".into(),
                ));
            }
            exceptions.push(Exception { line: i + 1, kind: kind.into(), place: place.into() });
        }
        Ok(Exceptions(exceptions))
    }

    /// The findings that are not excused, and the exceptions of these kinds that excuse nothing.
    pub fn apply(&self, kinds: &[&str], mut findings: Vec<Finding>) -> Vec<Finding> {
        let mut idle = Vec::new();
        for exception in self.0.iter().filter(|e| kinds.contains(&e.kind.as_str())) {
            let before = findings.len();
            findings.retain(|f| f.kind != exception.kind || f.place != exception.place);
            if findings.len() == before {
                let message = format!("nothing to excuse at {}; remove the line", exception.place);
                idle.push(Finding::new("exceptions", EXCEPTIONS, exception.line, message));
            }
        }
        findings.extend(idle);
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Exceptions, TidyError> {
        Exceptions::of(&Tree::of(&[(EXCEPTIONS, text)]))
    }

    #[test]
    fn an_exception_excuses_its_kind_and_place_only() {
        let exceptions = read("# why\n\nlines | a.rs | one table of numbers\n").unwrap();
        let findings = vec![
            Finding::new("lines", "a.rs", 0, "long"),
            Finding::new("width", "a.rs", 3, "wide"),
            Finding::new("lines", "b.rs", 0, "long"),
        ];
        let left = exceptions.apply(&["lines", "width"], findings.clone());
        assert_eq!(left, findings[1..]);
    }

    #[test]
    fn an_idle_exception_is_a_finding() {
        let exceptions = read("lines | a.rs | one table of numbers").unwrap();
        let left = exceptions.apply(&["lines"], Vec::new());
        assert_eq!(left.len(), 1);
        assert_eq!((left[0].kind, left[0].line), ("exceptions", 1));
        assert!(exceptions.apply(&["word"], Vec::new()).is_empty());
    }

    #[test]
    fn lines_without_reason_or_of_unknown_kind_are_refused() {
        for (text, part) in [
            ("lines | a.rs", "expected `KIND"),
            ("lines | a.rs | because", "needs a reason"),
            ("layer | a | it is so convenient", "cannot be excused"),
        ] {
            let error = read(text).err().expect(text).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
