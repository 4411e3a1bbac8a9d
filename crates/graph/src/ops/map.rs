//! map: the one element-wise op. Inputs broadcast by name to the output's axes.

use super::*;
use crate::expr::{Expr, Site};
use crate::random::{stream_id, uniform};
use crate::tensor::{for_each, row_major};
use crate::types::is_name;

/// An element-wise expression.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    /// The expression over the inputs.
    pub expr: Expr,
    /// Output axes and dtype.
    pub out: Type,
    /// The dtype of the output's cotangent where it differs: a cast of a master weight takes its
    /// gradient in f32.
    pub cotangent: Option<DType>,
}

/// The global row-major index of an element, from its local coordinates.
pub fn global_element(axes: &Axes, list: &[AxisId], local: &[usize], clock: &Clock) -> u64 {
    list.iter().zip(local).fold(0, |index, (&a, &x)| {
        index * axes[a].global_size() as u64 + global_coordinate(axes, a, x, clock)
    })
}

fn global_coordinate(axes: &Axes, axis: AxisId, local: usize, clock: &Clock) -> u64 {
    let axis = &axes[axis];
    axis.piece(clock.micro, clock.place) * axis.size as u64 + local as u64
}

impl Rules for Map {
    const NAME: &'static str = "map";

    fn infer(&self, axes: &Axes, ins: &[&Type]) -> Result<Vec<Type>, OpError> {
        for ty in ins {
            for &a in &ty.axes {
                want_axis(Self::NAME, axes, &self.out, a, "the output")?;
            }
        }
        if let Some(&i) = self.expr.inputs().last().filter(|&&i| i >= ins.len()) {
            let message = format!("the expression reads ${i}, and there are {} inputs", ins.len());
            return Err(OpError::new(Self::NAME, message));
        }
        let foreign = |e: &Expr| matches!(e, Expr::Coord(a) if !self.out.has(*a));
        if self.expr.any(&foreign) {
            return Err(OpError::new(Self::NAME, "coord() of an axis that the output lacks"));
        }
        let stored = self.out.axes.iter().any(|&a| axes[a].storage);
        if stored && self.expr.any(&|e| matches!(e, Expr::Coord(_) | Expr::Rand(_))) {
            let got = self.out.show(axes);
            let message = format!("the elements of a bucket have no coordinates, got {got}");
            return Err(OpError::new(Self::NAME, message));
        }
        let unnamed = |e: &Expr| matches!(e, Expr::Rand(stream) if !is_name(stream));
        if self.expr.any(&unnamed) {
            return Err(OpError::new(
                Self::NAME,
                "rand() needs a stream name without spaces or signs",
            ));
        }
        Ok(vec![self.out.clone()])
    }

    fn grad(&self, site: &GradSite<'_>, b: &mut dyn Build) -> Result<Cotangents, OpError> {
        let Some(dout) = site.douts[0] else { return Ok(vec![None; site.ins.len()]) };
        let slopes: Vec<Option<Expr>> = (0..site.ins.len())
            .map(|i| site.wanted[i].then(|| self.expr.derivative(i)))
            .map(|slope| slope.filter(|s| *s != Expr::Const(0.0)))
            .collect();
        let mut result = vec![None; site.ins.len()];
        // Inputs that have all axes first: sums over the others may read what was made for them.
        let is_whole =
            |i: usize, b: &dyn Build| b.ty(site.ins[i]).axes.len() == self.out.axes.len();
        for whole in [true, false] {
            for i in 0..site.ins.len() {
                let Some(slope) = slopes[i].as_ref().filter(|_| is_whole(i, b) == whole) else {
                    continue;
                };
                let alike = |j: &usize| slopes[*j].as_ref() == Some(slope) && is_whole(*j, b);
                let made = (0..site.ins.len()).find(alike).and_then(|j| result[j]);
                result[i] = Some(cotangent(self, i, slope, dout, made, site, b)?);
            }
        }
        Ok(result)
    }

    fn flops(&self, axes: &Axes, _ins: &[&Type], outs: &[Type]) -> u64 {
        axes.count(&outs[0].axes) as u64 * self.expr.flops()
    }

    fn sharding(&self, _axes: &Axes, _ins: &[&Type], _outs: &[Type], _label: AxisId) -> Sharding {
        Sharding::Parallel
    }

    fn reference(&self, site: &RefSite<'_>, ins: &[&Tensor]) -> Vec<Tensor> {
        let list = &self.out.axes;
        let mut out = Tensor::full(site.axes, list, 0.0);
        let sizes = out.sizes.clone();
        let own = row_major(&sizes);
        let strides: Vec<_> = ins.iter().map(|t| t.strides(list)).collect();
        let strides: Vec<&[usize]> = strides.iter().map(Vec::as_slice).collect();
        let mut values = vec![0.0; ins.len()];
        for_each(&sizes, &strides, |i, at| {
            for (value, (t, &p)) in values.iter_mut().zip(ins.iter().zip(at)) {
                *value = t.data[p];
            }
            let local: Vec<usize> = own.iter().zip(&sizes).map(|(s, n)| i / s % n).collect();
            let element = global_element(site.axes, list, &local, &site.clock);
            let rand = |stream: &str| {
                f64::from(uniform(site.clock.seed, site.clock.step, stream_id(stream), element))
            };
            let coord = |a: AxisId| {
                let p = list.iter().position(|&x| x == a).expect("infer checked the axes");
                global_coordinate(site.axes, a, local[p], &site.clock) as f64
            };
            out.data[i] = self.expr.eval(&Site { ins: &values, rand: &rand, coord: &coord });
        });
        vec![out]
    }

    fn cotangent_dtype(&self) -> Option<DType> {
        self.cotangent
    }

    fn attrs(&self, axes: &Axes) -> Attrs {
        let attrs = Attrs::default().with("f", format!("\"{}\"", self.expr.show(axes)));
        match self.cotangent {
            Some(d) => attrs.with("cotangent", d),
            None => attrs,
        }
    }

    fn from_attrs(attrs: &Attrs, axes: &Axes, outs: &[Type]) -> Result<Self, OpError> {
        let dtype = |s: &str| {
            DType::parse(s).ok_or_else(|| OpError::new(Self::NAME, format!("`{s}` is no dtype")))
        };
        let cotangent = attrs.get("cotangent").map(dtype).transpose()?;
        Ok(Map { expr: attrs.expr(Self::NAME, axes, "f")?, out: outs[0].clone(), cotangent })
    }
}

/// dout * slope, summed over the axes that the input lacks; `made` is the same for an input that
/// lacks none.
fn cotangent(
    map: &Map,
    i: usize,
    slope: &Expr,
    dout: ValueId,
    made: Option<ValueId>,
    site: &GradSite<'_>,
    b: &mut dyn Build,
) -> Result<ValueId, OpError> {
    let own = b.ty(site.ins[i]).axes.clone();
    let missing: AxisList = map.out.axes.iter().copied().filter(|a| !own.contains(a)).collect();
    let used = slope.inputs();
    let mut ins = vec![dout];
    ins.extend(used.iter().map(|&u| site.ins[u]));
    let position = |u: usize| 1 + used.iter().position(|&x| x == u).expect("u is in use");
    let expr = (Expr::In(0) * slope.renumber(&position)).simplified();
    let terms = |dtype: DType, axes: AxisList, b: &mut dyn Build| {
        let out = Type::new(dtype, axes);
        if expr == Expr::In(0) && b.ty(dout).dtype == dtype {
            return Ok(dout);
        }
        Ok(b.emit(Map { expr: expr.clone(), out, cotangent: None }.into(), &ins)?[0])
    };
    if missing.is_empty() {
        return terms(site.dtypes[i], own, b);
    }
    let all = map.out.axes.iter().copied().collect();
    // What is stored anyway is summed as it is stored: a sum of its own digits would be a second
    // value of the same size. Else terms are not rounded before they are summed.
    let terms = match made {
        Some(made) => made,
        None if expr == Expr::In(0) => dout,
        None => terms(DType::F32, all, b)?,
    };
    let op = Reduce { fold: Fold::Sum, over: missing, dtype: site.dtypes[i] };
    Ok(b.emit(op.into(), &[terms])?[0])
}
