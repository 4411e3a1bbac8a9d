//! The parser of expressions: the inverse of [`Expr::show`], by precedence climbing.

use super::{BINARY, Bin, Expr, UNARY};
use crate::types::Axes;

/// What is wrong with an expression, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expression `{text}`: at character {at}: wanted {wanted}")]
pub struct ExprError {
    /// The whole expression.
    pub text: String,
    /// Offset in bytes.
    pub at: usize,
    /// What would have been right there.
    pub wanted: &'static str,
}

/// Parses an expression; axes of `coord` must be in the table.
///
/// # Errors
/// The place and what was wanted there.
pub fn parse(text: &str, axes: &Axes) -> Result<Expr, ExprError> {
    let mut p = Parser { text, at: 0, axes };
    let e = p.sum(0)?;
    p.space();
    if p.at < text.len() {
        return Err(p.wanted("an operator or the end"));
    }
    Ok(e)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    axes: &'a Axes,
}

const LEVELS: [&[(&str, Bin)]; 3] = [
    &[("<=", Bin::Le), ("<", Bin::Lt), ("==", Bin::Eq)],
    &[("+", Bin::Add), ("-", Bin::Sub)],
    &[("*", Bin::Mul), ("/", Bin::Div)],
];

impl Parser<'_> {
    fn wanted(&self, wanted: &'static str) -> ExprError {
        ExprError { text: self.text.to_owned(), at: self.at, wanted }
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn eat(&mut self, token: &str) -> bool {
        self.space();
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expect(&mut self, token: &'static str) -> Result<(), ExprError> {
        if self.eat(token) { Ok(()) } else { Err(self.wanted(token)) }
    }

    fn sum(&mut self, level: usize) -> Result<Expr, ExprError> {
        let Some(operators) = LEVELS.get(level) else { return self.atom() };
        let mut left = self.sum(level + 1)?;
        while let Some((_, f)) = operators.iter().copied().find(|(t, _)| self.eat(t)) {
            let right = self.sum(level + 1)?;
            left = Expr::bin(f, left, right);
        }
        Ok(left)
    }

    /// The longest prefix of characters that satisfy the predicate.
    fn take(&mut self, ok: impl Fn(char) -> bool) -> String {
        let rest = self.rest();
        let taken = rest[..rest.find(|c| !ok(c)).unwrap_or(rest.len())].to_owned();
        self.at += taken.len();
        taken
    }

    fn atom(&mut self) -> Result<Expr, ExprError> {
        if self.eat("(") {
            let e = self.sum(0)?;
            self.expect(")")?;
            return Ok(e);
        }
        if self.eat("$") {
            let digits = self.take(|c| c.is_ascii_digit());
            return digits.parse().map(Expr::In).map_err(|_| self.wanted("an input number"));
        }
        self.space();
        let start = self.at;
        if self.rest().starts_with(|c: char| c.is_ascii_digit() || c == '-') {
            return self.number(start);
        }
        let name = self.take(|c| c.is_ascii_alphanumeric());
        match name.as_str() {
            "" => return Err(self.wanted("an expression")),
            "inf" => return Ok(Expr::Const(f64::INFINITY)),
            "NaN" => return Ok(Expr::Const(f64::NAN)),
            _ => self.expect("(")?,
        }
        let e = self.call(&name, start)?;
        self.expect(")")?;
        Ok(e)
    }

    fn number(&mut self, start: usize) -> Result<Expr, ExprError> {
        if self.eat("-inf") {
            return Ok(Expr::Const(f64::NEG_INFINITY));
        }
        let bytes = self.text.as_bytes();
        self.at += 1;
        while let Some(&c) = bytes.get(self.at) {
            let exponent_sign = c == b'-' && bytes[self.at - 1] == b'e';
            if !(c.is_ascii_digit() || c == b'.' || c == b'e' || exponent_sign) {
                break;
            }
            self.at += 1;
        }
        self.text[start..self.at].parse().map(Expr::Const).map_err(|_| self.wanted("a number"))
    }

    fn call(&mut self, name: &str, start: usize) -> Result<Expr, ExprError> {
        if name == "rand" {
            return Ok(Expr::Rand(self.take(|c| c != ')')));
        }
        if name == "coord" {
            let axis = self.take(|c| c != ')');
            return match self.axes.find(axis.trim()) {
                Some(id) => Ok(Expr::Coord(id)),
                None => Err(self.wanted("an axis of the graph")),
            };
        }
        let mut args = vec![self.sum(0)?];
        while self.eat(",") {
            args.push(self.sum(0)?);
        }
        let un = UNARY.iter().find(|(_, n)| *n == name);
        let bin = BINARY.iter().find(|(_, n)| *n == name);
        let mut args = args.into_iter();
        let e = match (un, bin, args.next(), args.next(), args.next()) {
            (Some((f, _)), _, Some(x), None, None) => Expr::un(*f, x),
            (_, Some((f, _)), Some(a), Some(b), None) => Expr::bin(*f, a, b),
            (None, None, Some(c), Some(a), Some(b)) if name == "select" => c.select(a, b),
            _ => {
                self.at = start;
                return Err(self.wanted("a function with the right number of arguments"));
            }
        };
        if args.next().is_some() { Err(self.wanted("fewer arguments")) } else { Ok(e) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_parses_back() {
        let mut axes = Axes::default();
        axes.intern(crate::types::Axis::whole("seq", 4));
        for text in [
            "$0",
            "(($0 * 2.0) + exp(neg($1)))",
            "select(($0 < 0.5), -1.0, max($1, 1e-5))",
            "(rand(h.0.attn.drop) <= coord(seq))",
            "pow($0, -inf)",
        ] {
            let e = parse(text, &axes).unwrap();
            assert_eq!(e.show(&axes), text);
        }
        assert!(parse("exp($0, $1)", &axes).is_err());
        assert!(parse("($0 + ", &axes).is_err());
        assert!(parse("coord(nowhere)", &axes).is_err());
        assert!(parse("$0 $1", &axes).is_err());
    }
}
