//! Which values are windows of others: views cost nothing where strides can express them, and a
//! concatenation costs nothing where its parts can be written into its output to begin with.

use aerogel_graph::ops::View as ViewOp;
use aerogel_graph::{Axes, AxisId, AxisList, Build, Def, Graph, NodeId, Op, Type, ValueId};
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};

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

/// Where all values of a graph lie, and which nodes run nothing because of it.
pub(crate) struct Layout {
    views: Vec<View>,
    idle: Vec<bool>,
}

impl Layout {
    /// Of a graph whose concatenations have been given the copies that they need.
    pub fn of(g: &Graph) -> Layout {
        let mut views = windows(g);
        let is_window = |node: &aerogel_graph::Node| {
            matches!(node.op, Op::View(_)) && views[node.outs[0].index()].root != node.outs[0]
        };
        let mut idle: Vec<bool> = g.nodes().iter().map(is_window).collect();
        let mut within: HashMap<ValueId, (ValueId, usize)> = HashMap::new();
        for whole in wholes(g, &views) {
            let Some(roots) = whole.roots.iter().copied().collect::<Option<Vec<_>>>() else {
                continue;
            };
            idle[whole.node.index()] = true;
            let out = g.node(whole.node).outs[0];
            within.extend(roots.into_iter().zip(whole.firsts.iter().map(|&first| (out, first))));
        }
        for view in &mut views {
            // A whole may be part of a longer one.
            while let Some(&(whole, first)) = within.get(&view.root) {
                view.root = whole;
                view.first += first;
            }
        }
        Layout { views, idle }
    }

    /// The window that a value is.
    pub fn view(&self, v: ValueId) -> &View {
        &self.views[v.index()]
    }

    /// The value that owns the memory of a value.
    pub fn root(&self, v: ValueId) -> ValueId {
        self.view(v).root
    }

    /// Whether a node only renames memory: its output is a strided window of its input, or the
    /// place that its inputs are windows of.
    pub fn is_idle(&self, n: NodeId) -> bool {
        self.idle[n.index()]
    }

    /// Strides of every value, by id.
    pub fn strides(&self) -> Vec<Strides> {
        self.views.iter().map(|view| view.strides.clone()).collect()
    }

    /// Whether a value is all of its root, in the same order.
    pub fn is_whole(&self, g: &Graph, v: ValueId) -> bool {
        is_whole(g, self.view(v), v)
    }

    /// First element of a value in its root, and the one after its last.
    pub fn reach(&self, g: &Graph, v: ValueId) -> (usize, usize) {
        let view = self.view(v);
        let sizes = g.axes().sizes(&g.ty(v).axes);
        let last: isize = sizes.iter().zip(&view.strides).map(|(&n, s)| (n as isize - 1) * s).sum();
        (view.first, view.first + last as usize + 1)
    }
}

fn is_whole(g: &Graph, view: &View, v: ValueId) -> bool {
    let count = |v: ValueId| g.axes().count(&g.ty(v).axes);
    view.first == 0
        && count(v) == count(view.root)
        && is_row_major(g.axes(), &g.ty(v).axes, &view.strides)
}

/// A concatenation along the outermost axis: its parts are stretches of its output, one after
/// another.
pub(crate) struct Whole {
    /// The concatenation.
    pub node: NodeId,
    /// First element of each part in the output.
    firsts: Vec<usize>,
    /// For each part the value that owns its memory and can lie in the output instead; `None`
    /// where a part has to be copied there.
    pub roots: Vec<Option<ValueId>>,
}

/// The concatenations that need not move bytes, with what hinders them.
///
/// A part can be written into the output if it is all that its producer writes there and no other
/// concatenation got it first: no input, no state, no piece of something larger.
pub(crate) fn wholes(g: &Graph, views: &[View]) -> Vec<Whole> {
    let mut taken: HashSet<ValueId> = HashSet::new();
    let mut list = vec![];
    for (n, node) in g.nodes().iter().enumerate() {
        let Op::View(ViewOp::Concat { axes: parts, into }) = &node.op else { continue };
        let out = g.ty(node.outs[0]);
        if !is_outermost(g.axes(), out, *into) {
            continue;
        }
        let (mut first, mut firsts) = (0, vec![]);
        let mut part = |(&v, &axis): (&ValueId, &AxisId)| {
            let ty = g.ty(v);
            firsts.push(first);
            first += g.axes().count(&ty.axes);
            let view = &views[v.index()];
            let fits = ty.axes == part_axes(out, *into, axis)
                && is_whole(g, view, v)
                && matches!(g.value(view.root).def, Def::Node(..))
                && taken.insert(view.root);
            fits.then_some(view.root)
        };
        let roots = node.ins.iter().zip(parts).map(&mut part).collect();
        list.push(Whole { node: NodeId(n as u32), firsts, roots });
    }
    list
}

/// The axes of a part in the order of the whole.
pub(crate) fn part_axes(out: &Type, into: AxisId, axis: AxisId) -> AxisList {
    out.axes.iter().map(|&a| if a == into { axis } else { a }).collect()
}

fn is_outermost(axes: &Axes, ty: &Type, axis: AxisId) -> bool {
    ty.axes.iter().take_while(|&&a| a != axis).all(|&a| axes.size(a) == 1)
}

/// The window that each value is of what a kernel writes.
pub(crate) fn windows(g: &Graph) -> Vec<View> {
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
