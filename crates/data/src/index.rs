//! `index.json`: what a prepared folder holds and where it came from.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};
use crate::shard::{ShardFile, ShardFormat, TokenType};

/// Version of the folder's layout; part of the fingerprint, so a newer layout is prepared anew.
pub const INDEX_VERSION: u32 = 1;
/// Name of the index inside a prepared folder.
pub const INDEX_FILE: &str = "index.json";
/// Name of the tokenizer inside a prepared folder, where there is one.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// Height, width, channels of an image; its tokens are its bytes in that order, row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageShape {
    /// Rows.
    pub height: u32,
    /// Pixels in a row.
    pub width: u32,
    /// 1 gray, 3 red-green-blue, 4 with alpha.
    pub channels: u32,
}

impl ImageShape {
    /// Bytes, and so tokens, of one image.
    pub fn tokens(self) -> usize {
        self.height as usize * self.width as usize * self.channels as usize
    }

    /// Bytes of one row: the distance of a byte to the same channel of the pixel above.
    pub fn row_tokens(self) -> usize {
        self.width as usize * self.channels as usize
    }
}

impl std::fmt::Display for ImageShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}x{}", self.height, self.width, self.channels)
    }
}

/// One split.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitIndex {
    /// Documents or images, or parts of documents where the split rule is `tail`.
    pub documents: u64,
    /// Bytes of text or pixels behind the tokens: bits per byte is bits per token times
    /// `tokens / bytes`. A byte tokenizer's separators count, an end-of-text token does not.
    /// Absent where token files came without a tokenizer.
    pub bytes: Option<u64>,
    /// Tokens of all shards together.
    pub tokens: u64,
    /// The files, in order; the split is their concatenation.
    pub shards: Vec<ShardFile>,
}

/// The tokenizer of a prepared folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerIndex {
    /// `bytes`, `bpe` (trained here), `file` (an existing one) or `none` (token files alone).
    pub kind: String,
    /// File name inside the folder.
    pub file: Option<String>,
    /// blake3 of that file.
    pub blake3: Option<String>,
    /// Token between documents.
    pub end_of_text: Option<u32>,
    /// Tokens are below this number.
    pub vocabulary: u32,
}

/// What the source held that did not become tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skipped {
    /// Documents without a byte.
    pub empty_documents: u64,
    /// Files in image folders that are no PNG or JPEG by their name.
    pub other_files: u64,
}

/// How documents were dealt to splits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SplitRule {
    /// Each document by a keyed hash of its identity.
    Hash,
    /// The end of each file.
    Tail,
}

/// The content of `index.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// [`INDEX_VERSION`].
    pub version: u32,
    /// Hash of everything that the shards depend on: source, files, options.
    pub fingerprint: String,
    /// The source as it was asked for.
    pub source: serde_json::Value,
    /// Files read.
    pub source_files: u64,
    /// Bytes of these files.
    pub source_bytes: u64,
    /// Seed of the split.
    pub split_seed: u64,
    /// How documents were dealt to splits.
    pub split_rule: SplitRule,
    /// The tokenizer.
    pub tokenizer: TokenizerIndex,
    /// Number type of the tokens.
    pub token_type: TokenType,
    /// Header or none.
    pub format: ShardFormat,
    /// Set where every sequence is one image.
    pub image: Option<ImageShape>,
    /// What was left out.
    pub skipped: Skipped,
    /// `train`, `validation`, `test`, as far as they exist.
    pub splits: BTreeMap<String, SplitIndex>,
    /// blake3 of this index with this field empty.
    pub checksum: String,
}

impl Index {
    /// Reads and checks `index.json` of a prepared folder.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(INDEX_FILE);
        let bytes = fs::read(&path).map_err(|e| DataError::read(&path, e))?;
        let bad = |reason: String| DataError::BadIndex { path: path.clone(), reason };
        let value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|e| bad(format!("it is not JSON ({e})")))?;
        let version = value.get("version").and_then(serde_json::Value::as_u64);
        if version != Some(u64::from(INDEX_VERSION)) {
            let found = version.map_or("none".to_owned(), |v| v.to_string());
            return Err(bad(format!("its version is {found}, this aerogel reads {INDEX_VERSION}")));
        }
        let index: Self =
            serde_json::from_value(value).map_err(|e| bad(format!("it is damaged ({e})")))?;
        if index.checksum != index.compute_checksum() {
            return Err(bad("its checksum is wrong, it was changed by hand or is damaged".into()));
        }
        index.check().map_err(bad)?;
        Ok(index)
    }

    fn check(&self) -> Result<(), String> {
        for (name, split) in &self.splits {
            let sum = split.shards.iter().try_fold(0u64, |sum, s| sum.checked_add(s.tokens));
            if sum != Some(split.tokens) {
                return Err(format!("the shards of {name} do not add up to its tokens"));
            }
            for shard in &split.shards {
                // A name with a folder in it would make us read outside the prepared folder.
                if Path::new(&shard.file).components().count() != 1 || shard.file.contains("..") {
                    return Err(format!("{:?} is not a file name", shard.file));
                }
            }
        }
        if self.tokenizer.vocabulary == 0 {
            return Err("its vocabulary is empty".into());
        }
        Ok(())
    }

    pub(crate) fn save(&mut self, folder: &Path) -> Result<()> {
        self.checksum = self.compute_checksum();
        let path = folder.join(INDEX_FILE);
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|e| DataError::BadIndex { path: path.clone(), reason: e.to_string() })?;
        text.push(b'\n');
        fs::File::create(&path)
            .and_then(|mut f| f.write_all(&text).and_then(|()| f.sync_all()))
            .map_err(|e| DataError::write(&path, e))
    }

    fn compute_checksum(&self) -> String {
        let bare = Self { checksum: String::new(), ..self.clone() };
        // Maps of an index are sorted, so equal indexes have equal bytes.
        let bytes = serde_json::to_vec(&bare).unwrap_or_default();
        blake3::hash(&bytes).to_hex().to_string()
    }
}
