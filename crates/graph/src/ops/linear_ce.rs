//! linear_ce: the output layer and its cross entropy as one op, so that the logits of a batch
//! never exist.
//!
//! loss = Σ over tokens of weight · (log Σ_v exp(x·w_v) - x·w_target), in nats. With `grad` the
//! same pass also emits d loss / d x and d loss / d w: autodiff widens the forward node, and the
//! gradient is made in the forward.

use super::*;
use crate::expr::Expr;
use crate::tensor::row_major;

/// Inputs x [tokens.., embed], w [vocab, embed], targets u32 [tokens..], weights f32 [tokens..];
/// outputs loss f32 [], and with `grad` dx, dw.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearCe {
    /// The contracted axis.
    pub embed: AxisId,
    /// The axis of classes.
    pub vocab: AxisId,
    /// Whether dx and dw are emitted too.
    pub grad: bool,
}

impl Rules for LinearCe {
    const NAME: &'static str = "linear_ce";

    fn infer(&self, axes: &Axes, ins: &[&Type]) -> Result<Vec<Type>, OpError> {
        want_ins(Self::NAME, ins, 4..=4)?;
        let (x, w, targets, weights) = (ins[0], ins[1], ins[2], ins[3]);
        want_float(Self::NAME, x, "x")?;
        want_axis(Self::NAME, axes, x, self.embed, "x")?;
        want_same_axes(Self::NAME, axes, &w.axes, &[self.vocab, self.embed], "w")?;
        let tokens = without(&x.axes, self.embed);
        want_dtype(Self::NAME, targets, DType::U32, "the targets")?;
        want_same_axes(Self::NAME, axes, &targets.axes, &tokens, "the targets")?;
        want_dtype(Self::NAME, weights, DType::F32, "the weights")?;
        want_same_axes(Self::NAME, axes, &weights.axes, &tokens, "the weights")?;
        let mut outs = vec![Type::new(DType::F32, [])];
        if self.grad {
            outs.push(x.clone());
            outs.push(Type::new(DType::F32, w.axes.iter().copied()));
        }
        Ok(outs)
    }

    fn grad(&self, site: &GradSite<'_>, b: &mut dyn Build) -> Result<Cotangents, OpError> {
        if site.douts[1..].iter().any(Option::is_some) {
            let message = "has no second gradient; expand it before differentiating twice";
            return Err(OpError::new(Self::NAME, message));
        }
        if site.wanted[3] {
            return Err(OpError::new(Self::NAME, "has no gradient for its weights"));
        }
        let Some(dloss) = site.douts[0] else { return Ok(vec![None; 4]) };
        let extra = match site.outs {
            [_, extra @ ..] if self.grad => extra.to_vec(),
            _ => b.widen(site.node, LinearCe { grad: true, ..self.clone() }.into())?,
        };
        let mut result = vec![None; 4];
        for i in (0..2).filter(|&i| site.wanted[i]) {
            let out = Type::new(site.dtypes[i], b.ty(site.ins[i]).axes.iter().copied());
            // A loss that is the graph's own end has cotangent 1: nothing to multiply.
            let unit = matches!(b.op_of(dloss), Some(Op::Map(m)) if m.expr == 1.0.into());
            let plain = unit && *b.ty(extra[i]) == out;
            result[i] = Some(match plain {
                true => extra[i],
                false => b.map_to(&[extra[i], dloss], out, &|v| &v[0] * &v[1])?,
            });
        }
        Ok(result)
    }

    fn flops(&self, axes: &Axes, ins: &[&Type], _outs: &[Type]) -> u64 {
        let products = if self.grad { 3 } else { 1 };
        let logits = (axes.count(&ins[2].axes) * axes.size(self.vocab)) as u64;
        logits * (2 * products * axes.size(self.embed) as u64 + 4)
    }

    fn sharding(&self, _axes: &Axes, _ins: &[&Type], _outs: &[Type], label: AxisId) -> Sharding {
        Sharding::whole_if(label == self.embed || label == self.vocab)
    }

    fn reference(&self, site: &RefSite<'_>, ins: &[&Tensor]) -> Vec<Tensor> {
        let mut order = without(&ins[0].axes, self.embed);
        let tokens = order.clone();
        order.push(self.embed);
        let x = ins[0].permuted(site.axes, &order);
        let w = ins[1].permuted(site.axes, &[self.vocab, self.embed]);
        let targets = ins[2].permuted(site.axes, &tokens);
        let weights = ins[3].permuted(site.axes, &tokens);
        let (d, v) = (site.axes.size(self.embed), site.axes.size(self.vocab));
        let mut loss = 0.0;
        let mut dx = Tensor::full(site.axes, &order, 0.0);
        let mut dw = Tensor::full(site.axes, &[self.vocab, self.embed], 0.0);
        let w_at = row_major(&w.sizes)[0];
        for (t, row) in x.data.chunks(d).enumerate() {
            let logit =
                |c: usize| -> f64 { row.iter().zip(&w.data[c * w_at..]).map(|(a, b)| a * b).sum() };
            let logits: Vec<f64> = (0..v).map(logit).collect();
            let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = top + logits.iter().map(|l| (l - top).exp()).sum::<f64>().ln();
            let (target, weight) = (row_of(Self::NAME, targets.data[t], v), weights.data[t]);
            loss += weight * (lse - logits[target]);
            for (c, logit) in logits.iter().enumerate() {
                let hit = if c == target { 1.0 } else { 0.0 };
                let g = weight * ((logit - lse).exp() - hit);
                for (i, x) in row.iter().enumerate() {
                    dx.data[t * d + i] += g * w.data[c * w_at + i];
                    dw.data[c * w_at + i] += g * x;
                }
            }
        }
        let mut outs = vec![Tensor::full(site.axes, &[], loss)];
        if self.grad {
            outs.push(dx.permuted(site.axes, &ins[0].axes));
            outs.push(dw.permuted(site.axes, &ins[1].axes));
        }
        outs
    }

    fn expand(&self, ins: &[ValueId], b: &mut dyn Build) -> Result<Option<Vec<ValueId>>, OpError> {
        if self.grad {
            return Ok(None);
        }
        let tokens = without(&b.ty(ins[0]).axes, self.embed);
        let mut axes = tokens.clone();
        axes.push(self.vocab);
        let logits = b.einsum_to(&[ins[0], ins[1]], &axes, DType::F32)?;
        let top = b.maximum(logits, &[self.vocab])?;
        let e = b.map(&[logits, top], &|v| (&v[0] - &v[1]).exp())?;
        let z = b.sum(e, &[self.vocab])?;
        // The target's logit: picked by comparing coordinates, since ids are not contracted.
        let full = Type::new(DType::F32, axes);
        let vocab = self.vocab;
        let hit = b.map_to(&[logits, ins[2]], full, &|v| {
            Expr::Coord(vocab).equals(&v[1]).select(&v[0], 0.0)
        })?;
        let target = b.sum(hit, &[self.vocab])?;
        let terms = b.map(&[ins[3], top, z, target], &|v| &v[0] * (&v[1] + v[2].ln() - &v[3]))?;
        Ok(Some(vec![b.sum(terms, &tokens)?]))
    }

    fn attrs(&self, axes: &Axes) -> Attrs {
        Attrs::default()
            .with("embed", &axes[self.embed].name)
            .with("vocab", &axes[self.vocab].name)
            .with_if(self.grad, "grad", true)
    }

    fn from_attrs(attrs: &Attrs, axes: &Axes, _outs: &[Type]) -> Result<Self, OpError> {
        Ok(LinearCe {
            embed: attrs.axis(Self::NAME, axes, "embed")?,
            vocab: attrs.axis(Self::NAME, axes, "vocab")?,
            grad: attrs.flag("grad"),
        })
    }
}
