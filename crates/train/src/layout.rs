//! How a run is dealt out over ranks, as the recipe says it.

use aerogel_graph::Mesh;
use aerogel_passes::pipeline::Kind;
use aerogel_passes::{Order, Shards};
use aerogel_recipe::{Determinism, PipelineSchedule, Recipe};

/// The mesh, and what is cut along which of its axes.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub shards: Shards,
    /// Tensor parallelism: the mesh axis, and what it cuts.
    pub tensor: Option<Tensor>,
    /// The mesh axis of the pipeline's stages.
    pub pipe: Option<u8>,
    pub schedule: Kind,
    pub order: Order,
    /// Micro-batches of one rank in one step.
    pub micro_batches: usize,
}

/// What tensor parallelism cuts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tensor {
    pub axis: u8,
    pub heads: bool,
    pub mlp: bool,
    pub vocab: bool,
    pub seq: bool,
}

impl Layout {
    pub fn of(recipe: &Recipe) -> Layout {
        let parallel = &recipe.parallel;
        let mesh = Mesh(parallel.mesh.clone());
        // An axis of one rank cuts nothing.
        let axes = |names: &[String]| -> Vec<u8> {
            let found = names.iter().filter_map(|n| mesh.find(n));
            found.filter(|&m| mesh.size(m) > 1).collect()
        };
        let shard = &parallel.shard;
        let first = |names: &[String]| axes(names).first().copied();
        let (heads, mlp, vocab) = (first(&shard.heads), first(&shard.mlp), first(&shard.vocab));
        let tensor = heads.or(mlp).or(vocab).map(|axis| Tensor {
            axis,
            heads: heads.is_some(),
            mlp: mlp.is_some(),
            vocab: vocab.is_some(),
            seq: first(&shard.seq).is_some(),
        });
        let shards = Shards {
            batch: axes(&shard.batch),
            optimizer: axes(&shard.optimizer),
            gradients: axes(&shard.gradients),
            parameters: axes(&shard.parameters),
            mesh: mesh.clone(),
        };
        let ranks = shards.pieces(&shards.batch);
        Layout {
            tensor,
            pipe: first(&shard.layers),
            schedule: match parallel.schedule {
                PipelineSchedule::GPipe => Kind::GPipe,
                PipelineSchedule::OneForwardOneBackward => Kind::OneFOneB,
                PipelineSchedule::Interleaved => Kind::Interleaved { chunks: parallel.chunks },
            },
            order: match recipe.train.determinism {
                Determinism::Bitwise => Order::Tree,
                Determinism::Fast => Order::Fold,
            },
            micro_batches: recipe.micro_batches() / ranks,
            shards,
        }
    }

    /// The pipeline stage of a rank.
    pub fn stage(&self, rank: usize) -> usize {
        let place = self.shards.mesh.place(rank);
        self.pipe.map_or(0, |m| usize::from(place.0[m as usize]))
    }

    /// Whether every rank has all of the model, gathered perhaps: then any one can decode.
    pub fn is_data_parallel(&self) -> bool {
        self.tensor.is_none() && self.pipe.is_none()
    }
}
