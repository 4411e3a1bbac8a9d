//! Which axes are cut, and whether they can be.

use crate::PassError;
use aerogel_graph::ops::View;
use aerogel_graph::{Axes, AxisId, Build, Cutter, Graph, Mesh, Op, Type};

/// Tensor parallelism: which axes of a step the ranks of one mesh axis share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// All ranks.
    pub mesh: Mesh,
    /// The mesh axis along which a layer is shared, by position in the mesh.
    pub over: u8,
    /// Cut the heads of keys and values, axis `kv`.
    pub heads: bool,
    /// Cut the inner width of the feed-forward, axis `mlp`.
    pub mlp: bool,
    /// Cut the vocabulary, axis `vocab`: embedding, output layer and loss.
    pub vocab: bool,
    /// What has none of these, norms and the residual stream, runs along pieces of axis `seq`.
    pub seq: bool,
}

/// The whole sequence and the piece of it that a rank has.
#[derive(Clone, Copy, Debug)]
pub struct Seq {
    /// As the graph has it.
    pub whole: AxisId,
    /// `seq/NAME`, NAME being the mesh axis.
    pub piece: AxisId,
}

/// What is cut over which mesh axis.
#[derive(Clone, Debug)]
pub struct Cuts {
    /// The mesh axis.
    pub over: u8,
    /// Axes that are cut where they stand.
    pub axes: Vec<AxisId>,
    /// The sequence, if it is shared.
    pub seq: Option<Seq>,
}

impl Cuts {
    /// The cut axes of a value.
    pub fn of<'a>(&'a self, ty: &'a Type) -> impl Iterator<Item = AxisId> + 'a {
        ty.axes.iter().copied().filter(|a| self.axes.contains(a))
    }
}

/// A refusal.
pub fn refuse(axis: &str, scope: &str, reason: impl Into<String>) -> PassError {
    PassError::Layout { axis: axis.to_owned(), scope: scope.to_owned(), reason: reason.into() }
}

/// An axis that is cut, and for a factor of one where it is split off.
struct Root {
    axis: AxisId,
    split: Option<(AxisId, String)>,
}

/// The graph with its mesh and cut axes, to be walked; no cuts where one rank has it all.
pub fn cut(g: &Graph, spec: &Tensor) -> Result<(Graph, Option<Cuts>), PassError> {
    let mut out = g.clone();
    let Some((name, pieces)) = spec.mesh.0.get(spec.over as usize).cloned() else {
        let reason =
            format!("the mesh has {} axes, and no number {}", spec.mesh.0.len(), spec.over);
        return Err(refuse("", "", reason));
    };
    let known = &g.axes().mesh;
    if !known.0.is_empty() && *known != spec.mesh {
        return Err(refuse(&name, "", "the graph is cut for another mesh; give the same one"));
    }
    out.set_mesh(spec.mesh.clone());
    if pieces == 1 {
        return Ok((out, None));
    }
    let list = closure(g, roots(g, spec)?);
    for root in &list {
        divides(g, root, &spec.mesh, spec.over)?;
        out.cut_axis(&g.axes()[root.axis].name, Cutter::Mesh(spec.over), pieces)?;
    }
    let seq = match spec.seq {
        false => None,
        true => {
            let whole = find(g.axes(), "seq")?;
            divides(g, &Root { axis: whole, split: None }, &spec.mesh, spec.over)?;
            let name = format!("seq/{name}");
            let piece = out.piece_of(whole, &name, Cutter::Mesh(spec.over), pieces)?;
            Some(Seq { whole, piece })
        }
    };
    let axes = list.into_iter().map(|root| root.axis).collect();
    let cuts = Cuts { over: spec.over, axes, seq };
    check_header(&out, &cuts)?;
    Ok((out, Some(cuts)))
}

fn find(axes: &Axes, name: &str) -> Result<AxisId, PassError> {
    axes.find(name).ok_or_else(|| refuse(name, "", "the graph has no such axis; do not cut it"))
}

fn roots(g: &Graph, spec: &Tensor) -> Result<Vec<Root>, PassError> {
    [("kv", spec.heads), ("mlp", spec.mlp), ("vocab", spec.vocab)]
        .into_iter()
        .filter(|(_, wanted)| *wanted)
        .map(|(name, _)| Ok(Root { axis: find(g.axes(), name)?, split: None }))
        .collect()
}

/// With a cut axis its other names are cut, and the outermost factor that a view makes of it.
fn closure(g: &Graph, mut list: Vec<Root>) -> Vec<Root> {
    loop {
        let before = list.len();
        for node in g.nodes() {
            let (a, b) = match &node.op {
                Op::View(View::Split { axis, into }) => (*axis, into[0]),
                Op::View(View::Merge { axes, into }) => (axes[0], *into),
                Op::View(View::Rename { from, to }) => (*from, *to),
                _ => continue,
            };
            let has = |axis| list.iter().any(|root: &Root| root.axis == axis);
            let (axis, of) = match (has(a), has(b)) {
                (true, false) => (b, a),
                (false, true) => (a, b),
                _ => continue,
            };
            list.push(Root { axis, split: Some((of, node.scope.to_string())) });
        }
        if list.len() == before {
            return list;
        }
    }
}

fn divides(g: &Graph, root: &Root, mesh: &Mesh, over: u8) -> Result<(), PassError> {
    let axis = &g.axes()[root.axis];
    let (member, pieces) = (&mesh.0[over as usize].0, mesh.size(over));
    let scope = root.split.as_ref().map_or("", |(_, scope)| scope);
    if axis.cuts.iter().any(|c| c.by == Cutter::Mesh(over)) {
        return Err(refuse(&axis.name, scope, format!("it is cut over `{member}` already")));
    }
    if axis.size.is_multiple_of(pieces) {
        return Ok(());
    }
    let size = axis.size;
    let what = match &root.split {
        None => format!("its extent of {size}"),
        Some((of, _)) => format!("its extent of {size}, as a factor of `{}`,", g.axes()[*of].name),
    };
    let most = (1..pieces).rev().find(|&n| size.is_multiple_of(n)).unwrap_or(1);
    let reason =
        format!("{what} does not divide into the {pieces} pieces of `{member}`; {most} would do");
    Err(refuse(&axis.name, scope, reason))
}

/// Inputs and states that have two axes of which a rank can only have one piece.
fn check_header(g: &Graph, cuts: &Cuts) -> Result<(), PassError> {
    let inputs = g.inputs().iter().map(|i| (&i.name, i.value));
    let states = g.states().iter().map(|s| (&s.name, s.value));
    for (name, v) in inputs.chain(states) {
        if let [a, b, ..] = cuts.of(g.ty(v)).collect::<Vec<_>>()[..] {
            return Err(refuse(&g.axes()[a].name, name, meets(g.axes(), b)));
        }
    }
    Ok(())
}

/// Why one more cut axis is one too many.
pub fn meets(axes: &Axes, other: AxisId) -> String {
    let name = &axes[other].name;
    format!("it meets `{name}`, which is cut over the same ranks; cut one of them")
}
