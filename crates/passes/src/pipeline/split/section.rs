//! One section as a graph of its own.

use super::crossings::Crossings;
use super::sites::Section;
use crate::PassError;
use crate::pipeline::schedule::Pass;
use aerogel_graph::{Build, Def, Graph, Init, OpError, Phase, Role, StateId, ValueId, verify};
use std::collections::{BTreeSet, HashMap};

/// Names of values by scope and op, `h.0.attn.norm`, numbered where there are several:
/// `h.0.attn.map.2` is the third. Every rank that splits the graph finds the same.
pub struct Names(Vec<String>);

impl Names {
    /// Names all that nodes make.
    pub fn new(g: &Graph) -> Names {
        let mut seen: HashMap<String, usize> = HashMap::new();
        let mut names = vec![String::new(); g.values().len()];
        for node in g.nodes() {
            let op = node.op.name();
            let base = match node.scope.as_ref() {
                "" => op.to_owned(),
                scope => format!("{scope}.{op}"),
            };
            for v in &node.outs {
                let count = seen.entry(base.clone()).or_default();
                names[v.index()] = match *count {
                    0 => base.clone(),
                    n => format!("{base}.{n}"),
                };
                *count += 1;
            }
        }
        Names(names)
    }

    /// The name of a value that a node makes.
    pub fn of(&self, v: ValueId) -> &str {
        &self.0[v.index()]
    }
}

/// Writes a section: what it declares, the nodes that its ends need, the ends.
pub fn write(
    g: &Graph,
    at: Section,
    crossings: &Crossings,
    slots: u32,
    names: &Names,
) -> Result<Graph, PassError> {
    let (stage, pass) = at;
    let none = BTreeSet::new();
    let (received, sent) = (crossings.received(at), crossings.sent(at));
    let outputs = crossings.outputs.get(&at).map_or(&[][..], Vec::as_slice);
    let saved = &crossings.saved[stage];
    let (kept, restored) = if pass == Pass::Forward { (saved, &none) } else { (&none, saved) };
    let given: BTreeSet<ValueId> = received.union(restored).copied().collect();
    let ends = sent.iter().chain(kept).copied().chain(outputs.iter().map(|o| o.1));
    let live = Live::new(g, &given, ends);

    let (mut out, mut moved) = (g.bare(), vec![None; g.values().len()]);
    for input in g.inputs().iter().filter(|i| live.values[i.value.index()]) {
        let ty = &g.value(input.value).ty;
        moved[input.value.index()] = Some(out.input(&input.name, ty.dtype, &ty.axes)?);
    }
    for v in received {
        let ty = &g.value(v).ty;
        let name = format!("receive.{}", names.of(v));
        moved[v.index()] = Some(out.input(&name, ty.dtype, &ty.axes)?);
    }
    declare_states(g, &live, &mut out, &mut moved)?;
    let mut slots_of = vec![];
    for v in saved {
        let name = format!("saved.{stage}.{}", names.of(*v));
        let ty = g.value(*v).ty.clone();
        let state = out.state(&name, ty, Role::Saved, None, Init::Constant(0.0))?;
        let id = StateId(out.states().len() as u32 - 1);
        out.set_copies(id, slots);
        slots_of.push((id, *v));
        if pass == Pass::Backward {
            moved[v.index()] = Some(state);
        }
    }
    let phase = if pass == Pass::Forward { Phase::Forward } else { Phase::Backward };
    emit(g, &live, phase, &mut out, &mut moved)?;
    for v in sent {
        out.output(&format!("send.{}", names.of(v)), found(&moved, v)?);
    }
    for (name, v) in outputs {
        out.output(name, found(&moved, *v)?);
    }
    if pass == Pass::Forward {
        for (state, v) in slots_of {
            out.assign(state, found(&moved, v)?)?;
        }
    }
    verify::verify(&out).map_err(|source| PassError::Verify { pass: "split", source })?;
    Ok(out)
}

/// What a section needs.
struct Live {
    values: Vec<bool>,
    nodes: Vec<bool>,
}

impl Live {
    fn new(g: &Graph, given: &BTreeSet<ValueId>, ends: impl Iterator<Item = ValueId>) -> Live {
        let mut values = vec![false; g.values().len()];
        ends.for_each(|v| values[v.index()] = true);
        let mut nodes = vec![false; g.nodes().len()];
        for (n, node) in g.nodes().iter().enumerate().rev() {
            nodes[n] = node.outs.iter().any(|v| values[v.index()] && !given.contains(v));
            if nodes[n] {
                node.ins.iter().for_each(|v| values[v.index()] = true);
            }
        }
        Live { values, nodes }
    }
}

fn found(moved: &[Option<ValueId>], v: ValueId) -> Result<ValueId, OpError> {
    let missing = || OpError::new("split", "a value is read in a section that does not have it");
    moved[v.index()].ok_or_else(missing)
}

fn declare_states(
    g: &Graph,
    live: &Live,
    out: &mut Graph,
    moved: &mut [Option<ValueId>],
) -> Result<(), OpError> {
    for value in g.values() {
        let Def::State(id) = value.def else { continue };
        let state = &g.states()[id.index()];
        if !live.values[state.value.index()] {
            continue;
        }
        let ty = value.ty.clone();
        let new = out.state(&state.name, ty, state.role, state.class, state.init)?;
        if !state.parts.is_empty() {
            out.set_parts(&state.name, state.parts.clone())?;
        }
        out.set_copies(StateId(out.states().len() as u32 - 1), state.copies);
        moved[state.value.index()] = Some(new);
    }
    Ok(())
}

fn emit(
    g: &Graph,
    live: &Live,
    phase: Phase,
    out: &mut Graph,
    moved: &mut [Option<ValueId>],
) -> Result<(), OpError> {
    for (node, _) in g.nodes().iter().zip(&live.nodes).filter(|(_, live)| **live) {
        let ins = node.ins.iter().map(|v| found(moved, *v)).collect::<Result<Vec<_>, _>>()?;
        out.at(&node.scope, phase);
        let outs = out.emit(node.op.clone(), &ins)?;
        for (old, new) in node.outs.iter().zip(outs) {
            // What is given stays what is given, also where another output of its node is needed.
            moved[old.index()].get_or_insert(new);
        }
    }
    out.at(&"".into(), Phase::Forward);
    Ok(())
}
