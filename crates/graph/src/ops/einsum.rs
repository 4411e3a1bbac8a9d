//! einsum: the one contraction, over axis names.
//!
//! Labels of both inputs that the output lacks are summed; a label of one input only that the
//! output lacks is an error (say `reduce`). Sums are kept in f32 at least, whatever the dtypes.

use super::*;
use crate::tensor::for_each;

/// Contraction of one input (a permutation) or two.
#[derive(Clone, Debug, PartialEq)]
pub struct Einsum {
    /// Output axes and dtype.
    pub out: Type,
}

impl Einsum {
    /// Labels that are summed over.
    pub fn contracted(&self, ins: &[&Type]) -> AxisList {
        ins[0].axes.iter().copied().filter(|&a| !self.out.has(a)).collect()
    }
}

impl Rules for Einsum {
    const NAME: &'static str = "einsum";

    fn infer(&self, axes: &Axes, ins: &[&Type]) -> Result<Vec<Type>, OpError> {
        want_ins(Self::NAME, ins, 1..=2)?;
        for (i, ty) in ins.iter().enumerate() {
            want_float(Self::NAME, ty, "an input")?;
            for &a in &ty.axes {
                let shared = ins.len() == 2 && ins[1 - i].has(a);
                if !shared && !self.out.has(a) {
                    let name = &axes[a].name;
                    return Err(OpError::new(
                        Self::NAME,
                        format!(
                            "axis `{name}` is in one input only and not in the output; reduce it"
                        ),
                    ));
                }
            }
        }
        for &a in &self.out.axes {
            if !ins.iter().any(|t| t.has(a)) {
                let name = &axes[a].name;
                return Err(OpError::new(
                    Self::NAME,
                    format!("output axis `{name}` is in no input"),
                ));
            }
        }
        Ok(vec![self.out.clone()])
    }

    fn grad(&self, site: &GradSite<'_>, b: &mut dyn Build) -> Result<Cotangents, OpError> {
        let Some(dout) = site.douts[0] else { return Ok(vec![None; site.ins.len()]) };
        let mut result = vec![None; site.ins.len()];
        for (i, d) in result.iter_mut().enumerate().filter(|(i, _)| site.wanted[*i]) {
            let axes = b.ty(site.ins[i]).axes.clone();
            let mut ins = vec![dout];
            if site.ins.len() == 2 {
                ins.push(site.ins[1 - i]);
            }
            *d = Some(b.einsum_to(&ins, &axes, site.dtypes[i])?);
        }
        Ok(result)
    }

    fn flops(&self, axes: &Axes, ins: &[&Type], outs: &[Type]) -> u64 {
        if ins.len() == 1 {
            return 0;
        }
        2 * axes.count(&outs[0].axes) as u64 * axes.count(&self.contracted(ins)) as u64
    }

    fn sharding(&self, _axes: &Axes, _ins: &[&Type], _outs: &[Type], _label: AxisId) -> Sharding {
        Sharding::Parallel
    }

    fn reference(&self, site: &RefSite<'_>, ins: &[&Tensor]) -> Vec<Tensor> {
        let mut out = Tensor::full(site.axes, &self.out.axes, 0.0);
        let mut labels = self.out.axes.clone();
        labels.extend(ins[0].axes.iter().copied().filter(|a| !self.out.has(*a)));
        let sizes = site.axes.sizes(&labels);
        let mut strides = vec![out.strides(&labels)];
        strides.extend(ins.iter().map(|t| t.strides(&labels)));
        let strides: Vec<&[usize]> = strides.iter().map(Vec::as_slice).collect();
        for_each(&sizes, &strides, |_, at| {
            let product: f64 = ins.iter().zip(&at[1..]).map(|(t, &i)| t.data[i]).product();
            out.data[at[0]] += product;
        });
        vec![out]
    }

    fn attrs(&self, _axes: &Axes) -> Attrs {
        Attrs::default()
    }

    fn from_attrs(_attrs: &Attrs, _axes: &Axes, outs: &[Type]) -> Result<Self, OpError> {
        Ok(Einsum { out: outs[0].clone() })
    }
}
