//! linear_ce: the output layer and its cross entropy as one op, so that the logits of a batch
//! never exist.
//!
//! ce = weight · (log Σ_v exp(x·w_v) - x·w_target) for each token, in nats. With `grad` the same
//! pass also emits the gradients d Σ ce / d x and d Σ ce / d w: where all tokens have one
//! cotangent, as under a sum, autodiff widens the forward node and the gradient is made in the
//! forward. Otherwise the backward computes it, by `linear_lse` and `linear_ce_grad`.

use super::linear_lse::{Layer, log_sum_exp, want_each, want_layer};
use super::*;
use crate::expr::Expr;

/// Inputs x [tokens.., embed], w [vocab, embed], targets u32 [tokens..], weights f32 [tokens..];
/// outputs ce f32 [tokens..] in the order of x, and with `grad` dx, dw.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearCe {
    /// The contracted axis.
    pub embed: AxisId,
    /// The axis of classes, whole: `linear_lse` takes pieces.
    pub vocab: AxisId,
    /// Whether dx and dw are emitted too.
    pub grad: bool,
}

/// A scalar that all elements are: what a sum's gradient hands back, or pieces of it.
fn uniform(b: &mut dyn Build, mut v: ValueId) -> Result<Option<ValueId>, OpError> {
    while let Some(Op::View(view)) = b.op_of(v)
        && !matches!(view, View::Pad { .. } | View::Concat { .. })
    {
        v = b.ins_of(v)[0];
    }
    let Some(Op::Map(map)) = b.op_of(v) else { return Ok(None) };
    let own = |e: &Expr| matches!(e, Expr::Coord(_) | Expr::Rand(_));
    let ins = b.ins_of(v).to_vec();
    if map.expr.any(&own) || ins.iter().any(|&i| !b.ty(i).axes.is_empty()) {
        return Ok(None);
    }
    let expr = map.expr.clone();
    if expr == Expr::In(0) && b.ty(ins[0]).dtype == DType::F32 {
        return Ok(Some(ins[0]));
    }
    b.map_to(&ins, Type::new(DType::F32, []), &|_| expr.clone()).map(Some)
}

/// Cotangents of x and w.
type Cotangent = Result<[Option<ValueId>; 2], OpError>;

impl LinearCe {
    /// The gradients of the widened forward, times the one cotangent of all tokens.
    fn scaled(&self, site: &GradSite<'_>, b: &mut dyn Build, by: ValueId) -> Cotangent {
        let extra = match site.outs {
            [_, extra @ ..] if self.grad => extra.to_vec(),
            _ => b.widen(site.node, LinearCe { grad: true, ..self.clone() }.into())?,
        };
        let mut result = [None; 2];
        for i in (0..2).filter(|&i| site.wanted[i]) {
            let out = Type::new(site.dtypes[i], b.ty(site.ins[i]).axes.iter().copied());
            // A sum that is the graph's own end has cotangent 1: nothing to multiply.
            let unit = matches!(b.op_of(by), Some(Op::Map(m)) if m.expr == 1.0.into());
            let plain = unit && *b.ty(extra[i]) == out;
            result[i] = Some(match plain {
                true => extra[i],
                false => b.map_to(&[extra[i], by], out, &|v| &v[0] * &v[1])?,
            });
        }
        Ok(result)
    }

    /// The gradients for a cotangent of each token.
    fn weighted(&self, site: &GradSite<'_>, b: &mut dyn Build, by: ValueId) -> Cotangent {
        let (x, w, targets, weights) = (site.ins[0], site.ins[1], site.ins[2], site.ins[3]);
        let (lse, _) = b.linear_lse(x, w, targets, self.embed, self.vocab)?;
        let weights = b.map(&[weights, by], &|v| &v[0] * &v[1])?;
        let op = LinearCeGrad { embed: self.embed, vocab: self.vocab };
        let outs = b.emit(op.into(), &[x, w, targets, weights, lse])?;
        Ok([0, 1].map(|i| site.wanted[i].then_some(outs[i])))
    }
}

impl Rules for LinearCe {
    const NAME: &'static str = "linear_ce";

    fn infer(&self, axes: &Axes, ins: &[&Type]) -> Result<Vec<Type>, OpError> {
        want_ins(Self::NAME, ins, 4..=4)?;
        let layer = [self.embed, self.vocab];
        let tokens = want_layer(Self::NAME, axes, layer, [ins[0], ins[1], ins[2]])?;
        want_each(Self::NAME, axes, ins[3], &tokens, "the weights")?;
        if !axes[self.vocab].cuts.is_empty() {
            let name = &axes[self.vocab].name;
            let message = format!(
                "`{name}` is cut, and the loss needs all of it: use linear_lse and linear_ce_grad"
            );
            return Err(OpError::new(Self::NAME, message));
        }
        let mut outs = vec![Type::new(DType::F32, tokens)];
        if self.grad {
            outs.push(ins[0].clone());
            outs.push(Type::new(DType::F32, ins[1].axes.iter().copied()));
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
        let Some(dce) = site.douts[0] else { return Ok(vec![None; 4]) };
        let [dx, dw] = match uniform(b, dce)? {
            Some(by) => self.scaled(site, b, by)?,
            None => self.weighted(site, b, dce)?,
        };
        Ok(vec![dx, dw, None, None])
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
        let layer = Layer::new(site.axes, [self.embed, self.vocab], ins[0], ins[1]);
        let targets = ins[2].permuted(site.axes, &layer.tokens);
        let weights = ins[3].permuted(site.axes, &layer.tokens);
        let mut ce = Tensor::full(site.axes, &layer.tokens, 0.0);
        let mut slopes = vec![];
        for (t, ce) in ce.data.iter_mut().enumerate() {
            let logits = layer.logits(t);
            let lse = log_sum_exp(&logits);
            let (target, weight) = (targets.data[t], weights.data[t]);
            let target = row_of(Self::NAME, target, logits.len());
            *ce = weight * (lse - logits[target]);
            let mut slope: Vec<f64> = logits.iter().map(|l| weight * (l - lse).exp()).collect();
            slope[target] -= weight;
            slopes.push(slope);
        }
        let mut outs = vec![ce];
        if self.grad {
            outs.extend(layer.gradients(site.axes, &slopes, [ins[0], ins[1]]));
        }
        outs
    }

    fn expand(&self, ins: &[ValueId], b: &mut dyn Build) -> Result<Option<Vec<ValueId>>, OpError> {
        if self.grad {
            return Ok(None);
        }
        let layer = LinearLse { embed: self.embed, vocab: self.vocab };
        let (lse, target) = layer.primitives([ins[0], ins[1], ins[2]], b)?;
        let out = b.ty(lse).clone();
        let ce = b.map_to(&[ins[3], lse, target], out, &|v| &v[0] * (&v[1] - &v[2]))?;
        Ok(Some(vec![ce]))
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
