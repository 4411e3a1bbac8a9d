//! Text to tokens and back: bytes, or byte-pair encoding by the `tokenizers` crate.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper};

use crate::error::{DataError, Result};

/// The token that ends a document, in tokenizers trained here.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Names that an existing tokenizer may use for the same, in the order they are tried.
const END_OF_TEXT_NAMES: [&str; 5] =
    [END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>"];
/// 256 bytes and the end of text: a byte-level vocabulary cannot be smaller.
pub const MIN_BPE_VOCABULARY: u32 = 257;

/// No vocabulary is larger.
pub const MAX_VOCABULARY: u32 = 1 << 24;

/// Which tokenizer [`prepare`](crate::prepare()) uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenizerSpec {
    /// Every byte is a token, vocabulary 256.
    Bytes {
        /// Appended to a document that does not end with it; `None` joins documents bare.
        separator: Option<u8>,
    },
    /// Byte-level BPE, trained on the train split. `<|endoftext|>` ends each document.
    Bpe {
        /// Size of the vocabulary, 257 at least. A small corpus may fill less of it.
        vocabulary: u32,
    },
    /// An existing `tokenizer.json`.
    File {
        /// Its path, relative to the root.
        path: String,
        /// The token that ends a document; usual names are tried if absent.
        end_of_text: Option<String>,
    },
    /// For token files: tokens are numbers below `vocabulary`, nothing turns them to text.
    None {
        /// Size of the vocabulary.
        vocabulary: u32,
    },
}

impl TokenizerSpec {
    /// Bytes, documents ended by a newline.
    pub fn bytes() -> Self {
        Self::Bytes { separator: Some(b'\n') }
    }
}

/// Encodes and decodes. For bytes and byte-level BPE, `decode(encode(x)) == x`.
#[derive(Clone, Debug)]
pub struct Tokenizer(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Bytes,
    Bpe(Box<Bpe>),
}

#[derive(Clone, Debug)]
struct Bpe {
    inner: tokenizers::Tokenizer,
    end_of_text: u32,
    vocabulary: u32,
    /// What each token stands for, where tokens are bytes; empty for other decoders.
    pieces: Vec<Vec<u8>>,
}

impl Tokenizer {
    /// Every byte is a token.
    pub fn bytes() -> Self {
        Self(Kind::Bytes)
    }

    /// Reads a `tokenizer.json`. `end_of_text` names the token that ends a document.
    pub fn from_file(path: &Path, end_of_text: Option<&str>) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| DataError::read(path, e))?;
        let name = path.display().to_string();
        Self::wrap(parse(&bytes, &name)?, &name, end_of_text)
    }

    /// The tokenizer of a prepared folder, where the end of text is known by its number.
    pub(crate) fn from_saved(bytes: &[u8], path: &Path, end_of_text: Option<u32>) -> Result<Self> {
        let name = path.display().to_string();
        let inner = parse(bytes, &name)?;
        let end = end_of_text.and_then(|id| inner.id_to_token(id));
        Self::wrap(inner, &name, end.as_deref())
    }

    /// Trains byte-level BPE. The result depends on the multiset of texts alone: neither their
    /// order nor the number of threads changes it.
    pub fn train(texts: impl Iterator<Item = String> + Send, vocabulary: u32) -> Result<Self> {
        if vocabulary < MIN_BPE_VOCABULARY {
            let wanted = format!("{MIN_BPE_VOCABULARY} or more: 256 bytes and {END_OF_TEXT}");
            return Err(DataError::option("tokenizer.vocabulary", vocabulary, wanted));
        }
        let level = ByteLevel::new(false, false, true);
        let mut inner = tokenizers::Tokenizer::new(BPE::default());
        inner.with_pre_tokenizer(Some(level)).with_decoder(Some(level));
        let mut trainer = TrainerWrapper::from(
            BpeTrainer::builder()
                .vocab_size(vocabulary as usize)
                .min_frequency(2)
                .show_progress(false)
                .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
                .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
                .build(),
        );
        let failed = |e: tokenizers::Error| wrong("in training", e.to_string());
        inner.train(&mut trainer, texts).map_err(failed)?;
        Self::wrap(inner, "in training", Some(END_OF_TEXT))
    }

    fn wrap(
        mut inner: tokenizers::Tokenizer,
        name: &str,
        end_of_text: Option<&str>,
    ) -> Result<Self> {
        // A document that spells out a special token means the characters, not the token; and
        // documents are never cut or padded by what a file was saved with.
        inner.set_encode_special_tokens(true);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| wrong(name, e.to_string()))?;
        let tried: &[&str] = match &end_of_text {
            Some(one) => std::slice::from_ref(one),
            None => &END_OF_TEXT_NAMES,
        };
        let end = tried.iter().find_map(|t| inner.token_to_id(t)).ok_or_else(|| {
            let reason = format!("has no token {tried:?} to end a document with; name the one it");
            wrong(name, reason + " uses as `end_of_text`")
        })?;
        let largest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        if largest >= MAX_VOCABULARY {
            // One wild id would have tables of its size allocated, here and in a model.
            return Err(wrong(name, format!("has token {largest}, the limit is {MAX_VOCABULARY}")));
        }
        let vocabulary = largest + 1;
        let pieces = match inner.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => pieces(&inner, vocabulary),
            _ => Vec::new(),
        };
        Ok(Self(Kind::Bpe(Box::new(Bpe { inner, end_of_text: end, vocabulary, pieces }))))
    }

    /// Writes `tokenizer.json`. Byte tokenizers have no file, for them this does nothing.
    pub fn save(&self, path: &Path) -> Result<()> {
        let Kind::Bpe(bpe) = &self.0 else { return Ok(()) };
        let text = bpe
            .inner
            .to_string(false)
            .map_err(|e| wrong(&path.display().to_string(), e.to_string()))?;
        let write = || {
            let mut file = File::create(path)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        write().map_err(|e| DataError::write(path, e))
    }

    /// Tokens are below this number.
    pub fn vocabulary(&self) -> u32 {
        match &self.0 {
            Kind::Bytes => 256,
            Kind::Bpe(bpe) => bpe.vocabulary,
        }
    }

    /// The token that ends a document; bytes have none.
    pub fn end_of_text(&self) -> Option<u32> {
        match &self.0 {
            Kind::Bytes => None,
            Kind::Bpe(bpe) => Some(bpe.end_of_text),
        }
    }

    /// Whether text has to be UTF-8 to be encoded.
    pub fn needs_utf8(&self) -> bool {
        matches!(self.0, Kind::Bpe(_))
    }

    /// Tokens of one text. Special tokens spelled out in it are encoded as characters.
    pub fn encode(&self, text: &[u8]) -> Result<Vec<u32>> {
        Ok(self.encode_batch(&[text])?.pop().unwrap_or_default())
    }

    /// Tokens of many texts, in their order; BPE runs on all cores.
    pub fn encode_batch(&self, texts: &[&[u8]]) -> Result<Vec<Vec<u32>>> {
        let Kind::Bpe(bpe) = &self.0 else {
            return Ok(texts.iter().map(|t| t.iter().map(|&b| b.into()).collect()).collect());
        };
        let texts = texts
            .iter()
            .map(|t| std::str::from_utf8(t))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| wrong("input", format!("text that is not UTF-8 ({e})")))?;
        let encoded = bpe
            .inner
            .encode_batch_fast(texts, false)
            .map_err(|e| wrong("encoding", e.to_string()))?;
        Ok(encoded.iter().map(|e| e.get_ids().to_vec()).collect())
    }

    /// The bytes that tokens stand for. A special token becomes its name.
    pub fn decode(&self, tokens: &[u32]) -> Result<Vec<u8>> {
        self.check(tokens)?;
        match &self.0 {
            Kind::Bytes => Ok(tokens.iter().map(|&t| t as u8).collect()),
            Kind::Bpe(bpe) if bpe.pieces.is_empty() => bpe
                .inner
                .decode(tokens, false)
                .map(String::into_bytes)
                .map_err(|e| wrong("decoding", e.to_string())),
            Kind::Bpe(bpe) => {
                Ok(tokens.iter().flat_map(|&t| &bpe.pieces[t as usize]).copied().collect())
            }
        }
    }

    /// Bytes that tokens stand for, where each token has bytes of its own; the end of text
    /// counts none.
    pub(crate) fn count_bytes(&self, tokens: &[u32]) -> Option<u64> {
        match &self.0 {
            Kind::Bytes => Some(tokens.len() as u64),
            Kind::Bpe(bpe) if bpe.pieces.is_empty() => None,
            Kind::Bpe(bpe) => Some(
                tokens
                    .iter()
                    .filter(|&&t| t != bpe.end_of_text)
                    .map(|&t| bpe.pieces[t as usize].len() as u64)
                    .sum(),
            ),
        }
    }

    fn check(&self, tokens: &[u32]) -> Result<()> {
        let vocabulary = self.vocabulary();
        match tokens.iter().find(|&&t| t >= vocabulary) {
            None => Ok(()),
            Some(t) => Err(wrong("decoding", format!("token {t} of a vocabulary of {vocabulary}"))),
        }
    }

    /// Decodes one token at a time, never showing half a character.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, open: Vec::new(), tokens: Vec::new(), shown: 0 }
    }

    /// Whether tokens join to text by rules of a decoder instead of standing for bytes.
    fn joins_by_rules(&self) -> bool {
        matches!(&self.0, Kind::Bpe(bpe) if bpe.pieces.is_empty())
    }
}

/// Turns tokens to text as they come; see [`Tokenizer::stream`].
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Bytes of a character that is not complete yet.
    open: Vec<u8>,
    /// Where a decoder joins by rules: tokens that the next one may depend on.
    tokens: Vec<u32>,
    /// Bytes of their text that have been handed out.
    shown: usize,
}

/// Tokens after which text that still ends in U+FFFD is taken as it is: no character has as many.
const LONGEST_CHARACTER_TOKENS: usize = 8;

impl TextStream<'_> {
    /// The text that `token` completes; empty while a character is still open. Bytes that can
    /// never become UTF-8 appear as U+FFFD.
    pub fn push(&mut self, token: u32) -> Result<String> {
        if self.tokenizer.joins_by_rules() {
            return self.push_by_rules(token);
        }
        self.open.extend(self.tokenizer.decode(&[token])?);
        let ready = self.open.len() - open_bytes(&self.open);
        Ok(String::from_utf8_lossy(&self.open.drain(..ready).collect::<Vec<_>>()).into_owned())
    }

    fn push_by_rules(&mut self, token: u32) -> Result<String> {
        self.tokenizer.check(&[token])?;
        self.tokens.push(token);
        let text = self.tokenizer.decode(&self.tokens)?;
        let unfinished = text.ends_with("\u{fffd}".as_bytes());
        if unfinished && self.tokens.len() <= LONGEST_CHARACTER_TOKENS {
            return Ok(String::new());
        }
        let fresh = text.get(self.shown..).unwrap_or_default();
        let fresh = String::from_utf8_lossy(fresh).into_owned();
        // The last token stays: whether a space goes before the next one depends on it.
        self.tokens.drain(..self.tokens.len() - 1);
        self.shown = self.tokenizer.decode(&self.tokens)?.len();
        Ok(fresh)
    }

    /// What is left of an unfinished character, as U+FFFD.
    pub fn finish(self) -> Result<String> {
        if self.tokenizer.joins_by_rules() {
            let text = self.tokenizer.decode(&self.tokens)?;
            let rest = text.get(self.shown..).unwrap_or_default();
            return Ok(String::from_utf8_lossy(rest).into_owned());
        }
        Ok(String::from_utf8_lossy(&self.open).into_owned())
    }
}

fn parse(bytes: &[u8], name: &str) -> Result<tokenizers::Tokenizer> {
    tokenizers::Tokenizer::from_bytes(bytes)
        .map_err(|e| wrong(name, format!("not a tokenizer.json ({e})")))
}

/// Bytes at the end that begin a character and may still complete it.
fn open_bytes(bytes: &[u8]) -> usize {
    let from = bytes.len().saturating_sub(3);
    for start in from..bytes.len() {
        if let Err(e) = std::str::from_utf8(&bytes[start..])
            && e.valid_up_to() == 0
            && e.error_len().is_none()
        {
            return bytes.len() - start;
        }
    }
    0
}

/// The bytes of each token of a byte-level vocabulary, in which a character stands for a byte:
/// visible Latin-1 characters for themselves, the other bytes, in order, from U+0100 on.
fn pieces(inner: &tokenizers::Tokenizer, vocabulary: u32) -> Vec<Vec<u8>> {
    let visible = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let hidden: Vec<u8> = (0..=255).filter(|&b| !visible(b)).collect();
    let byte = |c: char| match u32::from(c) {
        n @ 0..=255 if visible(n as u8) => Some(n as u8),
        n => hidden.get(n.checked_sub(256)? as usize).copied(),
    };
    let added = inner.get_added_tokens_decoder();
    (0..vocabulary)
        .map(|id| match (added.get(&id), inner.id_to_token(id)) {
            (Some(token), _) => token.content.clone().into_bytes(),
            (None, Some(token)) => {
                token.chars().map(byte).collect::<Option<_>>().unwrap_or(token.into_bytes())
            }
            (None, None) => Vec::new(),
        })
        .collect()
}

fn wrong(name: &str, reason: impl Into<String>) -> DataError {
    DataError::Tokenizer { name: name.to_owned(), reason: reason.into() }
}
