//! The walk over all nodes: how each runs, and in which layouts it reads.

use super::cuts::{Cuts, Seq, meets, refuse};
use super::forms::{Form, Forms, Layout};
use super::head;
use super::linear::is_linear;
use crate::PassError;
use aerogel_graph::ops::{Einsum, Fold, Gather, Map, Reduce, Scatter, Sharding};
use aerogel_graph::{
    Axes, AxisId, Build, Def, Expr, Graph, Node, Op, OpError, Phase, Type, ValueId,
};

/// How a node runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// On all that it reads, the same on every rank.
    Whole,
    /// On the rank's pieces of an axis that is cut.
    Cut,
    /// On the rank's piece of the sequence.
    Seq,
    /// On the rank's terms.
    Terms,
    /// On the rank's piece of the vocabulary, by a lowering of its own.
    Head,
}

struct Walk<'a> {
    /// The old graph, in which cut axes are as long as a rank's piece.
    old: &'a Graph,
    forms: Forms,
}

/// The new graph, and the gradients of which a rank has a term.
pub fn walk(old: &Graph, cuts: Cuts) -> Result<(Graph, Vec<String>), PassError> {
    let mut walk = Walk { old, forms: Forms::new(old, cuts) };
    for node in old.nodes() {
        walk.node(node)?;
    }
    walk.finish()
}

fn is_gradient(name: &str) -> bool {
    name.starts_with("grad.")
}

impl Walk<'_> {
    fn node(&mut self, node: &Node) -> Result<(), PassError> {
        self.forms.out.at(&node.scope, node.phase);
        let way = self.way(node)?;
        if way == Way::Head {
            head::lower(&mut self.forms, node)?;
        } else {
            self.run(node, way)?;
        }
        Ok(node.outs.iter().try_for_each(|&v| self.end(v, node.phase))?)
    }

    /// The node over what it reads, on pieces or not.
    fn run(&mut self, node: &Node, way: Way) -> Result<(), OpError> {
        let op = match (way, self.forms.cuts.seq) {
            (Way::Seq, Some(seq)) => on_piece(&node.op, seq),
            _ => node.op.clone(),
        };
        let read = |&v: &ValueId| self.read(v, way, node.phase);
        let ins = node.ins.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let outs = self.forms.out.emit(op, &ins)?;
        for (&old, new) in node.outs.iter().zip(outs) {
            let layout = self.layout(way, self.old.ty(old));
            self.forms.set(old, new, layout);
        }
        Ok(())
    }

    /// What the node reads of an old value.
    fn read(&mut self, v: ValueId, way: Way, phase: Phase) -> Result<ValueId, OpError> {
        match way {
            Way::Whole | Way::Cut | Way::Head => self.forms.whole(v, phase),
            Way::Seq => self.forms.along_seq(v, phase),
            Way::Terms => Ok(self.forms.home(v)?.value),
        }
    }

    /// How an output lies: a piece of what is shared, or without that a term of the sum over it.
    fn layout(&self, way: Way, ty: &Type) -> Layout {
        let along_seq = || self.forms.cuts.seq.is_some_and(|s| ty.has(s.whole));
        match way {
            Way::Whole => Layout::Whole,
            Way::Cut if self.forms.cuts.of(ty).next().is_some() => Layout::Cut,
            Way::Seq if along_seq() => Layout::Seq,
            Way::Cut | Way::Seq | Way::Terms | Way::Head => Layout::Partial,
        }
    }

    fn way(&self, node: &Node) -> Result<Way, PassError> {
        let labels = self.cut_axes(node)?;
        if !labels.is_empty() {
            let vocabulary = head::vocabulary(&node.op).is_some_and(|axis| labels == [axis]);
            return if vocabulary { Ok(Way::Head) } else { self.runs_cut(node, &labels) };
        }
        let ins = node.ins.iter().map(|&v| self.forms.home(v)).collect::<Result<Vec<_>, _>>()?;
        if self.passes_terms(node, &ins) {
            return Ok(Way::Terms);
        }
        Ok(if self.runs_along_seq(node, &ins) { Way::Seq } else { Way::Whole })
    }

    /// The cut axes of the operands: one, or the two names that a view gives it.
    fn cut_axes(&self, node: &Node) -> Result<Vec<AxisId>, PassError> {
        let axes = self.old.axes();
        let mut labels: Vec<AxisId> = vec![];
        for &v in node.ins.iter().chain(&node.outs) {
            let own: Vec<AxisId> = self.forms.cuts.of(self.old.ty(v)).collect();
            if let [a, b, ..] = own[..] {
                return Err(refuse(&axes[a].name, &node.scope, meets(axes, b)));
            }
            labels.extend(own.iter().filter(|&a| !labels.contains(a)).copied().collect::<Vec<_>>());
        }
        match labels[..] {
            [a, b, ..] if !is_view(node) => Err(refuse(&axes[a].name, &node.scope, meets(axes, b))),
            _ => Ok(labels),
        }
    }

    /// On pieces of the cut axes, if the op allows it.
    fn runs_cut(&self, node: &Node, labels: &[AxisId]) -> Result<Way, PassError> {
        let (axes, cuts) = (self.old.axes(), &self.forms.cuts);
        let whole = labels.iter().find(|&&label| self.sharding(node, label) == Sharding::Whole);
        match whole {
            None => Ok(Way::Cut),
            Some(&label) => {
                let reason = whole_because(axes, cuts, &node.op, label);
                Err(refuse(&axes[label].name, &node.scope, reason))
            }
        }
    }

    fn sharding(&self, node: &Node, label: AxisId) -> Sharding {
        let outs = self.old.out_types(node);
        node.op.sharding(self.old.axes(), &self.old.in_types(node), &outs, label)
    }

    /// Whether the node may run on each rank's terms: it is linear in them, it is no larger than
    /// they are, and what else it reads is whole as it comes.
    fn passes_terms(&self, node: &Node, ins: &[Form]) -> bool {
        let term = |i: usize| ins[i].layout == Layout::Partial;
        let count = (0..ins.len()).filter(|&i| term(i)).count();
        if count == 0 || ins.iter().any(|f| matches!(f.layout, Layout::Seq | Layout::Cut)) {
            return false;
        }
        let like = |v: ValueId, ty: &Type| self.old.ty(v).axes.len() == ty.axes.len();
        match &node.op {
            Op::Map(map) => {
                let mut terms = (0..ins.len()).filter(|&i| term(i));
                terms.all(|i| like(node.ins[i], &map.out)) && is_linear(&map.expr, &term)
            }
            Op::Reduce(reduce) => reduce.fold == Fold::Sum,
            Op::View(_) => count == ins.len(),
            Op::Einsum(_) => ins.len() == 1,
            _ => false,
        }
    }

    /// Whether the node can run along pieces of the sequence, and there is use in it: its result
    /// has the sequence, or what it reads lies in pieces already.
    fn runs_along_seq(&self, node: &Node, ins: &[Form]) -> bool {
        let Some(seq) = self.forms.cuts.seq else { return false };
        let has = |v: &ValueId| self.old.ty(*v).has(seq.whole);
        let made = node.outs.iter().any(has);
        let in_pieces = |(v, form): (&ValueId, &Form)| has(v) && form.layout != Layout::Whole;
        let use_in_it = made || node.ins.iter().zip(ins).any(in_pieces);
        // A view that splits the sequence, or renames it, takes it from the operands.
        let touched = is_view(node) && !(made && node.ins.iter().all(has));
        use_in_it && !touched && self.sharding(node, seq.whole) == Sharding::Parallel
    }

    /// Brings what is read outside of the nodes into the layout that is promised: terms of a
    /// gradient stay, all else is whole but for cut axes.
    fn end(&mut self, v: ValueId, phase: Phase) -> Result<(), OpError> {
        let assigned = self.old.assigns.iter().any(|a| a.1 == v);
        let terms = self.forms.home(v)?.layout == Layout::Partial;
        let read = |o: &(String, ValueId)| o.1 == v && !(terms && is_gradient(&o.0));
        if assigned || self.old.outputs.iter().any(read) {
            self.forms.whole(v, phase)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(Graph, Vec<String>), PassError> {
        let mut partial = vec![];
        for (name, v) in &self.old.outputs {
            let form = self.forms.home(*v)?;
            let value = match form.layout {
                Layout::Partial if is_gradient(name) => {
                    partial.push(name.clone());
                    form.value
                }
                _ => self.forms.whole(*v, self.phase_of(*v))?,
            };
            self.forms.out.output(name, value);
        }
        for (state, v) in &self.old.assigns {
            let value = self.forms.whole(*v, self.phase_of(*v))?;
            self.forms.out.assign(*state, value)?;
        }
        self.forms.out.at(&"".into(), Phase::Forward);
        Ok((self.forms.out, partial))
    }

    fn phase_of(&self, v: ValueId) -> Phase {
        match self.old.value(v).def {
            Def::Node(n, _) => self.old.node(n).phase,
            _ => Phase::Forward,
        }
    }
}

fn is_view(node: &Node) -> bool {
    matches!(node.op, Op::View(_))
}

/// The op over the piece of the sequence. Ops that are not listed name no axes but those of which
/// they read all.
fn on_piece(op: &Op, seq: Seq) -> Op {
    let swap = |axis: AxisId| if axis == seq.whole { seq.piece } else { axis };
    let typed = |ty: &Type| Type::new(ty.dtype, ty.axes.iter().map(|&a| swap(a)));
    match op {
        Op::Einsum(e) => Einsum { out: typed(&e.out) }.into(),
        Op::Map(map) => {
            let expr = map.expr.rewrite(&|e| match e {
                Expr::Coord(axis) => Some(Expr::Coord(swap(*axis))),
                _ => None,
            });
            Map { expr, out: typed(&map.out), cotangent: map.cotangent }.into()
        }
        Op::Reduce(r) => Reduce { over: r.over.iter().map(|&a| swap(a)).collect(), ..*r }.into(),
        Op::Gather(g) => Gather { axis: swap(g.axis) }.into(),
        Op::Scatter(s) => Scatter { axis: swap(s.axis), mode: s.mode, out: typed(&s.out) }.into(),
        other => other.clone(),
    }
}

/// Why an op reads all of an axis, and what would do instead.
fn whole_because(axes: &Axes, cuts: &Cuts, op: &Op, label: AxisId) -> String {
    let attend = match op {
        Op::Attend(attend) => attend,
        Op::AttendGrad(grad) => &grad.attend,
        _ => return format!("`{}` needs all of it; do not cut it", op.name()),
    };
    if attend.pieces_alike(axes, label) {
        return format!("`{}` needs all of it; do not cut it", op.name());
    }
    let (member, ranks) = (&axes.mesh.0[cuts.over as usize].0, axes.mesh.size(cuts.over));
    let (heads, kinds) = (axes.count(&attend.heads), attend.pattern.head_kinds());
    let outermost = attend.heads.first() == Some(&label);
    let fits = |n: usize| (heads * ranks).is_multiple_of(n * kinds);
    let most = (1..ranks).rev().find(|&n| outermost && fits(n) && ranks.is_multiple_of(n));
    format!(
        "pattern {} repeats every {kinds} heads, and a rank would have {heads}; `{member}` of {} \
         would do",
        attend.pattern,
        most.unwrap_or(1)
    )
}
