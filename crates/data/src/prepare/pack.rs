//! Pieces of documents become tokens in the shards of their split.

use std::path::{Path, PathBuf};

use crate::error::{DataError, Result};
use crate::index::SplitIndex;
use crate::progress::Progress;
use crate::shard::{ShardFormat, SplitWriter, TokenType};
use crate::source::piece::{Assign, Content, Piece};
use crate::split::{Dealer, Split};
use crate::tokenizer::Tokenizer;

/// Text that is collected before BPE encodes it on all cores.
const BATCH_BYTES: usize = 4 << 20;

/// How the output is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub token_type: TokenType,
    pub format: ShardFormat,
    pub shard_tokens: u64,
}

/// Writes the shards of all splits.
pub(super) struct Packer<'a> {
    tokenizer: Option<&'a Tokenizer>,
    separator: Option<u8>,
    dealer: &'a Dealer,
    progress: &'a mut dyn Progress,
    splits: [(SplitWriter, SplitIndex); 3],
    waiting: Vec<(Split, Vec<u8>, bool)>,
    waiting_bytes: usize,
    waiting_units: u64,
    /// Bytes of the document in progress, and the last of them.
    document: (u64, Option<u8>),
    empty_documents: u64,
}

impl<'a> Packer<'a> {
    pub(super) fn new(
        folder: &Path,
        layout: Layout,
        tokenizer: Option<&'a Tokenizer>,
        separator: Option<u8>,
        dealer: &'a Dealer,
        progress: &'a mut dyn Progress,
    ) -> Self {
        let Layout { token_type, format, shard_tokens } = layout;
        let splits = Split::ALL.map(|s| {
            let writer = SplitWriter::new(folder, s.name(), token_type, format, shard_tokens);
            // Token files without a tokenizer have no known number of bytes.
            (writer, SplitIndex { bytes: tokenizer.map(|_| 0), ..SplitIndex::default() })
        });
        Self {
            tokenizer,
            separator,
            dealer,
            progress,
            splits,
            waiting: Vec::new(),
            waiting_bytes: 0,
            waiting_units: 0,
            document: (0, None),
            empty_documents: 0,
        }
    }

    pub(super) fn push(&mut self, piece: &Piece<'_>) -> Result<()> {
        if self.progress.stopped() {
            return Err(DataError::Interrupted);
        }
        let split = assigned(piece.assign, self.dealer);
        match piece.content {
            Content::Tokens(tokens) => self.push_tokens(split, tokens, piece.ends)?,
            Content::Bytes(bytes) => return self.push_document(split, bytes, piece),
        }
        self.progress.tick(piece.units);
        Ok(())
    }

    fn push_document(&mut self, split: Split, bytes: &[u8], piece: &Piece<'_>) -> Result<()> {
        let empty = piece.ends && self.document.0 == 0 && bytes.is_empty();
        self.document.0 += bytes.len() as u64;
        self.document.1 = bytes.last().copied().or(self.document.1);
        let waits = self.tokenizer.is_some_and(Tokenizer::needs_utf8) && !empty;
        if waits {
            check_utf8(piece, bytes)?;
            self.wait(split, bytes, piece)?;
        } else if !empty {
            self.push_bytes(split, bytes, piece.ends)?;
        }
        if piece.ends {
            self.splits[split as usize].1.documents += u64::from(!empty);
            self.empty_documents += u64::from(empty);
            self.document = (0, None);
        }
        if !waits {
            self.progress.tick(piece.units);
        }
        Ok(())
    }

    fn push_tokens(&mut self, split: Split, tokens: &[u32], ends: bool) -> Result<()> {
        let (writer, index) = &mut self.splits[split as usize];
        writer.push(tokens)?;
        index.tokens += tokens.len() as u64;
        index.documents += u64::from(ends);
        let counted = self.tokenizer.and_then(|t| t.count_bytes(tokens));
        index.bytes = index.bytes.zip(counted).map(|(sum, n)| sum + n);
        Ok(())
    }

    fn push_bytes(&mut self, split: Split, bytes: &[u8], ends: bool) -> Result<()> {
        let (writer, index) = &mut self.splits[split as usize];
        writer.push_bytes(bytes)?;
        let mut count = bytes.len() as u64;
        if let Some(separator) = self.separator
            && ends
            && self.document.1 != Some(separator)
        {
            writer.push_bytes(&[separator])?;
            count += 1;
        }
        index.tokens += count;
        index.bytes = index.bytes.map(|sum| sum + count);
        Ok(())
    }

    fn wait(&mut self, split: Split, bytes: &[u8], piece: &Piece<'_>) -> Result<()> {
        self.waiting.push((split, bytes.to_vec(), piece.ends));
        self.waiting_bytes += bytes.len();
        self.waiting_units += piece.units;
        if self.waiting_bytes >= BATCH_BYTES { self.encode() } else { Ok(()) }
    }

    /// Encodes what waits and writes it in order.
    fn encode(&mut self) -> Result<()> {
        let Some(tokenizer) = self.tokenizer else { return Ok(()) };
        let texts: Vec<&[u8]> = self.waiting.iter().map(|(_, t, _)| t.as_slice()).collect();
        let encoded = tokenizer.encode_batch(&texts)?;
        for ((split, text, ends), mut tokens) in self.waiting.drain(..).zip(encoded) {
            let (writer, index) = &mut self.splits[split as usize];
            tokens.extend(tokenizer.end_of_text().filter(|_| ends));
            writer.push(&tokens)?;
            index.tokens += tokens.len() as u64;
            index.bytes = index.bytes.map(|sum| sum + text.len() as u64);
        }
        self.progress.tick(self.waiting_units);
        (self.waiting_bytes, self.waiting_units) = (0, 0);
        Ok(())
    }

    /// Finishes the files; what each split holds.
    pub(super) fn finish(mut self) -> Result<([SplitIndex; 3], u64)> {
        self.encode()?;
        let mut splits = [const { None }; 3];
        for (slot, (mut writer, mut index)) in splits.iter_mut().zip(self.splits) {
            writer.close()?;
            index.shards = writer.shards;
            *slot = Some(index);
        }
        Ok((splits.map(Option::unwrap_or_default), self.empty_documents))
    }
}

pub(super) fn assigned(assign: Assign<'_>, dealer: &Dealer) -> Split {
    match assign {
        Assign::Given(split) => split,
        Assign::Hash(identity) => dealer.deal(identity),
    }
}

pub(super) fn check_utf8(piece: &Piece<'_>, bytes: &[u8]) -> Result<()> {
    std::str::from_utf8(bytes).map(drop).map_err(|e| DataError::NotUtf8 {
        path: PathBuf::from(piece.path),
        offset: piece.offset + e.valid_up_to() as u64,
    })
}
