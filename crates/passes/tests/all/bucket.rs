//! Buckets on every kind of mesh: where parameters lie, whose micro-batches are whose, what is sent
//! and held, and that all of it changes no bit.

#[path = "bucket/exact.rs"]
mod exact;
#[path = "bucket/layout.rs"]
mod layout;
#[path = "bucket/micro.rs"]
mod micro;
#[path = "bucket/norm.rs"]
mod norm;
#[path = "bucket/refused.rs"]
mod refused;
#[path = "bucket/wire.rs"]
mod wire;

use super::models::config;
use aerogel_graph::{Graph, Mesh};
use aerogel_models::{AttentionKind, Combine, Family, ModelConfig, train_graph};
use aerogel_passes::{
    Buckets, Compute, Optimizer, Order, Partials, Shards, Share, UpdateConfig, accumulate,
    backward, copies, cut, precision, update,
};

/// Micro-batches of the global batch, and rows of it.
const MICRO_BATCHES: usize = 8;
const ROWS: usize = 16;

/// Epsilon is far above the rounding of gradients that are zero but for it.
const CONFIG: UpdateConfig = UpdateConfig {
    kind: Optimizer::AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-4 },
    weight_decay: 0.1,
    clip: 0.5,
    scale: None,
};

/// Two layers with dropout, one family with a tied table, the other with tables of positions.
fn model(family: Family) -> ModelConfig {
    let attention = match family {
        Family::Gpt2 => AttentionKind::Dense,
        Family::SparseTransformer => AttentionKind::Strided,
    };
    ModelConfig { context: 8, ..config(family, attention, Combine::Interleaved) }
}

/// The gradients of the global batch.
fn whole(family: Family, compute: Compute) -> Graph {
    let g = train_graph(&model(family), ROWS).unwrap();
    backward(&precision(&g, compute).unwrap()).unwrap()
}

/// Ranks in one row: ZeRO by stage, 0 for copies of everything.
fn zero(ranks: usize, stage: usize) -> Shards {
    over(Mesh(vec![("data".to_owned(), ranks)]), [1, 2, 3].map(|s| usize::from(stage >= s)))
}

/// Two nodes of two ranks; how many of the innermost mesh axes cut the optimizer's memory,
/// gradients and parameters.
fn nodes(cut: [usize; 3]) -> Shards {
    over(Mesh(vec![("node".to_owned(), 2), ("local".to_owned(), 2)]), cut)
}

fn over(mesh: Mesh, cut: [usize; 3]) -> Shards {
    let batch: Vec<u8> = (0..mesh.0.len() as u8).collect();
    let [optimizer, gradients, parameters] = cut.map(|n| batch[batch.len() - n..].to_vec());
    Shards { mesh, batch, optimizer, gradients, parameters }
}

/// The hybrid forms, and the stages over all four ranks.
const NODES: [[usize; 3]; 7] =
    [[0, 0, 0], [1, 1, 1], [2, 1, 1], [2, 2, 2], [2, 0, 0], [2, 2, 0], [2, 1, 0]];

/// What a rank runs.
struct Step {
    buckets: Buckets,
    /// Of micro-batches, by name.
    micros: Vec<(String, Graph)>,
    /// How many a rank runs.
    local: usize,
    update: Graph,
    copies: Option<Graph>,
}

impl Step {
    fn new(whole: &Graph, shards: &Shards, order: Order) -> Step {
        let buckets = Buckets::of(whole, shards, &Partials::default());
        let local = MICRO_BATCHES / shards.mesh.ranks();
        let micro = buckets.apply(&cut(whole, shards, local).unwrap()).unwrap();
        let micros = accumulate(&micro, local, order).unwrap();
        let share = Share::whole(&buckets);
        let update = update(&micros[0].1, &share, &CONFIG).unwrap();
        let copies = copies(&micros[0].1, &share).unwrap();
        for g in micros.iter().map(|m| &m.1).chain([&update]).chain(&copies) {
            aerogel_graph::verify::verify(g).unwrap();
        }
        Step { buckets, micros, local, update, copies }
    }
}
