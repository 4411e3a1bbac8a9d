//! What rules and models write graphs with.

use super::{
    Attend, Einsum, Fold, Gather, LinearCe, LinearLse, Map, MergeAttend, Norm, Op, OpError, Reduce,
    Scatter, ScatterMode, View,
};
use crate::expr::Expr;
use crate::types::{Axes, AxisId, AxisList, DType, NodeId, Type, ValueId};

/// Appending nodes to a graph.
#[allow(clippy::missing_errors_doc)] // the words fail as the rules of their op say
pub trait Build {
    /// The axis table.
    fn axes(&self) -> &Axes;

    /// Declares an axis, or finds it.
    ///
    /// # Errors
    /// The name exists with another extent; the extent is 0; the text form cannot carry the name.
    fn axis(&mut self, name: &str, size: usize) -> Result<AxisId, OpError>;

    /// The type of a value.
    fn ty(&self, value: ValueId) -> &Type;

    /// The op that defines a value; `None` for inputs and states.
    fn op_of(&self, value: ValueId) -> Option<&Op>;

    /// What the node that defines a value reads; nothing for inputs and states.
    fn ins_of(&self, value: ValueId) -> &[ValueId];

    /// Appends a node.
    ///
    /// # Errors
    /// The op's own, with the scope filled in.
    fn emit(&mut self, op: Op, ins: &[ValueId]) -> Result<Vec<ValueId>, OpError>;

    /// Replaces a node's op by one with the same first outputs and more; gives the new ones.
    ///
    /// # Errors
    /// The new op does not keep the outputs that are there.
    fn widen(&mut self, node: NodeId, op: Op) -> Result<Vec<ValueId>, OpError>;

    // The words that models and rules are written in. Each is one call of `emit`, and fails as the
    // rules of its op say.
    /// Contraction to the listed axes, in the dtype of the first input.
    fn einsum(&mut self, ins: &[ValueId], out: &[AxisId]) -> Result<ValueId, OpError> {
        let dtype = self.ty(ins[0]).dtype;
        self.einsum_to(ins, out, dtype)
    }

    /// Contraction to the listed axes and dtype; sums are kept in f32 at least.
    fn einsum_to(
        &mut self,
        ins: &[ValueId],
        out: &[AxisId],
        dtype: DType,
    ) -> Result<ValueId, OpError> {
        emit_one(self, Einsum { out: Type::new(dtype, out.iter().copied()) }.into(), ins)
    }

    /// Element-wise over the union of the inputs' axes, in the dtype of the first input.
    fn map(&mut self, ins: &[ValueId], f: &dyn Fn(&[Expr]) -> Expr) -> Result<ValueId, OpError> {
        let out = Type::new(self.ty(ins[0]).dtype, union_axes(self, ins));
        self.map_to(ins, out, f)
    }

    /// Element-wise, to a declared type.
    fn map_to(
        &mut self,
        ins: &[ValueId],
        out: Type,
        f: &dyn Fn(&[Expr]) -> Expr,
    ) -> Result<ValueId, OpError> {
        let args: Vec<Expr> = (0..ins.len()).map(Expr::In).collect();
        let expr = f(&args);
        emit_one(self, Map { expr, out, cotangent: None }.into(), ins)
    }

    /// The value in another dtype; the cotangent comes back in `cotangent`.
    fn cast(&mut self, x: ValueId, dtype: DType, cotangent: DType) -> Result<ValueId, OpError> {
        let out = Type { dtype, axes: self.ty(x).axes.clone() };
        emit_one(self, Map { expr: Expr::In(0), out, cotangent: Some(cotangent) }.into(), &[x])
    }

    /// A constant.
    fn constant(&mut self, value: f64, out: Type) -> Result<ValueId, OpError> {
        emit_one(self, Map { expr: Expr::Const(value), out, cotangent: None }.into(), &[])
    }

    /// `a + b`, with broadcasting by name.
    fn add(&mut self, x: ValueId, y: ValueId) -> Result<ValueId, OpError> {
        self.map(&[x, y], &|v| &v[0] + &v[1])
    }

    /// Sum over axes, in f32.
    fn sum(&mut self, x: ValueId, over: &[AxisId]) -> Result<ValueId, OpError> {
        let op = Reduce { fold: Fold::Sum, over: over.into(), dtype: DType::F32 };
        emit_one(self, op.into(), &[x])
    }

    /// Maximum over axes, in the dtype of the input.
    fn maximum(&mut self, x: ValueId, over: &[AxisId]) -> Result<ValueId, OpError> {
        let op = Reduce { fold: Fold::Max, over: over.into(), dtype: self.ty(x).dtype };
        emit_one(self, op.into(), &[x])
    }

    /// Normalisation over an axis: `center` subtracts the mean (layer norm), else RMS.
    fn norm(
        &mut self,
        x: ValueId,
        axis: AxisId,
        center: bool,
        eps: f64,
        gain: Option<ValueId>,
        bias: Option<ValueId>,
    ) -> Result<ValueId, OpError> {
        let op = Norm { axis, center, eps, gain: gain.is_some(), bias: bias.is_some() };
        let ins: Vec<_> = [Some(x), gain, bias].into_iter().flatten().collect();
        emit_one(self, op.into(), &ins)
    }

    /// Attention; gives (o, lse).
    fn attend(&mut self, op: Attend, ins: &[ValueId]) -> Result<(ValueId, ValueId), OpError> {
        let outs = self.emit(op.into(), ins)?;
        Ok((outs[0], outs[1]))
    }

    /// Attention over the union of two disjoint key sets; gives (o, lse).
    fn merge_attend(
        &mut self,
        x: (ValueId, ValueId),
        y: (ValueId, ValueId),
    ) -> Result<(ValueId, ValueId), OpError> {
        let outs = self.emit(MergeAttend.into(), &[x.0, x.1, y.0, y.1])?;
        Ok((outs[0], outs[1]))
    }

    /// Rows of `table` along `axis`, by index.
    fn gather(&mut self, table: ValueId, axis: AxisId, ids: ValueId) -> Result<ValueId, OpError> {
        emit_one(self, Gather { axis }.into(), &[table, ids])
    }

    /// `base` with the rows at `ids` along `axis` replaced.
    fn scatter_set(
        &mut self,
        base: ValueId,
        axis: AxisId,
        ids: ValueId,
        rows: ValueId,
    ) -> Result<ValueId, OpError> {
        let out = self.ty(base).clone();
        emit_one(self, Scatter { axis, mode: ScatterMode::Set, out }.into(), &[base, ids, rows])
    }

    /// Weight × cross entropy of `x · w` against targets, in nats, of each token.
    fn linear_ce(
        &mut self,
        x: ValueId,
        w: ValueId,
        targets: ValueId,
        weights: ValueId,
        embed: AxisId,
        vocab: AxisId,
    ) -> Result<ValueId, OpError> {
        emit_one(self, LinearCe { embed, vocab, grad: false }.into(), &[x, w, targets, weights])
    }

    /// Log-sum-exp of `x · w` over this piece of the vocabulary, and the logit of the target, 0
    /// where another piece has it.
    fn linear_lse(
        &mut self,
        x: ValueId,
        w: ValueId,
        targets: ValueId,
        embed: AxisId,
        vocab: AxisId,
    ) -> Result<(ValueId, ValueId), OpError> {
        let outs = self.emit(LinearLse { embed, vocab }.into(), &[x, w, targets])?;
        Ok((outs[0], outs[1]))
    }

    /// An axis as several, outermost first.
    fn split(&mut self, x: ValueId, axis: AxisId, into: &[AxisId]) -> Result<ValueId, OpError> {
        emit_one(self, View::Split { axis, into: into.into() }.into(), &[x])
    }

    /// Neighbouring axes as one.
    fn merge(&mut self, x: ValueId, axes: &[AxisId], into: AxisId) -> Result<ValueId, OpError> {
        emit_one(self, View::Merge { axes: axes.into(), into }.into(), &[x])
    }

    /// The same axis under another name.
    fn rename(&mut self, x: ValueId, from: AxisId, to: AxisId) -> Result<ValueId, OpError> {
        emit_one(self, View::Rename { from, to }.into(), &[x])
    }

    /// Elements `start..start + size(into)` of an axis.
    fn slice(
        &mut self,
        x: ValueId,
        axis: AxisId,
        start: usize,
        into: AxisId,
    ) -> Result<ValueId, OpError> {
        emit_one(self, View::Slice { axis, start, into }.into(), &[x])
    }

    /// Values one after another along an axis; `from` names each value's own axis.
    fn concat(
        &mut self,
        xs: &[ValueId],
        from: &[AxisId],
        into: AxisId,
    ) -> Result<ValueId, OpError> {
        emit_one(self, View::Concat { axes: from.into(), into }.into(), xs)
    }
}

fn emit_one<B: Build + ?Sized>(b: &mut B, op: Op, ins: &[ValueId]) -> Result<ValueId, OpError> {
    Ok(b.emit(op, ins)?[0])
}

/// The union of the inputs' axes, in order of first appearance.
fn union_axes<B: Build + ?Sized>(b: &B, ins: &[ValueId]) -> AxisList {
    let mut list = AxisList::new();
    for &v in ins {
        for &a in &b.ty(v).axes {
            if !list.contains(&a) {
                list.push(a);
            }
        }
    }
    list
}
