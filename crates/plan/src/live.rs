//! Liveness: from which step to which each owned piece of memory is needed.
//!
//! A section runs on one queue, so happens-before is the order of the steps; everything that asks
//! goes through [`happens_before`], which is where more queues will come in.

use crate::layout::Layout;
use crate::select::{Selected, happens_before};
use crate::stores::{Store, stores};
use aerogel_graph::{Build, Def, Graph, StateId, ValueId};
use aerogel_machine::Step;

/// What owns a piece of memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Owner {
    /// A value, and those that follow it in place.
    Value(ValueId),
    /// The workspace of a claim.
    Workspace(usize),
}

/// A piece of transient memory with the steps that it must survive.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub owner: Owner,
    pub bytes: u64,
    /// First step that needs it; inputs are there before step 0, at 0.
    pub from: usize,
    /// Last step that needs it.
    pub to: usize,
    /// Chosen by the placer.
    pub offset: u64,
}

/// Liveness of one section.
pub(crate) struct Live {
    /// Transient memory.
    pub pieces: Vec<Piece>,
    /// For each value: the piece it lies in, or the state.
    pub home: Vec<Home>,
    /// For each value: the one that owns its memory.
    pub roots: Vec<ValueId>,
    /// Number of steps, copies included.
    pub steps: usize,
    /// First byte after the last piece; set by the placer.
    pub end_bytes: u64,
    stores: Vec<(ValueId, StateId, Store)>,
}

/// Where a root value lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Home {
    /// Inside of a region, or a window of another value.
    Nowhere,
    /// A transient piece.
    Piece(usize),
    /// A state's own slot.
    State(StateId),
}

impl Live {
    /// The steps of the section: the claims, then the copies into states.
    pub fn steps(&self, selected: &Selected) -> Vec<Step> {
        let by_claim: std::collections::HashMap<usize, u64> = self
            .pieces
            .iter()
            .filter_map(|p| match p.owner {
                Owner::Workspace(i) => Some((i, p.offset)),
                Owner::Value(_) => None,
            })
            .collect();
        let kernels = selected.claims.iter().enumerate().map(|(i, claim)| Step::Kernel {
            claim: claim.clone(),
            workspace: by_claim.get(&i).copied().unwrap_or(0),
        });
        let copies = self
            .stores
            .iter()
            .filter(|s| s.2 == Store::Copied)
            .map(|&(from, to, _)| Step::Assign { from, to });
        kernels.chain(copies).collect()
    }
}

/// The last step that needs a root value.
struct Span {
    to: usize,
}

/// Works out homes and spans.
pub(crate) fn live(g: &Graph, layout: &Layout, selected: &Selected) -> Live {
    let count = selected.claims.len();
    let mut spans = spans(g, layout, selected);
    let mut home = vec![Home::Nowhere; g.values().len()];
    let stores = stores(g, layout, selected);
    for (v, value) in g.values().iter().enumerate() {
        if let Def::State(s) = value.def {
            home[v] = Home::State(s);
        }
    }
    for &(v, s, store) in &stores {
        if store == Store::InPlace {
            home[layout.root(v).index()] = Home::State(s);
        }
    }
    let copies = stores.iter().filter(|s| s.2 == Store::Copied);
    let mut steps = count;
    for &(v, _, _) in copies {
        if let Some(span) = &mut spans[layout.root(v).index()] {
            span.to = span.to.max(steps);
        }
        steps += 1;
    }
    let mut pieces: Vec<Piece> = vec![];
    own_inputs(g, &spans, &mut pieces, &mut home);
    for (i, claim) in selected.claims.iter().enumerate() {
        // A piece is taken over once: two results cannot lie in one place.
        let mut followed: Vec<usize> = vec![];
        for v in selected.uses.exports(g, &claim.nodes) {
            // The piece of a concatenation lasts from the first of its parts on.
            let root = layout.root(v);
            let Some(span) = &spans[root.index()] else { continue };
            if home[root.index()] != Home::Nowhere {
                continue;
            }
            let bytes = g.ty(root).bytes(g.axes());
            let follows = claim
                .in_place
                .iter()
                .filter(|p| p.1 == root && reads_once(g, layout, selected, i, p.0))
                .filter_map(|(read, _)| follow(g, layout, &home, &pieces, *read, i, bytes))
                .find(|p| !followed.contains(p));
            followed.extend(follows);
            let piece = follows.unwrap_or_else(|| {
                pieces.push(Piece { owner: Owner::Value(root), bytes, from: i, to: i, offset: 0 });
                pieces.len() - 1
            });
            pieces[piece].to = span.to.max(i);
            home[root.index()] = Home::Piece(piece);
        }
        if claim.workspace_bytes > 0 {
            let (owner, bytes) = (Owner::Workspace(i), claim.workspace_bytes);
            pieces.push(Piece { owner, bytes, from: i, to: i, offset: 0 });
        }
    }
    let roots = (0..g.values().len() as u32).map(|v| layout.root(ValueId(v))).collect();
    Live { pieces, home, roots, steps, end_bytes: 0, stores }
}

/// Whether the claim reads the root of `read` through that one value only: a second window of the
/// same memory would see what is written in place.
fn reads_once(
    g: &Graph,
    layout: &Layout,
    selected: &Selected,
    claim: usize,
    read: ValueId,
) -> bool {
    let root = layout.root(read);
    let imports = selected.uses.imports(g, &selected.claims[claim].nodes);
    imports.iter().filter(|v| layout.root(**v) == root).count() == 1
}

/// The piece of `read`, if it ends with this step and the written value may take it over.
fn follow(
    g: &Graph,
    layout: &Layout,
    home: &[Home],
    pieces: &[Piece],
    read: ValueId,
    step: usize,
    bytes: u64,
) -> Option<usize> {
    let root = layout.root(read);
    let Home::Piece(p) = home[root.index()] else { return None };
    let whole = root == read && g.ty(read).bytes(g.axes()) == bytes;
    (whole
        && pieces[p].bytes == bytes
        && pieces[p].to == step
        && happens_before(pieces[p].from, step))
    .then_some(p)
}

/// From definition to last reader, by root; `None` for values that nobody outside a region reads.
fn spans(g: &Graph, layout: &Layout, selected: &Selected) -> Vec<Option<Span>> {
    let mut spans: Vec<Option<Span>> = (0..g.values().len()).map(|_| None).collect();
    let mut touch = |v: ValueId, step: usize| {
        let span = &mut spans[layout.root(v).index()];
        match span {
            Some(s) => s.to = s.to.max(step),
            None => *span = Some(Span { to: step }),
        }
    };
    g.inputs().iter().for_each(|i| touch(i.value, 0));
    for (i, claim) in selected.claims.iter().enumerate() {
        selected.uses.imports(g, &claim.nodes).into_iter().for_each(|v| touch(v, i));
        selected.uses.exports(g, &claim.nodes).into_iter().for_each(|v| touch(v, i));
    }
    // Outputs are read by the host after the last step.
    g.outputs.iter().for_each(|(_, v)| touch(*v, usize::MAX));
    spans
}

fn own_inputs(g: &Graph, spans: &[Option<Span>], pieces: &mut Vec<Piece>, home: &mut [Home]) {
    for input in g.inputs() {
        let v = input.value;
        let to = spans[v.index()].as_ref().map_or(0, |s| s.to);
        let bytes = g.ty(v).bytes(g.axes());
        pieces.push(Piece { owner: Owner::Value(v), bytes, from: 0, to, offset: 0 });
        home[v.index()] = Home::Piece(pieces.len() - 1);
    }
}
