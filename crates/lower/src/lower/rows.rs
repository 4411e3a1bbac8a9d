//! Gathers and scatters: which axes of a table are rows, and which are one row.

use crate::error::LowerError;
use crate::operand::Operand;
use crate::source::Source;
use crate::spec::{Call, CopySpec, GatherSpec, RowsShape, ScatterSpec, Spec};
use aerogel_graph::ops::{self, ScatterMode};
use aerogel_graph::{AxisId, Build, Node, ValueId};

/// The stride of several axes walked as one, outermost first, if they can be.
fn merged(s: &Source<'_>, v: ValueId, list: &[AxisId]) -> Option<isize> {
    let strides = s.along(v, list);
    let mut inner: Option<(isize, isize)> = None;
    for (&axis, &stride) in list.iter().zip(&strides).rev() {
        let size = s.graph.axes().size(axis) as isize;
        if size == 1 {
            continue;
        }
        inner = match inner {
            None => Some((stride, stride * size)),
            Some((first, next)) if stride == next => Some((first, next * size)),
            Some(_) => return None,
        };
    }
    Some(inner.map_or(1, |(first, _)| first))
}

/// How rows of a table are numbered: batch axes, axes of ids, one axis of elements.
fn rows(
    s: &Source<'_>,
    kernel: &'static str,
    axis: AxisId,
    [table, ids, out]: [ValueId; 3],
) -> Result<(RowsShape, [Operand; 3]), LowerError> {
    let g = s.graph;
    let id_axes = g.ty(ids).axes.clone();
    let rest: Vec<AxisId> = g.ty(table).axes.iter().copied().filter(|&a| a != axis).collect();
    // As many inner axes as lie evenly in table and rows are one row; the others are batch axes.
    let whole =
        |from: usize| Some((merged(s, table, &rest[from..])?, merged(s, out, &rest[from..])?));
    let split = (0..=rest.len()).find(|&from| whole(from).is_some());
    let Some((split, (in_table, in_rows))) = split.and_then(|from| Some((from, whole(from)?)))
    else {
        return Err(LowerError::unsupported(kernel, "rows cannot be walked as one"));
    };
    let batch = &rest[..split];
    let shape = RowsShape {
        batch: s.sizes(batch),
        // A row axis of its own carries the table's rows.
        rows: [s.sizes(&id_axes), vec![1]].concat(),
        table_rows: g.axes().size(axis),
        first_row: s.first_row(axis),
        all_rows: g.axes()[axis].global_size(),
        width: g.axes().count(&rest[split..]),
    };
    let place = |v: ValueId, step: isize, col: isize| {
        let outer = [s.along(v, batch), s.along(v, &id_axes)].concat();
        s.with(v, [outer, vec![step, col]].concat())
    };
    let step = s.along(table, &[axis])[0];
    let operands = [place(table, step, in_table), place(ids, 0, 0), place(out, 0, in_rows)];
    Ok((shape, operands))
}

pub(super) fn gather(s: &Source<'_>, op: &ops::Gather, node: &Node) -> Result<Call, LowerError> {
    let values = [node.ins[0], node.ins[1], node.outs[0]];
    let (shape, [table, ids, rows]) = rows(s, "gather", op.axis, values)?;
    Ok(Call::new(Spec::Gather(GatherSpec { shape, table, ids, rows }), values))
}

pub(super) fn scatter(
    s: &Source<'_>,
    op: &ops::Scatter,
    node: &Node,
) -> Result<Vec<Call>, LowerError> {
    let out = node.outs[0];
    let (base, ids, from) = match op.mode {
        ScatterMode::Add => (None, node.ins[0], node.ins[1]),
        ScatterMode::Set => (Some(node.ins[0]), node.ins[1], node.ins[2]),
    };
    let values = [out, ids, from];
    let (shape, [table, ids, rows]) = rows(s, "scatter", op.axis, values)?;
    let spec = ScatterSpec { shape, table, ids, rows, mode: op.mode };
    let mut calls = vec![];
    if let Some(base) = base {
        let list = &s.graph.ty(out).axes;
        let over = |v| s.operand(v, list);
        let copy = CopySpec { sizes: s.sizes(list), from: over(base), to: over(out) };
        // Where the planner put both in one place there is nothing to copy.
        calls.push(Call { idle_in_place: true, ..Call::new(Spec::Copy(copy), [base, out]) });
    }
    calls.push(Call::new(Spec::Scatter(spec), values));
    Ok(calls)
}
