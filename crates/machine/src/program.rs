//! Programs: straight-line sections over one arena, everything placed.

use crate::slot::Slot;
use crate::target::Claim;
use aerogel_graph::{Axes, Axis, Build, Graph, Init, ParamClass, Place, Role, StateId, ValueId};

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

/// A tensor of a checkpoint, and where a state holds it or a part of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Unique name.
    pub name: String,
    /// What the parameter is, if it is one.
    pub class: Option<ParamClass>,
    /// Value before the first step.
    pub init: Init,
    /// Its axes, outermost first, pieces of longer ones perhaps; its elements lie row-major.
    pub axes: Vec<Axis>,
    /// Its first element in the whole state.
    pub first: usize,
}

/// Elements that follow one another both in a tensor and in a rank's piece of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First element in the whole tensor, row-major.
    pub global: u64,
    /// First element in the state as this rank has it.
    pub local: u64,
    /// How many.
    pub count: u64,
}

/// Where a state lies: row-major, at the same place in every section.
#[derive(Clone, Debug, PartialEq)]
pub struct StateSlot {
    /// Unique name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its dtype.
    pub dtype: aerogel_graph::DType,
    /// Its axes, outermost first.
    pub axes: Vec<Axis>,
    /// Byte offset.
    pub offset: u64,
    /// Bytes of its elements.
    pub bytes: u64,
    /// How many copies there are, for micro-batches in flight.
    pub copies: u32,
    /// Bytes from one copy to the next.
    pub stride_bytes: u64,
    /// The tensors in it: itself, unless it is a bucket.
    pub parts: Vec<Part>,
}

impl Part {
    /// Extents of the whole tensor.
    pub fn global_sizes(&self) -> Vec<u64> {
        self.axes.iter().map(|a| a.global_size() as u64).collect()
    }

    /// Elements of the piece that this rank's state is a part of.
    pub fn count(&self) -> u64 {
        self.axes.iter().map(|a| a.size as u64).product()
    }
}

impl StateSlot {
    /// Which elements of a part's whole tensor the rank at `place` holds, ascending.
    pub fn runs(&self, part: &Part, place: Place) -> Vec<Run> {
        let whole_bucket = part.axes.len() == self.axes.len() && part.axes == self.axes;
        // The elements of the state that this rank has: all, or a range of a flat bucket.
        let held = match self.axes.as_slice() {
            [flat] if !whole_bucket => {
                let first = flat.piece(0, place) * flat.size as u64;
                first..first + flat.size as u64
            }
            _ => 0..self.axes.iter().map(|a| a.size as u64).product(),
        };
        let first = part.first as u64;
        let from = held.start.max(first);
        let to = held.end.min(first + part.count());
        let mut runs: Vec<Run> = vec![];
        let mut at = from;
        while at < to {
            let (global, row) = part.global_run(at - first, place);
            let count = row.min(to - at);
            let local = at - held.start;
            match runs.last_mut() {
                Some(r) if r.global + r.count == global && r.local + r.count == local => {
                    r.count += count;
                }
                _ => runs.push(Run { global, local, count }),
            }
            at += count;
        }
        runs
    }
}

impl Part {
    /// The global index of a local element, and how many elements follow one another from there.
    fn global_run(&self, local: u64, place: Place) -> (u64, u64) {
        let mut inner = 1;
        let (mut global, mut stride, mut rest) = (0, 1, local);
        let mut whole = true;
        for axis in self.axes.iter().rev() {
            let (size, total) = (axis.size as u64, axis.global_size() as u64);
            global += (axis.piece(0, place) * size + rest % size) * stride;
            rest /= size;
            stride *= total;
            if whole {
                inner *= size;
                whole = size == total;
            }
        }
        (global, inner - local % inner)
    }
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

    /// The state that holds a tensor, and the tensor's part in it.
    pub fn tensor(&self, name: &str) -> Option<(&StateSlot, &Part)> {
        let find = |s: &'_ StateSlot| s.parts.iter().position(|p| p.name == name);
        self.states.iter().find_map(|s| find(s).map(|i| (s, &s.parts[i])))
    }
}
