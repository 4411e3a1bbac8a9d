//! The pre-activation residual block (Child et al. §5.2), which is GPT-2's as well:
//!
//! ```text
//! a = dropout(attention(norm(H)))
//! b = dropout(ff(norm(H + a)))
//! H = H + a + b
//! ```
//!
//! ff(x) = W2 · f(W1 · x + b1) + b2. The heads' outputs are projected by one matrix before dropout.

use crate::attention::{self, Heads};
use crate::net::{Net, layer_norm, linear};
use aerogel_graph::{Build, DType, Expr, Graph, Init, OpError, Role, Type, ValueId};

/// What the families do not share.
pub(crate) struct Style {
    /// f of the feed-forward.
    pub activation: fn(&Expr) -> Expr,
    /// Epsilon of the norms inside blocks.
    pub norm_eps: f64,
    /// Epsilon of the norm after the last block.
    pub final_norm_eps: f64,
    /// Deviation of a matrix.
    pub std: Deviation,
}

/// Initial deviation of a matrix, from its fan-in.
#[derive(Clone, Copy)]
pub(crate) enum Deviation {
    /// The same for all.
    Fixed(f64),
    /// Over the root of the fan-in.
    PerRootFanIn(f64),
}

impl Deviation {
    fn of(self, fan_in: usize) -> f64 {
        match self {
            Deviation::Fixed(std) => std,
            Deviation::PerRootFanIn(gain) => gain / (fan_in as f64).sqrt(),
        }
    }

    /// Of a matrix that writes to the residual stream of N blocks: smaller by √(2N), so that the
    /// stream's variance does not grow with depth.
    fn of_residual(self, fan_in: usize, layers: usize) -> f64 {
        self.of(fan_in) / (2.0 * layers as f64).sqrt()
    }
}

/// All blocks and the final norm.
pub(crate) fn stack(
    g: &mut Graph,
    net: &Net<'_>,
    style: &Style,
    mut h: ValueId,
) -> Result<ValueId, OpError> {
    for layer in 0..net.config.layers {
        h = g.scope(&format!("h.{layer}"), |g| block(g, net, style, layer, h))?;
    }
    layer_norm(g, net, "final_norm", h, style.final_norm_eps)
}

fn block(
    g: &mut Graph,
    net: &Net<'_>,
    style: &Style,
    layer: usize,
    h: ValueId,
) -> Result<ValueId, OpError> {
    let h = g.scope("attn", |g| {
        let x = layer_norm(g, net, "norm", h, style.norm_eps)?;
        let a = attention(g, net, style, layer, x)?;
        add_dropped(g, net, h, a)
    })?;
    g.scope("mlp", |g| {
        let x = layer_norm(g, net, "norm", h, style.norm_eps)?;
        let b = feed_forward(g, net, style, x)?;
        add_dropped(g, net, h, b)
    })
}

/// h + dropout(product + bias).
fn add_dropped(
    g: &mut Graph,
    net: &Net<'_>,
    h: ValueId,
    [product, bias]: [ValueId; 2],
) -> Result<ValueId, OpError> {
    let update = net.dropout(g, net.config.dropout, Expr::In(1) + Expr::In(2));
    g.map(&[h, product, bias], &|v| &v[0] + &update)
}

fn feed_forward(
    g: &mut Graph,
    net: &Net<'_>,
    style: &Style,
    x: ValueId,
) -> Result<[ValueId; 2], OpError> {
    let c = net.config;
    let up = linear(g, "up", x, &[net.embed], &[net.mlp], style.std.of(c.embed))?;
    let inner = g.map(&up, &|v| (style.activation)(&(&v[0] + &v[1])))?;
    linear(g, "down", inner, &[net.mlp], &[net.embed], style.std.of_residual(c.mlp, c.layers))
}

fn attention(
    g: &mut Graph,
    net: &Net<'_>,
    style: &Style,
    layer: usize,
    x: ValueId,
) -> Result<[ValueId; 2], OpError> {
    let c = net.config;
    let std = style.std.of(c.embed);
    let q = linear(g, "q", x, &[net.embed], &[net.kv, net.group, net.qk], std)?;
    let k = linear(g, "k", x, &[net.embed], &[net.kv, net.qk], std)?;
    let v = linear(g, "v", x, &[net.embed], &[net.kv, net.v], std)?;
    let q = g.map(&q, &|v| &v[0] + &v[1])?;
    let k = g.map(&k, &|v| &v[0] + &v[1])?;
    let v = g.map(&v, &|v| &v[0] + &v[1])?;
    let heads = Heads { q, k, v, seq: net.seq, dim: net.qk, kv: net.kv, group: net.group };
    let form = c.form(layer);
    let o = match &net.step {
        None => attention::attend(g, &form, heads)?,
        Some(step) => {
            let k = cache(g, net, "k_cache", step.position, k)?;
            let v = cache(g, net, "v_cache", step.position, v)?;
            attention::attend_at(g, &form, Heads { k, v, ..heads }, step.position)?
        }
    };
    let std = style.std.of_residual(c.embed, c.layers);
    linear(g, "out", o, &[net.kv, net.group, net.v], &[net.embed], std)
}

/// Writes this position's row [batch query kv ..] to the cache; gives [batch key kv ..].
fn cache(
    g: &mut Graph,
    net: &Net<'_>,
    name: &str,
    position: ValueId,
    row: ValueId,
) -> Result<ValueId, OpError> {
    let row = g.merge(row, &[net.batch, net.seq], net.batch)?;
    let key = g.axis("key", net.config.context)?;
    let [batch, rest @ ..] = g.ty(row).axes.as_slice() else {
        return Err(OpError::new("cache", "a row has the batch axis first"));
    };
    let axes = [*batch, key].into_iter().chain(rest.iter().copied());
    let ty = Type::new(DType::F32, axes);
    let name = g.path(name);
    let old = g.state(&name, ty, Role::Cache, None, Init::Constant(0.0))?;
    let new = g.scatter_set(old, key, position, row)?;
    if let Some(state) = g.find_state(&name) {
        g.assign(state, new)?;
    }
    Ok(new)
}
