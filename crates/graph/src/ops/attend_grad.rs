//! attend_grad: dq, dk, dv of attention, from the saved o and lse (Dao et al., FlashAttention).
//!
//! With p = exp(score - lse) and D = rowsum(do · o) - dlse: ds = p (do·v - D), and no score matrix
//! is saved between forward and backward.

use super::attend::Reference;
use super::*;

/// Inputs q, k, v, o, lse, do, and dlse if flagged; outputs dq, dk, dv.
#[derive(Clone, Debug, PartialEq)]
pub struct AttendGrad {
    /// The attention that is differentiated.
    pub attend: Attend,
    /// Whether the lse has a cotangent (it has in a merge).
    pub dlse: bool,
    /// Dtypes of dq, dk, dv.
    pub dtypes: [DType; 3],
}

impl Rules for AttendGrad {
    const NAME: &'static str = "attend_grad";

    fn infer(&self, axes: &Axes, ins: &[&Type]) -> Result<Vec<Type>, OpError> {
        let wanted = 6 + usize::from(self.dlse);
        want_ins(Self::NAME, ins, wanted..=wanted)?;
        let outs = self.attend.infer(axes, &ins[..3])?;
        want_same_axes(Self::NAME, axes, &ins[3].axes, &outs[0].axes, "o")?;
        want_same_axes(Self::NAME, axes, &ins[4].axes, &outs[1].axes, "lse")?;
        want_same_axes(Self::NAME, axes, &ins[5].axes, &outs[0].axes, "do")?;
        if self.dlse {
            want_same_axes(Self::NAME, axes, &ins[6].axes, &outs[1].axes, "dlse")?;
        }
        let typed = |i: usize| Type::new(self.dtypes[i], ins[i].axes.iter().copied());
        Ok((0..3).map(typed).collect())
    }

    fn grad(&self, _site: &GradSite<'_>, _b: &mut dyn Build) -> Result<Cotangents, OpError> {
        let message = "has no gradient; expand the attention before differentiating twice";
        Err(OpError::new(Self::NAME, message))
    }

    fn flops(&self, axes: &Axes, ins: &[&Type], _outs: &[Type]) -> u64 {
        let dim = axes.size(self.attend.dim);
        let width = self.attend.width(ins[1], ins[2]).map_or(0, |w| axes.size(w));
        self.attend.pairs(axes, ins[0]) * (6 * dim + 4 * width + 6) as u64
    }

    fn sharding(&self, axes: &Axes, ins: &[&Type], outs: &[Type], label: AxisId) -> Sharding {
        self.attend.sharding(axes, ins, outs, label)
    }

    fn reference(&self, site: &RefSite<'_>, ins: &[&Tensor]) -> Vec<Tensor> {
        let (q, k, v) = (ins[0], ins[1], ins[2]);
        let at = Reference::new(&self.attend, site, q, k, v);
        let (_, keys, dims, width) = at.lens;
        // do in the layout of o's axes as q has them, width innermost of the two.
        let batch = without(&without(&q.axes, self.attend.query), self.attend.dim);
        let w = ins[3].axes.iter().copied().find(|a| !ins[4].axes.contains(a));
        let w = w.expect("o has a width axis");
        let (o, dout) = (ins[3], ins[5]);
        let rows = |t: &Tensor| (t.strides(&batch), t.strides(&[self.attend.query, w]));
        let (o_at, do_at) = (rows(o), rows(dout));
        let dlse_at =
            self.dlse.then(|| (ins[6].strides(&batch), ins[6].strides(&[self.attend.query])[0]));
        let mut grads: Vec<Tensor> = ins[..3]
            .iter()
            .map(|t| Tensor { data: vec![0.0; t.data.len()], ..(*t).clone() })
            .collect();
        at.rows(q, k, &mut |index, i, p, _| {
            let dot = |s: &[usize]| index.iter().zip(s).map(|(a, b)| a * b).sum::<usize>();
            let element = |t: &Tensor, s: &(Vec<usize>, Vec<usize>), d: usize| {
                t.data[dot(&s.0) + i * s.1[0] + d * s.1[1]]
            };
            let go: Vec<f64> = (0..width).map(|d| element(dout, &do_at, d)).collect();
            let along: f64 = (0..width).map(|d| go[d] * element(o, &o_at, d)).sum();
            let dlse = dlse_at.as_ref().map_or(0.0, |(s, r)| ins[6].data[dot(s) + i * r]);
            for j in (0..keys).filter(|&j| p[j] > 0.0) {
                let dp: f64 = (0..width).map(|d| go[d] * v.data[at.v_at(index, j, d)]).sum();
                let ds = p[j] * (dp - along + dlse) * self.attend.scale;
                for d in 0..dims {
                    let (qi, ki) = (at.q_at(index, i, d), at.k_at(index, j, d));
                    grads[0].data[qi] += ds * k.data[ki];
                    grads[1].data[ki] += ds * q.data[qi];
                }
                for (d, go) in go.iter().enumerate() {
                    grads[2].data[at.v_at(index, j, d)] += p[j] * go;
                }
            }
        });
        grads
    }

    fn attrs(&self, axes: &Axes) -> Attrs {
        self.attend.attrs(axes).with_if(self.dlse, "dlse", true)
    }

    fn from_attrs(attrs: &Attrs, axes: &Axes, outs: &[Type]) -> Result<Self, OpError> {
        let [q, k, v] = outs else {
            return Err(OpError::new(Self::NAME, format!("has 3 outputs, got {}", outs.len())));
        };
        let dtypes = [q.dtype, k.dtype, v.dtype];
        let attend = Attend::from_attrs(attrs, axes, outs)?;
        Ok(AttendGrad { attend, dlse: attrs.flag("dlse"), dtypes })
    }
}
