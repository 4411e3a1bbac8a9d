//! The resolved recipe: plain values, every default filled in.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::choices::{
    AttentionKind, BinFormat, Combine, DataKind, Determinism, Family, Init, OptimizerKind,
    ScheduleKind, TokenizerKind,
};
use crate::layout::{Memory, Parallel};
use crate::running::{Checkpoint, Eval, Precision, Sample};

/// A validated run: every value in its range, no two in contradiction.
///
/// Two recipes are equal when they describe the same run; how their defaults were derived does
/// not count.
#[derive(Clone, Debug, Serialize)]
pub struct Recipe {
    /// The file's stem; names the run folder.
    pub name: String,
    /// The folder that `data` paths are relative to.
    #[serde(skip)]
    pub dir: PathBuf,
    /// Whether this is the tiny form, which runs on data made on the spot instead of its paths.
    pub tiny: bool,
    /// `[model]`.
    pub model: Model,
    /// `[data]`.
    pub data: Data,
    /// `[tokenizer]`.
    pub tokenizer: Tokenizer,
    /// `[optimizer]`.
    pub optimizer: Optimizer,
    /// `[schedule]`.
    pub schedule: Schedule,
    /// `[train]`.
    pub train: Train,
    /// `[precision]`.
    pub precision: Precision,
    /// `[memory]`.
    pub memory: Memory,
    /// `[parallel]`.
    pub parallel: Parallel,
    /// `[eval]`.
    pub eval: Eval,
    /// `[sample]`.
    pub sample: Sample,
    /// `[checkpoint]`.
    pub checkpoint: Checkpoint,
    #[serde(skip)]
    pub(crate) derived: Vec<Derived>,
}

impl PartialEq for Recipe {
    fn eq(&self, other: &Recipe) -> bool {
        (&self.name, &self.dir, self.tiny) == (&other.name, &other.dir, other.tiny)
            && (&self.model, &self.data, &self.tokenizer)
                == (&other.model, &other.data, &other.tokenizer)
            && (&self.optimizer, &self.schedule, &self.train)
                == (&other.optimizer, &other.schedule, &other.train)
            && (&self.precision, &self.memory, &self.parallel)
                == (&other.precision, &other.memory, &other.parallel)
            && (&self.eval, &self.sample, &self.checkpoint)
                == (&other.eval, &other.sample, &other.checkpoint)
    }
}

impl Recipe {
    /// The defaults that were derived from other keys, with the reason for each.
    pub fn derived(&self) -> &[Derived] {
        &self.derived
    }

    /// A path or glob of the recipe, relative to the recipe's folder.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.dir.join(relative)
    }

    /// The learning rate at the end of the warm-up: `optimizer.learning_rate`, scaled by
    /// `batch / base_batch` where `schedule.base_batch` is given (the linear scaling rule of
    /// Goyal et al. 2017).
    pub fn peak_learning_rate(&self) -> f64 {
        match self.schedule.base_batch {
            Some(base) => self.optimizer.learning_rate * self.train.batch as f64 / base as f64,
            None => self.optimizer.learning_rate,
        }
    }

    /// Micro-batches of one update.
    pub fn micro_batches(&self) -> usize {
        self.train.batch / self.train.micro_batch
    }

    /// Micro-batches of one update that one rank computes; at least 1.
    pub fn micro_batches_per_rank(&self) -> usize {
        self.micro_batches() / self.parallel.data_ranks()
    }

    /// The number of ranks: the product of the mesh.
    pub fn ranks(&self) -> usize {
        self.parallel.ranks()
    }
}

/// A default that was derived from other keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Derived {
    /// `section.key`.
    pub key: String,
    /// The value, as TOML.
    pub value: String,
    /// Why it is this value.
    pub reason: String,
}

/// The model's shape.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Model {
    /// Family.
    pub family: Family,
    /// Residual blocks.
    pub layers: usize,
    /// Attention heads of a block.
    pub heads: usize,
    /// Width of the residual stream, and of the values over all heads.
    pub embed: usize,
    /// Inner width of the feed-forward, in parts of `embed`.
    pub mlp_ratio: f64,
    /// Width of queries and keys over all heads, in parts of `embed`.
    pub qk_ratio: f64,
    /// Sequence length, tokens.
    pub context: usize,
    /// Dropout where a block adds to the residual stream.
    pub dropout: f64,
    /// Dropout of the embeddings.
    pub embed_dropout: f64,
    /// Which earlier positions a position attends to.
    pub attention: Attention,
    /// Deviation of the weight matrices; `None` for a family with its own.
    pub init: Option<Init>,
}

impl Model {
    /// Inner width of the feed-forward, features.
    pub fn mlp_width(&self) -> usize {
        (self.embed as f64 * self.mlp_ratio).round() as usize
    }

    /// Width of queries and keys over all heads, features.
    pub fn qk_width(&self) -> usize {
        (self.embed as f64 * self.qk_ratio).round() as usize
    }
}

/// The attention pattern of every layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attention {
    /// The family of patterns.
    pub kind: AttentionKind,
    /// How `parts` are spread.
    pub combine: Combine,
    /// Interleaved: layer `i` takes part `i` modulo their number. Merged and heads: two parts,
    /// local then strided, or block then summary, which every layer has.
    pub parts: Vec<Part>,
}

impl Attention {
    /// The pattern of layer `index`, counted from 0.
    pub fn layer(&self, index: usize) -> LayerAttention {
        match self.combine {
            Combine::Interleaved => LayerAttention::One(self.parts[index % self.parts.len()]),
            Combine::Merged => LayerAttention::Merged([self.parts[0], self.parts[1]]),
            Combine::Heads => LayerAttention::Heads([self.parts[0], self.parts[1]]),
        }
    }
}

/// The pattern of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum LayerAttention {
    /// All heads take this part.
    One(Part),
    /// All heads take the union of both parts.
    Merged([Part; 2]),
    /// Head `h` takes part `h` modulo 2.
    Heads([Part; 2]),
}

/// A set of positions `j` that position `i` attends to; always `j <= i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Part {
    /// All of them.
    Dense,
    /// `i - j < window`.
    Local {
        /// Positions seen, the own included, tokens.
        window: usize,
    },
    /// `(i - j) mod stride = 0`.
    Strided {
        /// Distance of the positions, tokens.
        stride: usize,
    },
    /// `j / length = i / length`, in whole numbers.
    Block {
        /// Length of a block, tokens.
        length: usize,
    },
    /// `j mod stride >= stride - columns`.
    Summary {
        /// Length of a block, tokens.
        stride: usize,
        /// Last positions of every block that are seen, tokens.
        columns: usize,
    },
}

/// Sequences and their splits.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Data {
    /// Where sequences come from.
    pub source: Source,
    /// Held-out test data: a folder for images, a glob otherwise.
    pub test: Option<String>,
    /// Share held out for validation.
    pub validation: f64,
    /// Share held out as test data; 0 where `test` is given.
    pub test_fraction: f64,
    /// Key of the hash that splits.
    pub split_seed: u64,
    /// How to get the data.
    pub hint: Option<String>,
    /// BLAKE3 of the source files, read one after another in the order of their paths.
    pub blake3: Option<String>,
}

impl Data {
    /// The kind of source.
    pub fn kind(&self) -> DataKind {
        match self.source {
            Source::Text { .. } => DataKind::Text,
            Source::Jsonl { .. } => DataKind::Jsonl,
            Source::Parquet { .. } => DataKind::Parquet,
            Source::Images { .. } => DataKind::Images,
            Source::Cifar10 { .. } => DataKind::Cifar10,
            Source::Bin { .. } => DataKind::Bin,
            Source::CopyRows { .. } => DataKind::CopyRows,
        }
    }

    /// The shape of each sequence, where it is an image.
    pub fn image(&self) -> Option<Image> {
        match self.source {
            Source::Images { image, .. } | Source::CopyRows { image } => Some(image),
            Source::Cifar10 { .. } => Some(Image::CIFAR10),
            _ => None,
        }
    }

    /// Whether anything is held out to evaluate on.
    pub fn has_held_out(&self) -> bool {
        self.validation > 0.0 || self.test_fraction > 0.0 || self.test.is_some()
    }
}

/// Where sequences come from. Paths and globs are relative to the recipe's folder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Source {
    /// Text files.
    Text {
        /// Globs of files.
        paths: Vec<String>,
        /// Globs of files to leave out.
        exclude: Vec<String>,
    },
    /// One JSON object a line.
    Jsonl {
        /// Globs of files.
        paths: Vec<String>,
        /// Globs of files to leave out.
        exclude: Vec<String>,
        /// The field that holds the text.
        field: String,
    },
    /// Parquet files.
    Parquet {
        /// Globs of files.
        paths: Vec<String>,
        /// Globs of files to leave out.
        exclude: Vec<String>,
        /// The column that holds the text.
        field: String,
    },
    /// A folder of class folders of images.
    Images {
        /// The folder.
        train: String,
        /// The shape that every image must have.
        image: Image,
    },
    /// CIFAR-10's binary batches.
    Cifar10 {
        /// Globs of the training batches.
        paths: Vec<String>,
    },
    /// Token shards.
    Bin {
        /// Globs of the shards.
        paths: Vec<String>,
        /// Their layout.
        format: BinFormat,
    },
    /// Made on the spot: a random first row that every later row repeats.
    CopyRows {
        /// Rows, columns, channels.
        image: Image,
    },
}

/// The shape of an image; its bytes run by row, column, channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Image {
    /// Rows, pixels.
    pub height: usize,
    /// Columns, pixels.
    pub width: usize,
    /// Bytes of a pixel: 1 or 3.
    pub channels: usize,
}

impl Image {
    /// CIFAR-10's 32 by 32 pixels in colour.
    pub const CIFAR10: Image = Image { height: 32, width: 32, channels: 3 };

    /// Bytes of one image, and so tokens of its sequence.
    pub fn size_bytes(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.width * self.channels
    }
}

/// What a token is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tokenizer {
    /// Bytes or byte pairs.
    pub kind: TokenizerKind,
    /// Size of the vocabulary; `None` where only the file at `path` knows it.
    pub vocab: Option<usize>,
    /// A tokenizer.json to use instead of training one.
    pub path: Option<String>,
}

/// The update of the weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Optimizer {
    /// The rule, with its own constants.
    pub rule: Rule,
    /// Peak learning rate; see [`Recipe::peak_learning_rate`].
    pub learning_rate: f64,
    /// Decoupled decay of tensors of two or more axes, in parts of the learning rate.
    pub weight_decay: f64,
    /// Largest norm of the whole gradient; 0 does not clip.
    pub clip: f64,
}

/// An update rule with its constants.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum Rule {
    /// Adam with decoupled weight decay.
    AdamW {
        /// Decay of the mean gradient.
        beta1: f64,
        /// Decay of the mean squared gradient.
        beta2: f64,
        /// Added to the root of the mean squared gradient.
        epsilon: f64,
    },
    /// Adam.
    Adam {
        /// Decay of the mean gradient.
        beta1: f64,
        /// Decay of the mean squared gradient.
        beta2: f64,
        /// Added to the root of the mean squared gradient.
        epsilon: f64,
    },
    /// Gradient descent.
    Sgd {
        /// Share of the last update kept.
        momentum: f64,
    },
    /// RMSprop.
    RmsProp {
        /// Decay of the mean squared gradient.
        alpha: f64,
        /// Added to the root of the mean squared gradient.
        epsilon: f64,
        /// Share of the last update kept.
        momentum: f64,
    },
}

impl Rule {
    /// The rule's name in a recipe.
    pub fn kind(&self) -> OptimizerKind {
        match self {
            Rule::AdamW { .. } => OptimizerKind::AdamW,
            Rule::Adam { .. } => OptimizerKind::Adam,
            Rule::Sgd { .. } => OptimizerKind::Sgd,
            Rule::RmsProp { .. } => OptimizerKind::RmsProp,
        }
    }
}

/// The learning rate over the steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Schedule {
    /// Shape after the warm-up.
    pub kind: ScheduleKind,
    /// Steps of a linear rise from 0 to the peak.
    pub warmup: u64,
    /// Learning rate at the last step, in parts of the peak; 1 for a constant one.
    pub final_ratio: f64,
    /// The batch that the learning rate is meant for, sequences.
    pub base_batch: Option<u64>,
}

/// The amount of training.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Train {
    /// Updates in all.
    pub steps: u64,
    /// Sequences of one update.
    pub batch: usize,
    /// Sequences computed at a time; divides `batch`.
    pub micro_batch: usize,
    /// Seed of weights, dropout and data order.
    pub seed: u64,
    /// Steps between two lines of the log.
    pub log_every: u64,
    /// What the order of sums over micro-batches may depend on.
    pub determinism: Determinism,
}
