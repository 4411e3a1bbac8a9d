//! Which new values of states are written straight into their slots.

use crate::layout::Layout;
use crate::operands::is_multiple;
use crate::select::{Selected, happens_before};
use aerogel_graph::{Def, Graph, Op, StateId, ValueId};
use std::collections::{HashMap, HashSet};

/// How a state gets its new value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Store {
    /// Its producers write it into the state's slot.
    InPlace,
    /// It is copied there when all else is done.
    Copied,
}

/// A step that reads or writes a value.
#[derive(Clone, Copy)]
struct Access {
    step: usize,
    value: ValueId,
}

/// Accesses by the value that owns the memory.
type ByRoot = HashMap<ValueId, Vec<Access>>;

/// How each assignment of the section is made, in their order.
pub(crate) fn stores(
    g: &Graph,
    layout: &Layout,
    selected: &Selected,
) -> Vec<(ValueId, StateId, Store)> {
    let (mut reads, mut writes) = (ByRoot::new(), ByRoot::new());
    for (step, claim) in selected.claims.iter().enumerate() {
        let add = |to: &mut ByRoot, values: Vec<ValueId>| {
            for value in values {
                to.entry(layout.root(value)).or_default().push(Access { step, value });
            }
        };
        add(&mut reads, selected.uses.imports(g, &claim.nodes));
        add(&mut writes, selected.uses.exports(g, &claim.nodes));
    }
    let still = standing(g, layout);
    let mut used = HashSet::new();
    let mut of = |(state, v): (StateId, ValueId)| {
        let (old, root) = (g.states()[state.index()].value, layout.root(v));
        let made = matches!(g.value(root).def, Def::Node(..)) && layout.is_whole(g, v);
        let none = vec![];
        let (old, new) = (reads.get(&old).unwrap_or(&none), writes.get(&root).unwrap_or(&none));
        let sound = made
            && !used.contains(&root)
            && !(is_multiple(g, state) && still.contains(&root))
            && new.iter().all(|write| may_write(g, layout, selected, old, *write));
        if sound {
            used.insert(root);
        }
        (v, state, if sound { Store::InPlace } else { Store::Copied })
    };
    g.assigns.iter().map(|&a| of(a)).collect()
}

/// What must lie in one place whichever micro-batch a section runs on: what the host reads, what
/// ranks exchange, and what is copied into a second state.
fn standing(g: &Graph, layout: &Layout) -> HashSet<ValueId> {
    let outputs = g.outputs.iter().map(|o| layout.root(o.1));
    let messages = g.nodes().iter().filter(|n| matches!(n.op, Op::Collective(_)));
    let messages = messages.flat_map(|n| n.ins.iter().chain(&n.outs)).map(|v| layout.root(*v));
    let mut once = HashSet::new();
    let again = g.assigns.iter().map(|a| layout.root(a.1)).filter(|root| !once.insert(*root));
    let again: Vec<ValueId> = again.collect();
    outputs.chain(messages).chain(again).collect()
}

/// Whether one write of a new value may go over the old one: what it covers must not be read
/// afterwards, and by the step that writes only element by element, and through one value.
fn may_write(
    g: &Graph,
    layout: &Layout,
    selected: &Selected,
    reads: &[Access],
    write: Access,
) -> bool {
    let written = layout.reach(g, write.value);
    let covers = |read: &&Access| {
        let read = layout.reach(g, read.value);
        read.0 < written.1 && written.0 < read.1
    };
    let late = |read: &&Access| !happens_before(read.step, write.step);
    let mut late = reads.iter().filter(covers).filter(late);
    let Some(read) = late.next() else { return true };
    let (from, to) = (layout.view(read.value), layout.view(write.value));
    late.next().is_none()
        && read.step == write.step
        && from.first == to.first
        && from.strides == to.strides
        && selected.claims[write.step].in_place.contains(&(read.value, write.value))
}
