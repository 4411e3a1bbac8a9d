//! scatter: rows added to zeros, or set in a base, by index.
//!
//! Ids count along the whole table. Of a table that is cut over ranks each takes the rows of its
//! own piece and drops the others.

use super::*;
use crate::tensor::for_each;

/// What happens to a row of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScatterMode {
    /// Inputs ids, rows: rows of equal id are summed, in f32 at least; other rows are 0.
    Add,
    /// Inputs base, ids, rows: rows at the ids are replaced. Ids must be distinct.
    Set,
}

/// The inverse of `gather`: the rows' axes are the ids' and the table's others.
#[derive(Clone, Debug, PartialEq)]
pub struct Scatter {
    /// The table's axis that the ids count along.
    pub axis: AxisId,
    /// Add or set.
    pub mode: ScatterMode,
    /// The table that comes out.
    pub out: Type,
}

impl Scatter {
    fn parts<'a, T: ?Sized>(&self, ins: &[&'a T]) -> (Option<&'a T>, &'a T, &'a T) {
        match self.mode {
            ScatterMode::Add => (None, ins[0], ins[1]),
            ScatterMode::Set => (Some(ins[0]), ins[1], ins[2]),
        }
    }
}

impl Rules for Scatter {
    const NAME: &'static str = "scatter";

    fn infer(&self, axes: &Axes, ins: &[&Type]) -> Result<Vec<Type>, OpError> {
        let wanted = if self.mode == ScatterMode::Add { 2 } else { 3 };
        want_ins(Self::NAME, ins, wanted..=wanted)?;
        let (base, ids, rows) = self.parts(ins);
        want_axis(Self::NAME, axes, &self.out, self.axis, "the output")?;
        want_table(Self::NAME, axes, self.axis)?;
        want_dtype(Self::NAME, ids, DType::U32, "the ids")?;
        let rest = without(&self.out.axes, self.axis);
        let wanted_rows: AxisList = ids.axes.iter().chain(&rest).copied().collect();
        want_same_axes(Self::NAME, axes, &rows.axes, &wanted_rows, "the rows")?;
        if let Some(base) = base {
            want_same_axes(Self::NAME, axes, &base.axes, &self.out.axes, "the base")?;
        }
        Ok(vec![self.out.clone()])
    }

    fn grad(&self, site: &GradSite<'_>, b: &mut dyn Build) -> Result<Cotangents, OpError> {
        let Some(dout) = site.douts[0] else { return Ok(vec![None; site.ins.len()]) };
        if self.mode == ScatterMode::Add {
            return Ok(vec![None, Some(b.gather(dout, self.axis, site.ins[0])?)]);
        }
        let (ids, rows) = (site.ins[1], site.ins[2]);
        let mut result = vec![None; 3];
        if site.wanted[0] {
            let row_type = Type::new(b.ty(dout).dtype, b.ty(rows).axes.iter().copied());
            let zeros = b.constant(0.0, row_type)?;
            result[0] = Some(b.scatter_set(dout, self.axis, ids, zeros)?);
        }
        if site.wanted[2] {
            result[2] = Some(b.gather(dout, self.axis, ids)?);
        }
        Ok(result)
    }

    fn flops(&self, axes: &Axes, ins: &[&Type], _outs: &[Type]) -> u64 {
        let (_, _, rows) = self.parts(ins);
        if self.mode == ScatterMode::Add { axes.count(&rows.axes) as u64 } else { 0 }
    }

    fn sharding(&self, _axes: &Axes, _ins: &[&Type], outs: &[Type], label: AxisId) -> Sharding {
        // Rows set by several ranks would be no sum with the base.
        Sharding::whole_if(self.mode == ScatterMode::Set && !outs[0].has(label))
    }

    fn reference(&self, site: &RefSite<'_>, ins: &[&Tensor]) -> Vec<Tensor> {
        let (base, ids, rows) = self.parts(ins);
        let mut out = match base {
            Some(base) => base.permuted(site.axes, &self.out.axes),
            None => Tensor::full(site.axes, &self.out.axes, 0.0),
        };
        let row = out.strides(&[self.axis])[0];
        let (by_out, by_ids) = (out.strides(&rows.axes), ids.strides(&rows.axes));
        for_each(&rows.sizes, &[&by_out, &by_ids], |i, at| {
            let Some(id) = local_row(Self::NAME, site, self.axis, ids.data[at[1]]) else { return };
            let y = &mut out.data[at[0] + id * row];
            *y = if self.mode == ScatterMode::Add { *y + rows.data[i] } else { rows.data[i] };
        });
        vec![out]
    }

    fn attrs(&self, axes: &Axes) -> Attrs {
        let mode = if self.mode == ScatterMode::Add { "add" } else { "set" };
        Attrs::default().with("axis", &axes[self.axis].name).with("mode", mode)
    }

    fn from_attrs(attrs: &Attrs, axes: &Axes, outs: &[Type]) -> Result<Self, OpError> {
        let mode = match attrs.text(Self::NAME, "mode")? {
            "add" => ScatterMode::Add,
            "set" => ScatterMode::Set,
            other => {
                return Err(OpError::new(Self::NAME, format!("mode is add or set, got {other}")));
            }
        };
        Ok(Scatter { axis: attrs.axis(Self::NAME, axes, "axis")?, mode, out: outs[0].clone() })
    }
}
