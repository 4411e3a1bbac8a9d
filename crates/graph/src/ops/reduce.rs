//! reduce: sum or maximum over axes.

use super::*;
use crate::tensor::for_each;

/// How elements are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    /// Addition, kept in f32 at least.
    Sum,
    /// The largest.
    Max,
}

/// Sum or maximum over axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Reduce {
    /// How elements are combined.
    pub fold: Fold,
    /// The axes that go.
    pub over: AxisList,
    /// Dtype of the result.
    pub dtype: DType,
}

impl Rules for Reduce {
    const NAME: &'static str = "reduce";

    fn infer(&self, axes: &Axes, ins: &[&Type]) -> Result<Vec<Type>, OpError> {
        want_ins(Self::NAME, ins, 1..=1)?;
        want_float(Self::NAME, ins[0], "the input")?;
        for &a in &self.over {
            want_axis(Self::NAME, axes, ins[0], a, "the input")?;
        }
        if self.fold == Fold::Max {
            // The gradient finds the largest element by comparing, so it must not be rounded.
            want_dtype(Self::NAME, ins[0], self.dtype, "the maximum of its input")?;
        }
        let kept = ins[0].axes.iter().copied().filter(|a| !self.over.contains(a));
        Ok(vec![Type::new(self.dtype, kept)])
    }

    fn grad(&self, site: &GradSite<'_>, b: &mut dyn Build) -> Result<Cotangents, OpError> {
        let (Some(dout), true) = (site.douts[0], site.wanted[0]) else { return Ok(vec![None]) };
        let x = site.ins[0];
        let out = Type::new(site.dtypes[0], b.ty(x).axes.clone());
        let dx = match self.fold {
            Fold::Sum => b.map_to(&[dout], out, &|v| v[0].clone())?,
            Fold::Max => {
                b.map_to(&[dout, x, site.outs[0]], out, &|v| v[1].equals(&v[2]).select(&v[0], 0.0))?
            }
        };
        Ok(vec![Some(dx)])
    }

    fn flops(&self, axes: &Axes, ins: &[&Type], _outs: &[Type]) -> u64 {
        axes.count(&ins[0].axes) as u64
    }

    fn sharding(&self, _axes: &Axes, _ins: &[&Type], _outs: &[Type], label: AxisId) -> Sharding {
        Sharding::whole_if(self.fold == Fold::Max && self.over.contains(&label))
    }

    fn reference(&self, site: &RefSite<'_>, ins: &[&Tensor]) -> Vec<Tensor> {
        let start = if self.fold == Fold::Sum { 0.0 } else { f64::NEG_INFINITY };
        let mut out = Tensor::full(site.axes, &site.outs[0].axes, start);
        let strides = out.strides(&ins[0].axes);
        for_each(&ins[0].sizes, &[&strides], |i, at| {
            let (x, y) = (ins[0].data[i], &mut out.data[at[0]]);
            *y = if self.fold == Fold::Sum { *y + x } else { y.max(x) };
        });
        vec![out]
    }

    fn attrs(&self, axes: &Axes) -> Attrs {
        let name = if self.fold == Fold::Sum { "sum" } else { "max" };
        Attrs::default().with("fold", name).with("over", list_attr(axes, &self.over))
    }

    fn from_attrs(attrs: &Attrs, axes: &Axes, outs: &[Type]) -> Result<Self, OpError> {
        let fold = match attrs.text(Self::NAME, "fold")? {
            "sum" => Fold::Sum,
            "max" => Fold::Max,
            other => {
                let message = format!("fold is sum or max, got {other}");
                return Err(OpError::new(Self::NAME, message));
            }
        };
        let over = attrs.axis_list(Self::NAME, axes, "over")?;
        Ok(Reduce { fold, over, dtype: outs[0].dtype })
    }
}
