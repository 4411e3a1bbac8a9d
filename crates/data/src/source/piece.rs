//! What every reader hands on.

use std::path::Path;

use crate::error::Result;
use crate::files::InputFile;
use crate::split::Split;

/// A file of the source, with its split if the source says so.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub file: InputFile,
    pub split: Option<Split>,
}

/// All files of a source.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    pub files: Vec<Listed>,
    /// Files below image folders that are no images by their name.
    pub other_files: u64,
}

impl Listing {
    pub(crate) fn has(&self, split: Split) -> bool {
        self.files.iter().any(|f| f.split == Some(split))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.file.size_bytes).sum()
    }
}

/// A document, an image, or a part of a document: parts come in order, the last one `ends` it.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    pub content: Content<'a>,
    pub assign: Assign<'a>,
    pub ends: bool,
    /// Where it comes from, for errors.
    pub path: &'a Path,
    /// Byte offset of the content in the file, for errors.
    pub offset: u64,
    /// How far this brings the progress.
    pub units: u64,
}

#[derive(Debug)]
pub(crate) enum Content<'a> {
    Bytes(&'a [u8]),
    Tokens(&'a [u32]),
}

/// How a piece gets its split.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Assign<'a> {
    Given(Split),
    Hash(&'a [u8]),
}

/// Takes pieces in order; an error ends the reading.
pub(crate) type Sink<'a> = dyn FnMut(Piece<'_>) -> Result<()> + 'a;

pub(crate) fn given(files: Vec<InputFile>, split: Option<Split>) -> Vec<Listed> {
    files.into_iter().map(|file| Listed { file, split }).collect()
}
