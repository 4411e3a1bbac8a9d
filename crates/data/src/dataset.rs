//! A prepared folder, opened for reading.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{DataError, Result};
use crate::files;
use crate::index::{ImageShape, Index, SplitIndex};
use crate::progress::{Progress, Unit};
use crate::shard::{BinLayout, HEADER_BYTES, ShardFormat, TokenFile};
use crate::split::Split;
use crate::tokenizer::Tokenizer;

/// A prepared folder. Opening checks headers, sizes and counts; contents are
/// checked against their hashes by [`verify`](Self::verify).
#[derive(Debug)]
pub struct Dataset {
    folder: PathBuf,
    index: Index,
    splits: BTreeMap<String, Tokens>,
}

/// The tokens of one split: the concatenation of its shards.
#[derive(Debug)]
pub struct Tokens {
    name: String,
    shards: Vec<(u64, TokenFile)>,
    len: u64,
    vocabulary: u32,
    image: Option<ImageShape>,
}

impl Dataset {
    /// Opens a folder that [`prepare`](crate::prepare()) wrote.
    pub fn open(folder: &Path) -> Result<Self> {
        let index = Index::load(folder)?;
        let mut splits = BTreeMap::new();
        for (name, split) in &index.splits {
            splits.insert(name.clone(), open_split(folder, &index, name, split)?);
        }
        Ok(Self { folder: folder.to_owned(), index, splits })
    }

    /// What the folder holds and where it came from.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The tokens of `train`, `validation` or `test`.
    pub fn split(&self, name: &str) -> Result<&Tokens> {
        self.splits.get(name).ok_or_else(|| DataError::NoSplit {
            dataset: self.folder.clone(),
            split: name.to_owned(),
            have: Split::ALL
                .iter()
                .map(|s| s.name().to_owned())
                .filter(|s| self.splits.contains_key(s))
                .collect(),
        })
    }

    /// The tokenizer that made the tokens; `None` where token files came without one.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        let facts = &self.index.tokenizer;
        let tokenizer = match &facts.file {
            None if facts.kind == "bytes" => Tokenizer::bytes(),
            None => return Ok(None),
            Some(file) => {
                let path = self.folder.join(file);
                let bytes = std::fs::read(&path).map_err(|e| DataError::read(&path, e))?;
                let got = blake3::hash(&bytes).to_hex().to_string();
                if facts.blake3.as_ref() != Some(&got) {
                    let wanted = facts.blake3.clone().unwrap_or_default();
                    return Err(DataError::ChecksumMismatch { path, wanted, got });
                }
                Tokenizer::from_saved(&bytes, &path, facts.end_of_text)?
            }
        };
        Ok(Some(tokenizer))
    }

    /// Reads every shard and compares its blake3 with the index.
    pub fn verify(&self, progress: &mut dyn Progress) -> Result<()> {
        let width = self.index.token_type.bytes() as u64;
        let total: u64 = self.index.splits.values().map(|s| s.tokens * width).sum();
        progress.start("verify", total, Unit::Bytes);
        for shard in self.index.splits.values().flat_map(|s| &s.shards) {
            if progress.stopped() {
                return Err(DataError::Interrupted);
            }
            let path = self.folder.join(&shard.file);
            let got = files::file_hash(&path)?;
            if got != shard.blake3 {
                let wanted = shard.blake3.clone();
                return Err(DataError::ChecksumMismatch { path, wanted, got });
            }
            progress.tick(shard.tokens * width);
        }
        Ok(())
    }
}

fn open_split(folder: &Path, index: &Index, name: &str, split: &SplitIndex) -> Result<Tokens> {
    let layout = match index.format {
        ShardFormat::Headers => BinLayout::Headers,
        ShardFormat::NanoGpt => BinLayout::NanoGpt,
    };
    let mut shards = Vec::new();
    let mut start = 0;
    for shard in &split.shards {
        let path = folder.join(&shard.file);
        let file = TokenFile::open(&path, layout)?;
        if file.token_type() != index.token_type || file.tokens() != shard.tokens {
            let header = if layout == BinLayout::Headers { HEADER_BYTES } else { 0 };
            let reason = format!(
                "it holds {} tokens of type {:?}, index.json says {} of type {:?} (after {header} \
                 header bytes); prepare the data again",
                file.tokens(),
                file.token_type(),
                shard.tokens,
                index.token_type,
            );
            return Err(DataError::bad_file(&path, reason));
        }
        shards.push((start, file));
        start += shard.tokens;
    }
    let vocabulary = index.tokenizer.vocabulary;
    Ok(Tokens { name: name.to_owned(), shards, len: start, vocabulary, image: index.image })
}

impl Tokens {
    /// The split's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of tokens.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The shape of one image, where every sequence is one.
    pub fn image(&self) -> Option<ImageShape> {
        self.image
    }

    /// Tokens are below this number; [`read`](Self::read) checks each.
    pub fn vocabulary(&self) -> u32 {
        self.vocabulary
    }

    /// Reads tokens from `start` on until `into` is full, across shards.
    ///
    /// # Errors
    /// [`DataError::BadOption`] if the range goes past the end, [`DataError::TokenOutOfRange`] if
    /// the file holds a token that the vocabulary does not have.
    pub fn read(&self, start: u64, into: &mut [u32]) -> Result<()> {
        let end = start.checked_add(into.len() as u64).filter(|&end| end <= self.len);
        if end.is_none() {
            let got = format!("{} tokens from {start} on", into.len());
            let wanted = format!("inside the {} tokens of {}", self.len, self.name);
            return Err(DataError::option("the token range", got, wanted));
        }
        let mut at = self.shards.partition_point(|(first, _)| *first <= start).saturating_sub(1);
        let (mut position, mut rest) = (start, into);
        while !rest.is_empty() {
            let (first, file) = &self.shards[at];
            let room = (first + file.tokens() - position).min(rest.len() as u64);
            let (now, later) = rest.split_at_mut(room as usize);
            file.read(position - first, now, self.vocabulary)?;
            position += room;
            rest = later;
            at += 1;
        }
        Ok(())
    }

    /// The tokens of a range; errors as for [`read`](Self::read).
    pub fn tokens(&self, range: Range<u64>) -> Result<Vec<u32>> {
        let length = range.end.saturating_sub(range.start);
        // Checked before anything is allocated.
        let fits = range.end <= self.len;
        let mut tokens = vec![0; if fits { length as usize } else { 0 }];
        if !fits {
            let got = format!("{} to {}", range.start, range.end);
            let wanted = format!("inside the {} tokens of {}", self.len, self.name);
            return Err(DataError::option("the token range", got, wanted));
        }
        self.read(range.start, &mut tokens)?;
        Ok(tokens)
    }
}
