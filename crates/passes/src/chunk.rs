//! chunk: a feed-forward, or the output layer, over a few pieces of the sequence, one after another
//! (tiled computation: Rajbhandari et al., ZeRO-Infinity, 2021, for layers whose inside is larger
//! than memory; Liu and Abbeel, Blockwise Parallel Transformer, 2023, for pieces of the sequence).
//!
//! The pass runs after [`backward`](crate::backward) and before
//! [`recompute`](crate::recompute::recompute), and before ranks: a message along the sequence has
//! no pieces. A *region* is what a scope does in one phase to
//! values along `seq`. Of k pieces, the first goes through the whole region before the second
//! begins, so that of the values inside, [batch seq mlp] or the logits, one piece exists at a time;
//! in the backward that takes recomputation too, for what the forward made waits otherwise. A piece
//! is an axis of its own that knows its place: draws and coordinates are those of the whole.
//!
//! What it costs: an input of a region is sliced (no copy where a layout has strides), an output is
//! put together once, which writes it a second time, a message between ranks becomes k, and a sum
//! over the sequence (a weight's gradient) is added to what earlier pieces gave, k - 1 more passes
//! over it. Of such a gradient there are the sum so far, what the next piece adds, and the new sum,
//! which may be written over the old one. That is why the pass does not come before autodiff, which
//! would keep the gradients of all pieces, and k padded cotangents of each input, to add them last.
//!
//! Losses and cotangents keep their bits. Gradients of the parameters of a region are sums in
//! another order.

use crate::PassError;
use aerogel_graph::ops::{Einsum, Exchange, Map, Reduce, Sharding, View};
use aerogel_graph::{
    AxisId, Build, Cutter, Def, Expr, Graph, Node, Op, OpError, Phase, Type, ValueId,
};
use std::collections::HashMap;
use std::sync::Arc;

const PASS: &str = "chunk";
const AXIS: &str = "seq";

/// Runs the scopes `h.N.mlp` in `mlp` pieces of axis `seq`, and the scope `head`, but for its sums
/// over tokens, in `loss` pieces. 1 leaves a scope as it is. Nodes that nobody reads are left out,
/// unless both are 1.
///
/// # Errors
/// `seq` does not divide, there is no such scope, or a node of one cannot run on a piece: it needs
/// all of `seq` at once.
pub fn chunk(g: &Graph, mlp: usize, loss: usize) -> Result<Graph, PassError> {
    if mlp == 1 && loss == 1 {
        return Ok(g.clone());
    }
    let old = g.pruned()?;
    let mut work = Work::new(&old, mlp, loss)?;
    for n in 0..old.nodes().len() {
        work.node(n)?;
    }
    work.finish()
}

/// A scope of which nodes run in pieces.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    FeedForward,
    Head,
}

/// The scope that a node's scope is, or is in, if it is one that can be cut.
fn scope_of(scope: &str) -> Option<(Kind, &str)> {
    if scope == "head" || scope.starts_with("head.") {
        return Some((Kind::Head, "head"));
    }
    let (layer, inside) = scope.strip_prefix("h.")?.split_once('.')?;
    let is_mlp = inside == "mlp" || inside.starts_with("mlp.");
    let end = "h.".len() + layer.len() + ".mlp".len();
    is_mlp.then(|| (Kind::FeedForward, &scope[..end]))
}

/// How far a region is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Waits,
    Runs,
    Done,
}

/// What a scope does in one phase along `seq`.
struct Region {
    /// Its nodes, ascending.
    nodes: Vec<usize>,
    /// The pieces of `seq`.
    pieces: Arc<[AxisId]>,
    progress: Progress,
}

/// A graph that is being rewritten.
struct Work<'a> {
    old: &'a Graph,
    seq: AxisId,
    g: Graph,
    regions: Vec<Region>,
    /// By old node.
    region_of: Vec<Option<usize>>,
    /// Nodes outside of regions that are there.
    done: Vec<bool>,
    /// Where an old value went, whole.
    moved: Vec<Option<ValueId>>,
    /// Where it went in pieces.
    cut: Vec<Vec<ValueId>>,
    /// Whether it is read as a whole.
    read_whole: Vec<bool>,
}

impl<'a> Work<'a> {
    fn new(old: &'a Graph, mlp: usize, loss: usize) -> Result<Self, PassError> {
        let missing = || OpError::new(PASS, format!("the graph has no axis `{AXIS}`"));
        let seq = old.axes().find(AXIS).ok_or_else(missing)?;
        let (mut g, moved) = old.header();
        // Both numbers may be asked for, so that an axis says of how many pieces it is one.
        let mut piece =
            |i, count| g.piece_of(seq, &format!("{AXIS}#{i}/{count}"), Cutter::Fixed(i), count);
        let mut pieces = |count: usize| match count {
            1 => Ok(vec![]),
            count => (0..count.max(1)).map(|i| piece(i, count)).collect::<Result<Vec<_>, _>>(),
        };
        let axes = [pieces(mlp)?.into(), pieces(loss)?.into()];
        let mut work = Work {
            old,
            seq,
            g,
            regions: vec![],
            region_of: vec![None; old.nodes().len()],
            done: vec![false; old.nodes().len()],
            moved,
            cut: vec![vec![]; old.values().len()],
            read_whole: vec![false; old.values().len()],
        };
        work.find_regions(&axes)?;
        work.find_whole();
        for (kind, count, scope) in
            [(Kind::FeedForward, mlp, "h.N.mlp"), (Kind::Head, loss, "head")]
        {
            let is_there = |n: &Node| scope_of(&n.scope).is_some_and(|s| s.0 == kind);
            if count > 1 && !old.nodes().iter().any(is_there) {
                return Err(PassError::NoScope { scope });
            }
        }
        Ok(work)
    }

    fn find_regions(&mut self, axes: &[Arc<[AxisId]>; 2]) -> Result<(), PassError> {
        let mut known: HashMap<(&str, Phase), usize> = HashMap::new();
        for (n, node) in self.old.nodes().iter().enumerate() {
            let Some((kind, scope)) = scope_of(&node.scope) else { continue };
            let pieces = &axes[usize::from(kind == Kind::Head)];
            let along = node.ins.iter().chain(&node.outs).any(|&v| self.is_long(v));
            // The sum of the losses keeps its order.
            let is_total = kind == Kind::Head
                && matches!(&node.op, Op::Reduce(r) if r.over.contains(&self.seq));
            if pieces.is_empty() || !along || is_total {
                continue;
            }
            self.check(node)?;
            let region = *known.entry((scope, node.phase)).or_insert_with(|| {
                let progress = Progress::Waits;
                self.regions.push(Region { nodes: vec![], pieces: pieces.clone(), progress });
                self.regions.len() - 1
            });
            self.regions[region].nodes.push(n);
            self.region_of[n] = Some(region);
        }
        Ok(())
    }

    /// Whether an old value lies along the sequence.
    fn is_long(&self, v: ValueId) -> bool {
        self.old.ty(v).has(self.seq)
    }

    /// Whether a piece of the sequence is enough for a node.
    fn check(&self, node: &Node) -> Result<(), PassError> {
        let (axes, seq) = (self.old.axes(), self.seq);
        let (ins, outs) = (self.old.in_types(node), self.old.out_types(node));
        let whole = match &node.op {
            // Element by element along all that is not exchanged.
            Op::Collective(c) => !matches!(c.exchange, Exchange::AllReduce(_)),
            op => op.sharding(axes, &ins, &outs, seq) == Sharding::Whole,
        };
        match on_piece(&node.op, seq, seq) {
            Some(_) if !whole => Ok(()),
            _ => Err(refused(node, "it needs all of `seq` at once; leave this scope whole")),
        }
    }

    /// Makes a node, or the region that it is in, after all that it reads.
    fn node(&mut self, n: usize) -> Result<(), PassError> {
        if let Some(region) = self.region_of[n] {
            return self.region(region);
        }
        if std::mem::replace(&mut self.done[n], true) {
            return Ok(());
        }
        let node = &self.old.nodes()[n];
        for &v in &node.ins {
            self.made(v, node)?;
        }
        let ins = node.ins.iter().map(|&v| self.whole(v)).collect::<Result<Vec<_>, _>>()?;
        self.g.at(&node.scope, node.phase);
        let outs = self.g.emit(node.op.clone(), &ins)?;
        for (old, new) in node.outs.iter().zip(outs) {
            self.moved[old.index()] = Some(new);
        }
        Ok(())
    }

    /// Makes what an old node reads.
    fn made(&mut self, v: ValueId, reader: &Node) -> Result<(), PassError> {
        let Def::Node(n, _) = self.old.value(v).def else { return Ok(()) };
        let region = self.region_of[n.index()].map(|r| self.regions[r].progress);
        if region == Some(Progress::Runs) {
            return Err(refused(
                reader,
                "it reads all of `seq` in the middle of a scope in pieces",
            ));
        }
        self.node(n.index())
    }

    fn whole(&self, v: ValueId) -> Result<ValueId, OpError> {
        let lost = || OpError::new(PASS, "a value is read before it is made");
        self.moved[v.index()].ok_or_else(lost)
    }

    fn region(&mut self, r: usize) -> Result<(), PassError> {
        if self.regions[r].progress != Progress::Waits {
            return Ok(());
        }
        self.regions[r].progress = Progress::Runs;
        let old = self.old;
        let nodes = std::mem::take(&mut self.regions[r].nodes);
        for &n in &nodes {
            let node = &old.nodes()[n];
            for &v in &node.ins {
                let own = matches!(old.value(v).def, Def::Node(d, _)
                    if self.region_of[d.index()] == Some(r));
                if own && !self.is_long(v) {
                    return Err(refused(node, "it reads a sum over `seq` of the same scope"));
                }
                if !own {
                    self.made(v, node)?;
                }
            }
        }
        let pieces = self.regions[r].pieces.clone();
        for (i, &piece) in pieces.iter().enumerate() {
            let mut slices = HashMap::new();
            for &n in &nodes {
                self.run_piece(&old.nodes()[n], i, piece, &mut slices)?;
            }
        }
        self.regions[r].progress = Progress::Done;
        for &n in &nodes {
            self.join(&old.nodes()[n], &pieces)?;
        }
        Ok(())
    }

    /// A node of a region on piece `i`.
    fn run_piece(
        &mut self,
        node: &Node,
        i: usize,
        piece: AxisId,
        slices: &mut HashMap<ValueId, ValueId>,
    ) -> Result<(), PassError> {
        self.g.at(&node.scope, node.phase);
        let mut ins = vec![];
        for &v in &node.ins {
            ins.push(match self.cut[v.index()].get(i) {
                _ if !self.is_long(v) => self.whole(v)?,
                Some(&part) if self.g.ty(part).has(piece) => part,
                _ => match slices.get(&v) {
                    Some(&known) => known,
                    None => {
                        let start = i * self.g.axes().size(piece);
                        let slice = self.g.slice(self.whole(v)?, self.seq, start, piece)?;
                        slices.insert(v, slice);
                        slice
                    }
                },
            });
        }
        let op = on_piece(&node.op, self.seq, piece)
            .ok_or_else(|| refused(node, "it needs all of `seq` at once"))?;
        let outs = self.g.emit(op, &ins)?;
        for (&old, new) in node.outs.iter().zip(outs) {
            if self.is_long(old) {
                self.cut[old.index()].push(new);
                continue;
            }
            let ty = self.old.ty(old).clone();
            self.moved[old.index()] = Some(match self.moved[old.index()] {
                None => new,
                Some(sum) => self.g.map_to(&[sum, new], ty, &|v| &v[0] + &v[1])?,
            });
        }
        Ok(())
    }

    /// Puts together what is read as a whole of a node's outputs.
    fn join(&mut self, node: &Node, pieces: &[AxisId]) -> Result<(), PassError> {
        self.g.at(&node.scope, node.phase);
        for &v in &node.outs {
            if self.is_long(v) && self.read_whole[v.index()] {
                let all = self.g.concat(&self.cut[v.index()], pieces, self.seq)?;
                self.moved[v.index()] = Some(all);
            }
        }
        Ok(())
    }

    /// The values that somebody reads otherwise than in the pieces in which they are made.
    fn find_whole(&mut self) {
        let pieces = |n: usize| self.region_of[n].map(|r| &self.regions[r].pieces);
        for (n, reader) in self.old.nodes().iter().enumerate() {
            for v in &reader.ins {
                if let Def::Node(maker, _) = self.old.value(*v).def {
                    self.read_whole[v.index()] |= pieces(n) != pieces(maker.index());
                }
            }
        }
        let named = self.old.outputs.iter().map(|o| o.1);
        for v in named.chain(self.old.assigns.iter().map(|a| a.1)) {
            self.read_whole[v.index()] = true;
        }
    }

    fn finish(mut self) -> Result<Graph, PassError> {
        for (name, v) in &self.old.outputs {
            let v = self.whole(*v)?;
            self.g.output(name, v);
        }
        for (state, v) in &self.old.assigns {
            self.g.assign(*state, self.whole(*v)?)?;
        }
        self.g.at(&"".into(), Phase::Forward);
        Ok(self.g)
    }
}

fn refused(node: &Node, reason: &'static str) -> PassError {
    PassError::Chunk { op: node.op.name(), scope: node.scope.to_string(), reason }
}

/// The op with one axis in another's place; `None` for ops that do not run on pieces of `seq`.
fn on_piece(op: &Op, seq: AxisId, piece: AxisId) -> Option<Op> {
    let swap = |a: &AxisId| if *a == seq { piece } else { *a };
    let typed = |ty: &Type| Type::new(ty.dtype, ty.axes.iter().map(swap));
    let coordinate =
        |e: &Expr| matches!(e, Expr::Coord(a) if *a == seq).then_some(Expr::Coord(piece));
    match op {
        Op::Einsum(e) => Some(Einsum { out: typed(&e.out) }.into()),
        Op::Map(m) => {
            let (expr, out) = (m.expr.rewrite(&coordinate), typed(&m.out));
            Some(Map { expr, out, cotangent: m.cotangent }.into())
        }
        Op::Reduce(r) => Some(Reduce { over: r.over.iter().map(swap).collect(), ..*r }.into()),
        Op::View(view) if !names(view, seq) => Some(op.clone()),
        Op::Norm(_)
        | Op::NormGrad(_)
        | Op::LinearCe(_)
        | Op::LinearLse(_)
        | Op::LinearCeGrad(_)
        | Op::Collective(_) => Some(op.clone()),
        _ => None,
    }
}

/// Whether a view does something to an axis.
fn names(view: &View, axis: AxisId) -> bool {
    match view {
        View::Split { axis: a, into } => *a == axis || into.contains(&axis),
        View::Merge { axes, into } | View::Concat { axes, into } => {
            axes.contains(&axis) || *into == axis
        }
        View::Rename { from, to } => *from == axis || *to == axis,
        View::Slice { axis: a, into, .. } | View::Pad { axis: a, into, .. } => {
            *a == axis || *into == axis
        }
    }
}
