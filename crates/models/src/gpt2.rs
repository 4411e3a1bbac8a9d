//! GPT-2 (Radford et al. 2019): learned positions, pre-norm blocks, the tanh form of GELU
//! (Hendrycks and Gimpel 2016), and an output layer tied to the token embedding.
//!
//! ```text
//! H_0 = dropout(W_e[token] + W_p[position])
//! H_k = block(H_{k-1})
//! y   = softmax(norm(H_N) · W_eᵀ)
//! ```

use crate::block::{Deviation, Style, stack};
use crate::net::Net;
use aerogel_graph::{Build, Expr, Graph, Init, OpError, ParamClass, ValueId};

const STD: f64 = 0.02;

/// Tokens to final hidden states and the output layer.
pub(crate) fn forward(
    g: &mut Graph,
    net: &Net<'_>,
    tokens: ValueId,
) -> Result<(ValueId, ValueId), OpError> {
    let style = Style {
        activation: gelu,
        norm_eps: 1e-5,
        final_norm_eps: 1e-5,
        std: Deviation::Fixed(STD),
    };
    let (h, table) = g.scope("embed", |g| embed(g, net, tokens))?;
    Ok((stack(g, net, &style, h)?, table))
}

/// x Φ(x) with Φ by tanh: (1 + tanh(u)) / 2 is the sigmoid of 2 u, which takes fewer operations and
/// whose derivative does, too.
fn gelu(x: &Expr) -> Expr {
    let scale = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
    let inner = x * (scale + 0.044715 * scale * (x * x));
    x * inner.sigmoid()
}

fn embed(g: &mut Graph, net: &Net<'_>, tokens: ValueId) -> Result<(ValueId, ValueId), OpError> {
    let init = Init::Normal(STD);
    let class = ParamClass::Embedding;
    let table = g.parameter("embed.token.weight", class, &[net.vocab, net.embed], init)?;
    let seq = g.axis("seq", net.config.context)?;
    let positions = g.parameter("embed.position.weight", class, &[seq, net.embed], init)?;
    let x = g.gather(table, net.vocab, tokens)?;
    let place = match &net.step {
        None => positions,
        Some(step) => g.gather(positions, seq, step.position)?,
    };
    let sum = net.dropout(g, net.config.embed_dropout, Expr::In(0) + Expr::In(1));
    Ok((g.map(&[x, place], &|_| sum.clone())?, table))
}
