//! merge_attend: attention over the union of two disjoint key sets, from its two parts.
//!
//! lse = log(exp(lse_a) + exp(lse_b)); o = exp(lse_a - lse) o_a + exp(lse_b - lse) o_b. The parts
//! must not share keys; a part that sees no key (lse = -inf) drops out.

use super::*;
use crate::expr::Expr;

/// Inputs o_a, lse_a, o_b, lse_b; outputs o, lse.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeAttend;

impl Rules for MergeAttend {
    const NAME: &'static str = "merge_attend";

    fn infer(&self, axes: &Axes, ins: &[&Type]) -> Result<Vec<Type>, OpError> {
        want_ins(Self::NAME, ins, 4..=4)?;
        want_same_axes(Self::NAME, axes, &ins[2].axes, &ins[0].axes, "o of the second part")?;
        for lse in [ins[1], ins[3]] {
            want_dtype(Self::NAME, lse, DType::F32, "an lse")?;
            want_same_axes(Self::NAME, axes, &lse.axes, &ins[1].axes, "an lse")?;
            for &a in &lse.axes {
                want_axis(Self::NAME, axes, ins[0], a, "o")?;
            }
        }
        Ok(vec![ins[0].clone(), ins[1].clone()])
    }

    fn grad(&self, site: &GradSite<'_>, b: &mut dyn Build) -> Result<Cotangents, OpError> {
        let mut result = vec![None; 4];
        for part in 0..2 {
            let (at_o, at_lse) = (2 * part, 2 * part + 1);
            if !site.wanted[at_o] && !site.wanted[at_lse] {
                continue;
            }
            let row = b.ty(site.outs[1]).clone();
            let share = b.map_to(&[site.ins[at_lse], site.outs[1]], row, &|v| {
                v[1].equals(f64::NEG_INFINITY).select(0.0, (&v[0] - &v[1]).exp())
            })?;
            if let (Some(dout), true) = (site.douts[0], site.wanted[at_o]) {
                let out = Type::new(site.dtypes[at_o], b.ty(site.ins[at_o]).axes.iter().copied());
                result[at_o] = Some(b.map_to(&[dout, share], out, &|v| &v[0] * &v[1])?);
            }
            if site.wanted[at_lse] {
                result[at_lse] = lse_cotangent(site, site.ins[at_o], share, b)?;
            }
        }
        Ok(result)
    }

    fn flops(&self, axes: &Axes, ins: &[&Type], _outs: &[Type]) -> u64 {
        3 * axes.count(&ins[0].axes) as u64 + 6 * axes.count(&ins[1].axes) as u64
    }

    fn sharding(&self, _axes: &Axes, ins: &[&Type], _outs: &[Type], label: AxisId) -> Sharding {
        // The log-sum-exps of a piece of the width would be no sums.
        Sharding::whole_if(!ins[1].has(label))
    }

    fn reference(&self, site: &RefSite<'_>, ins: &[&Tensor]) -> Vec<Tensor> {
        let (mut o, mut lse) = (ins[0].clone(), ins[1].clone());
        let o_b = ins[2].permuted(site.axes, &o.axes);
        let lse_b = ins[3].permuted(site.axes, &lse.axes);
        let rows = lse.strides(&o.axes);
        let share = |own: f64, a: f64, b: f64| {
            let top = a.max(b);
            if top == f64::NEG_INFINITY {
                return 0.0;
            }
            (own - top).exp() / ((a - top).exp() + (b - top).exp())
        };
        let sizes = o.sizes.clone();
        crate::tensor::for_each(&sizes, &[&rows], |i, at| {
            let (a, b) = (lse.data[at[0]], lse_b.data[at[0]]);
            o.data[i] = share(a, a, b) * o.data[i] + share(b, a, b) * o_b.data[i];
        });
        for (a, b) in lse.data.iter_mut().zip(&lse_b.data) {
            let top = a.max(*b);
            if top > f64::NEG_INFINITY {
                *a = top + ((*a - top).exp() + (*b - top).exp()).ln();
            }
        }
        vec![o, lse]
    }

    fn expand(&self, ins: &[ValueId], b: &mut dyn Build) -> Result<Option<Vec<ValueId>>, OpError> {
        let row = b.ty(ins[1]).clone();
        let lse = b.map_to(&[ins[1], ins[3]], row, &|v| {
            let top = v[0].max(&v[1]);
            let sum = (&v[0] - &top).exp() + (&v[1] - &top).exp();
            top.equals(f64::NEG_INFINITY).select(&top, &top + sum.ln())
        })?;
        let out = b.ty(ins[0]).clone();
        let o = b.map_to(&[ins[0], ins[1], ins[2], ins[3], lse], out, &|v| {
            let share = |l: &Expr| (l - &v[4]).exp();
            v[4].equals(f64::NEG_INFINITY).select(0.0, share(&v[1]) * &v[0] + share(&v[3]) * &v[2])
        })?;
        Ok(Some(vec![o, lse]))
    }

    fn attrs(&self, _axes: &Axes) -> Attrs {
        Attrs::default()
    }

    fn from_attrs(_attrs: &Attrs, _axes: &Axes, _outs: &[Type]) -> Result<Self, OpError> {
        Ok(MergeAttend)
    }
}

/// d lse_part = share (rowsum(do (o_part - o)) + dlse).
fn lse_cotangent(
    site: &GradSite<'_>,
    o_part: ValueId,
    share: ValueId,
    b: &mut dyn Build,
) -> Result<Option<ValueId>, OpError> {
    let row = b.ty(site.outs[1]).clone();
    let mut terms = vec![share];
    if let Some(dout) = site.douts[0] {
        let axes = b.ty(o_part).axes.clone();
        let width: AxisList = axes.iter().copied().filter(|&a| !row.has(a)).collect();
        let full = Type::new(DType::F32, axes);
        let along = b.map_to(&[dout, o_part, site.outs[0]], full, &|v| &v[0] * (&v[1] - &v[2]))?;
        terms.push(b.sum(along, &width)?);
    }
    terms.extend(site.douts[1]);
    if terms.len() == 1 {
        return Ok(None);
    }
    let sum = |v: &[Expr]| v[2..].iter().fold(v[1].clone(), |s, t| s + t);
    b.map_to(&terms, row, &|v| &v[0] * sum(v)).map(Some)
}
