//! Attention patterns: predicates over (head, query position, key position).
//!
//! Definitions follow Child et al., "Generating Long Sequences with Sparse Transformers" (2019).
//! A pattern is a predicate first; which tiles of the score matrix it leaves empty or full is
//! derived from it, conservatively, so that time is proportional to the tiles that are kept.

use std::fmt;

/// Which keys `j` a query `i` of a head may see.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// All keys.
    Full,
    /// `j <= i`.
    Causal,
    /// `j < i`: what is left of a causal column once the query itself is counted elsewhere.
    Before,
    /// The last `window` positions, the query included: `i - window < j <= i`.
    Local(usize),
    /// Every `stride`-th position back from the query: `j <= i`, `(i - j) mod stride = 0`.
    Strided(usize),
    /// The query's own block so far: `j <= i`, `i / block = j / block` (first part of "fixed").
    Block(usize),
    /// The last `columns` positions of each block, up to the query (second part of "fixed").
    Summary {
        /// Block length l.
        block: usize,
        /// Columns c at the end of each block.
        columns: usize,
    },
    /// As `Summary`, over keys from which all other columns were removed: key `j` stands for
    /// position `(j / columns) * block + block - columns + j mod columns`. With `strict` the
    /// query's own block is left out, which makes the part disjoint from `Block`.
    Columns {
        /// Block length l.
        block: usize,
        /// Columns c at the end of each block.
        columns: usize,
        /// Leave out the query's own block.
        strict: bool,
    },
    /// What either part allows.
    Union(Box<Pattern>, Box<Pattern>),
    /// Head `h` follows pattern `h mod n`.
    PerHead(Vec<Pattern>),
}

/// How much of a tile of the score matrix a pattern keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// Nothing: the tile is skipped.
    Empty,
    /// Perhaps something: the predicate decides per element.
    Partial,
    /// Everything: no mask is needed.
    Full,
}

impl Pattern {
    /// Whether query `i` of `head` may see key `j`.
    pub fn allows(&self, head: usize, i: usize, j: usize) -> bool {
        match self {
            Pattern::Full => true,
            Pattern::Causal => j <= i,
            Pattern::Before => j < i,
            Pattern::Local(w) => j <= i && i - j < *w,
            Pattern::Strided(l) => j <= i && (i - j).is_multiple_of(*l),
            Pattern::Block(l) => j <= i && i / l == j / l,
            Pattern::Summary { block, columns } => j <= i && j % block >= block - columns,
            Pattern::Columns { block, columns, strict } => {
                let key = (j / columns) * block + block - columns + j % columns;
                if *strict { key / block < i / block } else { key <= i }
            }
            Pattern::Union(a, b) => a.allows(head, i, j) || b.allows(head, i, j),
            Pattern::PerHead(list) => list[head % list.len()].allows(head, i, j),
        }
    }

    /// What the pattern keeps of queries `q.0..q.1` by keys `k.0..k.1` (non-empty ranges). `Empty`
    /// and `Full` are certain; `Partial` may be cautious.
    pub fn coverage(&self, head: usize, q: (usize, usize), k: (usize, usize)) -> Coverage {
        use Coverage::{Empty, Full, Partial};
        let band = |lowest: bool, all: bool| match (lowest, all) {
            (false, _) => Empty,
            (true, true) => Full,
            _ => Partial,
        };
        let (q_last, k_last) = (q.1 - 1, k.1 - 1);
        match self {
            Pattern::Full => Full,
            Pattern::Causal => band(k.0 <= q_last, k_last <= q.0),
            Pattern::Before => band(k.0 < q_last, k_last < q.0),
            Pattern::Local(w) => {
                band(k.0 <= q_last && q.0 < k_last + w, k_last <= q.0 && q_last - k.0 < *w)
            }
            Pattern::Strided(l) => band(k.0 <= q_last, *l == 1 && k_last <= q.0),
            Pattern::Block(l) => band(
                k.0 <= q_last && q.0 / l <= k_last / l && k.0 / l <= q_last / l,
                k_last <= q.0 && k.0 / l == q_last / l && q.0 / l == k_last / l,
            ),
            Pattern::Summary { block, columns } => {
                let first = block - columns;
                let any = k_last - k.0 + 1 >= *block || (k.0..k.1).any(|j| j % block >= first);
                band(any && k.0 <= q_last, k_last <= q.0 && (k.0..k.1).all(|j| j % block >= first))
            }
            Pattern::Columns { .. } => {
                // Keys grow with their index and the rule is monotone in both: corners decide.
                band(self.allows(head, q_last, k.0), self.allows(head, q.0, k_last))
            }
            Pattern::Union(a, b) => match (a.coverage(head, q, k), b.coverage(head, q, k)) {
                (Full, _) | (_, Full) => Full,
                (Empty, Empty) => Empty,
                _ => Partial,
            },
            Pattern::PerHead(list) => list[head % list.len()].coverage(head, q, k),
        }
    }

    /// Allowed (query, key) pairs of one head.
    pub fn pairs(&self, head: usize, queries: usize, keys: usize) -> u64 {
        match self {
            Pattern::Full => queries as u64 * keys as u64,
            Pattern::PerHead(list) => list[head % list.len()].pairs(head, queries, keys),
            _ => (0..queries).map(|i| self.row(head, i, keys)).sum(),
        }
    }

    fn row(&self, head: usize, i: usize, keys: usize) -> u64 {
        let upto = (i + 1).min(keys) as u64;
        match self {
            Pattern::Full => keys as u64,
            Pattern::Causal => upto,
            Pattern::Before => (i as u64).min(keys as u64),
            Pattern::Local(w) if i < keys => upto.min(*w as u64),
            Pattern::Strided(l) if i < keys => (i / l) as u64 + 1,
            Pattern::Block(l) if i < keys => (i % l) as u64 + 1,
            Pattern::Summary { block, columns } if i < keys => {
                (summaries(i, *block, *columns)) as u64
            }
            Pattern::Columns { block, columns, strict } => {
                let seen = match strict {
                    true => i / block * columns,
                    false => summaries(i, *block, *columns),
                };
                seen.min(keys) as u64
            }
            _ => (0..keys).filter(|&j| self.allows(head, i, j)).count() as u64,
        }
    }

    /// The number of distinct head patterns (1: all heads are alike): head `h` follows the same
    /// rule as head `h` plus this.
    pub fn head_kinds(&self) -> usize {
        match self {
            Pattern::PerHead(list) => {
                list.iter().fold(list.len(), |n, p| common_multiple(n, p.head_kinds()))
            }
            Pattern::Union(a, b) => common_multiple(a.head_kinds(), b.head_kinds()),
            _ => 1,
        }
    }

    /// Whether the numbers make sense: no length of 0, no more columns than the block has.
    ///
    /// # Errors
    /// The part that does not, and why.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Pattern::Full | Pattern::Causal | Pattern::Before => Ok(()),
            Pattern::Local(0) => Err("a window needs at least 1 position".to_owned()),
            Pattern::Strided(0) => Err("a stride must be at least 1".to_owned()),
            Pattern::Block(0) => Err("a block needs at least 1 position".to_owned()),
            Pattern::Local(_) | Pattern::Strided(_) | Pattern::Block(_) => Ok(()),
            Pattern::Summary { block, columns } | Pattern::Columns { block, columns, .. } => {
                if (1..=*block).contains(columns) {
                    return Ok(());
                }
                Err(format!("summary columns are 1 to the block's {block}, got {columns}"))
            }
            Pattern::Union(a, b) => a.check().and_then(|()| b.check()),
            Pattern::PerHead(list) if list.is_empty() => {
                Err("a pattern per head needs at least one pattern".to_owned())
            }
            Pattern::PerHead(list) => list.iter().try_for_each(Pattern::check),
        }
    }

    /// Parses the text form that `Display` writes; `None` where it is another text, or where the
    /// numbers fail [`Pattern::check`].
    pub fn parse(text: &str) -> Option<Pattern> {
        Pattern::read(text).filter(|p| p.check().is_ok())
    }

    fn read(text: &str) -> Option<Pattern> {
        let text = text.trim();
        let (name, inner) = match text.find('(') {
            Some(p) => (&text[..p], text[p + 1..].strip_suffix(')')?),
            None => (text, ""),
        };
        let parts = split_top(inner);
        match (name, parts.as_slice()) {
            ("union", [a, b]) => {
                let (a, b) = (Pattern::read(a)?, Pattern::read(b)?);
                return Some(Pattern::Union(Box::new(a), Box::new(b)));
            }
            ("per_head", parts) => {
                let list: Option<Vec<_>> = parts.iter().map(|p| Pattern::read(p)).collect();
                return list.map(Pattern::PerHead);
            }
            _ => {}
        }
        let numbers: Option<Vec<usize>> = parts.iter().map(|p| p.trim().parse().ok()).collect();
        Some(match (name, numbers?.as_slice()) {
            ("full", []) => Pattern::Full,
            ("causal", []) => Pattern::Causal,
            ("before", []) => Pattern::Before,
            ("local", [w]) => Pattern::Local(*w),
            ("strided", [l]) => Pattern::Strided(*l),
            ("block", [l]) => Pattern::Block(*l),
            ("summary", [block, columns]) => Pattern::Summary { block: *block, columns: *columns },
            ("columns", [b, c]) => Pattern::Columns { block: *b, columns: *c, strict: false },
            ("columns_strict", [b, c]) => Pattern::Columns { block: *b, columns: *c, strict: true },
            _ => return None,
        })
    }
}

fn common_multiple(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a.max(1), b.max(1));
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

/// Summary positions up to and including `i`.
fn summaries(i: usize, block: usize, columns: usize) -> usize {
    i / block * columns + (i % block + 1 + columns).saturating_sub(block)
}

/// Splits at the commas outside of parentheses.
fn split_top(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, vec![]);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !text.is_empty() {
        parts.push(&text[start..]);
    }
    parts
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Full => write!(f, "full"),
            Pattern::Causal => write!(f, "causal"),
            Pattern::Before => write!(f, "before"),
            Pattern::Local(w) => write!(f, "local({w})"),
            Pattern::Strided(l) => write!(f, "strided({l})"),
            Pattern::Block(l) => write!(f, "block({l})"),
            Pattern::Summary { block, columns } => write!(f, "summary({block},{columns})"),
            Pattern::Columns { block, columns, strict } => {
                let name = if *strict { "columns_strict" } else { "columns" };
                write!(f, "{name}({block},{columns})")
            }
            Pattern::Union(a, b) => write!(f, "union({a},{b})"),
            Pattern::PerHead(list) => {
                let parts: Vec<_> = list.iter().map(Pattern::to_string).collect();
                write!(f, "per_head({})", parts.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Pattern> {
        let columns = |strict| Pattern::Columns { block: 4, columns: 2, strict };
        let summary = Pattern::Summary { block: 4, columns: 2 };
        let union = Pattern::Union(Box::new(Pattern::Local(3)), Box::new(Pattern::Strided(5)));
        vec![
            Pattern::Full,
            Pattern::Causal,
            Pattern::Before,
            Pattern::Local(5),
            Pattern::Strided(3),
            Pattern::Strided(1),
            Pattern::Block(4),
            summary.clone(),
            columns(false),
            columns(true),
            union.clone(),
            Pattern::PerHead(vec![union, summary]),
        ]
    }

    #[test]
    fn coverage_and_counts_agree_with_the_predicate() {
        for p in all() {
            for head in 0..2 {
                for (q0, qn, k0, kn) in (0..400).map(|s| (s % 7, 1 + s % 5, s % 11, 1 + s % 6)) {
                    let pairs = (q0..q0 + qn).flat_map(|i| (k0..k0 + kn).map(move |j| (i, j)));
                    let kept: Vec<_> = pairs.map(|(i, j)| p.allows(head, i, j)).collect();
                    match p.coverage(head, (q0, q0 + qn), (k0, k0 + kn)) {
                        Coverage::Empty => assert!(kept.iter().all(|k| !k), "{p} {q0} {k0}"),
                        Coverage::Full => assert!(kept.iter().all(|k| *k), "{p} {q0} {k0}"),
                        Coverage::Partial => {}
                    }
                }
                let slow: usize =
                    (0..13).map(|i| (0..11).filter(|&j| p.allows(head, i, j)).count()).sum();
                assert_eq!(p.pairs(head, 13, 11), slow as u64, "{p}");
            }
            assert_eq!(Pattern::parse(&p.to_string()), Some(p));
        }
    }
}
