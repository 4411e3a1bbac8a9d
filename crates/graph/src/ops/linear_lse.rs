//! linear_lse: the output layer's log-sum-exp over a piece of the vocabulary, without its logits.
//!
//! Of a vocabulary that is cut over ranks each computes its own part of the cross entropy (Shoeybi
//! et al., Megatron-LM, 2019): the log-sum-exp of its logits, and the target's logit where the
//! target is one of its own, else 0. Merged by log-sum-exp and by sum they give those of the whole,
//! and weight · (lse - target) is `linear_ce`.

use super::*;
use crate::expr::Expr;

/// Inputs x [tokens.., embed], w [vocab, embed], targets u32 [tokens..], ids of the whole
/// vocabulary; outputs lse f32 [tokens..], target f32 [tokens..], in the order of x.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearLse {
    /// The contracted axis.
    pub embed: AxisId,
    /// The axis of classes, perhaps a rank's piece.
    pub vocab: AxisId,
}

/// The axes of x and w, and tokens and targets that fit them; gives the tokens' axes.
pub(super) fn want_layer(
    op: &str,
    axes: &Axes,
    [embed, vocab]: [AxisId; 2],
    [x, w, targets]: [&Type; 3],
) -> Result<AxisList, OpError> {
    want_float(op, x, "x")?;
    want_axis(op, axes, x, embed, "x")?;
    want_same_axes(op, axes, &w.axes, &[vocab, embed], "w")?;
    let tokens = without(&x.axes, embed);
    want_dtype(op, targets, DType::U32, "the targets")?;
    want_same_axes(op, axes, &targets.axes, &tokens, "the targets")?;
    Ok(tokens)
}

/// A value of each token beside x: f32.
pub(super) fn want_each(
    op: &str,
    axes: &Axes,
    ty: &Type,
    tokens: &[AxisId],
    what: &str,
) -> Result<(), OpError> {
    want_dtype(op, ty, DType::F32, what)?;
    want_same_axes(op, axes, &ty.axes, tokens, what)
}

/// x and w in f64, in a known order of axes: tokens by classes.
pub(super) struct Layer {
    x: Tensor,
    w: Tensor,
    /// The tokens' axes, as in x.
    pub tokens: AxisList,
    embed: AxisId,
    vocab: AxisId,
    width: usize,
}

impl Layer {
    pub fn new(axes: &Axes, [embed, vocab]: [AxisId; 2], x: &Tensor, w: &Tensor) -> Layer {
        let tokens = without(&x.axes, embed);
        let order: AxisList = tokens.iter().copied().chain([embed]).collect();
        let (x, w) = (x.permuted(axes, &order), w.permuted(axes, &[vocab, embed]));
        Layer { x, w, tokens, embed, vocab, width: axes.size(embed) }
    }

    pub fn logits(&self, token: usize) -> Vec<f64> {
        let row = &self.x.data[token * self.width..][..self.width];
        let dot = |w: &[f64]| row.iter().zip(w).map(|(a, b)| a * b).sum();
        self.w.data.chunks(self.width).map(dot).collect()
    }

    /// dx and dw, in the orders of x and w, for the gradients of the logits of each token.
    pub fn gradients(&self, axes: &Axes, slopes: &[Vec<f64>], ins: [&Tensor; 2]) -> [Tensor; 2] {
        let mut dx = Tensor::full(axes, &self.x.axes, 0.0);
        let mut dw = Tensor::full(axes, &[self.vocab, self.embed], 0.0);
        for (t, slopes) in slopes.iter().enumerate() {
            for (c, slope) in slopes.iter().enumerate() {
                for i in 0..self.width {
                    let (at_x, at_w) = (t * self.width + i, c * self.width + i);
                    dx.data[at_x] += slope * self.w.data[at_w];
                    dw.data[at_w] += slope * self.x.data[at_x];
                }
            }
        }
        [dx.permuted(axes, &ins[0].axes), dw.permuted(axes, &ins[1].axes)]
    }
}

/// Of the numbers; minus infinity for none.
pub(super) fn log_sum_exp(x: &[f64]) -> f64 {
    let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    top + x.iter().map(|x| (x - top).exp()).sum::<f64>().ln()
}

impl LinearLse {
    /// The logits [tokens.., vocab].
    pub(super) fn logits(
        &self,
        [x, w]: [ValueId; 2],
        b: &mut dyn Build,
    ) -> Result<ValueId, OpError> {
        let mut axes = without(&b.ty(x).axes, self.embed);
        axes.push(self.vocab);
        b.einsum_to(&[x, w], &axes, DType::F32)
    }

    /// (lse, target) in primitive ops.
    pub(super) fn primitives(
        &self,
        [x, w, targets]: [ValueId; 3],
        b: &mut dyn Build,
    ) -> Result<(ValueId, ValueId), OpError> {
        let (over, vocab) = ([self.vocab], self.vocab);
        let logits = self.logits([x, w], b)?;
        let top = b.maximum(logits, &over)?;
        let e = b.map(&[logits, top], &|v| (&v[0] - &v[1]).exp())?;
        let z = b.sum(e, &over)?;
        let lse = b.map(&[top, z], &|v| &v[0] + v[1].ln())?;
        // The target's logit: picked by comparing coordinates, since ids are not contracted.
        let hit = b.map_to(&[logits, targets], b.ty(logits).clone(), &|v| {
            Expr::Coord(vocab).equals(&v[1]).select(&v[0], 0.0)
        })?;
        Ok((lse, b.sum(hit, &over)?))
    }
}

impl Rules for LinearLse {
    const NAME: &'static str = "linear_lse";

    fn infer(&self, axes: &Axes, ins: &[&Type]) -> Result<Vec<Type>, OpError> {
        want_ins(Self::NAME, ins, 3..=3)?;
        let layer = [self.embed, self.vocab];
        let tokens = want_layer(Self::NAME, axes, layer, [ins[0], ins[1], ins[2]])?;
        want_table(Self::NAME, axes, self.vocab)?;
        Ok(vec![Type::new(DType::F32, tokens); 2])
    }

    /// By its expansion: logits and their gradients exist.
    fn grad(&self, site: &GradSite<'_>, b: &mut dyn Build) -> Result<Cotangents, OpError> {
        let (x, w, vocab) = (site.ins[0], site.ins[1], self.vocab);
        let logits = self.logits([x, w], b)?;
        let out = b.ty(logits).clone();
        let mut parts = vec![];
        if let Some(dlse) = site.douts[0] {
            let p = |v: &[Expr]| (&v[0] - &v[1]).exp() * &v[2];
            parts.push(b.map_to(&[logits, site.outs[0], dlse], out.clone(), &p)?);
        }
        if let Some(dtarget) = site.douts[1] {
            let hit = |v: &[Expr]| Expr::Coord(vocab).equals(&v[0]).select(&v[1], 0.0);
            parts.push(b.map_to(&[site.ins[2], dtarget], out.clone(), &hit)?);
        }
        let slope = match parts[..] {
            [] => return Ok(vec![None; 3]),
            [one] => one,
            _ => b.add(parts[0], parts[1])?,
        };
        let mut result = vec![None; 3];
        for (i, other) in [(0, w), (1, x)].into_iter().filter(|(i, _)| site.wanted[*i]) {
            let axes = b.ty(site.ins[i]).axes.clone();
            result[i] = Some(b.einsum_to(&[slope, other], &axes, site.dtypes[i])?);
        }
        Ok(result)
    }

    fn flops(&self, axes: &Axes, ins: &[&Type], _outs: &[Type]) -> u64 {
        let logits = (axes.count(&ins[2].axes) * axes.size(self.vocab)) as u64;
        logits * (2 * axes.size(self.embed) as u64 + 4)
    }

    fn sharding(&self, _axes: &Axes, _ins: &[&Type], _outs: &[Type], label: AxisId) -> Sharding {
        // Over the vocabulary the log-sum-exp is merged as such, and is no sum.
        Sharding::whole_if(label == self.embed || label == self.vocab)
    }

    fn reference(&self, site: &RefSite<'_>, ins: &[&Tensor]) -> Vec<Tensor> {
        let layer = Layer::new(site.axes, [self.embed, self.vocab], ins[0], ins[1]);
        let targets = ins[2].permuted(site.axes, &layer.tokens);
        let mut lse = Tensor::full(site.axes, &layer.tokens, 0.0);
        let mut target = lse.clone();
        for (t, &id) in targets.data.iter().enumerate() {
            let logits = layer.logits(t);
            lse.data[t] = log_sum_exp(&logits);
            if let Some(row) = local_row(Self::NAME, site, self.vocab, id) {
                target.data[t] = logits[row];
            }
        }
        vec![lse, target]
    }

    fn expand(&self, ins: &[ValueId], b: &mut dyn Build) -> Result<Option<Vec<ValueId>>, OpError> {
        let (lse, target) = self.primitives([ins[0], ins[1], ins[2]], b)?;
        Ok(Some(vec![lse, target]))
    }

    fn attrs(&self, axes: &Axes) -> Attrs {
        let name = |axis: AxisId| &axes[axis].name;
        Attrs::default().with("embed", name(self.embed)).with("vocab", name(self.vocab))
    }

    fn from_attrs(attrs: &Attrs, axes: &Axes, _outs: &[Type]) -> Result<Self, OpError> {
        let axis = |key: &str| attrs.axis(Self::NAME, axes, key);
        Ok(LinearLse { embed: axis("embed")?, vocab: axis("vocab")? })
    }
}
