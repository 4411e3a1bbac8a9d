//! Lengths of files, functions and lines.

use crate::finding::Finding;
use crate::source::{Kind, Source, Token};
use crate::tree::{File, Tree};

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;
const LINE_CHARACTERS_MAX: usize = 100;

pub(super) fn find(tree: &Tree) -> Vec<Finding> {
    tree.rust().flat_map(|file| [lines(file), width(file), functions(file)].concat()).collect()
}

fn lines(file: &File) -> Vec<Finding> {
    let lines = file.text.lines().count();
    if lines <= FILE_LINES_MAX {
        return Vec::new();
    }
    let message = format!("{lines} lines, {FILE_LINES_MAX} are allowed; split the file");
    vec![Finding::new("lines", &file.path, 0, message)]
}

fn width(file: &File) -> Vec<Finding> {
    let widths = file.text.lines().map(|line| line.chars().count()).enumerate();
    widths
        .filter(|(_, width)| *width > LINE_CHARACTERS_MAX)
        .map(|(i, width)| {
            let message = format!("{width} characters, {LINE_CHARACTERS_MAX} are allowed");
            Finding::new("width", &file.path, i + 1, message)
        })
        .collect()
}

fn functions(file: &File) -> Vec<Finding> {
    let source = Source::of(&file.text);
    let tokens = &source.tokens;
    let mut findings = Vec::new();
    for (i, token) in tokens.iter().enumerate().filter(|(_, token)| token.is("fn")) {
        // `fn(u32) -> u32` is a type.
        let Some(name) = tokens.get(i + 1).filter(|next| next.kind == Kind::Word) else { continue };
        let Some(last_line) = body_end(&tokens[i..]) else { continue };
        let lines = last_line - token.line + 1;
        if lines > FUNCTION_LINES_MAX {
            let place = format!("{}::{}", file.path, name.text);
            let message = format!("{lines} lines, {FUNCTION_LINES_MAX} are allowed");
            findings.push(Finding::new("function", place, token.line, message));
        }
    }
    findings
}

/// The line of the brace that closes a function's body, if it has one.
fn body_end(tokens: &[Token<'_>]) -> Option<usize> {
    let (mut braces, mut brackets) = (0_usize, 0_usize);
    for token in tokens.iter().filter(|token| token.kind == Kind::Mark) {
        match token.text {
            // The length in `[u8; 4]` ends no declaration.
            "(" | "[" => brackets += 1,
            ")" | "]" => brackets = brackets.saturating_sub(1),
            ";" if braces == 0 && brackets == 0 => return None,
            "{" => braces += 1,
            "}" => {
                braces = braces.saturating_sub(1);
                if braces == 0 {
                    return Some(token.line);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Vec<(&'static str, String, usize)> {
        let tree = Tree::of(&[("crates/x/src/lib.rs", text), ("docs/long.rs", &"\n".repeat(900))]);
        find(&tree).into_iter().map(|f| (f.kind, f.place, f.line)).collect()
    }

    fn function(lines: usize) -> String {
        let body = "    let brace = '{'; // }\n".repeat(lines - 2);
        let declared = "trait T { fn declared(x: [u8; 4]) -> u8; }";
        format!("{declared}\nfn long(x: fn(u8), y: [u8; 2]) {{\n{body}}}\n")
    }

    #[test]
    fn limits_themselves_are_allowed() {
        assert_eq!(check(&"\n".repeat(500)), []);
        assert_eq!(check(&"é".repeat(100)), []);
        assert_eq!(check(&function(70)), []);
    }

    #[test]
    fn one_more_is_found() {
        let path = "crates/x/src/lib.rs".to_owned();
        assert_eq!(check(&"\n".repeat(501)), [("lines", path.clone(), 0)]);
        assert_eq!(check(&format!("\n{}", "é".repeat(101))), [("width", path, 2)]);
        let place = "crates/x/src/lib.rs::long".to_owned();
        assert_eq!(check(&function(71)), [("function", place, 2)]);
    }
}
