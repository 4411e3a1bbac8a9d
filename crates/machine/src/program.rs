//! Programs: straight-line sections over one arena, everything placed.

use crate::slot::Slot;
use crate::target::Claim;
use aerogel_graph::{Axes, Build, Graph, Role, StateId, ValueId};

/// One thing that a section does.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Run a kernel over a region.
    Kernel {
        /// What the target offered.
        claim: Claim,
        /// Byte offset of the workspace.
        workspace: u64,
    },
    /// Copy a value into a state: an assignment that could not be made in place.
    Assign {
        /// The new value.
        from: ValueId,
        /// The state.
        to: StateId,
    },
}

/// A straight line of steps.
#[derive(Clone, Debug)]
pub struct Section {
    /// `micro.0`, `micro.last`, `update`, `eval`, `decode`, ...
    pub name: String,
    /// The graph that it computes.
    pub graph: Graph,
    /// Where each value lies; `None` for values inside of regions.
    pub slots: Vec<Option<Slot>>,
    /// What is run, in order.
    pub steps: Vec<Step>,
}

/// Where a state lies: row-major, at the same place in every section.
#[derive(Clone, Debug, PartialEq)]
pub struct StateSlot {
    /// Unique name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its dtype's name and its axes with extents.
    pub dtype: aerogel_graph::DType,
    /// Axis names and extents, outermost first.
    pub axes: Vec<(String, usize)>,
    /// Byte offset.
    pub offset: u64,
    /// Bytes of its elements.
    pub bytes: u64,
    /// Value before the first step.
    pub init: aerogel_graph::Init,
}

/// All that a device needs: nothing is decided or allocated after it is loaded.
#[derive(Clone, Debug)]
pub struct Program {
    /// The sections.
    pub sections: Vec<Section>,
    /// The states of all sections.
    pub states: Vec<StateSlot>,
    /// Bytes of the one arena.
    pub arena_bytes: u64,
    /// Names everything above: equal hashes run the same instructions at the same places.
    pub hash: String,
}

impl Section {
    /// The slot of a value that has one.
    pub fn slot(&self, v: ValueId) -> Option<&Slot> {
        self.slots[v.index()].as_ref()
    }

    /// The axis table.
    pub fn axes(&self) -> &Axes {
        self.graph.axes()
    }

    /// The value of the named input.
    pub fn input(&self, name: &str) -> Option<ValueId> {
        self.graph.find_input(name).map(|i| i.value)
    }
}

impl Program {
    /// The section of that name.
    pub fn section(&self, name: &str) -> Option<usize> {
        self.sections.iter().position(|s| s.name == name)
    }

    /// The state of that name.
    pub fn state(&self, name: &str) -> Option<&StateSlot> {
        self.states.iter().find(|s| s.name == name)
    }
}
