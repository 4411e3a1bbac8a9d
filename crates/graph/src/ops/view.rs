//! view: the same elements under other axes. Split, merge, rename and slice need no copy where the
//! layout allows it; pad and concat always write.

use super::*;
use crate::tensor::for_each;

/// Rearrangement of axes.
#[derive(Clone, Debug, PartialEq)]
pub enum View {
    /// One axis as several, outermost first.
    Split {
        /// The axis that goes.
        axis: AxisId,
        /// Its factors.
        into: AxisList,
    },
    /// Neighbouring axes, outermost first, as one.
    Merge {
        /// The axes that go; neighbours in the value.
        axes: AxisList,
        /// Their product.
        into: AxisId,
    },
    /// Another name of equal extent.
    Rename {
        /// The name that goes.
        from: AxisId,
        /// The name that comes.
        to: AxisId,
    },
    /// A range of an axis, as another axis.
    Slice {
        /// The axis that goes.
        axis: AxisId,
        /// First element.
        start: usize,
        /// The axis that comes; its extent is the length.
        into: AxisId,
    },
    /// Zeros before and after, as another axis: the adjoint of slice.
    Pad {
        /// The axis that goes.
        axis: AxisId,
        /// Zeros before it.
        before: usize,
        /// The axis that comes.
        into: AxisId,
    },
    /// Inputs one after another.
    Concat {
        /// The axis of each input.
        axes: AxisList,
        /// The axis that comes; its extent is their sum.
        into: AxisId,
    },
}

impl View {
    /// The axes of the output, from those of the first input.
    pub fn out_axes(&self, first: &[AxisId]) -> AxisList {
        match self {
            View::Split { axis, into } => replaced(first, *axis, into),
            View::Merge { axes, into } => first
                .iter()
                .filter(|a| !axes[1..].contains(a))
                .map(|&a| if a == axes[0] { *into } else { a })
                .collect(),
            View::Rename { from, to } => replaced(first, *from, &[*to]),
            View::Slice { axis, into, .. } | View::Pad { axis, into, .. } => {
                replaced(first, *axis, &[*into])
            }
            View::Concat { axes, into } => replaced(first, axes[0], &[*into]),
        }
    }

    fn extents_fit(&self, axes: &Axes) -> Result<(), (usize, usize)> {
        let size = |a: AxisId| axes.size(a);
        let equal = |a: usize, b: usize| if a == b { Ok(()) } else { Err((a, b)) };
        let at_most = |a: usize, b: usize| if a <= b { Ok(()) } else { Err((a, b)) };
        match self {
            View::Split { axis, into } => equal(axes.count(into), size(*axis)),
            View::Merge { axes: list, into } => equal(axes.count(list), size(*into)),
            View::Rename { from, to } => equal(size(*to), size(*from)),
            View::Slice { axis, start, into } => {
                at_most(start.saturating_add(size(*into)), size(*axis))
            }
            View::Pad { axis, before, into } => {
                at_most(before.saturating_add(size(*axis)), size(*into))
            }
            View::Concat { axes: list, into } => {
                equal(list.iter().map(|&a| size(a)).sum(), size(*into))
            }
        }
    }

    /// The axes that go, and those that come.
    fn ends(&self) -> (&[AxisId], &[AxisId]) {
        match self {
            View::Split { axis, into } => (std::slice::from_ref(axis), into),
            View::Merge { axes, into } => (axes, std::slice::from_ref(into)),
            View::Rename { from, to } => (std::slice::from_ref(from), std::slice::from_ref(to)),
            View::Slice { axis, into, .. } | View::Pad { axis, into, .. } => {
                (std::slice::from_ref(axis), std::slice::from_ref(into))
            }
            View::Concat { axes, into } => (axes, std::slice::from_ref(into)),
        }
    }

    /// A view of an axis that is a piece must come to a piece cut alike, outermost: else global
    /// coordinates, and with them random numbers, would change. A slice may make a fixed piece, and
    /// a concatenation may put all fixed pieces together again.
    fn check_pieces(&self, axes: &Axes) -> Result<(), OpError> {
        let (gone, come) = self.ends();
        let whole = |list: &[AxisId]| list.iter().all(|&a| axes[a].cuts.is_empty());
        let as_one = matches!(self, View::Split { .. } | View::Merge { .. } | View::Rename { .. });
        let moved = as_one
            && axes[gone[0]].cuts == axes[come[0]].cuts
            && whole(&gone[1..])
            && whole(&come[1..]);
        // The piece that starts at element `start` of the axis it is cut from.
        let is_piece = |piece: &Axis, of: &Axis, start: usize| {
            let number = start / piece.size;
            let cut = Cut { by: Cutter::Fixed(number), pieces: of.size / piece.size };
            start.is_multiple_of(piece.size)
                && piece.cuts.split_last() == Some((&cut, of.cuts.as_slice()))
        };
        let fixed = match self {
            View::Slice { axis, start, into } => is_piece(&axes[*into], &axes[*axis], *start),
            View::Concat { axes: list, into } => list.iter().enumerate().all(|(i, &a)| {
                let piece = &axes[a];
                is_piece(piece, &axes[*into], i * piece.size)
            }),
            _ => false,
        };
        let stored = |list: &[AxisId]| list.iter().any(|&a| axes[a].storage);
        if moved || fixed || stored(gone) || stored(come) || (whole(gone) && whole(come)) {
            return Ok(());
        }
        let message = format!(
            "[{}] to [{}]: one is a piece of a longer axis and the other is not so cut",
            axes.names(gone),
            axes.names(come)
        );
        Err(OpError::new(Self::NAME, message))
    }

    fn check_merge(&self, axes: &Axes, ty: &Type) -> Result<(), OpError> {
        let View::Merge { axes: list, .. } = self else { return Ok(()) };
        let first = ty.axes.iter().position(|a| *a == list[0]);
        let at = first.map_or(&[][..], |p| &ty.axes[p..(p + list.len()).min(ty.axes.len())]);
        if at == list.as_slice() {
            return Ok(());
        }
        let message = format!(
            "merge needs [{}] as neighbours in this order, got {}",
            axes.names(list),
            ty.show(axes)
        );
        Err(OpError::new(Self::NAME, message))
    }
}

impl Rules for View {
    const NAME: &'static str = "view";

    fn infer(&self, axes: &Axes, ins: &[&Type]) -> Result<Vec<Type>, OpError> {
        let gone: AxisList = match self {
            View::Split { axis, .. } | View::Slice { axis, .. } | View::Pad { axis, .. } => {
                smallvec::smallvec![*axis]
            }
            View::Rename { from, .. } => smallvec::smallvec![*from],
            View::Merge { axes, .. } => axes.clone(),
            View::Concat { axes, .. } => axes.clone(),
        };
        if gone.is_empty() || matches!(self, View::Split { into, .. } if into.is_empty()) {
            return Err(OpError::new(Self::NAME, "needs at least one axis on either side"));
        }
        let concat = matches!(self, View::Concat { .. });
        let count = if concat { gone.len() } else { 1 };
        want_ins(Self::NAME, ins, count..=count)?;
        for (i, &a) in gone.iter().enumerate() {
            want_axis(Self::NAME, axes, ins[if concat { i } else { 0 }], a, "the input")?;
        }
        self.check_merge(axes, ins[0])?;
        if let Err((got, wanted)) = self.extents_fit(axes) {
            let message = format!("extents do not fit: {got} against {wanted}");
            return Err(OpError::new(Self::NAME, message));
        }
        self.check_pieces(axes)?;
        let out = Type::new(ins[0].dtype, self.out_axes(&ins[0].axes));
        let mut unique = out.axes.clone();
        unique.sort();
        unique.dedup();
        if unique.len() != out.axes.len() {
            let message = format!("an axis would come twice: [{}]", axes.names(&out.axes));
            return Err(OpError::new(Self::NAME, message));
        }
        if let View::Concat { axes: list, .. } = self {
            for (ty, &a) in ins.iter().zip(list) {
                let rest = without(&ins[0].axes, list[0]);
                want_same_axes(Self::NAME, axes, &without(&ty.axes, a), &rest, "a part")?;
                want_dtype(Self::NAME, ty, ins[0].dtype, "a part")?;
            }
        }
        Ok(vec![out])
    }

    fn grad(&self, site: &GradSite<'_>, b: &mut dyn Build) -> Result<Cotangents, OpError> {
        let Some(dout) = site.douts[0] else { return Ok(vec![None; site.ins.len()]) };
        // A merge needs its axes as neighbours: bring the cotangent into the output's order.
        let order = b.ty(site.outs[0]).axes.clone();
        let dout = if b.ty(dout).axes == order { dout } else { b.einsum(&[dout], &order)? };
        let back = match self {
            View::Split { axis, into } => View::Merge { axes: into.clone(), into: *axis },
            View::Merge { axes, into } => View::Split { axis: *into, into: axes.clone() },
            View::Rename { from, to } => View::Rename { from: *to, to: *from },
            View::Slice { axis, start, into } => {
                View::Pad { axis: *into, before: *start, into: *axis }
            }
            View::Pad { axis, before, into } => {
                View::Slice { axis: *into, start: *before, into: *axis }
            }
            View::Concat { axes, into } => {
                let mut start = 0;
                let mut parts = vec![];
                for (i, &a) in axes.iter().enumerate() {
                    parts.push(match site.wanted[i] {
                        true => Some(b.slice(dout, *into, start, a)?),
                        false => None,
                    });
                    start += b.axes().size(a);
                }
                return Ok(parts);
            }
        };
        Ok(vec![Some(b.emit(back.into(), &[dout])?[0])])
    }

    fn flops(&self, _axes: &Axes, _ins: &[&Type], _outs: &[Type]) -> u64 {
        0
    }

    fn sharding(&self, axes: &Axes, ins: &[&Type], outs: &[Type], label: AxisId) -> Sharding {
        let (gone, come) = self.ends();
        if !gone.contains(&label) && !come.contains(&label) {
            return Sharding::whole_if(!ins.iter().all(|t| t.has(label)) || !outs[0].has(label));
        }
        // A cut of the outermost factor on both sides leaves each rank its own elements.
        let as_one = matches!(self, View::Split { .. } | View::Merge { .. } | View::Rename { .. });
        Sharding::whole_if(
            !as_one || axes[gone[0]].cuts.is_empty() || self.check_pieces(axes).is_err(),
        )
    }

    fn reference(&self, site: &RefSite<'_>, ins: &[&Tensor]) -> Vec<Tensor> {
        let out_axes = &site.outs[0].axes;
        let x = ins[0];
        let mut out = Tensor::full(site.axes, out_axes, 0.0);
        // Copies a part into `out` at an offset along `into`.
        let mut place = |part: &Tensor, from: AxisId, into: AxisId, at: usize| {
            let axes = replaced(&part.axes, from, &[into]);
            let strides = out.strides(&axes);
            let base = at * out.strides(&[into])[0];
            for_each(&part.sizes, &[&strides], |i, o| out.data[base + o[0]] = part.data[i]);
        };
        match self {
            View::Split { .. } | View::Merge { .. } | View::Rename { .. } => {
                out.data.clone_from(&x.data);
            }
            View::Slice { axis, start, into } => {
                let strides = x.strides(&replaced(out_axes, *into, &[*axis]));
                let base = start * x.strides(&[*axis])[0];
                let sizes = out.sizes.clone();
                for_each(&sizes, &[&strides], |i, at| out.data[i] = x.data[base + at[0]]);
            }
            View::Pad { axis, before, into } => place(x, *axis, *into, *before),
            View::Concat { axes, into } => {
                let mut at = 0;
                for (part, &a) in ins.iter().zip(axes) {
                    place(part, a, *into, at);
                    at += site.axes.size(a);
                }
            }
        }
        vec![out]
    }

    fn attrs(&self, axes: &Axes) -> Attrs {
        let name = |a: &AxisId| axes[*a].name.clone();
        let attrs = Attrs::default();
        match self {
            View::Split { axis, into } => attrs
                .with("kind", "split")
                .with("axis", name(axis))
                .with("into", list_attr(axes, into)),
            View::Merge { axes: list, into } => attrs
                .with("kind", "merge")
                .with("axes", list_attr(axes, list))
                .with("into", name(into)),
            View::Rename { from, to } => {
                attrs.with("kind", "rename").with("axis", name(from)).with("into", name(to))
            }
            View::Slice { axis, start, into } => attrs
                .with("kind", "slice")
                .with("axis", name(axis))
                .with("at", start)
                .with("into", name(into)),
            View::Pad { axis, before, into } => attrs
                .with("kind", "pad")
                .with("axis", name(axis))
                .with("at", before)
                .with("into", name(into)),
            View::Concat { axes: list, into } => attrs
                .with("kind", "concat")
                .with("axes", list_attr(axes, list))
                .with("into", name(into)),
        }
    }

    fn from_attrs(attrs: &Attrs, axes: &Axes, _outs: &[Type]) -> Result<Self, OpError> {
        let op = Self::NAME;
        let axis = || attrs.axis(op, axes, "axis");
        let into = || attrs.axis(op, axes, "into");
        let list = || attrs.axis_list(op, axes, "axes");
        let at = || attrs.parsed(op, "at");
        Ok(match attrs.text(op, "kind")? {
            "split" => View::Split { axis: axis()?, into: attrs.axis_list(op, axes, "into")? },
            "merge" => View::Merge { axes: list()?, into: into()? },
            "rename" => View::Rename { from: axis()?, to: into()? },
            "slice" => View::Slice { axis: axis()?, start: at()?, into: into()? },
            "pad" => View::Pad { axis: axis()?, before: at()?, into: into()? },
            "concat" => View::Concat { axes: list()?, into: into()? },
            other => return Err(OpError::new(op, format!("no such kind: {other}"))),
        })
    }
}
