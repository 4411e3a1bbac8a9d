//! The closed sets of words that a recipe key may take.

use serde::Serialize;

/// A key's value out of a closed set of words.
pub(crate) trait Choice: Sized {
    /// The choice that is written as `name` in a recipe.
    fn from_name(name: &str) -> Option<Self>;
}

macro_rules! choices {
    ($(#[$meta:meta])* $name:ident {
        $($(#[$doc:meta])* $variant:ident = $text:literal),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
        pub enum $name { $($(#[$doc])* #[serde(rename = $text)] $variant),* }

        impl $name {
            /// The words, as a recipe writes them.
            pub const NAMES: &'static [&'static str] = &[$($text),*];

            /// The word of this choice.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }

        impl Choice for $name {
            fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

choices! {
    /// Model family.
    Family {
        /// The Sparse Transformer (Child et al. 2019).
        SparseTransformer = "sparse_transformer",
        /// GPT-2 (Radford et al. 2019).
        Gpt2 = "gpt2",
    }
}

choices! {
    /// The family of attention patterns of a model.
    AttentionKind {
        /// Every earlier position.
        Dense = "dense",
        /// A sliding window.
        Local = "local",
        /// A window, and every `stride`-th earlier position (Child et al. §4.2).
        Strided = "strided",
        /// The own block, and the last columns of every earlier block (Child et al. §4.2).
        Fixed = "fixed",
    }
}

choices! {
    /// How the two parts of a sparse pattern are spread over the model (Child et al. §4.3).
    Combine {
        /// One part per layer, by turns.
        Interleaved = "interleaved",
        /// Every head attends to the union of both parts.
        Merged = "merged",
        /// Heads take the two parts by turns.
        Heads = "heads",
    }
}

choices! {
    /// One entry of `model.cycle`, before its numbers are known.
    CycleEntry {
        /// See [`crate::recipe::Part::Dense`].
        Dense = "dense",
        /// See [`crate::recipe::Part::Local`].
        Local = "local",
        /// See [`crate::recipe::Part::Strided`].
        Strided = "strided",
        /// See [`crate::recipe::Part::Block`].
        Block = "block",
        /// See [`crate::recipe::Part::Summary`].
        Summary = "summary",
    }
}

choices! {
    /// Standard deviation of the Sparse Transformer's weight matrices.
    Init {
        /// `0.125 / sqrt(d_in)`, as the paper writes.
        Paper = "paper",
        /// `sqrt(0.125 / d_in)`, as the authors' program does: 2.8 times as large.
        Code = "code",
    }
}

choices! {
    /// Where sequences come from.
    DataKind {
        /// Text files.
        Text = "text",
        /// One JSON object a line.
        Jsonl = "jsonl",
        /// Parquet files.
        Parquet = "parquet",
        /// Folders of png or jpeg images.
        Images = "images",
        /// CIFAR-10's binary batches.
        Cifar10 = "cifar10",
        /// Shards of tokens that another program wrote.
        Bin = "bin",
        /// Made on the spot: a random first row, which every later row repeats.
        CopyRows = "copy_rows",
    }
}

choices! {
    /// Layout of token shards.
    BinFormat {
        /// A header of 1,024 bytes, then u16 tokens.
        Llmc = "llmc",
        /// u16 tokens without a header.
        NanoGpt = "nanogpt",
    }
}

choices! {
    /// What a token is.
    TokenizerKind {
        /// One byte: a vocabulary of 256.
        Bytes = "bytes",
        /// Byte-pair encoding.
        Bpe = "bpe",
    }
}

choices! {
    /// Optimizer.
    OptimizerKind {
        /// Adam with decoupled weight decay (Loshchilov & Hutter 2019).
        AdamW = "adamw",
        /// Adam (Kingma & Ba 2015).
        Adam = "adam",
        /// Stochastic gradient descent, with optional momentum.
        Sgd = "sgd",
        /// RMSprop (Tieleman & Hinton 2012).
        RmsProp = "rmsprop",
    }
}

choices! {
    /// Shape of the learning rate after the warm-up.
    ScheduleKind {
        /// Half a cosine, from the peak to `final_ratio` of it.
        Cosine = "cosine",
        /// A straight line, from the peak to `final_ratio` of it.
        Linear = "linear",
        /// The peak until the end.
        Constant = "constant",
    }
}

choices! {
    /// The dtype of matrix products and activations; master weights and sums are always f32.
    Compute {
        /// 32-bit floats.
        F32 = "f32",
        /// bfloat16.
        Bf16 = "bf16",
        /// IEEE half precision, whose gradients want a loss scale.
        F16 = "f16",
    }
}

choices! {
    /// A usual way of spreading training state over ranks; fills in [`crate::layout::Shard`].
    Preset {
        /// Every rank holds all state (data parallelism).
        Ddp = "ddp",
        /// Optimizer state is cut (Rajbhandari et al. 2020, stage 1).
        Zero1 = "zero1",
        /// Gradients as well (stage 2).
        Zero2 = "zero2",
        /// Parameters as well (stage 3).
        Zero3 = "zero3",
        /// Stage 3 within a group of ranks, copies of it across groups (Zhao et al. 2023).
        Hybrid = "hybrid",
        /// The inside of every layer is cut (Shoeybi et al. 2019).
        Megatron = "megatron",
    }
}

choices! {
    /// The order in which a pipeline runs forward and backward of its micro-batches.
    PipelineSchedule {
        /// All forwards, then all backwards (Huang et al. 2019).
        GPipe = "gpipe",
        /// One forward, one backward by turns, so that few micro-batches are in flight
        /// (Narayanan et al. 2019).
        OneForwardOneBackward = "1f1b",
        /// The same with several chunks of layers on each rank, for a shorter bubble
        /// (Narayanan et al. 2021).
        Interleaved = "interleaved",
    }
}

choices! {
    /// What ranks run on.
    Device {
        /// The CPU.
        Cpu = "cpu",
        /// An NVIDIA GPU.
        Cuda = "cuda",
    }
}

choices! {
    /// What the order of sums over micro-batches may depend on.
    Determinism {
        /// A balanced tree over the micro-batches: any number of data ranks gives the same bits.
        Bitwise = "bitwise",
        /// Whatever order is quickest for the ranks at hand.
        Fast = "fast",
    }
}

choices! {
    /// What backward computes again instead of keeping it.
    RecomputeKind {
        /// Nothing.
        None = "none",
        /// Maps and norms.
        Cheap = "cheap",
        /// Whole blocks.
        Block = "block",
        /// The cheapest set under a limit.
        Budget = "budget",
    }
}
