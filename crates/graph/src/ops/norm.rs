//! norm: layer normalisation (Ba et al. 2016) and RMS normalisation (Zhang and Sennrich 2019).
//!
//! y = (x - mean) / sqrt(variance + eps) * gain + bias over one axis; RMS leaves the mean out of
//! both. Gain and bias are optional, so that gain-only forms are the same op.

use super::*;

/// Normalisation over one axis: inputs x, then gain, then bias, as flagged.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// The axis of the statistics.
    pub axis: AxisId,
    /// Subtract the mean (layer norm), or not (RMS).
    pub center: bool,
    /// Added to the variance.
    pub eps: f64,
    /// Whether there is a gain, along `axis`.
    pub gain: bool,
    /// Whether there is a bias, along `axis`.
    pub bias: bool,
}

/// 1 / sqrt(variance + eps), and the mean that was subtracted, of each row.
pub(super) fn statistics(norm: &Norm, row: &[f64]) -> (f64, f64) {
    let n = row.len() as f64;
    let mean = if norm.center { row.iter().sum::<f64>() / n } else { 0.0 };
    let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
    (mean, 1.0 / (variance + norm.eps).sqrt())
}

/// The tensor with `axis` innermost.
pub(super) fn axis_last(site: &RefSite<'_>, t: &Tensor, axis: AxisId) -> Tensor {
    let mut order = without(&t.axes, axis);
    order.push(axis);
    t.permuted(site.axes, &order)
}

impl Norm {
    pub(super) fn optional<'a, T>(&self, rest: &'a [T]) -> (Option<&'a T>, Option<&'a T>) {
        let gain = self.gain.then(|| &rest[0]);
        let bias = self.bias.then(|| &rest[usize::from(self.gain)]);
        (gain, bias)
    }
}

impl Rules for Norm {
    const NAME: &'static str = "norm";

    fn infer(&self, axes: &Axes, ins: &[&Type]) -> Result<Vec<Type>, OpError> {
        let wanted = 1 + usize::from(self.gain) + usize::from(self.bias);
        want_ins(Self::NAME, ins, wanted..=wanted)?;
        want_float(Self::NAME, ins[0], "the input")?;
        want_axis(Self::NAME, axes, ins[0], self.axis, "the input")?;
        for ty in &ins[1..] {
            want_float(Self::NAME, ty, "gain and bias")?;
            want_same_axes(Self::NAME, axes, &ty.axes, &[self.axis], "gain and bias")?;
        }
        Ok(vec![ins[0].clone()])
    }

    fn grad(&self, site: &GradSite<'_>, b: &mut dyn Build) -> Result<Cotangents, OpError> {
        let Some(dout) = site.douts[0] else { return Ok(vec![None; site.ins.len()]) };
        let mut ins = vec![site.ins[0]];
        if self.gain {
            ins.push(site.ins[1]);
        }
        ins.push(dout);
        let op = NormGrad { norm: self.clone(), dtypes: site.dtypes.iter().copied().collect() };
        let grads = b.emit(op.into(), &ins)?;
        Ok(grads.into_iter().map(Some).collect())
    }

    fn flops(&self, axes: &Axes, ins: &[&Type], _outs: &[Type]) -> u64 {
        8 * axes.count(&ins[0].axes) as u64
    }

    fn sharding(&self, _axes: &Axes, _ins: &[&Type], _outs: &[Type], label: AxisId) -> Sharding {
        Sharding::whole_if(label == self.axis)
    }

    fn reference(&self, site: &RefSite<'_>, ins: &[&Tensor]) -> Vec<Tensor> {
        let mut y = axis_last(site, ins[0], self.axis);
        let n = site.axes.size(self.axis);
        let (gain, bias) = self.optional(&ins[1..]);
        for row in y.data.chunks_mut(n) {
            let (mean, rstd) = statistics(self, row);
            for (i, x) in row.iter_mut().enumerate() {
                *x = (*x - mean) * rstd * gain.map_or(1.0, |g| g.data[i])
                    + bias.map_or(0.0, |b| b.data[i]);
            }
        }
        vec![y.permuted(site.axes, &ins[0].axes)]
    }

    fn expand(&self, ins: &[ValueId], b: &mut dyn Build) -> Result<Option<Vec<ValueId>>, OpError> {
        let x = ins[0];
        let out = b.ty(x).clone();
        let f32_out = Type::new(DType::F32, out.axes.iter().copied());
        let n = b.axes().size(self.axis) as f64;
        let centered = if self.center {
            let sum = b.sum(x, &[self.axis])?;
            b.map_to(&[x, sum], f32_out.clone(), &|v| &v[0] - &v[1] / n)?
        } else {
            x
        };
        let square = b.map_to(&[centered], f32_out, &|v| &v[0] * &v[0])?;
        let sum = b.sum(square, &[self.axis])?;
        let mut args = vec![centered, sum];
        args.extend(&ins[1..]);
        let y = b.map_to(&args, out, &|v| {
            let mut y = &v[0] * (&v[1] / n + self.eps).rsqrt();
            let (gain, bias) = self.optional(&v[2..]);
            if let Some(g) = gain {
                y = y * g;
            }
            if let Some(b) = bias {
                y = y + b;
            }
            y
        })?;
        Ok(Some(vec![y]))
    }

    fn attrs(&self, axes: &Axes) -> Attrs {
        Attrs::default()
            .with("axis", &axes[self.axis].name)
            .with("kind", if self.center { "layer" } else { "rms" })
            .with("eps", format!("{:?}", self.eps))
            .with_if(self.gain, "gain", true)
            .with_if(self.bias, "bias", true)
    }

    fn from_attrs(attrs: &Attrs, axes: &Axes, _outs: &[Type]) -> Result<Self, OpError> {
        let kind = attrs.text(Self::NAME, "kind")?;
        if kind != "layer" && kind != "rms" {
            return Err(OpError::new(Self::NAME, format!("kind is layer or rms, got {kind}")));
        }
        Ok(Norm {
            axis: attrs.axis(Self::NAME, axes, "axis")?,
            center: kind == "layer",
            eps: attrs.parsed(Self::NAME, "eps")?,
            gain: attrs.flag("gain"),
            bias: attrs.flag("bias"),
        })
    }
}
