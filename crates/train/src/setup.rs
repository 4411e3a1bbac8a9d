//! From a recipe to prepared data and a model configuration.

use crate::error::TrainError;
use aerogel_data::{
    BinLayout, DataError, Dataset, ImageShape, MadeKind, Outcome, Progress, Request, ShardFormat,
    Source, SplitSpec, TokenizerSpec, prepare,
};
use aerogel_models as models;
use aerogel_models::ModelConfig;
use aerogel_recipe::{self as recipe, Recipe};
use std::path::{Path, PathBuf};

/// Where runs and prepared data lie.
#[derive(Clone, Debug)]
pub struct Workspace {
    /// Run folders, by name.
    pub runs: PathBuf,
    /// Prepared data, by name of the recipe.
    pub data: PathBuf,
}

impl Workspace {
    /// `runs/` and `data/` under a folder.
    pub fn under(folder: &Path) -> Workspace {
        Workspace { runs: folder.join("runs"), data: folder.join("data") }
    }

    /// The folder of a recipe's prepared data.
    pub fn prepared(&self, recipe: &Recipe) -> PathBuf {
        self.data.join(name(recipe))
    }
}

/// The name of a recipe's folders: its tiny form has its own.
pub(crate) fn name(recipe: &Recipe) -> String {
    if recipe.tiny { format!("{}-tiny", recipe.name) } else { recipe.name.clone() }
}

/// Prepares a recipe's data, or finds it prepared.
///
/// # Errors
/// The data is missing (with the recipe's hint), damaged, or the disk failed.
pub fn prepare_data(
    recipe: &Recipe,
    workspace: &Workspace,
    progress: &mut dyn Progress,
) -> Result<(Outcome, Dataset), TrainError> {
    let out = workspace.prepared(recipe);
    let request = request(recipe, &out)?;
    if let Some(wanted) = recipe.data.blake3.as_ref().filter(|_| !recipe.tiny) {
        check_sources(&request, wanted)?;
    }
    let prepared = prepare(&request, progress).map_err(|source| match &recipe.data.hint {
        Some(hint) if !recipe.tiny && is_absent(&source) => {
            TrainError::Hint { source, hint: hint.trim().to_owned() }
        }
        _ => source.into(),
    })?;
    Ok((prepared.outcome, Dataset::open(&out)?))
}

/// Whether the source is not there; one that is there and wrong is not mended by getting it.
fn is_absent(e: &DataError) -> bool {
    match e {
        DataError::NoMatch { .. } => true,
        DataError::Read { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// BLAKE3 of the source files, one after another in the order of their paths.
fn check_sources(request: &Request, wanted: &str) -> Result<(), TrainError> {
    let mut hasher = blake3::Hasher::new();
    for path in request.source.files(&request.root)? {
        let mut file = std::fs::File::open(&path)?;
        std::io::copy(&mut file, &mut hasher)?;
    }
    let got = hasher.finalize().to_hex().to_string();
    if got == wanted.to_lowercase() {
        return Ok(());
    }
    Err(TrainError::Checksum { got, wanted: wanted.to_owned() })
}

fn request(recipe: &Recipe, out: &Path) -> Result<Request, TrainError> {
    let (mut source, mut has_test) = source(recipe)?;
    if recipe.tiny {
        source = Source::Made { kind: made_kind(recipe), seed: recipe.data.split_seed };
        has_test = true;
    }
    let bin = matches!(source, Source::Bin { .. } | Source::Made { kind: MadeKind::Bin, .. });
    let brings_validation = match &source {
        Source::Bin { validation, .. } => !validation.is_empty(),
        _ => bin,
    };
    let held = |share: f64, brought: bool| if brought { None } else { Some(share) };
    Ok(Request {
        tokenizer: tokenizer(recipe, bin),
        split: SplitSpec {
            validation: held(recipe.data.validation, brings_validation),
            test: if has_test { None } else { Some(recipe.data.test_fraction) },
            seed: recipe.data.split_seed,
        },
        format: ShardFormat::default(),
        ..Request::new(source, recipe.dir.clone(), out)
    })
}

/// The recipe's source, and whether it brings its own test split.
fn source(recipe: &Recipe) -> Result<(Source, bool), TrainError> {
    let data = &recipe.data;
    let source = match &data.source {
        recipe::Source::Text { paths, exclude } => {
            Source::Text { globs: paths.clone(), exclude: exclude.clone() }
        }
        recipe::Source::Jsonl { paths, field, .. } => {
            Source::Jsonl { globs: paths.clone(), field: field.clone() }
        }
        recipe::Source::Parquet { paths, field, .. } => {
            Source::Parquet { globs: paths.clone(), column: field.clone() }
        }
        recipe::Source::Images { train, image } => Source::ImageFolders {
            train: train.into(),
            test: data.test.as_ref().map(PathBuf::from),
            size: shape(*image),
        },
        recipe::Source::Cifar10 { paths } => {
            let folder = paths.first().map(Path::new).and_then(Path::parent);
            Source::Cifar10Binary { dir: folder.unwrap_or(Path::new("")).to_owned() }
        }
        recipe::Source::Bin { paths, format } => Source::Bin {
            train: paths.clone(),
            validation: data.test.iter().cloned().collect(),
            layout: match format {
                recipe::BinFormat::Llmc => BinLayout::Headers,
                recipe::BinFormat::NanoGpt => BinLayout::NanoGpt,
            },
        },
        recipe::Source::CopyRows { image } => {
            let made = MadeKind::CopyRowAbove;
            if made.image_shape() != Some(shape(*image)) {
                return Err(TrainError::Contradiction {
                    what: "copy_rows makes images of 16 rows, 16 columns, 1 channel".to_owned(),
                    advice: "set data.image = [16, 16, 1]".to_owned(),
                });
            }
            Source::Made { kind: made, seed: data.split_seed }
        }
    };
    let brings_test = match &source {
        Source::ImageFolders { test, .. } => test.is_some(),
        Source::Cifar10Binary { .. } | Source::Made { .. } => true,
        _ => false,
    };
    Ok((source, brings_test))
}

fn shape(image: recipe::Image) -> ImageShape {
    ImageShape {
        height: image.height as u32,
        width: image.width as u32,
        channels: image.channels as u32,
    }
}

/// Data of the recipe's kind that can be made on the spot.
fn made_kind(recipe: &Recipe) -> MadeKind {
    match recipe.data.source {
        recipe::Source::Text { .. } => MadeKind::Text,
        recipe::Source::Jsonl { .. } | recipe::Source::Parquet { .. } => MadeKind::Jsonl,
        recipe::Source::Images { .. } => MadeKind::Images,
        recipe::Source::Cifar10 { .. } => MadeKind::Cifar10,
        recipe::Source::Bin { .. } => MadeKind::Bin,
        recipe::Source::CopyRows { .. } => MadeKind::CopyRowAbove,
    }
}

fn tokenizer(recipe: &Recipe, bin: bool) -> TokenizerSpec {
    let t = &recipe.tokenizer;
    match (t.kind, &t.path, t.vocab) {
        (_, Some(path), _) => TokenizerSpec::File { path: path.into(), end_of_text: None },
        (_, None, Some(vocab)) if bin => TokenizerSpec::None { vocabulary: vocab as u32 },
        (recipe::TokenizerKind::Bpe, None, Some(vocab)) => {
            TokenizerSpec::Bpe { vocabulary: vocab as u32 }
        }
        _ => TokenizerSpec::bytes(),
    }
}

/// The tokens in the recipe's vocabulary, as far as they are known without its data.
pub(crate) fn vocabulary(recipe: &Recipe, workspace: &Workspace) -> Result<usize, TrainError> {
    if let Ok(data) = Dataset::open(&workspace.prepared(recipe)) {
        return Ok(data.index().tokenizer.vocabulary as usize);
    }
    let t = &recipe.tokenizer;
    match (t.kind, t.vocab) {
        (recipe::TokenizerKind::Bytes, None) => Ok(256),
        (_, Some(vocab)) => Ok(vocab),
        (recipe::TokenizerKind::Bpe, None) => {
            let Some(path) = &t.path else { return Ok(256) };
            let file = aerogel_data::Tokenizer::from_file(&recipe.path(path), None)?;
            Ok(file.vocabulary() as usize)
        }
    }
}

/// What the numbers of a run depend on: the recipe's part, and the data's contents.
pub fn run_hash(recipe: &Recipe, data: &Dataset) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(recipe.run_hash_text().as_bytes());
    for (name, split) in &data.index().splits {
        hasher.update(name.as_bytes());
        for shard in &split.shards {
            hasher.update(shard.blake3.as_bytes());
        }
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// The recipe's model over a vocabulary.
pub(crate) fn model(recipe: &Recipe, vocab: usize) -> ModelConfig {
    use models::{AttentionKind as Kind, Combine, Family, LayerKind, WeightInit};
    let m = &recipe.model;
    let mut config = ModelConfig {
        family: match m.family {
            recipe::Family::SparseTransformer => Family::SparseTransformer,
            recipe::Family::Gpt2 => Family::Gpt2,
        },
        layers: m.layers,
        heads: m.heads,
        embed: m.embed,
        mlp: m.mlp_width(),
        qk: m.qk_width(),
        context: m.context,
        vocab,
        image: recipe.data.image().map(|i| [i.height, i.width, i.channels]),
        attention: match m.attention.kind {
            recipe::AttentionKind::Dense => Kind::Dense,
            recipe::AttentionKind::Local => Kind::Local,
            recipe::AttentionKind::Strided => Kind::Strided,
            recipe::AttentionKind::Fixed => Kind::Fixed,
        },
        combine: match m.attention.combine {
            recipe::Combine::Interleaved => Combine::Interleaved,
            recipe::Combine::Merged => Combine::Merged,
            recipe::Combine::Heads => Combine::Heads,
        },
        cycle: vec![],
        // Text positions in the Sparse Transformer are (row, column) of this width.
        stride: default_stride(m.context),
        window: m.context,
        columns: 1,
        dropout: m.dropout,
        embed_dropout: m.embed_dropout,
        init: match m.init {
            Some(recipe::Init::Code) => WeightInit::Code,
            _ => WeightInit::Paper,
        },
    };
    for part in &m.attention.parts {
        config.cycle.push(match *part {
            recipe::Part::Dense => LayerKind::Dense,
            recipe::Part::Local { window } => {
                config.window = window;
                LayerKind::Local
            }
            recipe::Part::Strided { stride } => {
                config.stride = stride;
                LayerKind::Strided
            }
            recipe::Part::Block { length } => {
                config.stride = length;
                LayerKind::Block
            }
            recipe::Part::Summary { stride, columns } => {
                (config.stride, config.columns) = (stride, columns);
                LayerKind::Summary
            }
        });
    }
    config
}

/// The divisor of the context next above its root.
fn default_stride(context: usize) -> usize {
    (1..=context).find(|d| d * d >= context && context.is_multiple_of(*d)).unwrap_or(context)
}
