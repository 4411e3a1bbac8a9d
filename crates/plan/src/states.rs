//! Where states lie: the same place in every section.

use crate::Ask;
use crate::error::PlanError;
use aerogel_graph::{Axis, AxisId, Build, Graph, Role, State};
use aerogel_machine::{ALIGN, Part, StateSlot};
use std::collections::HashMap;

/// The states of all sections.
///
/// Those that last come first, in order of first appearance; the transient region follows. Caches
/// lie at its start: one lives from one run of its section to the next, and no longer than until
/// another kind of section runs.
pub(crate) struct States {
    pub slots: Vec<StateSlot>,
    by_name: HashMap<String, usize>,
    /// End of the states that last.
    base: u64,
    /// End of all states, caches included.
    pub end_bytes: u64,
}

impl States {
    /// Places the states of all sections.
    pub fn place(asks: &[Ask]) -> Result<States, PlanError> {
        let mut states = States { slots: vec![], by_name: HashMap::new(), base: 0, end_bytes: 0 };
        states.place_those(asks, |role| role != Role::Cache)?;
        states.base = states.end_bytes;
        states.place_those(asks, |role| role == Role::Cache)?;
        Ok(states)
    }

    fn place_those(&mut self, asks: &[Ask], wanted: fn(Role) -> bool) -> Result<(), PlanError> {
        for ask in asks {
            for state in ask.graph.states().iter().filter(|s| wanted(s.role)) {
                let Some(&known) = self.by_name.get(&state.name) else {
                    self.push(&ask.graph, state);
                    continue;
                };
                if !agrees(&self.slots[known], &ask.graph, state) {
                    let (name, section) = (state.name.clone(), ask.name.clone());
                    return Err(PlanError::States { name, section });
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, g: &Graph, state: &State) {
        let ty = g.ty(state.value);
        let bytes = ty.bytes(g.axes());
        let axes = |list: &[AxisId]| list.iter().map(|&a| g.axes()[a].clone()).collect::<Vec<_>>();
        let (class, init, all) = (state.class, state.init, axes(&ty.axes));
        let whole = Part { name: state.name.clone(), class, init, axes: all.clone(), first: 0 };
        let parts = state.parts.iter().map(|p| Part {
            name: p.name.clone(),
            class: p.class,
            init: p.init,
            axes: axes(&p.axes),
            first: p.first,
        });
        let stride_bytes = bytes.next_multiple_of(ALIGN);
        self.by_name.insert(state.name.clone(), self.slots.len());
        self.slots.push(StateSlot {
            name: state.name.clone(),
            role: state.role,
            dtype: ty.dtype,
            axes: all,
            offset: self.end_bytes,
            bytes,
            copies: state.copies,
            stride_bytes,
            parts: if state.parts.is_empty() { vec![whole] } else { parts.collect() },
        });
        self.end_bytes += u64::from(state.copies) * stride_bytes;
    }

    /// Byte offset of the named state.
    pub fn offset(&self, name: &str) -> u64 {
        self.slots[self.by_name[name]].offset
    }

    /// Where a section's transient values may begin: after its caches, if it has any.
    pub fn transient_base(&self, g: &Graph) -> u64 {
        let caches = g.states().iter().any(|s| s.role == Role::Cache);
        if caches { self.end_bytes } else { self.base }
    }
}

fn agrees(slot: &StateSlot, g: &Graph, state: &State) -> bool {
    let ty = g.ty(state.value);
    let named = |(a, axis): (&AxisId, &Axis)| g.axes()[*a] == *axis;
    slot.dtype == ty.dtype
        && slot.copies == state.copies
        && slot.axes.len() == ty.axes.len()
        && ty.axes.iter().zip(&slot.axes).all(named)
}
