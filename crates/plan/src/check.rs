//! The checker: runs a section's memory without its arithmetic, and refuses a program in which a
//! step reads what it should not. It knows slots and steps, not how they were chosen.
//!
//! A view that no step runs renames memory. Of a split, merge, rename or slice the output must be
//! the window of the input that the view is; of a concatenation each input must be the window of
//! the output that it becomes, and the output's bytes are then those that the inputs' producers
//! wrote. In either case the bytes themselves are followed, from who wrote them last to who reads.

use crate::error::PlanError;
use crate::layout::window;
use aerogel_graph::ops::View;
use aerogel_graph::{AxisId, Build, Def, Graph, Node, NodeId, Op, Role, StateId, ValueId};
use aerogel_machine::{Claim, Program, Section, StateSlot, Step, Uses};
use std::collections::{BTreeMap, HashMap, HashSet};

/// First byte, and the byte after the last.
type Range = (u64, u64);

/// Whose bytes they are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Owner {
    /// The kernel's that makes the value; an input's or a state's, as the section finds it.
    Value(ValueId),
    /// A state's new value, copied there.
    Copied(StateId),
    /// A state's of another section, by position; or those of a state's further copies.
    Foreign(usize),
    /// Nobody's: a workspace.
    Scratch,
}

/// Checks one section: each read finds the bytes that its value's producer wrote, no kernel writes
/// over an operand that its claim does not allow, every state ends with its new value or keeps its
/// old one, and everything lies inside of the arena.
///
/// Of a state with several copies, one for each micro-batch in flight, the section is run on the
/// first: the others, which lie at equal strides after it, must stay as they are. What host and
/// ranks exchange must not lie in such a state, for its place would depend on the run.
///
/// # Errors
/// The first step at which that fails.
pub fn section(s: &Section, program: &Program) -> Result<(), PlanError> {
    let mut walk = Walk::new(s, program);
    let fail = |step: usize, message: String| PlanError::Unsound {
        section: s.name.clone(),
        step,
        message,
    };
    walk.begin().map_err(|m| fail(0, m))?;
    for (i, step) in s.steps.iter().enumerate() {
        match step {
            Step::Kernel { claim, workspace } => walk.kernel(claim, *workspace),
            Step::Assign { from, to } => walk.assign(*from, *to),
        }
        .map_err(|m| fail(i, m))?;
    }
    walk.end().map_err(|m| fail(s.steps.len(), m))
}

/// The memory of a section, step after step.
struct Walk<'a> {
    section: &'a Section,
    graph: &'a Graph,
    arena_bytes: u64,
    states: HashMap<&'a str, (usize, &'a StateSlot)>,
    uses: Uses,
    /// Which nodes a kernel runs: a view among them moves bytes, one that is not is a window.
    run: HashSet<NodeId>,
    /// Who wrote the bytes from a key up to (excluding) `.0`.
    memory: BTreeMap<u64, (u64, Owner)>,
    copied: HashSet<StateId>,
}

impl<'a> Walk<'a> {
    fn new(section: &'a Section, program: &'a Program) -> Walk<'a> {
        let claims = section.steps.iter().filter_map(|step| match step {
            Step::Kernel { claim, .. } => Some(&claim.nodes),
            Step::Assign { .. } => None,
        });
        let states = program.states.iter().enumerate().map(|(i, s)| (s.name.as_str(), (i, s)));
        Walk {
            section,
            graph: &section.graph,
            arena_bytes: program.arena_bytes,
            states: states.collect(),
            uses: Uses::new(&section.graph),
            run: claims.flatten().copied().collect(),
            memory: BTreeMap::new(),
            copied: HashSet::new(),
        }
    }

    /// States of all sections are in their places, and the host has written the inputs.
    fn begin(&mut self) -> Result<(), String> {
        let g = self.graph;
        let mut several = None;
        for (i, range) in self.foreign() {
            self.write(range, Owner::Foreign(i))?;
        }
        for state in g.states() {
            let ty = g.ty(state.value);
            let Some((_, wanted)) = self.states.get(state.name.as_str()) else {
                return Err(format!("the program has no state `{}`", state.name));
            };
            let there = self.section.slot(state.value).is_some_and(|slot| {
                slot.offset == wanted.offset && slot.is_contiguous(g.axes(), ty)
            });
            if !there || ty.bytes(g.axes()) != wanted.bytes || state.copies != wanted.copies {
                return Err(format!("state `{}` is not where the program has it", state.name));
            }
            if state.copies > 1 && *several.get_or_insert(state.copies) != state.copies {
                let (name, copies) = (&state.name, state.copies);
                return Err(format!("of state `{name}` there are {copies} copies, unlike others"));
            }
        }
        let given = g.states().iter().map(|s| s.value).chain(g.inputs().iter().map(|i| i.value));
        given.into_iter().try_for_each(|v| self.write(self.extent(v)?, Owner::Value(v)))
    }

    /// What this section may not touch, by state: those that it does not declare, and all copies
    /// but the first of those that it does. Caches end where another section begins.
    fn foreign(&self) -> Vec<(usize, Range)> {
        let own: HashSet<&str> = self.graph.states().iter().map(|s| s.name.as_str()).collect();
        let mut list = vec![];
        for &(i, s) in self.states.values() {
            let declared = own.contains(s.name.as_str());
            let first = match declared || s.role == Role::Cache {
                true => 1,
                false => 0,
            };
            for copy in first..u64::from(s.copies) {
                let from = s.offset + copy * s.stride_bytes;
                list.push((i, (from, from + s.bytes)));
            }
        }
        list.sort_unstable();
        list
    }

    /// Whether a range lies in a state of several copies.
    fn is_in_flight(&self, range: Range) -> bool {
        self.states.values().any(|(_, s)| {
            let end = s.offset + u64::from(s.copies) * s.stride_bytes;
            s.copies > 1 && overlap(range, (s.offset, end))
        })
    }

    fn kernel(&mut self, claim: &Claim, workspace: u64) -> Result<(), String> {
        let reads = self.uses.imports(self.graph, &claim.nodes);
        let writes = self.uses.exports(self.graph, &claim.nodes);
        let read = reads
            .iter()
            .map(|&v| Ok((v, self.read(v)?)))
            .collect::<Result<Vec<(ValueId, Range)>, String>>()?;
        let mut written: Vec<Range> = vec![];
        for &v in &writes {
            let range = self.extent(v)?;
            for &(r, at) in &read {
                let allowed = range == at && claim.in_place.contains(&(r, v));
                if overlap(range, at) && !allowed {
                    return Err(format!("{} writes {v:?} over its operand {r:?}", claim.kernel));
                }
            }
            if written.iter().any(|&w| overlap(w, range)) {
                return Err(format!("{} writes {v:?} over another result", claim.kernel));
            }
            written.push(range);
            self.write(range, Owner::Value(v))?;
        }
        self.collective(claim)?;
        let scratch = (workspace, workspace + claim.workspace_bytes);
        if read.iter().any(|r| overlap(r.1, scratch))
            || written.iter().any(|&w| overlap(w, scratch))
        {
            return Err(format!("the workspace of {} overlaps an operand", claim.kernel));
        }
        self.write(scratch, Owner::Scratch)
    }

    /// A collective is run alone, out of place, and on bytes without gaps.
    fn collective(&self, claim: &Claim) -> Result<(), String> {
        let g = self.graph;
        let is = |n: &&NodeId| matches!(g.node(**n).op, Op::Collective(_));
        let Some(node) = claim.nodes.iter().find(is).map(|n| g.node(*n)) else { return Ok(()) };
        if claim.nodes.len() > 1 || !claim.in_place.is_empty() {
            return Err(format!("{} does not run alone and out of place", claim.kernel));
        }
        for &v in node.ins.iter().chain(&node.outs) {
            let range = self.extent(v)?;
            if !self.is_at(v, range.0) {
                return Err(format!("{} takes {v:?}, which has gaps", claim.kernel));
            }
            if self.is_in_flight(range) {
                return Err(format!("{} takes {v:?}, of which there are copies", claim.kernel));
            }
        }
        Ok(())
    }

    fn assign(&mut self, from: ValueId, to: StateId) -> Result<(), String> {
        let state = &self.graph.states()[to.index()];
        if !self.graph.assigns.contains(&(to, from)) {
            return Err(format!("copies {from:?} into state `{}`, which is not so", state.name));
        }
        let (read, range) = (self.read(from)?, self.extent(state.value)?);
        if !self.is_at(from, read.0) {
            return Err(format!("copies {from:?}, a window with gaps, as if it had none"));
        }
        if overlap(read, range) {
            return Err(format!("copies {from:?} into state `{}` over itself", state.name));
        }
        if self.is_in_flight(read) {
            return Err(format!("copies {from:?}, of which there are copies"));
        }
        self.copied.insert(to);
        self.write(range, Owner::Copied(to))
    }

    /// The host reads the outputs; each state holds its new value, by place or by copy, or its old.
    fn end(&self) -> Result<(), String> {
        let g = self.graph;
        for (name, v) in &g.outputs {
            let range = self.read(*v).map_err(|m| format!("output `{name}`: {m}"))?;
            if self.is_in_flight(range) {
                return Err(format!("output `{name}` lies in a state of several copies"));
            }
        }
        let new: HashMap<StateId, ValueId> = g.assigns.iter().copied().collect();
        for (id, state) in g.states().iter().enumerate() {
            let id = StateId(id as u32);
            let range = self.extent(state.value)?;
            let holds = match new.get(&id) {
                Some(_) if self.copied.contains(&id) => self.holds(range, Owner::Copied(id)),
                Some(&v) => self.is_at(v, range.0) && self.read(v) == Ok(range),
                None => self.holds(range, Owner::Value(state.value)),
            };
            if !holds {
                return Err(format!("state `{}` does not hold its value at the end", state.name));
            }
        }
        for (i, range) in self.foreign() {
            if !self.holds(range, Owner::Foreign(i)) {
                let state = self.states.values().find(|s| s.0 == i).map_or("", |s| &s.1.name);
                return Err(format!("state `{state}` of another section or copy was written"));
            }
        }
        Ok(())
    }

    /// Whether a value lies row-major without gaps from an offset on.
    fn is_at(&self, v: ValueId, offset: u64) -> bool {
        let (axes, ty) = (self.graph.axes(), self.graph.ty(v));
        self.section.slot(v).is_some_and(|s| s.offset == offset && s.is_contiguous(axes, ty))
    }

    /// Where a value lies, if its producers' bytes are still there.
    fn read(&self, v: ValueId) -> Result<Range, String> {
        let range = self.extent(v)?;
        let mut writers = vec![];
        self.writers(v, range, &mut writers)?;
        if writers.iter().all(|&(range, owner)| self.holds(range, Owner::Value(owner))) {
            return Ok(range);
        }
        Err(format!("reads {v:?}, whose bytes are not there or were written over"))
    }

    /// Who must have written the bytes of a range of a value: one value, unless the bytes are those
    /// of a concatenation that no step runs.
    fn writers(
        &self,
        v: ValueId,
        range: Range,
        list: &mut Vec<(Range, ValueId)>,
    ) -> Result<(), String> {
        let root = self.root(v)?;
        let Some((node, axes, into)) = self.joined(root) else {
            list.push((range, root));
            return Ok(());
        };
        let mut start = 0;
        for (&part, &axis) in node.ins.iter().zip(axes) {
            if !self.is_part(part, axis, root, into, start)? {
                return Err(format!("reads {v:?}, whose part {part:?} lies elsewhere"));
            }
            start += self.graph.axes().size(axis);
            let own = self.extent(part)?;
            if overlap(own, range) {
                self.writers(part, (own.0.max(range.0), own.1.min(range.1)), list)?;
            }
        }
        Ok(())
    }

    /// The concatenation that makes the value, if no step runs it.
    fn joined(&self, v: ValueId) -> Option<(&'a Node, &'a [AxisId], AxisId)> {
        let Def::Node(n, _) = self.graph.value(v).def else { return None };
        match &self.graph.node(n).op {
            Op::View(View::Concat { axes, into }) if !self.run.contains(&n) => {
                Some((self.graph.node(n), axes, *into))
            }
            _ => None,
        }
    }

    /// Whether a part lies in the whole where the concatenation has it: from index `start` of axis
    /// `into`, at the strides of the whole.
    fn is_part(
        &self,
        part: ValueId,
        axis: AxisId,
        whole: ValueId,
        into: AxisId,
        start: usize,
    ) -> Result<bool, String> {
        let g = self.graph;
        let (Some(own), Some(of)) = (self.section.slot(part), self.section.slot(whole)) else {
            return Err(format!("reads {whole:?}, and it or its part {part:?} has no slot"));
        };
        let stride = |a: AxisId| {
            let list = &g.ty(whole).axes;
            list.iter().position(|&x| x == a).map(|p| of.strides[p])
        };
        let first = stride(into).unwrap_or(0) * start as isize;
        let offset = of.offset + first as u64 * g.ty(whole).dtype.bytes() as u64;
        let alike = |(&a, &s): (&AxisId, &isize)| {
            g.axes().size(a) == 1 || stride(if a == axis { into } else { a }) == Some(s)
        };
        Ok(own.offset == offset && g.ty(part).axes.iter().zip(&own.strides).all(alike))
    }

    /// The value whose producer wrote the bytes: through views that are windows, each of which must
    /// be the window that its view is; up to a concatenation that no step runs.
    fn root(&self, mut v: ValueId) -> Result<ValueId, String> {
        let g = self.graph;
        while let Def::Node(n, _) = g.value(v).def
            && !self.run.contains(&n)
            && self.joined(v).is_none()
        {
            let node = g.node(n);
            let Op::View(op) = &node.op else {
                return Err(format!("reads {v:?}, which no step makes"));
            };
            let from = node.ins[0];
            let (Some(whole), Some(slot)) = (self.section.slot(from), self.section.slot(v)) else {
                return Err(format!("reads {v:?}, a window of what has no slot"));
            };
            let fits = window(op, &g.ty(from).axes, 0, &whole.strides, g.axes());
            let bytes = g.ty(v).dtype.bytes();
            let same = fits.is_some_and(|(first, strides)| {
                slot.offset == whole.offset + (first * bytes) as u64 && slot.strides == strides
            });
            if !same {
                return Err(format!("reads {v:?}, which is another window of {from:?}"));
            }
            v = from;
        }
        Ok(v)
    }

    fn extent(&self, v: ValueId) -> Result<Range, String> {
        let Some(slot) = self.section.slot(v) else {
            return Err(format!("{v:?} has no slot"));
        };
        let ty = self.graph.ty(v);
        let sizes = self.graph.axes().sizes(&ty.axes);
        let last: isize = sizes.iter().zip(&slot.strides).map(|(&n, s)| (n as isize - 1) * s).sum();
        Ok((slot.offset, slot.offset + (last as u64 + 1) * ty.dtype.bytes() as u64))
    }

    /// Makes `owner` the writer of a range; what was there keeps its other bytes.
    fn write(&mut self, (from, to): Range, owner: Owner) -> Result<(), String> {
        if from >= to {
            return Ok(());
        }
        if to > self.arena_bytes {
            let arena = self.arena_bytes;
            return Err(format!("bytes {from}..{to} lie outside of the arena of {arena} bytes"));
        }
        let first = self.memory.range(..from).next_back().map_or(from, |(k, _)| *k);
        let touched: Vec<(u64, (u64, Owner))> = self
            .memory
            .range(first..to)
            .filter(|(k, v)| overlap((**k, v.0), (from, to)))
            .map(|(k, v)| (*k, *v))
            .collect();
        for (start, (end, who)) in touched {
            self.memory.remove(&start);
            if start < from {
                self.memory.insert(start, (from, who));
            }
            if end > to {
                self.memory.insert(to, (end, who));
            }
        }
        self.memory.insert(from, (to, owner));
        Ok(())
    }

    /// Whether `owner` wrote the whole range last.
    fn holds(&self, (from, to): Range, owner: Owner) -> bool {
        let mut at = from;
        let first = self.memory.range(..=from).next_back().map_or(from, |(k, _)| *k);
        for (start, (end, who)) in self.memory.range(first..to) {
            if *end <= from {
                continue;
            }
            if *start > at || *who != owner {
                return false;
            }
            at = *end;
        }
        at >= to
    }
}

fn overlap(a: Range, b: Range) -> bool {
    a.0 < b.1 && b.0 < a.1
}
