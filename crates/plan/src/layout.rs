//! Which values are windows of others: views cost nothing where strides can express them.

use aerogel_graph::ops::View as ViewOp;
use aerogel_graph::{Axes, AxisId, Build, Graph, Op, ValueId};
use smallvec::SmallVec;

type Strides = SmallVec<[isize; 6]>;

/// Where a value's elements are found: in `root`, from element `first`, at `strides`.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// The value that owns the memory (itself, if it is no window).
    pub root: ValueId,
    /// First element in the root.
    pub first: usize,
    /// Elements from one to the next along each axis.
    pub strides: Strides,
}

/// The window that each value is.
pub(crate) fn layout(g: &Graph) -> Vec<View> {
    let mut views: Vec<View> = (0..g.values().len() as u32).map(|v| own(g, ValueId(v))).collect();
    for node in g.nodes() {
        if let Op::View(op) = &node.op {
            let (from, out) = (node.ins[0], node.outs[0]);
            let list = &g.ty(from).axes;
            let of = &views[from.index()];
            if let Some((first, strides)) = window(op, list, of.first, &of.strides, g.axes()) {
                views[out.index()] = View { root: of.root, first, strides };
            }
        }
    }
    views
}

fn own(g: &Graph, v: ValueId) -> View {
    let strides = row_major(&g.axes().sizes(&g.ty(v).axes));
    View { root: v, first: 0, strides }
}

fn row_major(sizes: &[usize]) -> Strides {
    let mut strides: Strides = SmallVec::from_elem(1, sizes.len());
    for i in (0..sizes.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1] * sizes[i + 1] as isize;
    }
    strides
}

/// Whether elements lie row-major without gaps.
pub(crate) fn is_row_major(axes: &Axes, list: &[AxisId], strides: &[isize]) -> bool {
    let sizes = axes.sizes(list);
    let plain = row_major(&sizes);
    sizes.iter().zip(plain.iter().zip(strides)).all(|(&n, (p, s))| n == 1 || p == s)
}

/// First element and strides of the output of a view over a value with these axes, first element
/// and strides, if no byte has to move.
pub(crate) fn window(
    op: &ViewOp,
    list: &[AxisId],
    first: usize,
    of: &[isize],
    axes: &Axes,
) -> Option<(usize, Strides)> {
    let at = |axis: AxisId| list.iter().position(|&a| a == axis);
    match op {
        ViewOp::Rename { .. } => Some((first, of.into())),
        ViewOp::Slice { axis, start, .. } => {
            let step = of[at(*axis)?];
            Some((first + start * step as usize, of.into()))
        }
        ViewOp::Split { axis, into } => {
            let p = at(*axis)?;
            let step = of[p];
            let parts = row_major(&axes.sizes(into));
            let mut strides: Strides = of.into();
            strides.remove(p);
            strides.insert_many(p, parts.iter().map(|s| s * step));
            Some((first, strides))
        }
        ViewOp::Merge { axes: merged, .. } => {
            let p = at(merged[0])?;
            let own = &of[p..p + merged.len()];
            let last = *own.last()?;
            let wanted = row_major(&axes.sizes(merged));
            let fits = own
                .iter()
                .zip(&wanted)
                .zip(merged.iter())
                .all(|((s, w), &a)| axes.size(a) == 1 || *s == w * last);
            let mut strides: Strides = of.into();
            strides.drain(p..p + merged.len() - 1);
            strides[p] = last;
            fits.then_some((first, strides))
        }
        ViewOp::Pad { .. } | ViewOp::Concat { .. } => None,
    }
}
