//! The token files: layout, writing, reading.
//!
//! | tokens | layout | magic, version |
//! |---|---|---|
//! | `u16` | llm.c, as for GPT-2 | 20240520, 1 |
//! | `u32` | llm.c, as for Llama 3 | 20240801, 7 |
//! | `u8` | the same header, of this project | the bytes `AERO`, 1 |
//! | `u16` | nanoGPT: no header | none |
//!
//! A header is 256 little-endian `i32` (1,024 bytes): magic, version, number of tokens, zeros.
//! Then the tokens follow, little-endian, nothing after them.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};
use crate::files;

/// Bytes of a shard's header.
pub const HEADER_BYTES: usize = 1024;
/// The most tokens that a header can count.
pub const MAX_SHARD_TOKENS: u64 = i32::MAX as u64;

/// The number type of the tokens in a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenType {
    /// One byte: byte text and images.
    U8,
    /// Two bytes: vocabularies up to 65,536.
    U16,
    /// Four bytes: larger vocabularies.
    U32,
}

impl TokenType {
    /// Little-endian tokens of this width, as many as `into` holds.
    fn decode(self, bytes: &[u8], into: &mut [u32]) {
        match self {
            TokenType::U8 => {
                into.iter_mut().zip(bytes).for_each(|(t, &b)| *t = u32::from(b));
            }
            TokenType::U16 => {
                let words = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
                into.iter_mut().zip(words).for_each(|(t, w)| *t = u32::from(w));
            }
            TokenType::U32 => {
                let words =
                    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                into.iter_mut().zip(words).for_each(|(t, w)| *t = w);
            }
        }
    }

    /// Bytes of one token.
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }

    /// The narrowest type that holds tokens below `vocabulary`.
    pub fn for_vocabulary(vocabulary: u32) -> Self {
        match vocabulary {
            0..=256 => Self::U8,
            257..=65_536 => Self::U16,
            _ => Self::U32,
        }
    }

    /// Magic number and version in the header.
    pub fn magic(self) -> (i32, i32) {
        match self {
            Self::U8 => (i32::from_le_bytes(*b"AERO"), 1),
            Self::U16 => (20_240_520, 1),
            Self::U32 => (20_240_801, 7),
        }
    }

    fn of_magic(magic: i32) -> Option<Self> {
        [Self::U8, Self::U16, Self::U32].into_iter().find(|t| t.magic().0 == magic)
    }
}

/// Whether token files carry a header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShardFormat {
    /// With the 1,024-byte header, in files of at most `shard_tokens` tokens.
    #[default]
    Headers,
    /// nanoGPT: `train.bin`, `val.bin`, each one stream of `u16` without a header.
    NanoGpt,
}

/// One shard file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardFile {
    /// File name inside the folder.
    pub file: String,
    /// Tokens in it.
    pub tokens: u64,
    /// blake3 of the whole file, header included.
    pub blake3: String,
}

/// Writes one split as a row of shard files, in order.
pub(crate) struct SplitWriter {
    folder: PathBuf,
    split: &'static str,
    token_type: TokenType,
    format: ShardFormat,
    shard_tokens: u64,
    current: Option<(PathBuf, BufWriter<File>, u64)>,
    pub shards: Vec<ShardFile>,
}

impl SplitWriter {
    pub(crate) fn new(
        folder: &Path,
        split: &'static str,
        token_type: TokenType,
        format: ShardFormat,
        shard_tokens: u64,
    ) -> Self {
        let shard_tokens = if format == ShardFormat::NanoGpt { u64::MAX } else { shard_tokens };
        let folder = folder.to_owned();
        Self { folder, split, token_type, format, shard_tokens, current: None, shards: Vec::new() }
    }

    /// Appends tokens, which the caller has checked against the vocabulary.
    pub(crate) fn push(&mut self, tokens: &[u32]) -> Result<()> {
        match self.token_type {
            TokenType::U8 => self.push_raw(&narrow(tokens, |t| [t as u8])),
            TokenType::U16 => self.push_raw(&narrow(tokens, |t| (t as u16).to_le_bytes())),
            TokenType::U32 => self.push_raw(&narrow(tokens, u32::to_le_bytes)),
        }
    }

    /// Appends tokens that are bytes.
    pub(crate) fn push_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        match self.token_type {
            TokenType::U8 => self.push_raw(bytes),
            _ => self.push(&bytes.iter().map(|&b| u32::from(b)).collect::<Vec<_>>()),
        }
    }

    fn push_raw(&mut self, mut bytes: &[u8]) -> Result<()> {
        let width = self.token_type.bytes();
        while !bytes.is_empty() {
            let shard_tokens = self.shard_tokens;
            let (path, file, tokens) = self.current()?;
            let room = (shard_tokens - *tokens).min((bytes.len() / width) as u64);
            let (now, later) = bytes.split_at(room as usize * width);
            file.write_all(now).map_err(|e| DataError::write(path, e))?;
            *tokens += room;
            bytes = later;
            if *tokens == shard_tokens {
                self.close()?;
            }
        }
        Ok(())
    }

    fn current(&mut self) -> Result<&mut (PathBuf, BufWriter<File>, u64)> {
        let opened = match self.current.take() {
            Some(current) => current,
            None => {
                let path = self.folder.join(self.next_name());
                let file = File::create(&path).map_err(|e| DataError::write(&path, e))?;
                let mut file = BufWriter::with_capacity(1 << 18, file);
                if self.format == ShardFormat::Headers {
                    // The count is known at the end; until then the magic is absent, so that a
                    // file cut off half-way can never be taken for a shard.
                    file.write_all(&[0; HEADER_BYTES]).map_err(|e| DataError::write(&path, e))?;
                }
                (path, file, 0)
            }
        };
        Ok(self.current.insert(opened))
    }

    fn next_name(&self) -> String {
        match (self.format, self.split) {
            (ShardFormat::NanoGpt, "validation") => "val.bin".to_owned(),
            (ShardFormat::NanoGpt, split) => format!("{split}.bin"),
            (ShardFormat::Headers, split) => format!("{split}-{:05}.bin", self.shards.len()),
        }
    }

    /// Finishes the file in progress: header, durable, hashed.
    pub(crate) fn close(&mut self) -> Result<()> {
        let Some((path, file, tokens)) = self.current.take() else { return Ok(()) };
        let finish = || -> std::io::Result<()> {
            let mut file = file.into_inner().map_err(|e| e.into_error())?;
            if self.format == ShardFormat::Headers {
                file.seek(SeekFrom::Start(0))?;
                file.write_all(&header(self.token_type, tokens as i32))?;
            }
            file.sync_all()
        };
        finish().map_err(|e| DataError::write(&path, e))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.shards.push(ShardFile { file: name, tokens, blake3: files::file_hash(&path)? });
        Ok(())
    }
}

fn narrow<const N: usize>(tokens: &[u32], to: impl Fn(u32) -> [u8; N]) -> Vec<u8> {
    tokens.iter().flat_map(|&t| to(t)).collect()
}

/// The header of a file of `tokens` tokens.
pub fn header(token_type: TokenType, tokens: i32) -> [u8; HEADER_BYTES] {
    let (magic, version) = token_type.magic();
    let mut bytes = [0; HEADER_BYTES];
    for (place, word) in bytes.chunks_exact_mut(4).zip([magic, version, tokens]) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// How to read a token file that may come from elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BinLayout {
    /// With a header if it starts with a known magic number, else headerless `u16`.
    #[default]
    Auto,
    /// With a header; another magic number is an error.
    Headers,
    /// Headerless `u16`, whatever the first bytes are.
    NanoGpt,
}

/// Bytes read at a time; a sequence is a few of these.
const CHUNK_BYTES: usize = 4096;

/// A token file whose size has been checked against its header.
///
/// It is read at positions and not mapped: pages of a map would count as memory of the process,
/// up to the whole corpus.
#[derive(Debug)]
pub(crate) struct TokenFile {
    path: PathBuf,
    file: File,
    start: u64,
    token_type: TokenType,
    tokens: u64,
}

impl TokenFile {
    pub(crate) fn open(path: &Path, layout: BinLayout) -> Result<Self> {
        let file = File::open(path).map_err(|e| DataError::read(path, e))?;
        let size = file.metadata().map_err(|e| DataError::read(path, e))?.len();
        let mut bytes = [0; 12];
        let bytes = &mut bytes[..size.min(12) as usize];
        file.read_exact_at(bytes, 0).map_err(|e| DataError::read(path, e))?;
        let first = |i: usize| -> Option<i32> {
            Some(i32::from_le_bytes(bytes.get(4 * i..4 * i + 4)?.try_into().ok()?))
        };
        let known = first(0).and_then(TokenType::of_magic);
        let (token_type, tokens, start) = match (layout, known) {
            (BinLayout::NanoGpt, _) | (BinLayout::Auto, None) => {
                if !size.is_multiple_of(2) {
                    let reason = format!("{size} bytes are no whole number of 2-byte tokens");
                    return Err(DataError::bad_file(path, reason + "; the file is cut off"));
                }
                (TokenType::U16, size / 2, 0)
            }
            (BinLayout::Headers, None) => {
                let reason = format!(
                    "not a token file: it starts with {:?}, wanted one of the magic numbers \
                     20240520 (u16), 20240801 (u32) or `AERO` (u8)",
                    first(0).unwrap_or(0)
                );
                return Err(DataError::bad_file(path, reason));
            }
            (_, Some(token_type)) => {
                let tokens = check_header(path, token_type, size, first(1), first(2))?;
                (token_type, tokens, HEADER_BYTES as u64)
            }
        };
        Ok(Self { path: path.to_owned(), file, start, token_type, tokens })
    }

    pub(crate) fn token_type(&self) -> TokenType {
        self.token_type
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Reads tokens `start .. start + into.len()`, which the caller knows to exist, and checks
    /// each against the vocabulary: a token out of range would read outside a weight matrix.
    pub(crate) fn read(&self, start: u64, into: &mut [u32], vocabulary: u32) -> Result<()> {
        let width = self.token_type.bytes();
        let mut at = self.start + start * width as u64;
        let mut chunk = [0; CHUNK_BYTES];
        for tokens in into.chunks_mut(CHUNK_BYTES / width) {
            let bytes = &mut chunk[..tokens.len() * width];
            self.file.read_exact_at(bytes, at).map_err(|e| DataError::read(&self.path, e))?;
            self.token_type.decode(bytes, tokens);
            at += bytes.len() as u64;
        }
        match into.iter().position(|&t| t >= vocabulary) {
            None => Ok(()),
            Some(i) => Err(DataError::TokenOutOfRange {
                path: self.path.clone(),
                position: start + i as u64,
                token: into[i],
                vocabulary,
            }),
        }
    }
}

fn check_header(
    path: &Path,
    token_type: TokenType,
    size: u64,
    version: Option<i32>,
    count: Option<i32>,
) -> Result<u64> {
    let wanted = token_type.magic().1;
    if size < HEADER_BYTES as u64 {
        let reason = format!("{size} bytes are too few for a header of {HEADER_BYTES} bytes");
        return Err(DataError::bad_file(path, reason + "; the file is cut off"));
    }
    if version != Some(wanted) {
        let reason = format!("header version {}, wanted {wanted}", version.unwrap_or(0));
        return Err(DataError::bad_file(path, reason + "; use a newer aerogel or prepare again"));
    }
    let tokens = u64::try_from(count.unwrap_or(-1)).map_err(|_| {
        let reason =
            format!("the header counts {} tokens; the file is damaged", count.unwrap_or(0));
        DataError::bad_file(path, reason)
    })?;
    let want = HEADER_BYTES as u64 + tokens * token_type.bytes() as u64;
    if size != want {
        let reason = format!(
            "the header counts {tokens} tokens, which is {want} bytes, but the file has {size}; \
             it is cut off or damaged, write it again"
        );
        return Err(DataError::bad_file(path, reason));
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_named() {
        let mut writer =
            SplitWriter::new(Path::new("/dev"), "full", TokenType::U8, ShardFormat::NanoGpt, 9);
        writer.current = Some((
            PathBuf::from("/dev/full"),
            BufWriter::new(File::options().write(true).open("/dev/full").unwrap()),
            0,
        ));
        writer.push_bytes(&[7; 64]).unwrap();
        let error = writer.close().unwrap_err();
        assert!(matches!(error, DataError::DiskFull { .. }), "{error}");
        assert_eq!(error.exit_code(), 23);
    }
}
