//! norm_grad: the gradient of `norm`. Statistics are computed again; nothing is saved for it.

use super::norm::{axis_last, statistics};
use super::*;
use smallvec::SmallVec;

/// Inputs x, gain (if any), dy; outputs dx, dgain, dbias (as the norm has them).
#[derive(Clone, Debug, PartialEq)]
pub struct NormGrad {
    /// The norm that is differentiated.
    pub norm: Norm,
    /// Dtypes of the outputs.
    pub dtypes: SmallVec<[DType; 3]>,
}

impl Rules for NormGrad {
    const NAME: &'static str = "norm_grad";

    fn infer(&self, axes: &Axes, ins: &[&Type]) -> Result<Vec<Type>, OpError> {
        let wanted = 2 + usize::from(self.norm.gain);
        want_ins(Self::NAME, ins, wanted..=wanted)?;
        want_axis(Self::NAME, axes, ins[0], self.norm.axis, "the input")?;
        let dy = ins[wanted - 1];
        want_same_axes(Self::NAME, axes, &dy.axes, &ins[0].axes, "the cotangent")?;
        let mut outs = vec![Type::new(self.dtypes[0], ins[0].axes.iter().copied())];
        let parameters = usize::from(self.norm.gain) + usize::from(self.norm.bias);
        for i in 0..parameters {
            outs.push(Type::new(self.dtypes[i + 1], [self.norm.axis]));
        }
        Ok(outs)
    }

    fn grad(&self, _site: &GradSite<'_>, _b: &mut dyn Build) -> Result<Cotangents, OpError> {
        Err(OpError::new(
            Self::NAME,
            "has no gradient; expand the norm before differentiating twice",
        ))
    }

    fn flops(&self, axes: &Axes, ins: &[&Type], _outs: &[Type]) -> u64 {
        16 * axes.count(&ins[0].axes) as u64
    }

    fn sharding(&self, _axes: &Axes, _ins: &[&Type], _outs: &[Type], label: AxisId) -> Sharding {
        Sharding::whole_if(label == self.norm.axis)
    }

    fn reference(&self, site: &RefSite<'_>, ins: &[&Tensor]) -> Vec<Tensor> {
        let norm = &self.norm;
        let n = site.axes.size(norm.axis);
        let x = axis_last(site, ins[0], norm.axis);
        let dy = ins[ins.len() - 1].permuted(site.axes, &x.axes);
        let mut dx = x.clone();
        let mut dgain = Tensor::full(site.axes, &[norm.axis], 0.0);
        let mut dbias = dgain.clone();
        let rows = x.data.chunks(n).zip(dy.data.chunks(n)).zip(dx.data.chunks_mut(n));
        for ((x, dy), dx) in rows {
            let (mean, rstd) = statistics(norm, x);
            let unit: Vec<f64> = x.iter().map(|v| (v - mean) * rstd).collect();
            let g: Vec<f64> =
                (0..n).map(|i| dy[i] * if norm.gain { ins[1].data[i] } else { 1.0 }).collect();
            let along = g.iter().zip(&unit).map(|(a, b)| a * b).sum::<f64>() / n as f64;
            let level = if norm.center { g.iter().sum::<f64>() / n as f64 } else { 0.0 };
            for i in 0..n {
                dx[i] = rstd * (g[i] - level - unit[i] * along);
                dgain.data[i] += dy[i] * unit[i];
                dbias.data[i] += dy[i];
            }
        }
        let mut outs = vec![dx.permuted(site.axes, &ins[0].axes)];
        outs.extend(norm.gain.then_some(dgain));
        outs.extend(norm.bias.then_some(dbias));
        outs
    }

    fn attrs(&self, axes: &Axes) -> Attrs {
        self.norm.attrs(axes)
    }

    fn from_attrs(attrs: &Attrs, axes: &Axes, outs: &[Type]) -> Result<Self, OpError> {
        let norm = Norm::from_attrs(attrs, axes, outs)?;
        Ok(NormGrad { norm, dtypes: outs.iter().map(|t| t.dtype).collect() })
    }
}
