//! Data for training: text, images or token files become packed, checksummed shards, and a
//! sampler says which sequence comes when.
//!
//! ```text
//! Source + TokenizerSpec + SplitSpec ─ prepare ─> folder ─ Dataset::open ─> Tokens
//!                          Tokens + Sampler + position ─ Sampler::read ─> one sequence
//! ```
//!
//! The one type to know is [`Dataset`], a prepared folder opened for reading; [`prepare()`] makes
//! the folder and [`Sampler`] reads it.
//!
//! The invariant: **what a run reads is a pure function of the prepared folder, a seed and one
//! integer position.** There is no sampler state; each sequence comes exactly once an epoch; the
//! split of a document depends on its identity and a seed alone. A prepared folder is complete or
//! absent, and is never changed in place.
//!
//! Nothing here draws progress or knows of models: callers pass a [`Progress`]. Tests are in
//! `tests/all`, on data that [`made`] writes.
//!
//! ```
//! use aerogel_data::{Dataset, MadeKind, NoProgress, Request, Sampler, Source, prepare};
//!
//! let dir = tempfile::tempdir()?;
//! let source = Source::Made { kind: MadeKind::CopyRowAbove, seed: 1 };
//! let out = dir.path().join("rows");
//! prepare(&Request::new(source, dir.path(), &out), &mut NoProgress)?;
//!
//! let dataset = Dataset::open(&out)?;
//! let train = dataset.split("train")?;
//! let sampler = Sampler::shuffled(train, 256, 7)?;
//! let mut image = vec![0; sampler.sequence_tokens()];
//! sampler.read(train, 123_456, &mut image)?;
//! assert_eq!(image[16..32], image[0..16]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod dataset;
mod error;
mod files;
mod globs;
mod index;
pub mod made;
mod picture;
mod prepare;
mod progress;
mod sampler;
mod shard;
mod source;
mod space;
mod split;
mod tokenizer;

pub use dataset::{Dataset, Tokens};
pub use error::{DataError, ErrorKind, Result};
pub use index::{
    INDEX_FILE, INDEX_VERSION, ImageShape, Index, Skipped, SplitIndex, SplitRule, TOKENIZER_FILE,
    TokenizerIndex,
};
pub use picture::{image_grid_png, read_image};
pub use prepare::{DEFAULT_SHARD_TOKENS, Outcome, Prepared, Request, prepare};
pub use progress::{NoProgress, Progress, Unit};
pub use sampler::{Place, Sampler};
pub use shard::{
    BinLayout, HEADER_BYTES, MAX_SHARD_TOKENS, ShardFile, ShardFormat, TokenType, header,
};
pub use source::{FEW_FILES, MadeKind, Source};
pub use split::{DEFAULT_VALIDATION, Split, SplitSpec};
pub use tokenizer::{
    END_OF_TEXT, MAX_VOCABULARY, MIN_BPE_VOCABULARY, TextStream, Tokenizer, TokenizerSpec,
};
