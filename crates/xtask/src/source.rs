//! A Rust source as tokens and comments: enough for the rules, far from a parser.

/// What a token is, as far as the rules care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An identifier or keyword.
    Word,
    /// One character of punctuation.
    Mark,
    /// A string, character, number or lifetime.
    Literal,
}

/// One token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
    /// From 1.
    pub line: usize,
}

impl Token<'_> {
    /// Whether it is this identifier, keyword or mark.
    pub fn is(&self, text: &str) -> bool {
        self.kind != Kind::Literal && self.text == text
    }
}

/// A comment, documentation included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Comment<'a> {
    pub text: &'a str,
    pub first_line: usize,
    pub last_line: usize,
}

/// Tokens and comments of a file, each in order.
pub(crate) struct Source<'a> {
    pub tokens: Vec<Token<'a>>,
    pub comments: Vec<Comment<'a>>,
}

impl<'a> Source<'a> {
    /// Never fails: what is no Rust gives tokens that no rule looks for.
    pub fn of(text: &'a str) -> Source<'a> {
        let mut source = Source { tokens: Vec::new(), comments: Vec::new() };
        let (mut rest, mut line) = (text, 1);
        while let Some(first) = rest.chars().next() {
            let length = if first.is_whitespace() {
                first.len_utf8()
            } else if let Some(length) = comment_length(rest) {
                let text = &rest[..length];
                let last_line = line + text.matches('\n').count();
                source.comments.push(Comment { text, first_line: line, last_line });
                length
            } else {
                let (kind, length) = token(rest, first);
                source.tokens.push(Token { kind, text: &rest[..length], line });
                length
            };
            line += rest[..length].matches('\n').count();
            rest = &rest[length..];
        }
        source
    }

    /// The tokens outside of items that only tests see.
    pub fn without_tests(&self) -> Vec<Token<'a>> {
        let (mut kept, mut i) = (Vec::with_capacity(self.tokens.len()), 0);
        while i < self.tokens.len() {
            if is_test_attribute(&self.tokens[i..]) {
                i = item_end(&self.tokens, i);
            } else {
                kept.push(self.tokens[i]);
                i += 1;
            }
        }
        kept
    }
}

/// Bytes of the comment that starts here, if one does.
fn comment_length(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if !rest.starts_with("/*") {
        return None;
    }
    let (mut depth, mut i) = (0_usize, 0);
    while i < rest.len() {
        let here = &rest.as_bytes()[i..];
        if here.starts_with(b"/*") {
            (depth, i) = (depth + 1, i + 2);
        } else if here.starts_with(b"*/") {
            (depth, i) = (depth - 1, i + 2);
            if depth == 0 {
                return Some(i);
            }
        } else {
            i += 1;
        }
    }
    Some(rest.len())
}

/// Kind and bytes of the token that starts here.
fn token(rest: &str, first: char) -> (Kind, usize) {
    if first == '"' {
        return (Kind::Literal, quoted_length(rest, '"'));
    }
    if first == '\'' {
        return (Kind::Literal, tick_length(rest));
    }
    if !is_word(first) {
        return (Kind::Mark, first.len_utf8());
    }
    let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
    let (word, after) = rest.split_at(length);
    let literal = match word {
        "r" | "br" | "cr" => raw_length(after),
        "b" | "c" if after.starts_with('"') => Some(quoted_length(after, '"')),
        "b" if after.starts_with('\'') => Some(quoted_length(after, '\'')),
        _ => None,
    };
    match literal {
        Some(more) => (Kind::Literal, length + more),
        None if first.is_ascii_digit() => (Kind::Literal, length),
        None => (Kind::Word, length),
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Bytes up to the closing quote, which a backslash hides.
fn quoted_length(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (i, c) in rest.char_indices().skip(1) {
        if c == quote && !escaped {
            return i + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    rest.len()
}

/// Bytes of a character or of a lifetime: `'a'` is the one, `'a` the other.
fn tick_length(rest: &str) -> usize {
    let mut next = rest.char_indices().skip(1);
    match (next.next(), next.next()) {
        (Some((_, '\\')), _) => quoted_length(rest, '\''),
        (_, Some((i, '\''))) => i + 1,
        _ => rest[1..].find(|c| !is_word(c)).map_or(rest.len(), |i| i + 1),
    }
}

/// Bytes of a raw string after its prefix, if this is one and no raw identifier.
fn raw_length(after: &str) -> Option<usize> {
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let end = body.find(&close).map_or(body.len(), |i| i + close.len());
    Some(hashes + 1 + end)
}

/// Whether `#[cfg(test)]`, or a condition that includes it, starts here.
fn is_test_attribute(tokens: &[Token<'_>]) -> bool {
    let starts = ["#", "[", "cfg", "("];
    if tokens.len() < starts.len() || !starts.iter().zip(tokens).all(|(s, t)| t.is(s)) {
        return false;
    }
    let condition = || tokens.iter().take_while(|t| !t.is("]"));
    condition().any(|t| t.is("test")) && !condition().any(|t| t.is("not"))
}

/// The token after the item that starts at `i` with its attributes.
fn item_end(tokens: &[Token<'_>], mut i: usize) -> usize {
    let mut depth = 0_usize;
    while i < tokens.len() {
        let token = &tokens[i];
        i += 1;
        if ["(", "[", "{"].iter().any(|open| token.is(open)) {
            depth += 1;
        } else if [")", "]", "}"].iter().any(|close| token.is(close)) {
            depth = depth.saturating_sub(1);
            if depth == 0 && token.is("}") {
                return i;
            }
        } else if depth == 0 && token.is(";") {
            return i;
        }
    }
    i
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let source = Source::of(text);
        let words = source.without_tests().into_iter().filter(|t| t.kind == Kind::Word);
        words.map(|t| t.text.to_owned()).collect()
    }

    #[test]
    fn strings_characters_and_comments_hide_their_content() {
        let text = r##"a "b \" c" d 'e' '\'' f<'g> r#"h " i"# j b"k" // l
            /* m /* n */ o */ p b'q' s '"' t r#match 1u8"##;
        assert_eq!(words(text), ["a", "d", "f", "j", "p", "s", "t", "r", "match"]);
    }

    #[test]
    fn lines_are_counted_through_strings_and_comments() {
        let source = Source::of("a\n\"x\ny\" b /* \n\n */ c // d\ne");
        let lines: Vec<_> = source.tokens.iter().map(|t| (t.text, t.line)).collect();
        assert_eq!(lines, [("a", 1), ("\"x\ny\"", 2), ("b", 3), ("c", 5), ("e", 6)]);
        assert_eq!(source.comments[0].first_line..=source.comments[0].last_line, 3..=5);
    }

    #[test]
    fn items_of_tests_are_dropped() {
        let text = "a; #[cfg(test)] #[path = \"x\"] mod b { fn c() {} } d; #[cfg(test)] use e; f; \
                    #[cfg(all(test, unix))] fn g(x: [u8; 2]) {} #[cfg(not(test))] h";
        assert_eq!(words(text), ["a", "d", "f", "cfg", "not", "test", "h"]);
    }
}
