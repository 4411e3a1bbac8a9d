//! Source to shards: list, compare fingerprints, train the tokenizer, encode, commit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use serde::Serialize;

use crate::dataset::Dataset;
use crate::error::{DataError, Result};
use crate::files::{self, InputFile};
use crate::index::{
    INDEX_FILE, INDEX_VERSION, Index, Skipped, SplitIndex, TOKENIZER_FILE, TokenizerIndex,
};
use crate::made;
use crate::progress::{Progress, Unit};
use crate::shard::{MAX_SHARD_TOKENS, ShardFormat, TokenType};
use crate::source::Source;
use crate::source::piece::{Content, Listing};
use crate::space;
use crate::split::{Dealer, Split, SplitSpec};
use crate::tokenizer::{MAX_VOCABULARY, MIN_BPE_VOCABULARY, Tokenizer, TokenizerSpec};

mod folder;
mod pack;

use folder::Staging;
use pack::{Layout, Packer};

/// Tokens in a full shard, unless asked otherwise.
pub const DEFAULT_SHARD_TOKENS: u64 = 100_000_000;

/// What to prepare.
#[derive(Clone, Debug)]
pub struct Request {
    /// Documents or images.
    pub source: Source,
    /// The folder that relative paths of the source and the tokenizer start from.
    pub root: PathBuf,
    /// How text becomes tokens. Images take [`TokenizerSpec::Bytes`]; token files `None` or `File`.
    pub tokenizer: TokenizerSpec,
    /// What is held out.
    pub split: SplitSpec,
    /// Headers or none.
    pub format: ShardFormat,
    /// Tokens in a full shard; images are never cut by a shard's end.
    pub shard_tokens: u64,
    /// The folder to write; replaced as a whole if the request or the source changed.
    pub out: PathBuf,
}

impl Request {
    /// A request with byte tokens, the default split and the default shards.
    pub fn new(source: Source, root: impl Into<PathBuf>, out: impl Into<PathBuf>) -> Self {
        Self {
            source,
            root: root.into(),
            tokenizer: TokenizerSpec::bytes(),
            split: SplitSpec::default(),
            format: ShardFormat::default(),
            shard_tokens: DEFAULT_SHARD_TOKENS,
            out: out.into(),
        }
    }
}

/// What [`prepare`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The folder is new.
    Built,
    /// The folder was there, made from something else or damaged, and was replaced.
    Rebuilt,
    /// The folder was there and is what was asked for: nothing was written.
    UpToDate,
}

/// The prepared folder.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// What was done.
    pub outcome: Outcome,
    /// What the folder holds.
    pub index: Index,
}

/// Makes `request.out` hold the data: packed, checksummed shards by split, the tokenizer, and
/// `index.json`.
///
/// The folder appears whole or not at all, also if the process is killed. If it is there already,
/// made from the same files and options, nothing is done; sizes are checked, contents are not
/// (see [`Dataset::verify`]). Processes that prepare one folder at once wait for each other.
///
/// # Errors
/// Any [`DataError`]; the folder is then as it was before.
pub fn prepare(request: &Request, progress: &mut dyn Progress) -> Result<Prepared> {
    check(request)?;
    let listing = request.source.list(&request.root)?;
    let fingerprint = fingerprint(request, &listing)?;
    // Before the lock, so that prepared data on a read-only disk can be used.
    if let Some(index) = up_to_date(request, &fingerprint) {
        return Ok(Prepared { outcome: Outcome::UpToDate, index });
    }
    let staging = Staging::lock(&request.out, progress)?;
    if let Some(index) = up_to_date(request, &fingerprint) {
        return Ok(Prepared { outcome: Outcome::UpToDate, index });
    }
    let existed = request.out.join(INDEX_FILE).exists();
    let work = staging.create()?;
    let mut index = if let Source::Made { kind, seed } = request.source {
        let root = work.join("made");
        let source = made::write(kind, &root, seed)?;
        let listing = source.list(&root)?;
        let made = Request { source, root: root.clone(), ..request.clone() };
        let index = build(&made, &listing, work, progress)?;
        std::fs::remove_dir_all(&root).map_err(|e| DataError::write(&root, e))?;
        index
    } else {
        build(request, &listing, work, progress)?
    };
    index.fingerprint = fingerprint;
    index.source = json(&request.source)?;
    index.save(work)?;
    staging.commit()?;
    let outcome = if existed { Outcome::Rebuilt } else { Outcome::Built };
    Ok(Prepared { outcome, index })
}

/// Refuses what cannot work, before anything is read.
fn check(request: &Request) -> Result<()> {
    request.source.check()?;
    let (source, tokenizer) = (&request.source, &request.tokenizer);
    let fits = match tokenizer {
        TokenizerSpec::Bytes { .. } => !source.is_tokens(),
        TokenizerSpec::Bpe { .. } => source.image_shape().is_none() && !source.is_tokens(),
        TokenizerSpec::File { .. } => source.image_shape().is_none(),
        TokenizerSpec::None { .. } => source.is_tokens(),
    };
    if !fits {
        let wanted = match (source.image_shape(), source.is_tokens()) {
            (Some(_), _) => "`bytes` for images",
            (None, true) => "`none` or an existing file for token files",
            (None, false) => "`bytes`, `bpe` or an existing file for text",
        };
        return Err(DataError::option("the tokenizer", kind_name(tokenizer), wanted));
    }
    match tokenizer {
        TokenizerSpec::Bpe { vocabulary } if *vocabulary < MIN_BPE_VOCABULARY => {
            let wanted = format!("{MIN_BPE_VOCABULARY} or more: 256 bytes and the end of text");
            return Err(DataError::option("tokenizer.vocabulary", vocabulary, wanted));
        }
        TokenizerSpec::Bpe { vocabulary } | TokenizerSpec::None { vocabulary }
            if !(1..=MAX_VOCABULARY).contains(vocabulary) =>
        {
            let wanted = format!("1 to {MAX_VOCABULARY}");
            return Err(DataError::option("tokenizer.vocabulary", vocabulary, wanted));
        }
        _ => {}
    }
    if !(1..=MAX_SHARD_TOKENS).contains(&request.shard_tokens) {
        let wanted = format!("1 to {MAX_SHARD_TOKENS}, which a shard's header can count");
        return Err(DataError::option("shard_tokens", request.shard_tokens, wanted));
    }
    Ok(())
}

/// Hash of everything that the shards depend on. Times and sizes stand for contents.
fn fingerprint(request: &Request, listing: &Listing) -> Result<String> {
    #[derive(Serialize)]
    struct Facts<'a> {
        versions: [u32; 2],
        source: &'a Source,
        tokenizer: &'a TokenizerSpec,
        tokenizer_hash: Option<String>,
        split: &'a SplitSpec,
        format: ShardFormat,
        shard_tokens: u64,
        files: Vec<(&'a InputFile, Option<Split>)>,
    }
    let tokenizer_hash = match &request.tokenizer {
        TokenizerSpec::File { path, .. } => Some(files::file_hash(&request.root.join(path))?),
        _ => None,
    };
    let facts = Facts {
        versions: [INDEX_VERSION, made::MADE_VERSION],
        source: &request.source,
        tokenizer: &request.tokenizer,
        tokenizer_hash,
        split: &request.split,
        format: request.format,
        shard_tokens: request.shard_tokens,
        files: listing.files.iter().map(|f| (&f.file, f.split)).collect(),
    };
    Ok(blake3::hash(json(&facts)?.to_string().as_bytes()).to_hex().to_string())
}

fn json(value: &impl Serialize) -> Result<serde_json::Value> {
    serde_json::to_value(value)
        .map_err(|e| DataError::option("the request", "not writable as JSON", e.to_string()))
}

fn up_to_date(request: &Request, fingerprint: &str) -> Option<Index> {
    let dataset = Dataset::open(&request.out).ok()?;
    let index = dataset.index();
    let complete = index.tokenizer.file.as_ref().is_none_or(|f| request.out.join(f).is_file());
    (index.fingerprint == fingerprint && complete).then(|| index.clone())
}

/// Writes shards and tokenizer to `work`.
fn build(
    request: &Request,
    listing: &Listing,
    work: &Path,
    progress: &mut dyn Progress,
) -> Result<Index> {
    let source = &request.source;
    let dealer =
        Dealer::new(&request.split, listing.has(Split::Validation), listing.has(Split::Test))?;
    check_space(request, listing, work)?;
    let tokenizer = tokenizer(request, listing, &dealer, progress)?;
    let facts = tokenizer_index(&request.tokenizer, tokenizer.as_ref(), work)?;
    let layout = layout(request, facts.vocabulary)?;
    let separator = match request.tokenizer {
        TokenizerSpec::Bytes { separator } if source.image_shape().is_none() => separator,
        _ => None,
    };
    progress.start("write shards", source.units(listing), source.unit());
    let mut packer =
        Packer::new(work, layout, tokenizer.as_ref(), separator, &dealer, &mut *progress);
    source.read(listing, &dealer, facts.vocabulary, &mut |piece| packer.push(&piece))?;
    let (splits, empty_documents) = packer.finish()?;
    if let Some(changed) = listing.files.iter().find(|f| !f.file.unchanged()) {
        return Err(DataError::SourceChanged { path: changed.file.path.clone() });
    }
    let splits = named(source, listing, &dealer, splits)?;
    let skipped = Skipped { empty_documents, other_files: listing.other_files };
    report(&skipped, &facts, &request.tokenizer, progress);
    Ok(Index {
        version: INDEX_VERSION,
        fingerprint: String::new(),
        source: serde_json::Value::Null,
        source_files: listing.files.len() as u64,
        source_bytes: listing.bytes(),
        split_seed: request.split.seed,
        split_rule: source.split_rule(listing),
        tokenizer: facts,
        token_type: layout.token_type,
        format: layout.format,
        image: source.image_shape(),
        skipped,
        splits,
        checksum: String::new(),
    })
}

/// Refuses early where the size of the output is known and the disk is too small.
fn check_space(request: &Request, listing: &Listing, work: &Path) -> Result<()> {
    let width = if request.format == ShardFormat::NanoGpt { 2 } else { 1 };
    let need = match (&request.tokenizer, request.source.image_shape()) {
        (_, Some(shape)) => request.source.units(listing) * shape.tokens() as u64 * width,
        (TokenizerSpec::Bytes { .. }, None) if request.source.is_plain_text() => {
            listing.bytes() * width
        }
        _ => return Ok(()),
    };
    match space::free_bytes(work) {
        Some(have) if have < need => {
            Err(DataError::DiskFull { path: request.out.clone(), need: Some(need), have })
        }
        _ => Ok(()),
    }
}

fn layout(request: &Request, vocabulary: u32) -> Result<Layout> {
    let format = request.format;
    let token_type = match format {
        ShardFormat::Headers => TokenType::for_vocabulary(vocabulary),
        ShardFormat::NanoGpt if vocabulary <= 1 << 16 => TokenType::U16,
        ShardFormat::NanoGpt => {
            let wanted = "at most 65536 for headerless files, whose tokens have two bytes";
            return Err(DataError::option("the vocabulary", vocabulary, wanted));
        }
    };
    let whole = request.source.image_shape().map_or(1, |shape| shape.tokens() as u64);
    let shard_tokens = (request.shard_tokens / whole * whole).max(whole);
    Ok(Layout { token_type, format, shard_tokens })
}

fn tokenizer(
    request: &Request,
    listing: &Listing,
    dealer: &Dealer,
    progress: &mut dyn Progress,
) -> Result<Option<Tokenizer>> {
    match &request.tokenizer {
        TokenizerSpec::Bytes { .. } => Ok(Some(Tokenizer::bytes())),
        TokenizerSpec::None { .. } => Ok(None),
        TokenizerSpec::File { path, end_of_text } => {
            let path = request.root.join(path);
            Tokenizer::from_file(&path, end_of_text.as_deref()).map(Some)
        }
        TokenizerSpec::Bpe { vocabulary } => {
            train(&request.source, listing, dealer, *vocabulary, progress).map(Some)
        }
    }
}

/// Trains BPE on the documents of the train split, which stream through a short channel.
fn train(
    source: &Source,
    listing: &Listing,
    dealer: &Dealer,
    vocabulary: u32,
    progress: &mut dyn Progress,
) -> Result<Tokenizer> {
    progress.start("train tokenizer", listing.bytes(), Unit::Bytes);
    thread::scope(|scope| {
        let (send, receive) = mpsc::sync_channel::<String>(64);
        let trainer = scope.spawn(move || Tokenizer::train(receive.into_iter(), vocabulary));
        let read = source.read(listing, dealer, vocabulary, &mut |piece| {
            if progress.stopped() {
                return Err(DataError::Interrupted);
            }
            progress.tick(piece.units);
            let Content::Bytes(bytes) = piece.content else { return Ok(()) };
            if pack::assigned(piece.assign, dealer) == Split::Train {
                pack::check_utf8(&piece, bytes)?;
                // Nobody receives only if the trainer failed, which is reported below.
                let _ = send.send(String::from_utf8_lossy(bytes).into_owned());
            }
            Ok(())
        });
        drop(send);
        let trained = trainer.join().unwrap_or_else(|_| {
            let (name, reason) = ("in training".to_owned(), "the trainer failed".to_owned());
            Err(DataError::Tokenizer { name, reason })
        });
        read.and(trained)
    })
}

fn kind_name(spec: &TokenizerSpec) -> &'static str {
    match spec {
        TokenizerSpec::Bytes { .. } => "bytes",
        TokenizerSpec::Bpe { .. } => "bpe",
        TokenizerSpec::File { .. } => "file",
        TokenizerSpec::None { .. } => "none",
    }
}

fn tokenizer_index(
    spec: &TokenizerSpec,
    tokenizer: Option<&Tokenizer>,
    work: &Path,
) -> Result<TokenizerIndex> {
    let (mut file, mut blake3) = (None, None);
    if let Some(tokenizer) = tokenizer.filter(|t| t.needs_utf8()) {
        let path = work.join(TOKENIZER_FILE);
        tokenizer.save(&path)?;
        file = Some(TOKENIZER_FILE.to_owned());
        blake3 = Some(files::file_hash(&path)?);
    }
    let vocabulary = match (spec, tokenizer) {
        (TokenizerSpec::None { vocabulary }, _) => *vocabulary,
        (_, tokenizer) => tokenizer.map_or(0, Tokenizer::vocabulary),
    };
    let end_of_text = tokenizer.and_then(Tokenizer::end_of_text);
    Ok(TokenizerIndex { kind: kind_name(spec).to_owned(), file, blake3, end_of_text, vocabulary })
}

/// The splits that exist, by name; an error if one that was asked for is empty.
fn named(
    source: &Source,
    listing: &Listing,
    dealer: &Dealer,
    splits: [SplitIndex; 3],
) -> Result<BTreeMap<String, SplitIndex>> {
    let documents: u64 = splits.iter().map(|s| s.documents).sum();
    if splits.iter().all(|s| s.tokens == 0) {
        return Err(DataError::Empty { what: source.what(), files: listing.files.len() });
    }
    let mut named = BTreeMap::new();
    for (split, index) in Split::ALL.into_iter().zip(splits) {
        let fraction = dealer.fraction(split);
        if index.tokens > 0 {
            named.insert(split.name().to_owned(), index);
        } else if fraction > 0.0 || listing.has(split) {
            return Err(DataError::EmptySplit { split: split.name(), fraction, documents });
        }
    }
    Ok(named)
}

/// Says what a user would not expect.
fn report(
    skipped: &Skipped,
    facts: &TokenizerIndex,
    spec: &TokenizerSpec,
    progress: &mut dyn Progress,
) {
    if skipped.empty_documents > 0 {
        progress.message(&format!("{} empty documents skipped", skipped.empty_documents));
    }
    if skipped.other_files > 0 {
        progress.message(&format!("{} files that are no images skipped", skipped.other_files));
    }
    if let TokenizerSpec::Bpe { vocabulary } = spec
        && facts.vocabulary < *vocabulary
    {
        progress.message(&format!(
            "the corpus fills {} of the {vocabulary} entries asked for the vocabulary",
            facts.vocabulary
        ));
    }
}
