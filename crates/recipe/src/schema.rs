//! The table of keys: the one place that knows every key's type, range, default and meaning.

use std::fmt;

use crate::choices::{
    AttentionKind, BinFormat, Combine, Compute, CycleEntry, DataKind, Determinism, Device, Family,
    Init, OptimizerKind, PipelineSchedule, Preset, RecomputeKind, ScheduleKind, TokenizerKind,
};
use crate::layout::Shard;

/// One key of the recipe.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Section, as in `[model]`.
    pub section: &'static str,
    /// Name within the section.
    pub name: &'static str,
    /// Type and range.
    pub key_type: KeyType,
    /// What holds where the key is absent.
    pub default: DefaultValue,
    /// Unit, or nothing for a pure number or a word.
    pub unit: &'static str,
    /// One line of meaning.
    pub doc: &'static str,
}

impl Key {
    /// `section.key`, as overrides and messages write it.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }
}

/// The type of a key's value, with its range.
#[derive(Clone, Copy, Debug)]
pub enum KeyType {
    /// A whole number from the first to the second bound, both included.
    Integer(u64, u64),
    /// A number in a range.
    Number(Range),
    /// Any text that is not empty.
    Text,
    /// One of a set of words.
    Choice(&'static [&'static str]),
    /// A list, not empty, of words out of a set.
    Choices(&'static [&'static str]),
    /// A list of texts.
    Texts,
    /// `[height, width, channels]`.
    ImageShape,
    /// A size in bytes: an integer, or a text such as "8GiB".
    Bytes,
    /// `true` or `false`.
    Boolean,
    /// A table of one to four named sizes, whose order counts.
    Mesh,
    /// A table that gives lists of mesh axes to some of a set of names.
    AxisLists(&'static [&'static str]),
}

/// A range of finite numbers; `min_open` and `max_open` leave the bound itself out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// Lower bound.
    pub min: f64,
    /// Whether the lower bound itself is out.
    pub min_open: bool,
    /// Upper bound; may be infinite.
    pub max: f64,
    /// Whether the upper bound itself is out.
    pub max_open: bool,
}

impl Range {
    /// Whether `x` is finite and inside.
    pub fn contains(&self, x: f64) -> bool {
        let above = if self.min_open { x > self.min } else { x >= self.min };
        let below = if self.max_open { x < self.max } else { x <= self.max };
        x.is_finite() && above && below
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let over = if self.min_open { "greater than" } else { "at least" };
        let under = if self.max_open { "less than" } else { "at most" };
        match self.max.is_infinite() {
            true => write!(f, "a finite number {over} {}", self.min),
            false => write!(f, "a number {over} {} and {under} {}", self.min, self.max),
        }
    }
}

/// What holds where a key is absent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DefaultValue {
    /// Nothing: the key has to be given, at least where it applies.
    Required,
    /// This value, as TOML.
    Value(&'static str),
    /// A value derived from other keys, by this rule.
    Derived(&'static str),
    /// The feature is off.
    Unset,
}

impl fmt::Display for DefaultValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DefaultValue::Required => write!(f, "required"),
            DefaultValue::Value(value) => write!(f, "{value}"),
            DefaultValue::Derived(rule) => write!(f, "derived: {rule}"),
            DefaultValue::Unset => write!(f, "unset"),
        }
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A bound that only guards against overflow would be noise.
            KeyType::Integer(min, max) if *max >= MAX_COUNT => {
                write!(f, "an integer of at least {min}")
            }
            KeyType::Integer(min, max) => write!(f, "an integer from {min} to {max}"),
            KeyType::Number(range) => write!(f, "{range}"),
            KeyType::Text => write!(f, "a text in quotes"),
            KeyType::Choice(words) => write!(f, "one of \"{}\"", words.join("\", \"")),
            KeyType::Choices(words) => write!(f, "a list out of \"{}\"", words.join("\", \"")),
            KeyType::Texts => write!(f, "a list of texts, as in [\"a.txt\", \"b/*.txt\"]"),
            KeyType::ImageShape => write!(f, "[height, width, channels], as in [32, 32, 3]"),
            KeyType::Bytes => write!(f, "a size, as in \"8GiB\""),
            KeyType::Boolean => write!(f, "true or false"),
            KeyType::Mesh => write!(f, "a table of named sizes, as in {{ data = 2, tensor = 4 }}"),
            KeyType::AxisLists(names) => write!(
                f,
                "a table of lists of mesh axes, as in {{ batch = [\"data\"] }}, out of {}",
                names.join(", ")
            ),
        }
    }
}

const POSITIVE: Range = Range { min: 0.0, min_open: true, max: f64::INFINITY, max_open: false };
const NON_NEGATIVE: Range = Range { min_open: false, ..POSITIVE };
/// Probabilities and decay rates: 1 itself would drop or forget everything.
const BELOW_ONE: Range = Range { min: 0.0, min_open: false, max: 1.0, max_open: true };
const UP_TO_ONE: Range = Range { max_open: false, ..BELOW_ONE };
const MLP_RATIO: Range = Range { min: 0.0, min_open: true, max: 64.0, max_open: false };
const QK_RATIO: Range = Range { max: 4.0, ..MLP_RATIO };
/// Beyond it gradients would overflow in f32 as well.
const LOSS_SCALE: Range = Range { min_open: false, max: 4_294_967_296.0, ..MLP_RATIO };
/// Thirty years, which is for ever, and a duration that every clock can add.
const TIMEOUT: Range = Range { max: 1e9, ..MLP_RATIO };

/// Bounds that keep products of a few extents within 64 bits, far above any real model.
const MAX_LAYERS: u64 = 10_000;
const MAX_WIDTH: u64 = 1 << 20;
const MAX_CONTEXT: u64 = 1 << 28;
const MAX_BATCH: u64 = 1 << 20;
const MAX_COUNT: u64 = 1 << 40;
pub(crate) const MAX_AXES: usize = 4;
pub(crate) const MAX_AXIS_SIZE: u64 = 1 << 16;
const MAX_SEED: u64 = i64::MAX as u64;

/// Builds the table. The rows are long and read best as a table, which rustfmt leaves alone here.
macro_rules! keys {
    ($($section:literal { $(
        $name:literal, $key_type:expr, $default:expr, $unit:literal, $doc:literal;
    )* })*) => {
        &[$($(Key {
            section: $section,
            name: $name,
            key_type: $key_type,
            default: $default,
            unit: $unit,
            doc: $doc,
        },)*)*]
    };
}

use self::DefaultValue::{Derived, Required, Unset, Value};
use self::KeyType::{
    AxisLists, Boolean, Bytes, Choice, Choices, ImageShape, Integer as Int, Mesh, Number as Num,
    Text, Texts,
};

static SCHEMA: &[Key] = keys! {
    "model" {
        "family", Choice(Family::NAMES), Value("\"sparse_transformer\""), "", "model family";
        "layers", Int(1, MAX_LAYERS), Required, "blocks", "number of residual blocks";
        "heads", Int(1, MAX_WIDTH), Required, "heads", "attention heads of a block; divides embed";
        "embed", Int(1, MAX_WIDTH), Required, "features", "width of the residual stream";
        "mlp_ratio", Num(MLP_RATIO), Value("4.0"), "of embed",
            "inner width of the feed-forward; 2.0 is the half-size form of Child et al.";
        "qk_ratio", Num(QK_RATIO), Value("1.0"), "of embed",
            "width of queries and keys over all heads; 0.5 is the half-size form of Child et al.";
        "context", Int(1, MAX_CONTEXT),
            Derived("height * width * channels of images; otherwise required"), "tokens",
            "sequence length";
        "dropout", Num(BELOW_ONE), Value("0.0"), "",
            "probability of dropping a feature where a block adds to the residual stream";
        "embed_dropout", Num(BELOW_ONE), Value("0.0"), "",
            "probability of dropping a feature of the embeddings";
        "attention", Choice(AttentionKind::NAMES), Value("\"dense\""), "",
            "which earlier positions a position attends to";
        "combine", Choice(Combine::NAMES), Value("\"interleaved\""), "",
            "strided, fixed: two parts by turns in layers, merged in every head, or one per half";
        "cycle", Choices(CycleEntry::NAMES),
            Derived("strided: local, strided; fixed: block, summary; local: local"), "",
            "interleaved: the part that each layer takes, repeated over the layers";
        "stride", Int(1, MAX_CONTEXT),
            Derived("a row of an image; otherwise the divisor of context next above its root"),
            "tokens",
            "strided: distance of positions attended to; fixed: length of a block; divides context";
        "window", Int(1, MAX_CONTEXT), Derived("stride; required for local attention"), "tokens",
            "positions that a local layer sees, its own included";
        "columns", Int(1, MAX_CONTEXT), Derived("an eighth of stride, at least 1"), "tokens",
            "fixed: last positions of every block that all later positions see; divides stride";
        "init", Choice(Init::NAMES), Value("\"paper\""), "",
            "sparse_transformer: deviation 0.125/sqrt(d_in) (paper) or sqrt(0.125/d_in) (its code)";
    }
    "data" {
        "kind", Choice(DataKind::NAMES), Required, "", "where sequences come from";
        "paths", Texts, Required, "globs", "source files, relative to the recipe";
        "exclude", Texts, Value("[]"), "globs",
            "text, jsonl, parquet: files of paths to leave out, relative to the recipe";
        "field", Text, Required, "", "jsonl, parquet: the field or column that holds the text";
        "train", Text, Required, "folder",
            "images: folder of class folders of images, relative to the recipe";
        "test", Text, Unset, "path", "held-out test data: a folder for images, a glob otherwise";
        "image", ImageShape, Derived("[16, 16, 1] for copy_rows; otherwise required"), "pixels",
            "images, copy_rows: shape of every image";
        "validation", Num(BELOW_ONE), Value("0.05"), "of the data",
            "share held out for validation, by a keyed hash";
        "test_fraction", Num(BELOW_ONE), Value("0.0"), "of the data",
            "share held out as test data where there is no data.test";
        "split_seed", Int(0, MAX_SEED), Value("0"), "", "key of the hash that splits";
        "format", Choice(BinFormat::NAMES), Value("\"llmc\""), "", "bin: layout of the shards";
        "hint", Text, Unset, "", "how to get the data, printed when it is absent";
        "blake3", Text, Unset, "64 hex digits",
            "checksum of the source files, read one after another in the order of their paths";
    }
    "tokenizer" {
        "kind", Choice(TokenizerKind::NAMES), Derived("bpe for bin; otherwise bytes"), "",
            "what a token is";
        "vocab", Int(257, 1 << 24),
            Derived("8192 to train; that of the file at path; required for bin"), "tokens",
            "bpe: size of the vocabulary";
        "path", Text, Unset, "path", "bpe: a tokenizer.json to use, relative to the recipe";
    }
    "optimizer" {
        "kind", Choice(OptimizerKind::NAMES), Value("\"adamw\""), "", "rule of the update";
        "learning_rate", Num(POSITIVE), Required, "", "peak learning rate";
        "beta1", Num(BELOW_ONE), Value("0.9"), "", "adamw, adam: decay of the mean gradient";
        "beta2", Num(BELOW_ONE), Value("0.999"), "",
            "adamw, adam: decay of the mean squared gradient";
        "epsilon", Num(POSITIVE), Value("1e-8"), "",
            "adamw, adam, rmsprop: added to the root of the mean squared gradient";
        "momentum", Num(BELOW_ONE), Value("0.0"), "", "sgd, rmsprop: share of the last update kept";
        "alpha", Num(BELOW_ONE), Value("0.99"), "", "rmsprop: decay of the mean squared gradient";
        "weight_decay", Num(NON_NEGATIVE), Derived("0.01 for adamw, 0.0 otherwise"), "",
            "adamw, sgd, rmsprop: decoupled decay of tensors of two or more axes";
        "clip", Num(NON_NEGATIVE), Value("1.0"), "global norm",
            "largest norm of the whole gradient; 0 does not clip";
    }
    "schedule" {
        "kind", Choice(ScheduleKind::NAMES), Value("\"cosine\""), "",
            "shape of the learning rate after the warm-up";
        "warmup", Int(0, MAX_COUNT), Derived("a twentieth of train.steps"), "steps",
            "steps of a linear rise from 0 to the peak";
        "final_ratio", Num(UP_TO_ONE), Value("0.0"), "of the peak",
            "cosine, linear: learning rate at the last step";
        "base_batch", Int(1, MAX_COUNT), Unset, "sequences",
            "learning_rate is meant for this batch and is scaled by batch / base_batch";
    }
    "train" {
        "steps", Int(1, MAX_COUNT), Required, "steps", "updates in all";
        "batch", Int(1, MAX_BATCH), Required, "sequences", "sequences of one update";
        "micro_batch", Int(1, MAX_BATCH),
            Derived("train.batch; in the tiny form a data rank's share of it"), "sequences",
            "sequences computed at a time; divides batch; part of what defines the numbers";
        "seed", Int(0, MAX_SEED), Value("0"), "",
            "seed of the weights, of dropout and of the order of the data";
        "log_every", Int(1, MAX_COUNT), Value("10"), "steps", "steps between two lines of the log";
        "determinism", Choice(Determinism::NAMES), Value("\"bitwise\""), "",
            "bitwise: gradients are summed by a balanced tree over the micro-batches, so that any \
             number of data ranks gives the same bits; fast: in the order that is quickest";
    }
    "precision" {
        "compute", Choice(Compute::NAMES), Value("\"f32\""), "",
            "dtype of products and activations; weights and sums stay f32";
        "loss_scale", Num(LOSS_SCALE), Derived("65536 with compute = \"f16\", else 0"), "",
            "factor on the loss in the backward at the first step, so that gradients do not \
             vanish; a step whose gradients overflow is skipped and halves it; 0: none";
        "loss_scale_interval", Int(0, MAX_COUNT), Value("2000"), "steps",
            "steps without overflow after which the factor doubles; 0 keeps it as it is";
    }
    "memory" {
        "budget", Bytes, Unset, "bytes", "memory that the plan must fit into";
        "recompute", Choice(RecomputeKind::NAMES), Value("\"none\""), "",
            "what backward computes again instead of keeping it: cheap takes maps and norms, block \
             all of a block but its input, budget the cheapest set that fits activations; never \
             changes a bit";
        "recompute_every", Int(1, MAX_LAYERS), Value("1"), "blocks",
            "recompute = \"block\": every n-th block is computed again";
        "activations", Bytes, Unset, "bytes",
            "recompute = \"budget\": limit of what forward keeps for backward";
        "mlp_chunks", Int(1, MAX_CONTEXT), Value("1"), "chunks",
            "the feed-forward runs over so many parts of the sequence, one after another; its \
             inner width is what takes most memory; divides context";
        "loss_chunks", Int(1, MAX_CONTEXT), Value("1"), "chunks",
            "the output layer runs over so many parts of the sequence, so that the logits of all \
             never exist at once; divides context";
        "update_in_backward", Boolean, Value("false"), "",
            "updates every weight as soon as its gradient is complete, whose memory is then free; \
             needs optimizer.clip = 0 and one micro-batch a rank";
    }
    "parallel" {
        "device", Choice(Device::NAMES), Value("\"cpu\""), "",
            "what ranks run on: the CPU, or with cuda an NVIDIA GPU";
        "threads", Int(0, 4096), Value("0"), "threads", "threads of the CPU; 0 takes all cores";
        "mesh", Mesh, Derived("{ data = N } with --ranks N, { data = 1 } without"), "ranks",
            "axes of ranks, the outermost first, 1 to 4 of any name, each of 1 to 65536 ranks; \
             the sizes multiply to the number of ranks";
        "preset", Choice(Preset::NAMES), Unset, "",
            "fills in shard: zero1 cuts the optimizer's state over the data ranks, zero2 gradients \
             too, zero3 parameters too, hybrid all three over the last batch axis, ddp nothing; \
             megatron asks for an axis tensor";
        "shard", AxisLists(Shard::NAMES),
            Derived("tensor cuts heads, mlp, vocab, seq; pipe cuts layers; other axes cut batch"),
            "mesh axes",
            "what each mesh axis cuts; what is not listed every rank has whole; parameters, \
             gradients and optimizer are cut by the last axes of batch";
        "schedule", Choice(PipelineSchedule::NAMES), Value("\"1f1b\""), "",
            "pipeline: gpipe runs all forwards, then all backwards; 1f1b takes turns and keeps \
             fewer activations; interleaved gives each rank several chunks, for a shorter bubble";
        "chunks", Int(1, 64), Value("1"), "chunks",
            "interleaved: chunks of layers on each pipeline rank, 2 or more";
        "timeout_seconds", Num(TIMEOUT), Value("60.0"), "seconds",
            "how long ranks wait for a silent one before the run ends and names it";
    }
    "eval" {
        "every", Int(0, MAX_COUNT),
            Derived("a tenth of train.steps; 0 without held-out data"), "steps",
            "steps between two evaluations; 0 evaluates only at the end";
        "sequences", Int(0, MAX_COUNT), Value("64"), "sequences",
            "held-out sequences of an evaluation; 0 takes all";
    }
    "sample" {
        "count", Int(0, 10_000), Value("4"), "samples", "samples to draw; 0 draws none";
        "tokens", Int(1, MAX_CONTEXT), Derived("model.context"), "tokens",
            "length of a sample of text, its prompt included";
        "temperature", Num(NON_NEGATIVE), Value("1.0"), "",
            "divides the logits; 0 takes the likeliest token";
        "top_k", Int(0, MAX_COUNT), Value("0"), "tokens",
            "draw out of the likeliest k tokens; 0 draws out of all";
        "prompt", Text, Unset, "", "text that every sample continues";
        "seed", Int(0, MAX_SEED), Derived("train.seed"), "", "seed of the draws";
        "every", Int(0, MAX_COUNT), Value("0"), "steps",
            "steps between two sets of samples; 0 samples only at the end";
    }
    "checkpoint" {
        "every", Int(0, MAX_COUNT), Derived("a tenth of train.steps"), "steps",
            "steps between two checkpoints; 0 keeps only the end";
        "keep", Int(1, MAX_COUNT), Value("3"), "checkpoints", "newest checkpoints to keep";
    }
};

/// Every key of the recipe, in the order in which the resolved form prints them.
pub fn schema() -> &'static [Key] {
    SCHEMA
}

/// The key that is written `section.name`.
pub(crate) fn find(section: &str, name: &str) -> Option<&'static Key> {
    SCHEMA.iter().find(|key| key.section == section && key.name == name)
}

/// The sections in their order.
pub(crate) fn sections() -> Vec<&'static str> {
    let mut names: Vec<&str> = SCHEMA.iter().map(|key| key.section).collect();
    names.dedup();
    names
}

/// The names of a section's keys in their order.
pub(crate) fn names_of(section: &str) -> Vec<&'static str> {
    SCHEMA.iter().filter(|key| key.section == section).map(|key| key.name).collect()
}

/// The reference that a user reads: one section after another, each key with its meaning, type,
/// unit and default.
pub fn reference() -> String {
    let mut text = String::new();
    for section in sections() {
        text += &format!("[{section}]\n");
        for key in SCHEMA.iter().filter(|key| key.section == section) {
            let unit = if key.unit.is_empty() { String::new() } else { format!(" ({})", key.unit) };
            text += &format!("  {}{unit}: {}\n", key.name, key.doc);
            text += &format!("      {}; {}\n", key.key_type, key.default);
        }
    }
    text
}
