//! The Sparse Transformer (Child et al. 2019, §4 to §6).
//!
//! ```text
//! H_0 = dropout(shift(W_e[token]) + Σ_d W_d[place along dimension d of the position])
//! H_k = H_{k-1} + resblock(H_{k-1})
//! y   = softmax(norm(H_N) · W_out)
//! ```
//!
//! `shift` puts a learned start vector before the sequence and drops the last token, so that
//! position i sees tokens before i only. f of the feed-forward is x · sigmoid(1.702 x). W_out is
//! not tied and starts at 0: before the first step every token has the same probability.

use crate::block::{Deviation, Style, stack};
use crate::config::{AttentionKind, WeightInit};
use crate::net::{Net, Table};
use aerogel_graph::ops::View;
use aerogel_graph::{
    AxisId, AxisList, Build, Expr, Graph, Init, OpError, ParamClass, Type, ValueId,
};

/// Tokens to final hidden states and the output layer.
pub(crate) fn forward(
    g: &mut Graph,
    net: &Net<'_>,
    tokens: ValueId,
) -> Result<(ValueId, ValueId), OpError> {
    let style = Style {
        activation: |x| x * (1.702 * x).sigmoid(),
        norm_eps: 1e-5,
        final_norm_eps: 1e-6,
        std: Deviation::PerRootFanIn(match net.config.init {
            WeightInit::Paper => 0.125,
            WeightInit::Code => 0.125f64.sqrt(),
        }),
    };
    let h = g.scope("embed", |g| embed(g, net, tokens))?;
    let h = stack(g, net, &style, h)?;
    let zero = Init::Constant(0.0);
    let head = g.parameter("head.weight", ParamClass::Head, &[net.vocab, net.embed], zero)?;
    Ok((h, head))
}

/// The tables of positions: one for each dimension of an image (§5, n_emb = d_data), else one for
/// the row and one for the column of the attention (n_emb = d_attn), else one.
pub(crate) fn tables(g: &mut Graph, net: &Net<'_>) -> Result<Vec<Table>, OpError> {
    let c = net.config;
    let mut table = |name, axis: &str, stride, size| -> Result<Table, OpError> {
        Ok(Table { name, axis: g.axis(axis, size)?, stride })
    };
    if let Some([height, width, channels]) = c.image {
        return Ok(vec![
            table("row", "height", width * channels, height)?,
            table("col", "width", channels, width)?,
            table("channel", "channel", 1, channels)?,
        ]);
    }
    match c.attention {
        AttentionKind::Strided | AttentionKind::Fixed => Ok(vec![
            table("row", "row", c.stride, c.context / c.stride)?,
            table("col", "col", 1, c.stride)?,
        ]),
        AttentionKind::Dense | AttentionKind::Local => {
            Ok(vec![table("position", "seq", 1, c.context)?])
        }
    }
}

fn embed(g: &mut Graph, net: &Net<'_>, tokens: ValueId) -> Result<ValueId, OpError> {
    let tables = tables(g, net)?;
    let (token_std, place_std) = deviations(net, tables.len());
    let axes = [net.vocab, net.embed];
    let weight =
        g.parameter("embed.token.weight", ParamClass::Embedding, &axes, Init::Normal(token_std))?;
    let start =
        g.parameter("embed.start", ParamClass::Bias, &[net.embed], Init::Normal(token_std))?;
    let mut places = vec![];
    for table in &tables {
        let name = match tables.len() {
            1 => "embed.position.weight".to_owned(),
            _ => format!("embed.position.{}.weight", table.name),
        };
        let axes = [table.axis, net.embed];
        places.push(g.parameter(&name, ParamClass::Embedding, &axes, Init::Normal(place_std))?);
    }
    match &net.step {
        None => embed_sequence(g, net, tokens, weight, start, &tables, &places),
        Some(step) => {
            let x = g.gather(weight, net.vocab, tokens)?;
            let mut ins = vec![x, start, step.position];
            for ((table, &place), &at) in tables.iter().zip(&places).zip(&step.coordinates) {
                ins.push(g.gather(place, table.axis, at)?);
            }
            g.map(&ins, &|v| sum_places(v[2].equals(0.0).select(&v[1], &v[0]), &v[3..]))
        }
    }
}

/// Standard deviations of token and position embeddings.
fn deviations(net: &Net<'_>, tables: usize) -> (f64, f64) {
    let (width, tables) = (net.config.embed as f64, tables as f64);
    match net.config.init {
        WeightInit::Paper => (0.125 / width.sqrt(), 0.125 / (width * tables).sqrt()),
        WeightInit::Code => (0.01, 0.01 / tables.sqrt()),
    }
}

fn sum_places(x: Expr, places: &[Expr]) -> Expr {
    places.iter().fold(x, |sum, place| sum + place)
}

/// All positions at once: the sequence takes the shape of its dimensions, in which each table
/// broadcasts along the others.
fn embed_sequence(
    g: &mut Graph,
    net: &Net<'_>,
    tokens: ValueId,
    weight: ValueId,
    start: ValueId,
    tables: &[Table],
    places: &[ValueId],
) -> Result<ValueId, OpError> {
    let earlier = g.axis("earlier", net.config.context - 1)?;
    let tokens = g.slice(tokens, net.seq, 0, earlier)?;
    let x = g.gather(weight, net.vocab, tokens)?;
    let mut x = g.emit(View::Pad { axis: earlier, before: 1, into: net.seq }.into(), &[x])?[0];
    let dimensions: AxisList = tables.iter().map(|t| t.axis).collect();
    if tables.len() > 1 {
        x = g.split(x, net.seq, &dimensions)?;
    }
    let mut ins = vec![x, start];
    ins.extend(places);
    let coordinates = dimensions.iter().map(|&a| Expr::Coord(a));
    let first = coordinates.reduce(|sum, c| sum + c).unwrap_or(Expr::Const(0.0)).equals(0.0);
    let inputs: Vec<Expr> = (0..ins.len()).map(Expr::In).collect();
    let sum = sum_places(first.select(&inputs[1], &inputs[0]), &inputs[2..]);
    let sum = net.dropout(g, net.config.embed_dropout, sum);
    let out: Type = g.ty(x).clone();
    let h = g.map_to(&ins, out, &|_| sum.clone())?;
    let whole: &[AxisId] = &dimensions;
    if tables.len() > 1 { g.merge(h, whole, net.seq) } else { Ok(h) }
}
