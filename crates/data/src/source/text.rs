//! Text files, read in pieces of bounded size.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use super::piece::{Assign, Content, Listed, Piece, Sink};
use crate::error::{DataError, Result};
use crate::index::SplitRule;
use crate::split::{Dealer, Split};

/// A file is handed on in pieces of at most this size, cut at a line end where there is one. BPE
/// never joins bytes of two pieces in one token.
const PIECE_BYTES: usize = 1 << 18;

pub(super) fn read(
    listed: &Listed,
    rule: SplitRule,
    dealer: &Dealer,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let mut file = listed.file.open()?;
    let size = listed.file.size_bytes;
    if rule == SplitRule::Hash {
        let assign = Assign::Hash(listed.file.name.as_bytes());
        return read_range(&mut file, listed, 0..size, assign, sink);
    }
    let read = |e| DataError::read(&listed.file.path, e);
    let first = (size as f64 * dealer.fraction(Split::Train)).round() as u64;
    let second = (size as f64 * (1.0 - dealer.fraction(Split::Test))).round() as u64;
    let first = line_end(&mut file, first, size).map_err(read)?;
    let second = line_end(&mut file, second, size).map_err(read)?.max(first);
    let parts =
        [(Split::Train, 0..first), (Split::Validation, first..second), (Split::Test, second..size)];
    for (split, range) in parts {
        // An empty file is handed on once, so that it is counted.
        if !range.is_empty() || (size == 0 && split == Split::Train) {
            read_range(&mut file, listed, range, Assign::Given(split), sink)?;
        }
    }
    Ok(())
}

fn read_range(
    file: &mut File,
    listed: &Listed,
    range: std::ops::Range<u64>,
    assign: Assign<'_>,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let path = &listed.file.path;
    file.seek(SeekFrom::Start(range.start)).map_err(|e| DataError::read(path, e))?;
    let mut left = range.end - range.start;
    let mut offset = range.start;
    let mut buffer = Vec::new();
    loop {
        let wanted = left.min((PIECE_BYTES - buffer.len()) as u64);
        let got = file.by_ref().take(wanted).read_to_end(&mut buffer);
        if got.map_err(|e| DataError::read(path, e))? as u64 != wanted {
            return Err(DataError::SourceChanged { path: path.clone() });
        }
        left -= wanted;
        let ends = left == 0;
        let cut = if ends { buffer.len() } else { cut(&buffer) };
        sink(Piece {
            content: Content::Bytes(&buffer[..cut]),
            assign,
            ends,
            path,
            offset,
            units: cut as u64,
        })?;
        if ends {
            return Ok(());
        }
        buffer.drain(..cut);
        offset += cut as u64;
    }
}

/// Where to cut a full buffer: after its last line end, else before the character that may go on.
fn cut(buffer: &[u8]) -> usize {
    if let Some(line) = buffer.iter().rposition(|&b| b == b'\n') {
        return line + 1;
    }
    let start = buffer.iter().rev().take(4).position(|&b| !continues(b)).map_or(0, |n| n + 1);
    buffer.len() - start
}

/// Whether a byte continues a UTF-8 character.
fn continues(byte: u8) -> bool {
    byte & 0b1100_0000 == 0b1000_0000
}

/// The end of the line that holds byte `at`, or the start of the next character if the line goes
/// on for long. 0 and `size` stay what they are.
fn line_end(file: &mut File, at: u64, size: u64) -> std::io::Result<u64> {
    if at == 0 || at >= size {
        return Ok(at.min(size));
    }
    file.seek(SeekFrom::Start(at - 1))?;
    let mut window = Vec::new();
    file.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut window)?;
    if let Some(line) = window.iter().position(|&b| b == b'\n') {
        return Ok(at + line as u64);
    }
    let start = window.iter().skip(1).position(|&b| !continues(b)).unwrap_or(window.len() - 1);
    Ok(at + start as u64)
}
