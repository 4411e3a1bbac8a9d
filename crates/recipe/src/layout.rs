//! How a run is laid over ranks and memory: what may change without changing what is trained.

use serde::Serialize;

use crate::choices::{Device, PipelineSchedule};

/// Use of threads and ranks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Parallel {
    /// What ranks run on.
    pub device: Device,
    /// Threads of the CPU; 0 takes all cores.
    pub threads: usize,
    /// Named axes and their sizes, at least one, the outermost first; the sizes multiply to the
    /// number of ranks.
    pub mesh: Vec<(String, usize)>,
    /// What each axis cuts.
    pub shard: Shard,
    /// Order of the pipeline's work; idle where [`Parallel::pipeline_ranks`] is 1.
    pub schedule: PipelineSchedule,
    /// Chunks of layers on each pipeline rank: above 1 for an interleaved schedule alone.
    pub chunks: usize,
    /// How long ranks wait for a silent one, seconds.
    pub timeout_seconds: f64,
}

impl Parallel {
    /// The number of ranks: the product of the mesh.
    pub fn ranks(&self) -> usize {
        self.mesh.iter().map(|(_, size)| size).product()
    }

    /// The product of the sizes of `axes`; 1 for none.
    pub fn size(&self, axes: &[String]) -> usize {
        let sizes = self.mesh.iter().filter(|(name, _)| axes.contains(name));
        sizes.map(|(_, size)| size).product()
    }

    /// Groups of ranks that each take their own share of a batch.
    pub fn data_ranks(&self) -> usize {
        self.size(&self.shard.batch)
    }

    /// Ranks that share the inside of a layer.
    pub fn tensor_ranks(&self) -> usize {
        self.shard.tensor_axis().map_or(1, |axis| self.size(std::slice::from_ref(axis)))
    }

    /// Ranks that share the stack of layers.
    pub fn pipeline_ranks(&self) -> usize {
        self.size(&self.shard.layers)
    }
}

/// A mesh as a recipe writes it.
pub(crate) fn mesh_text(mesh: &[(String, usize)]) -> String {
    let axes: Vec<String> = mesh.iter().map(|(name, size)| format!("{name} = {size}")).collect();
    format!("{{ {} }}", axes.join(", "))
}

/// For everything that can be cut: the mesh axes that cut it, the outermost first; none for what
/// every rank has whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Shard {
    /// The sequences of a batch.
    pub batch: Vec<String>,
    /// Attention heads; at most one axis, and the same for `mlp` and `vocab` if they have one.
    pub heads: Vec<String>,
    /// Inner features of the feed-forward.
    pub mlp: Vec<String>,
    /// Tokens of the vocabulary, in the embedding and the output layer.
    pub vocab: Vec<String>,
    /// Positions of activations between the layers' products: that axis, or none.
    pub seq: Vec<String>,
    /// Blocks, as stages of a pipeline; at most one axis.
    pub layers: Vec<String>,
    /// State of the optimizer: the last axes of `batch`.
    pub optimizer: Vec<String>,
    /// Gradients between the micro-batches of a step: the last axes of `optimizer`.
    pub gradients: Vec<String>,
    /// Parameters between their uses: the last axes of `gradients`.
    pub parameters: Vec<String>,
}

impl Shard {
    /// The names of the lists, as a recipe writes them.
    pub const NAMES: &'static [&'static str] = &[
        "batch",
        "heads",
        "mlp",
        "vocab",
        "seq",
        "layers",
        "optimizer",
        "gradients",
        "parameters",
    ];

    /// The lists, in the order of [`Shard::NAMES`].
    pub fn lists(&self) -> [&[String]; 9] {
        [
            &self.batch,
            &self.heads,
            &self.mlp,
            &self.vocab,
            &self.seq,
            &self.layers,
            &self.optimizer,
            &self.gradients,
            &self.parameters,
        ]
    }

    /// The lists as a recipe writes them. Names of axes are identifiers and need no escapes.
    pub(crate) fn text(&self) -> String {
        let pairs = Shard::NAMES.iter().zip(self.lists());
        let lists: Vec<String> = pairs.map(|(name, axes)| format!("{name} = {axes:?}")).collect();
        format!("{{ {} }}", lists.join(", "))
    }

    /// The axis that cuts the inside of a layer.
    pub fn tensor_axis(&self) -> Option<&String> {
        self.heads.iter().chain(&self.mlp).chain(&self.vocab).next()
    }
}

/// Use of memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Memory that the plan must fit into, bytes.
    pub budget_bytes: Option<u64>,
    /// What backward computes again.
    pub recompute: RecomputePolicy,
    /// Parts of a sequence that the feed-forward computes one after another.
    pub mlp_chunks: usize,
    /// Parts of a sequence that the output layer and its loss compute one after another.
    pub loss_chunks: usize,
    /// Whether a weight is updated as soon as backward has its gradient.
    pub update_in_backward: bool,
}

/// What backward computes again instead of keeping it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum RecomputePolicy {
    /// Nothing: all that backward reads is kept.
    None,
    /// Maps and norms, which cost next to nothing.
    Cheap,
    /// Every `every`-th block, of which only the input is kept (Chen et al. 2016).
    Blocks {
        /// 1 for every block.
        every: usize,
    },
    /// The fewest operations that leave at most so much to keep.
    Budget {
        /// Limit of the kept activations, bytes.
        bytes: u64,
    },
}
