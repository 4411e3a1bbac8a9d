//! gather: rows of a table by index (an embedding).
//!
//! Ids count along the whole table. Of a table that is cut over ranks each reads its own rows and
//! zeros for those of others, so that the sum over ranks is the whole.

use super::*;
use crate::tensor::for_each;

/// Inputs table, ids (u32); output: the ids' axes, then the table's other axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Gather {
    /// The table's axis that the ids count along.
    pub axis: AxisId,
}

impl Rules for Gather {
    const NAME: &'static str = "gather";

    fn infer(&self, axes: &Axes, ins: &[&Type]) -> Result<Vec<Type>, OpError> {
        want_ins(Self::NAME, ins, 2..=2)?;
        let (table, ids) = (ins[0], ins[1]);
        want_axis(Self::NAME, axes, table, self.axis, "the table")?;
        want_table(Self::NAME, axes, self.axis)?;
        want_dtype(Self::NAME, ids, DType::U32, "the ids")?;
        if let Some(&a) = ids.axes.iter().find(|&&a| table.has(a)) {
            let name = &axes[a].name;
            return Err(OpError::new(Self::NAME, format!("axis `{name}` is in table and ids")));
        }
        let rest = without(&table.axes, self.axis);
        Ok(vec![Type::new(table.dtype, ids.axes.iter().copied().chain(rest))])
    }

    fn grad(&self, site: &GradSite<'_>, b: &mut dyn Build) -> Result<Cotangents, OpError> {
        let (Some(dout), true) = (site.douts[0], site.wanted[0]) else {
            return Ok(vec![None, None]);
        };
        let out = Type::new(site.dtypes[0], b.ty(site.ins[0]).axes.iter().copied());
        let op = Scatter { axis: self.axis, mode: ScatterMode::Add, out };
        let dtable = b.emit(op.into(), &[site.ins[1], dout])?[0];
        Ok(vec![Some(dtable), None])
    }

    fn flops(&self, _axes: &Axes, _ins: &[&Type], _outs: &[Type]) -> u64 {
        0
    }

    fn sharding(&self, _axes: &Axes, _ins: &[&Type], _outs: &[Type], _label: AxisId) -> Sharding {
        // Rows of a table that is cut: other ranks' ids give zeros.
        Sharding::Parallel
    }

    fn reference(&self, site: &RefSite<'_>, ins: &[&Tensor]) -> Vec<Tensor> {
        let (table, ids) = (ins[0], ins[1]);
        let mut out = Tensor::full(site.axes, &site.outs[0].axes, 0.0);
        let row = table.strides(&[self.axis])[0];
        let (by_table, by_ids) = (table.strides(&out.axes), ids.strides(&out.axes));
        let sizes = out.sizes.clone();
        for_each(&sizes, &[&by_table, &by_ids], |i, at| {
            if let Some(id) = local_row(Self::NAME, site, self.axis, ids.data[at[1]]) {
                out.data[i] = table.data[at[0] + id * row];
            }
        });
        vec![out]
    }

    fn attrs(&self, axes: &Axes) -> Attrs {
        Attrs::default().with("axis", &axes[self.axis].name)
    }

    fn from_attrs(attrs: &Attrs, axes: &Axes, _outs: &[Type]) -> Result<Self, OpError> {
        Ok(Gather { axis: attrs.axis(Self::NAME, axes, "axis")? })
    }
}
