//! Ops that are one kernel each: tables, the output layer.

use super::{Call, Source};
use crate::compile::{along, dtype, operand};
use crate::kernel::{KernelError, Operand};
use crate::kernels::copy::Copy;
use crate::kernels::gather::{Gather, RowsSpec, Scatter, ScatterRows};
use crate::kernels::linear_ce::{LinearCe, LinearCeSpec};
use aerogel_graph::ops::{self, ScatterMode};
use aerogel_graph::{AxisId, Build, Node, ValueId};

fn refuse<T>(kernel: &'static str, what: impl Into<String>) -> Result<T, KernelError> {
    Err(KernelError::Unsupported { kernel, what: what.into() })
}

/// The stride of several axes walked as one, outermost first, if they can be.
fn merged(s: &Source<'_>, v: ValueId, list: &[AxisId]) -> Option<isize> {
    let strides = along(s.graph, s.strides, v, list);
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

/// An operand of a kernel with these strides.
fn with(s: &Source<'_>, v: ValueId, strides: Vec<isize>) -> Operand {
    Operand { dtype: dtype(s.graph.ty(v).dtype), strides }
}

/// How rows of a table are numbered: batch axes, axes of ids, one axis of elements.
fn rows(
    s: &Source<'_>,
    kernel: &'static str,
    axis: AxisId,
    [table, ids, out]: [ValueId; 3],
) -> Result<(RowsSpec, [Operand; 3]), KernelError> {
    let g = s.graph;
    let id_axes = g.ty(ids).axes.clone();
    let rest: Vec<AxisId> = g.ty(table).axes.iter().copied().filter(|&a| a != axis).collect();
    // As many inner axes as lie evenly in table and rows are one row; the others are batch axes.
    let whole =
        |from: usize| Some((merged(s, table, &rest[from..])?, merged(s, out, &rest[from..])?));
    let split = (0..=rest.len()).find(|&from| whole(from).is_some());
    let Some((split, (in_table, in_rows))) = split.and_then(|from| Some((from, whole(from)?)))
    else {
        return refuse(kernel, "rows cannot be walked as one");
    };
    let batch = &rest[..split];
    let spec = RowsSpec {
        batch: g.axes().sizes(batch),
        // A row axis of its own carries the table's rows.
        rows: [g.axes().sizes(&id_axes), vec![1]].concat(),
        table_rows: g.axes().size(axis),
        first_row: first_row(s, axis),
        all_rows: g.axes()[axis].global_size(),
        width: g.axes().count(&rest[split..]),
    };
    let place = |v: ValueId, step: isize, col: isize| {
        let outer = [along(g, s.strides, v, batch), along(g, s.strides, v, &id_axes)].concat();
        with(s, v, [outer, vec![step, col]].concat())
    };
    let step = along(g, s.strides, table, &[axis])[0];
    let operands = [place(table, step, in_table), place(ids, 0, 0), place(out, 0, in_rows)];
    Ok((spec, operands))
}

pub(super) fn gather(s: &Source<'_>, op: &ops::Gather, node: &Node) -> Result<Call, KernelError> {
    let values = [node.ins[0], node.ins[1], node.outs[0]];
    let (spec, [table, ids, out]) = rows(s, "gather", op.axis, values)?;
    Ok(Call::new(Gather::new(&spec, [&table, &ids, &out])?, values))
}

pub(super) fn scatter(
    s: &Source<'_>,
    op: &ops::Scatter,
    node: &Node,
) -> Result<Vec<Call>, KernelError> {
    let out = node.outs[0];
    let (how, base, ids, from) = match op.mode {
        ScatterMode::Add => (Scatter::Add, None, node.ins[0], node.ins[1]),
        ScatterMode::Set => (Scatter::Set, Some(node.ins[0]), node.ins[1], node.ins[2]),
    };
    let values = [out, ids, from];
    let (spec, [table, by_id, rows]) = rows(s, "scatter", op.axis, values)?;
    let kernel = ScatterRows::new(&spec, [&table, &by_id, &rows], how)?;
    let mut calls = vec![];
    if let Some(base) = base {
        let list = &s.graph.ty(out).axes;
        let over = |v| operand(s.graph, s.strides, v, list);
        let copy = Copy::new(&s.graph.axes().sizes(list), &over(base), &over(out))?;
        // Where the planner put both in one place there is nothing to copy.
        calls.push(Call { idle_in_place: true, ..Call::new(copy, [base, out]) });
    }
    calls.push(Call::new(kernel, values));
    Ok(calls)
}

/// The id of the first row that this rank holds of a table.
fn first_row(s: &Source<'_>, axis: AxisId) -> usize {
    let axis = &s.graph.axes()[axis];
    // The op's rules let ranks alone cut it, so no micro-batch matters.
    axis.piece(0, s.place) as usize * axis.size
}

/// The output layer: all outputs are asked for by whoever fills in their operands.
struct Layer<'a> {
    s: &'a Source<'a>,
    /// Axes of x without the contracted one, then vocabulary and width.
    space: Vec<AxisId>,
    spec: LinearCeSpec,
    values: Vec<ValueId>,
}

impl<'a> Layer<'a> {
    fn new(s: &'a Source<'a>, [embed, vocab]: [AxisId; 2], node: &Node) -> Layer<'a> {
        let axes = s.graph.axes();
        let tokens = s.graph.ty(node.ins[0]).axes.iter().copied().filter(|&a| a != embed);
        let space: Vec<AxisId> = tokens.chain([vocab, embed]).collect();
        let input = |i: usize| operand(s.graph, s.strides, node.ins[i], &space);
        let spec = LinearCeSpec {
            rows: axes.sizes(&space[..space.len() - 2]),
            vocab: axes.size(vocab),
            first_row: first_row(s, vocab),
            all_rows: axes[vocab].global_size(),
            width: axes.size(embed),
            x: input(0),
            w: input(1),
            targets: input(2),
            weights: None,
            given: None,
            ce: None,
            lse: None,
            hit: None,
            dx: None,
            dw: None,
        };
        Layer { s, space, spec, values: node.ins[..3].to_vec() }
    }

    /// A further operand, in the kernel's order.
    fn also(&mut self, v: ValueId) -> Option<Operand> {
        self.values.push(v);
        Some(operand(self.s.graph, self.s.strides, v, &self.space))
    }

    fn call(self) -> Result<Call, KernelError> {
        Ok(Call::new(LinearCe::new(&self.spec)?, self.values))
    }
}

pub(super) fn linear_ce(
    s: &Source<'_>,
    op: &ops::LinearCe,
    node: &Node,
) -> Result<Call, KernelError> {
    let mut layer = Layer::new(s, [op.embed, op.vocab], node);
    layer.spec.weights = layer.also(node.ins[3]);
    layer.spec.ce = layer.also(node.outs[0]);
    if op.grad {
        layer.spec.dx = layer.also(node.outs[1]);
        layer.spec.dw = layer.also(node.outs[2]);
    }
    layer.call()
}

pub(super) fn linear_lse(
    s: &Source<'_>,
    op: &ops::LinearLse,
    node: &Node,
) -> Result<Call, KernelError> {
    let mut layer = Layer::new(s, [op.embed, op.vocab], node);
    layer.spec.lse = layer.also(node.outs[0]);
    layer.spec.hit = layer.also(node.outs[1]);
    layer.call()
}

pub(super) fn linear_ce_grad(
    s: &Source<'_>,
    op: &ops::LinearCeGrad,
    node: &Node,
) -> Result<Call, KernelError> {
    let mut layer = Layer::new(s, [op.embed, op.vocab], node);
    layer.spec.weights = layer.also(node.ins[3]);
    layer.spec.given = layer.also(node.ins[4]);
    layer.spec.dx = layer.also(node.outs[0]);
    layer.spec.dw = layer.also(node.outs[1]);
    layer.call()
}

#[cfg(test)]
mod tests {
    use super::super::{BlockLists, lower};
    use super::*;
    use crate::kernel::{Ptr, Scalars};
    use crate::pool::Pool;
    use aerogel_graph::{Cutter, DType, Graph, NodeId, Place};
    use aerogel_machine::{Slot, Uses};

    /// Of twelve rows on two times two ranks, the third rank reads rows 6 to 8.
    #[test]
    fn a_rank_reads_the_rows_that_it_holds() {
        let mut g = Graph::new();
        let (rows, t) = (g.axis("rows", 12).unwrap(), g.axis("t", 4).unwrap());
        (0..2).for_each(|mesh| g.cut_axis("rows", Cutter::Mesh(mesh), 2).unwrap());
        let table = g.input("table", DType::F32, &[rows]).unwrap();
        let ids = g.input("ids", DType::U32, &[t]).unwrap();
        g.gather(table, rows, ids).unwrap();
        let uses = Uses::new(&g);
        let strides: Vec<_> = (g.values().iter())
            .map(|value| Slot::contiguous(0, g.axes(), &value.ty.axes).strides)
            .collect();
        let lists = BlockLists::default();
        let place = Place([1, 0, 0, 0]);
        let source = Source { graph: &g, uses: &uses, strides: &strides, lists: &lists, place };
        let calls = lower(&source, &[NodeId(0)]).unwrap();
        let (table, ids, mut out) = ([10.0f32, 20.0, 30.0], [5u32, 6, 8, 9], [f32::NAN; 4]);
        let ptrs = [Ptr::new(table.as_ptr()), Ptr::new(ids.as_ptr()), Ptr::new(out.as_mut_ptr())];
        let pool = Pool::new(1).unwrap();
        let mut scratch = vec![0; calls[0].kernel.scratch_bytes(1)];
        // SAFETY: the three arrays are as long as the axes, and nobody else touches them.
        unsafe { calls[0].kernel.run(&pool, &ptrs, &Scalars::default(), &mut scratch) };
        assert_eq!(out, [0.0, 10.0, 30.0, 0.0]);
    }
}
