//! What can go wrong with data, with the values that explain it.

use std::io;
use std::path::{Path, PathBuf};

/// `Result` with [`DataError`].
pub type Result<T, E = DataError> = std::result::Result<T, E>;

/// Who has to act on a [`DataError`]; the binary turns it into its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The recipe (or the caller) asks for something contradictory or impossible.
    Recipe,
    /// The files are not what they have to be.
    Data,
    /// The disk refuses: full, read-only, no permission.
    Storage,
    /// The user stopped it; nothing was changed and the same call starts again.
    Interrupted,
}

impl ErrorKind {
    /// The exit code of the `aerogel` binary for this kind.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Recipe => 20,
            Self::Data => 22,
            Self::Storage => 23,
            Self::Interrupted => 10,
        }
    }
}

/// An error of this crate. Every message says what, where, why, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// No file matches the patterns.
    #[error("no file matches {patterns:?} below {root}: correct the patterns or the folder",
        root = root.display())]
    NoMatch {
        /// The patterns, as the recipe wrote them.
        patterns: Vec<String>,
        /// The folder that relative patterns start from.
        root: PathBuf,
    },
    /// A pattern that the glob syntax does not allow.
    #[error("the pattern {pattern:?} is not a glob: {reason}")]
    BadPattern {
        /// The pattern.
        pattern: String,
        /// What the parser said.
        reason: String,
    },
    /// Two options contradict each other, or one is out of range.
    #[error("{option} is {got}, but has to be {wanted}")]
    BadOption {
        /// The option, by its name here.
        option: &'static str,
        /// Its value.
        got: String,
        /// What is allowed, and why.
        wanted: String,
    },
    /// A part of the crate that this build leaves out.
    #[error("{what} needs the cargo feature `{feature}`: build with `--features {feature}`")]
    FeatureMissing {
        /// What was asked for.
        what: &'static str,
        /// The cargo feature.
        feature: &'static str,
    },
    /// The source has files, but no usable document or image.
    #[error("the source holds no {what} ({files} files read): nothing can be trained on it")]
    Empty {
        /// `text`, `image`, ...
        what: &'static str,
        /// Files read.
        files: usize,
    },
    /// A split that was asked for came out empty.
    #[error(
        "the {split} split came out empty: a fraction of {fraction} of {documents} documents \
         chose none; raise the fraction, or set it to 0 to go without the split"
    )]
    EmptySplit {
        /// The split.
        split: &'static str,
        /// The fraction asked for.
        fraction: f64,
        /// Documents of all splits together.
        documents: u64,
    },
    /// A split shorter than one sequence.
    #[error(
        "the {split} split has {tokens} tokens, one sequence of context {context} needs {needed}: \
         use a shorter context or more data"
    )]
    TooShort {
        /// The split.
        split: String,
        /// Tokens it holds.
        tokens: u64,
        /// Tokens that one sequence needs.
        needed: u64,
        /// The context length.
        context: u64,
    },
    /// A split that the dataset does not have.
    #[error("{dataset} has no split {split:?}, it has {have:?}", dataset = dataset.display())]
    NoSplit {
        /// The prepared folder.
        dataset: PathBuf,
        /// The split asked for.
        split: String,
        /// The splits that exist.
        have: Vec<String>,
    },
    /// A record of a text source that cannot be used.
    #[error("{path}:{line}: {reason}", path = path.display())]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// Line or row, counted from 1.
        line: u64,
        /// Why, and what to do.
        reason: String,
    },
    /// Text that is not UTF-8 where the tokenizer needs characters.
    #[error(
        "{path} is not UTF-8 at byte {offset}: convert the file, exclude it, or use the byte \
         tokenizer", path = path.display()
    )]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Byte offset of the first bad byte.
        offset: u64,
    },
    /// An image that cannot be decoded.
    #[error("{path} cannot be decoded: {reason}; replace or remove the file",
        path = path.display())]
    BadImage {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        reason: String,
    },
    /// An image of another size than the source declares.
    #[error(
        "{path} is {got}, the source says {wanted} (height x width x channels): resize the \
         image or correct `size`", path = path.display()
    )]
    WrongImageSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        got: String,
        /// The size declared.
        wanted: String,
    },
    /// A token file (of this crate, of llm.c, of nanoGPT, of CIFAR-10) whose bytes make no sense.
    #[error("{path}: {reason}", path = path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A token that the vocabulary does not have.
    #[error(
        "{path}: token {position} is {token}, the vocabulary has {vocabulary} entries: wrong \
         vocabulary, wrong number type, or a damaged file", path = path.display()
    )]
    TokenOutOfRange {
        /// The file.
        path: PathBuf,
        /// Which token, counted from 0.
        position: u64,
        /// Its value.
        token: u32,
        /// The vocabulary's size.
        vocabulary: u32,
    },
    /// A shard whose bytes are not those that were written.
    #[error(
        "{path} is damaged: its blake3 is {got}, index.json says {wanted}; prepare the data again",
        path = path.display()
    )]
    ChecksumMismatch {
        /// The file.
        path: PathBuf,
        /// Hash in the index.
        wanted: String,
        /// Hash of the file.
        got: String,
    },
    /// An `index.json` that cannot be used.
    #[error("{path} cannot be used: {reason}; prepare the data again", path = path.display())]
    BadIndex {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tokenizer that cannot be read, trained or applied.
    #[error("tokenizer {name}: {reason}")]
    Tokenizer {
        /// The file, or what it was to become.
        name: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The source changed between the first and the last look at it.
    #[error("{path} changed while it was being read: prepare again when it is at rest",
        path = path.display())]
    SourceChanged {
        /// The first file that differs.
        path: PathBuf,
    },
    /// The output folder holds something that was not prepared here.
    #[error(
        "{path} exists and holds {found:?}, which `prepare` did not write: choose another output \
         folder or remove it", path = path.display()
    )]
    OutputOccupied {
        /// The folder.
        path: PathBuf,
        /// A file found in it.
        found: String,
    },
    /// Not enough room on the disk.
    #[error(
        "{path}: the disk is full ({have} bytes free{}): free some space or choose another \
         output folder",
        need.map_or(String::new(), |n| format!(", {n} needed")),
        path = path.display()
    )]
    DiskFull {
        /// The file or folder.
        path: PathBuf,
        /// Bytes needed, at least, where it is known before writing.
        need: Option<u64>,
        /// Bytes free.
        have: u64,
    },
    /// A file that cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write {path}: {source}; nothing was changed, choose another output folder",
        path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The caller's [`Progress`](crate::Progress) asked to stop.
    #[error("stopped on request: nothing was changed, the same command starts again")]
    Interrupted,
}

impl DataError {
    /// Who has to act.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoMatch { .. }
            | Self::BadPattern { .. }
            | Self::BadOption { .. }
            | Self::FeatureMissing { .. }
            | Self::NoSplit { .. }
            | Self::EmptySplit { .. }
            | Self::OutputOccupied { .. } => ErrorKind::Recipe,
            Self::Write { .. } | Self::DiskFull { .. } => ErrorKind::Storage,
            Self::Interrupted => ErrorKind::Interrupted,
            _ => ErrorKind::Data,
        }
    }

    /// The exit code of the `aerogel` binary for this error.
    pub fn exit_code(&self) -> u8 {
        self.kind().exit_code()
    }

    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }

    pub(crate) fn write(path: &Path, source: io::Error) -> Self {
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            let have = path.parent().and_then(crate::space::free_bytes).unwrap_or(0);
            return Self::DiskFull { path: path.to_owned(), need: None, have };
        }
        Self::Write { path: path.to_owned(), source }
    }

    pub(crate) fn bad_file(path: &Path, reason: impl Into<String>) -> Self {
        Self::BadFile { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn option(
        option: &'static str,
        got: impl ToString,
        wanted: impl Into<String>,
    ) -> Self {
        Self::BadOption { option, got: got.to_string(), wanted: wanted.into() }
    }
}
