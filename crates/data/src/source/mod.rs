//! Where documents and images come from. Every reader hands on [`Piece`]s in one fixed order.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};
use crate::files;
use crate::index::{ImageShape, SplitRule};
use crate::progress::Unit;
use crate::shard::BinLayout;
use crate::split::{Dealer, Split};

use piece::{Listing, Sink, given};

mod bins;
mod cifar;
pub(crate) mod images;
mod jsonl;
#[cfg(feature = "parquet")]
mod parquet;
pub(crate) mod piece;
mod text;

/// With fewer text files than this, each file's end is held out instead of whole files: a hash
/// over a handful of files (often one) would hit a fraction badly.
pub const FEW_FILES: usize = 64;

/// A source of documents or images. Paths and globs are relative to the root of the
/// [`Request`](crate::Request); a glob matches a hidden file only if it spells the dot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Text files; one file, one document.
    ///
    /// With 64 files or more the split is by file, its path being its identity. With fewer, each
    /// file is cut at a line end: train first, then validation, then test.
    Text {
        /// Files to read.
        globs: Vec<String>,
        /// Files to leave out.
        exclude: Vec<String>,
    },
    /// JSON objects, one a line; `field` holds the document. The text is its own identity, so
    /// equal documents never lie on both sides of a split.
    Jsonl {
        /// Files to read.
        globs: Vec<String>,
        /// A top-level string.
        field: String,
    },
    /// A text column of Parquet files (cargo feature `parquet`); identity as in `Jsonl`.
    Parquet {
        /// Files to read.
        globs: Vec<String>,
        /// A top-level string column.
        column: String,
    },
    /// Folders of PNG or JPEG images, usually one folder a class. An image's identity is its path.
    ImageFolders {
        /// Folder of the train images, searched with all folders below it.
        train: PathBuf,
        /// Folder of the test images.
        test: Option<PathBuf>,
        /// The size that every image must have.
        size: ImageShape,
    },
    /// The binary version of CIFAR-10: `data_batch_*.bin` and `test_batch.bin`, of 1 label byte
    /// and 3,072 bytes, one plane a channel. The planes are interleaved to rows of RGB pixels.
    Cifar10Binary {
        /// Folder of the files.
        dir: PathBuf,
    },
    /// Token files of nanoGPT or llm.c. Without validation files, each file's end is held out.
    Bin {
        /// Files to train on.
        train: Vec<String>,
        /// Files to validate on; may be empty.
        validation: Vec<String>,
        /// How to read them.
        layout: BinLayout,
    },
    /// Made on the spot from a seed.
    Made {
        /// What to make.
        kind: MadeKind,
        /// Another seed, other data.
        seed: u64,
    },
}

/// What [`made::write`](crate::made::write) can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MadeKind {
    /// 8 text files, 64 kB together: sentences of a small grammar, and sums.
    Text,
    /// 400 JSON lines, the same sentences in the field `text`.
    Jsonl,
    /// 8x8 RGB images of three classes (horizontal, vertical and checkered stripes), 120 to train
    /// on and 24 to test.
    Images,
    /// 16x16 gray images, 512 to train on and 64 to test: the first row is random, every other
    /// row copies the row above it. Attention along columns solves it, nothing local does.
    CopyRowAbove,
    /// Smooth 32x32 images in the binary files of CIFAR-10: 5 batches of 16, and 16 to test.
    Cifar10,
    /// Headerless `u16` tokens of a vocabulary of 64, 20,000 to train on and 2,000 to validate:
    /// a token follows from the last one by a fixed rule three times out of four.
    Bin,
}

impl MadeKind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Text, Self::Jsonl, Self::Images, Self::CopyRowAbove, Self::Cifar10, Self::Bin];

    /// The shape of one image, if it makes images.
    pub fn image_shape(self) -> Option<ImageShape> {
        let shape = |height, width, channels| Some(ImageShape { height, width, channels });
        match self {
            Self::Images => shape(8, 8, 3),
            Self::CopyRowAbove => shape(16, 16, 1),
            Self::Cifar10 => shape(32, 32, 3),
            Self::Text | Self::Jsonl | Self::Bin => None,
        }
    }
}

impl Source {
    /// The files that are read, in the order of their paths.
    ///
    /// # Errors
    /// None matches, or a folder cannot be read.
    pub fn files(&self, root: &Path) -> Result<Vec<PathBuf>> {
        Ok(self.list(root)?.files.into_iter().map(|f| f.file.path).collect())
    }

    /// Lists the files; an error if there is none.
    pub(crate) fn list(&self, root: &Path) -> Result<Listing> {
        let plain = |globs: &[String], exclude: &[String]| {
            Ok(Listing {
                files: given(files::matching(root, globs, exclude)?, None),
                other_files: 0,
            })
        };
        match self {
            Self::Text { globs, exclude } => plain(globs, exclude),
            Self::Jsonl { globs, .. } | Self::Parquet { globs, .. } => plain(globs, &[]),
            Self::ImageFolders { train, test, .. } => images::list(root, train, test.as_deref()),
            Self::Cifar10Binary { dir } => cifar::list(root, dir),
            Self::Bin { train, validation, .. } => {
                let mut files = given(files::matching(root, train, &[])?, None);
                if !validation.is_empty() {
                    files.iter_mut().for_each(|f| f.split = Some(Split::Train));
                    let held = files::matching(root, validation, &[])?;
                    files.extend(given(held, Some(Split::Validation)));
                }
                Ok(Listing { files, other_files: 0 })
            }
            Self::Made { .. } => Ok(Listing { files: Vec::new(), other_files: 0 }),
        }
    }

    /// Reads every document in order and hands it to `sink`.
    pub(crate) fn read(
        &self,
        listing: &Listing,
        dealer: &Dealer,
        vocabulary: u32,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let files = &listing.files;
        match self {
            Self::Text { .. } => {
                let rule = self.split_rule(listing);
                files.iter().try_for_each(|f| text::read(f, rule, dealer, sink))
            }
            Self::Jsonl { field, .. } => files.iter().try_for_each(|f| jsonl::read(f, field, sink)),
            #[cfg(feature = "parquet")]
            Self::Parquet { column, .. } => {
                files.iter().try_for_each(|f| parquet::read(f, column, sink))
            }
            #[cfg(not(feature = "parquet"))]
            Self::Parquet { .. } => {
                Err(DataError::FeatureMissing { what: "a Parquet source", feature: "parquet" })
            }
            Self::ImageFolders { size, .. } => images::read(files, *size, sink),
            Self::Cifar10Binary { .. } => files.iter().try_for_each(|f| cifar::read(f, sink)),
            Self::Bin { layout, .. } => {
                files.iter().try_for_each(|f| bins::read(f, *layout, dealer, vocabulary, sink))
            }
            Self::Made { .. } => Ok(()),
        }
    }

    /// Checks what can be checked before any file is touched.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::ImageFolders { size, .. } => {
                let sensible =
                    (1..=4096).contains(&size.height) && (1..=4096).contains(&size.width);
                if !sensible || !matches!(size.channels, 1 | 3 | 4) {
                    let wanted = "1 to 4096 high and wide, with 1, 3 or 4 channels";
                    return Err(DataError::option("source.size", size, wanted));
                }
                Ok(())
            }
            #[cfg(not(feature = "parquet"))]
            Self::Parquet { .. } => {
                Err(DataError::FeatureMissing { what: "a Parquet source", feature: "parquet" })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn split_rule(&self, listing: &Listing) -> SplitRule {
        match self {
            Self::Text { .. } if listing.files.len() < FEW_FILES => SplitRule::Tail,
            Self::Bin { .. } => SplitRule::Tail,
            _ => SplitRule::Hash,
        }
    }

    /// The shape of one image, if the source holds images.
    pub fn image_shape(&self) -> Option<ImageShape> {
        match self {
            Self::ImageFolders { size, .. } => Some(*size),
            Self::Cifar10Binary { .. } => Some(cifar::SHAPE),
            Self::Made { kind, .. } => kind.image_shape(),
            _ => None,
        }
    }

    /// Whether the source holds tokens already.
    pub(crate) fn is_tokens(&self) -> bool {
        matches!(self, Self::Bin { .. } | Self::Made { kind: MadeKind::Bin, .. })
    }

    /// Whether every byte of its files is text.
    pub(crate) fn is_plain_text(&self) -> bool {
        matches!(self, Self::Text { .. })
    }

    /// What is inside, for messages.
    pub(crate) fn what(&self) -> &'static str {
        match self.image_shape() {
            Some(_) => "image",
            None if self.is_tokens() => "token",
            None => "text",
        }
    }

    pub(crate) fn unit(&self) -> Unit {
        if self.image_shape().is_some() { Unit::Images } else { Unit::Bytes }
    }

    /// Units of progress in all files.
    pub(crate) fn units(&self, listing: &Listing) -> u64 {
        match self {
            Self::ImageFolders { .. } => listing.files.len() as u64,
            Self::Cifar10Binary { .. } => listing.bytes() / cifar::RECORD_BYTES as u64,
            _ => listing.bytes(),
        }
    }
}
