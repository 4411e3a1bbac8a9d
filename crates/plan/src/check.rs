//! The checker: runs a section's memory without its arithmetic, and refuses a program in which a
//! step reads what it should not. It knows slots and steps, not how they were chosen.

use crate::error::PlanError;
use aerogel_graph::{Build, Def, Graph, NodeId, ValueId};
use aerogel_machine::{Program, Section, Step, Uses};
use std::collections::{BTreeMap, HashSet};

/// Who wrote the bytes from a key up to (excluding) `.0`.
type Memory = BTreeMap<u64, (u64, Owner)>;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Owner {
    Value(ValueId),
    Scratch,
}

/// Checks one section: each read finds the bytes that its value's producer wrote, no kernel writes
/// over an operand that its claim does not allow, and everything lies inside of the arena.
///
/// # Errors
/// The first step at which that fails.
pub fn section(s: &Section, program: &Program) -> Result<(), PlanError> {
    let g = &s.graph;
    let uses = Uses::new(g);
    let mut memory = Memory::new();
    let fail = |step: usize, message: String| PlanError::Unsound {
        section: s.name.clone(),
        step,
        message,
    };
    let extent = |v: ValueId| extent(s, v);
    let copied = copied(s);
    let root = |v: ValueId| root(g, &copied, v);
    for (v, value) in g.values().iter().enumerate() {
        if matches!(value.def, Def::Input(_) | Def::State(_)) {
            let v = ValueId(v as u32);
            let range = extent(v).ok_or_else(|| fail(0, format!("{v:?} has no slot")))?;
            within(program, range).map_err(|m| fail(0, m))?;
            write(&mut memory, range, Owner::Value(v));
        }
    }
    for (i, step) in s.steps.iter().enumerate() {
        let (reads, writes, workspace, in_place) = match step {
            Step::Kernel { claim, workspace } => (
                uses.imports(g, &claim.nodes),
                uses.exports(g, &claim.nodes),
                (*workspace, *workspace + claim.workspace_bytes),
                claim.in_place.as_slice(),
            ),
            Step::Assign { from, .. } => (vec![*from], vec![], (0, 0), &[][..]),
        };
        for &v in &reads {
            let root = root(v);
            let range = extent(v).ok_or_else(|| fail(i, format!("reads {v:?} without a slot")))?;
            if !holds(&memory, range, root) {
                return Err(fail(i, format!("reads {v:?}, whose bytes were written over")));
            }
        }
        let read_ranges: Vec<_> = reads.iter().filter_map(|&v| Some((v, extent(v)?))).collect();
        let mut written: Vec<(u64, u64)> = vec![];
        for &v in &writes {
            let range = extent(v).ok_or_else(|| fail(i, format!("writes {v:?} without a slot")))?;
            within(program, range).map_err(|m| fail(i, m))?;
            for &(r, range_r) in &read_ranges {
                let allowed = range == range_r && in_place.contains(&(r, v));
                if overlap(range, range_r) && !allowed {
                    return Err(fail(i, format!("writes {v:?} over its operand {r:?}")));
                }
            }
            if written.iter().any(|&w| overlap(w, range)) {
                return Err(fail(i, format!("writes {v:?} over another result")));
            }
            written.push(range);
            write(&mut memory, range, Owner::Value(v));
        }
        if workspace.0 < workspace.1 {
            within(program, workspace).map_err(|m| fail(i, m))?;
            let clash = |r: &(u64, u64)| overlap(*r, workspace);
            if written.iter().any(clash) || read_ranges.iter().any(|(_, r)| clash(r)) {
                return Err(fail(i, "its workspace overlaps an operand".to_owned()));
            }
            write(&mut memory, workspace, Owner::Scratch);
        }
        if let Step::Assign { from: _, to } = step {
            let old = g.states()[to.index()].value;
            if let Some(range) = extent(old) {
                write(&mut memory, range, Owner::Value(old));
            }
        }
    }
    let end = s.steps.len();
    for (name, v) in &g.outputs {
        if !extent(*v).is_some_and(|r| holds(&memory, r, root(*v))) {
            return Err(fail(end, format!("output `{name}` was written over")));
        }
    }
    states_survive(s, &memory).map_err(|m| fail(end, m))
}

/// At the end each state's slot holds its new value (by place or by copy), or its old one.
fn states_survive(s: &Section, memory: &Memory) -> Result<(), String> {
    let g = &s.graph;
    for (id, state) in g.states().iter().enumerate() {
        let Some(range) = extent(s, state.value) else { continue };
        let assigned = g.assigns.iter().find(|(a, _)| a.index() == id).map(|(_, v)| *v);
        let copied = s.steps.iter().any(|step| match step {
            Step::Assign { to, .. } => to.index() == id,
            Step::Kernel { .. } => false,
        });
        let wanted = match assigned {
            Some(v) if !copied => v,
            _ => state.value,
        };
        if !holds(memory, range, wanted) {
            return Err(format!("state `{}` does not hold its value at the end", state.name));
        }
    }
    Ok(())
}

/// Which nodes a kernel runs: a view among them moves bytes, one that is not is a window.
fn copied(s: &Section) -> HashSet<NodeId> {
    let claims = s.steps.iter().filter_map(|step| match step {
        Step::Kernel { claim, .. } => Some(&claim.nodes),
        Step::Assign { .. } => None,
    });
    claims.flatten().copied().collect()
}

/// The value whose producer wrote the bytes: through views that are windows.
fn root(g: &Graph, copied: &HashSet<NodeId>, mut v: ValueId) -> ValueId {
    while let Def::Node(n, _) = g.value(v).def
        && !copied.contains(&n)
    {
        v = g.node(n).ins[0];
    }
    v
}

/// First byte and the byte after the last of a value.
fn extent(s: &Section, v: ValueId) -> Option<(u64, u64)> {
    let slot = s.slot(v)?;
    let ty = s.graph.ty(v);
    let sizes = s.graph.axes().sizes(&ty.axes);
    if sizes.contains(&0) {
        return Some((slot.offset, slot.offset));
    }
    let last: isize = sizes.iter().zip(&slot.strides).map(|(&n, s)| (n as isize - 1) * s).sum();
    let bytes = ty.dtype.bytes() as u64;
    Some((slot.offset, slot.offset + (last as u64 + 1) * bytes))
}

fn within(program: &Program, range: (u64, u64)) -> Result<(), String> {
    if range.1 <= program.arena_bytes {
        return Ok(());
    }
    Err(format!("bytes {}..{} lie outside of the arena", range.0, range.1))
}

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.1 && b.0 < a.1
}

/// Makes `owner` the writer of a range; what was there keeps its other bytes.
fn write(memory: &mut Memory, (from, to): (u64, u64), owner: Owner) {
    let first = memory.range(..from).next_back().map_or(from, |(k, _)| *k);
    let touched: Vec<(u64, (u64, Owner))> = memory
        .range(first..to)
        .filter(|(k, v)| overlap((**k, v.0), (from, to)))
        .map(|(k, v)| (*k, *v))
        .collect();
    for (start, (end, who)) in touched {
        memory.remove(&start);
        if start < from {
            memory.insert(start, (from, who));
        }
        if end > to {
            memory.insert(to, (end, who));
        }
    }
    if from < to {
        memory.insert(from, (to, owner));
    }
}

/// Whether the value's producer wrote the whole range last (a copied view is its own producer).
fn holds(memory: &Memory, (from, to): (u64, u64), root: ValueId) -> bool {
    let mut at = from;
    let first = memory.range(..=from).next_back().map_or(from, |(k, _)| *k);
    for (start, (end, who)) in memory.range(first..to) {
        if *end <= from {
            continue;
        }
        if *start > at || *who != Owner::Value(root) {
            return false;
        }
        at = *end;
    }
    at >= to
}
