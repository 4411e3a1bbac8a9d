//! linear_ce_grad: the gradient of the output layer under cross entropy, for given log-sum-exps.
//!
//! With p = exp(x·w_v - lse), the gradient of a logit is weight · (p - [v is the target]). The
//! weights are those of `linear_ce` times the cotangent of each token; the lse is that of the whole
//! vocabulary. Of a vocabulary that is cut over ranks, dw is that of the rank's piece, and dx its
//! part of a sum over ranks.

use super::linear_lse::{Layer, want_each, want_layer};
use super::*;
use crate::expr::Expr;

/// Inputs x [tokens.., embed], w [vocab, embed], targets u32 [tokens..], weights and lse f32
/// [tokens..]; outputs dx like x, dw f32 like w.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearCeGrad {
    /// The contracted axis.
    pub embed: AxisId,
    /// The axis of classes, perhaps a rank's piece.
    pub vocab: AxisId,
}

impl Rules for LinearCeGrad {
    const NAME: &'static str = "linear_ce_grad";

    fn infer(&self, axes: &Axes, ins: &[&Type]) -> Result<Vec<Type>, OpError> {
        want_ins(Self::NAME, ins, 5..=5)?;
        let layer = [self.embed, self.vocab];
        let tokens = want_layer(Self::NAME, axes, layer, [ins[0], ins[1], ins[2]])?;
        want_table(Self::NAME, axes, self.vocab)?;
        want_each(Self::NAME, axes, ins[3], &tokens, "the weights")?;
        want_each(Self::NAME, axes, ins[4], &tokens, "the lse")?;
        let dw = Type::new(DType::F32, ins[1].axes.iter().copied());
        Ok(vec![ins[0].clone(), dw])
    }

    fn grad(&self, _site: &GradSite<'_>, _b: &mut dyn Build) -> Result<Cotangents, OpError> {
        let message = "has no second gradient; expand it before differentiating twice";
        Err(OpError::new(Self::NAME, message))
    }

    fn flops(&self, axes: &Axes, ins: &[&Type], _outs: &[Type]) -> u64 {
        let logits = (axes.count(&ins[2].axes) * axes.size(self.vocab)) as u64;
        logits * (6 * axes.size(self.embed) as u64 + 4)
    }

    fn sharding(&self, _axes: &Axes, _ins: &[&Type], _outs: &[Type], label: AxisId) -> Sharding {
        Sharding::whole_if(label == self.embed)
    }

    fn reference(&self, site: &RefSite<'_>, ins: &[&Tensor]) -> Vec<Tensor> {
        let layer = Layer::new(site.axes, [self.embed, self.vocab], ins[0], ins[1]);
        let each = |i: usize| ins[i].permuted(site.axes, &layer.tokens).data;
        let (targets, weights, lse) = (each(2), each(3), each(4));
        let slopes: Vec<Vec<f64>> = (0..targets.len())
            .map(|t| {
                let p = |logit: f64| weights[t] * (logit - lse[t]).exp();
                let mut slope: Vec<f64> = layer.logits(t).into_iter().map(p).collect();
                if let Some(row) = local_row(Self::NAME, site, self.vocab, targets[t]) {
                    slope[row] -= weights[t];
                }
                slope
            })
            .collect();
        layer.gradients(site.axes, &slopes, [ins[0], ins[1]]).into()
    }

    fn expand(&self, ins: &[ValueId], b: &mut dyn Build) -> Result<Option<Vec<ValueId>>, OpError> {
        let (x, w, vocab) = (ins[0], ins[1], self.vocab);
        let logits = LinearLse { embed: self.embed, vocab }.logits([x, w], b)?;
        let out = b.ty(logits).clone();
        let slope = b.map_to(&[logits, ins[2], ins[3], ins[4]], out, &|v| {
            let hit = Expr::Coord(vocab).equals(&v[1]).select(1.0, 0.0);
            &v[2] * ((&v[0] - &v[3]).exp() - hit)
        })?;
        let (like_x, like_w) = (b.ty(x).clone(), b.ty(w).axes.clone());
        let dx = b.einsum_to(&[slope, w], &like_x.axes, like_x.dtype)?;
        let dw = b.einsum_to(&[slope, x], &like_w, DType::F32)?;
        Ok(Some(vec![dx, dw]))
    }

    fn attrs(&self, axes: &Axes) -> Attrs {
        let name = |axis: AxisId| &axes[axis].name;
        Attrs::default().with("embed", name(self.embed)).with("vocab", name(self.vocab))
    }

    fn from_attrs(attrs: &Attrs, axes: &Axes, _outs: &[Type]) -> Result<Self, OpError> {
        let axis = |key: &str| attrs.axis(Self::NAME, axes, key);
        Ok(LinearCeGrad { embed: axis("embed")?, vocab: axis("vocab")? })
    }
}
