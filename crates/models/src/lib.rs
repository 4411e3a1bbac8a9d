//! Model families as functions that build graphs.
//!
//! The one type to know is [`ModelConfig`]: [`train_graph`], [`eval_graph`] and [`decode_graph`]
//! turn it into a [`Graph`]. There are two families: the Sparse Transformer of Child et al. (2019),
//! in `sparse_transformer.rs`, and GPT-2 of Radford et al. (2019), in `gpt2.rs`. Each file holds
//! what is the family's own: embedding, constants, output layer. The residual block that both are
//! made of is `block.rs`; the attention patterns, in time proportional to what they keep, are
//! [`attention`].
//!
//! Invariant: the three graphs of one configuration declare the same parameters, by name, axes and
//! initial values, so a checkpoint of one is a checkpoint of all. The crate knows nothing of
//! machines. Tests are in `tests/`: parameter counts, losses before the first step, every pattern
//! against its definition, decoding against training, losses of PyTorch.

pub mod attention;
mod block;
mod config;
mod count;
mod gpt2;
mod net;
mod sparse_transformer;

pub use attention::{Form, Part};
pub use config::{AttentionKind, Combine, Family, LayerKind, ModelConfig, ModelError, WeightInit};
pub use count::{ParameterCounts, parameter_counts};

use aerogel_graph::{Build, DType, Graph, OpError, ValueId};
use net::{Net, Step};

/// Whether the model shifts its inputs itself: the Sparse Transformer puts a learned start vector
/// before the sequence, so its targets are its tokens. GPT-2 is given the next tokens as targets.
pub fn shifts_inside(family: Family) -> bool {
    family == Family::SparseTransformer
}

/// The training graph of one micro-batch of `batch` sequences, dropout on.
///
/// Inputs: `tokens` u32[batch seq], `targets` u32[batch seq], `weights` f32[batch seq]. Outputs:
/// `loss` f32[], the sum of weight times cross entropy in nats, and `tokens` f32[], the sum of the
/// weights.
///
/// # Errors
/// The configuration contradicts itself.
pub fn train_graph(config: &ModelConfig, batch: usize) -> Result<Graph, ModelError> {
    loss_graph(config, batch, true)
}

/// As [`train_graph`], without dropout.
///
/// # Errors
/// The configuration contradicts itself.
pub fn eval_graph(config: &ModelConfig, batch: usize) -> Result<Graph, ModelError> {
    loss_graph(config, batch, false)
}

/// One step of decoding, and the positions that the host computes for it.
#[derive(Clone, Debug)]
pub struct Decode {
    /// Inputs: `tokens: u32[batch]`, `position: u32[]` and one `u32[]` for each of `positions`;
    /// output: `logits: f32[batch vocab]` of the token to come. Keys and values live in states
    /// `h.N.attn.{k,v}_cache`.
    pub graph: Graph,
    /// Coordinates of the position, where the embedding has more than one.
    pub positions: Vec<PositionInput>,
}

/// A scalar input of the decoding graph: `(position / stride) % size`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PositionInput {
    /// Name of the u32[] input.
    pub name: String,
    /// Tokens from one value to the next.
    pub stride: usize,
    /// Number of values.
    pub size: usize,
}

/// The graph that decodes one token for each of `batch` sequences at one common position.
///
/// Where [`shifts_inside`], position 0 is the start vector: `tokens` is ignored there, and the
/// logits are those of the first token. Otherwise `tokens` is the token at `position`, and the
/// logits are those of the token after it.
///
/// # Errors
/// The configuration contradicts itself.
pub fn decode_graph(config: &ModelConfig, batch: usize) -> Result<Decode, ModelError> {
    config.check()?;
    if batch == 0 {
        return Err(ModelError::Zero { what: "batch" });
    }
    let mut g = Graph::new();
    let positions = decode(&mut g, config, batch)?;
    Ok(Decode { graph: g, positions })
}

fn loss_graph(config: &ModelConfig, batch: usize, dropout: bool) -> Result<Graph, ModelError> {
    config.check()?;
    if batch == 0 {
        return Err(ModelError::Zero { what: "batch" });
    }
    let mut g = Graph::new();
    loss(&mut g, config, batch, dropout)?;
    Ok(g)
}

fn loss(g: &mut Graph, config: &ModelConfig, batch: usize, dropout: bool) -> Result<(), OpError> {
    let net = Net::whole(g, config, batch, dropout)?;
    let tokens = g.input("tokens", DType::U32, &[net.batch, net.seq])?;
    let targets = g.input("targets", DType::U32, &[net.batch, net.seq])?;
    let weights = g.input("weights", DType::F32, &[net.batch, net.seq])?;
    let (hidden, head) = forward(g, &net, tokens)?;
    let loss = g.scope("head", |g| {
        let ce = g.linear_ce(hidden, head, targets, weights, net.embed, net.vocab)?;
        g.sum(ce, &[net.batch, net.seq])
    })?;
    let count = g.scope("head", |g| g.sum(weights, &[net.batch, net.seq]))?;
    g.output("loss", loss);
    g.output("tokens", count);
    Ok(())
}

fn decode(
    g: &mut Graph,
    config: &ModelConfig,
    batch: usize,
) -> Result<Vec<PositionInput>, OpError> {
    let mut net = Net::step(g, config, batch)?;
    let tokens = g.input("tokens", DType::U32, &[net.batch])?;
    let position = g.input("position", DType::U32, &[])?;
    let tables = match config.family {
        Family::SparseTransformer => sparse_transformer::tables(g, &net)?,
        Family::Gpt2 => vec![],
    };
    let mut positions = vec![];
    let mut coordinates = vec![];
    // A single table is read at the position itself.
    for table in tables.iter().filter(|_| tables.len() > 1) {
        let name = format!("position.{}", table.name);
        coordinates.push(g.input(&name, DType::U32, &[])?);
        let size = g.axes().size(table.axis);
        positions.push(PositionInput { name, stride: table.stride, size });
    }
    if coordinates.is_empty() {
        coordinates.push(position);
    }
    net.step = Some(Step { position, coordinates });
    let tokens = g.scope("embed", |g| g.split(tokens, net.batch, &[net.batch, net.seq]))?;
    let (hidden, head) = forward(g, &net, tokens)?;
    let logits = g.scope("head", |g| {
        let logits = g.einsum_to(&[hidden, head], &[net.batch, net.seq, net.vocab], DType::F32)?;
        g.merge(logits, &[net.batch, net.seq], net.batch)
    })?;
    g.output("logits", logits);
    Ok(positions)
}

/// Tokens to final hidden states [batch seq embed] and the output layer [vocab embed].
fn forward(g: &mut Graph, net: &Net<'_>, tokens: ValueId) -> Result<(ValueId, ValueId), OpError> {
    match net.config.family {
        Family::SparseTransformer => sparse_transformer::forward(g, net, tokens),
        Family::Gpt2 => gpt2::forward(g, net, tokens),
    }
}
