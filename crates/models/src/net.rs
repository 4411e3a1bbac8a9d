//! What every part of a model builds with: the axes, the mode, and a few words.

use crate::config::ModelConfig;
use aerogel_graph::{AxisId, Build, Expr, Graph, Init, OpError, ParamClass, ValueId};

/// A model under construction.
pub(crate) struct Net<'a> {
    pub config: &'a ModelConfig,
    pub batch: AxisId,
    /// Positions: `seq` of a whole sequence, or `query` of size 1 in decoding.
    pub seq: AxisId,
    pub embed: AxisId,
    pub kv: AxisId,
    pub group: AxisId,
    pub qk: AxisId,
    pub v: AxisId,
    pub mlp: AxisId,
    pub vocab: AxisId,
    /// Whether dropout is on.
    pub dropout: bool,
    /// Inputs of a decoding step.
    pub step: Option<Step>,
}

/// Where a decoding step is.
pub(crate) struct Step {
    /// u32[]: the position of the token.
    pub position: ValueId,
    /// u32[] each: its coordinate in each table of positions.
    pub coordinates: Vec<ValueId>,
}

/// A learned table of positions: its row is `(position / stride) % size`.
pub(crate) struct Table {
    pub name: &'static str,
    pub axis: AxisId,
    pub stride: usize,
}

impl<'a> Net<'a> {
    /// Whole sequences.
    pub fn whole(
        g: &mut Graph,
        config: &'a ModelConfig,
        batch: usize,
        dropout: bool,
    ) -> Result<Self, OpError> {
        let batch = g.axis("batch", batch)?;
        let seq = g.axis("seq", config.context)?;
        Net::new(g, config, batch, seq, dropout)
    }

    /// One position of each sequence.
    pub fn step(g: &mut Graph, config: &'a ModelConfig, batch: usize) -> Result<Self, OpError> {
        let batch = g.axis("batch", batch)?;
        let query = g.axis("query", 1)?;
        Net::new(g, config, batch, query, false)
    }

    fn new(
        g: &mut Graph,
        config: &'a ModelConfig,
        batch: AxisId,
        seq: AxisId,
        dropout: bool,
    ) -> Result<Self, OpError> {
        Ok(Net {
            config,
            batch,
            seq,
            embed: g.axis("embed", config.embed)?,
            kv: g.axis("kv", config.heads)?,
            group: g.axis("group", 1)?,
            qk: g.axis("qk", config.qk / config.heads)?,
            v: g.axis("v", config.embed / config.heads)?,
            mlp: g.axis("mlp", config.mlp)?,
            vocab: g.axis("vocab", config.vocab)?,
            dropout,
            step: None,
        })
    }

    /// Inverted dropout of an expression: 0 with probability `p`, else x / (1 - p). The draws
    /// follow the scope, so each place has its own stream.
    pub fn dropout(&self, g: &Graph, p: f64, x: Expr) -> Expr {
        if !self.dropout || p == 0.0 {
            return x;
        }
        Expr::rand(&g.path("dropout")).lt(p).select(0.0, x * (1.0 / (1.0 - p)))
    }
}

/// A linear layer before its bias: x · weightᵀ over the axes `from`, and the bias along `to`. They
/// are added by the element-wise map that follows.
pub(crate) fn linear(
    g: &mut Graph,
    name: &str,
    x: ValueId,
    from: &[AxisId],
    to: &[AxisId],
    std: f64,
) -> Result<[ValueId; 2], OpError> {
    g.scope(name, |g| {
        let axes: Vec<AxisId> = to.iter().chain(from).copied().collect();
        let weight =
            g.parameter(&g.path("weight"), ParamClass::Weight, &axes, Init::Normal(std))?;
        let bias = g.parameter(&g.path("bias"), ParamClass::Bias, to, Init::Constant(0.0))?;
        let kept = g.ty(x).axes.iter().copied().filter(|a| !from.contains(a));
        let out: Vec<AxisId> = kept.chain(to.iter().copied()).collect();
        Ok([g.einsum(&[x, weight], &out)?, bias])
    })
}

/// Layer normalisation over `embed` with gain and bias.
pub(crate) fn layer_norm(
    g: &mut Graph,
    net: &Net<'_>,
    name: &str,
    x: ValueId,
    eps: f64,
) -> Result<ValueId, OpError> {
    g.scope(name, |g| {
        let one = Init::Constant(1.0);
        let gain = g.parameter(&g.path("gain"), ParamClass::Norm, &[net.embed], one)?;
        let zero = Init::Constant(0.0);
        let bias = g.parameter(&g.path("bias"), ParamClass::Norm, &[net.embed], zero)?;
        g.norm(x, net.embed, true, eps, Some(gain), Some(bias))
    })
}
