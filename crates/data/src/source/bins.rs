//! Token files of other programs.

use super::piece::{Assign, Content, Listed, Piece, Sink};
use crate::error::Result;
use crate::shard::{BinLayout, TokenFile};
use crate::split::{Dealer, Split};

/// Tokens handed on at a time.
const PIECE_TOKENS: u64 = 1 << 16;

pub(super) fn read(
    listed: &Listed,
    layout: BinLayout,
    dealer: &Dealer,
    vocabulary: u32,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let path = &listed.file.path;
    let file = TokenFile::open(path, layout)?;
    let tokens = file.tokens();
    let width = file.token_type().bytes() as u64;
    let at = |fraction: f64| ((tokens as f64 * fraction).round() as u64).min(tokens);
    let parts = match listed.split {
        Some(split) => vec![(split, 0..tokens)],
        None => {
            let first = at(dealer.fraction(Split::Train));
            let second = at(1.0 - dealer.fraction(Split::Test)).max(first);
            vec![
                (Split::Train, 0..first),
                (Split::Validation, first..second),
                (Split::Test, second..tokens),
            ]
        }
    };
    let mut buffer = Vec::new();
    for (split, range) in parts {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + PIECE_TOKENS);
            buffer.resize((end - start) as usize, 0);
            file.read(start, &mut buffer, vocabulary)?;
            sink(Piece {
                content: Content::Tokens(&buffer),
                assign: Assign::Given(split),
                ends: end == range.end,
                path,
                offset: start,
                units: (end - start) * width,
            })?;
            start = end;
        }
    }
    Ok(())
}
