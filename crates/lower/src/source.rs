//! What lowering looks at: a section, the strides of its values, and the rank's place.

use crate::operand::Operand;
use aerogel_graph::{AxisId, Build, Graph, Place, ValueId};
use aerogel_machine::{Section, Slot, Uses};
use smallvec::SmallVec;

/// Strides of every value, by id, in elements along its axes.
pub type Strides = [SmallVec<[isize; 6]>];

/// What lowering looks at.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The section.
    pub graph: &'a Graph,
    /// Who reads what.
    pub uses: &'a Uses,
    /// Strides of every value.
    pub strides: &'a Strides,
    /// Where this rank is in the mesh: the first rows of tables and constants follow it, shapes do
    /// not.
    pub place: Place,
}

impl Source<'_> {
    /// Strides of a value along a list of axes; 0 where it lacks one.
    pub(crate) fn along(&self, v: ValueId, list: &[AxisId]) -> Vec<isize> {
        let own = &self.graph.ty(v).axes;
        let at =
            |a: &AxisId| own.iter().position(|x| x == a).map_or(0, |p| self.strides[v.index()][p]);
        list.iter().map(at).collect()
    }

    /// A value as an operand of a kernel over the axes.
    pub(crate) fn operand(&self, v: ValueId, list: &[AxisId]) -> Operand {
        self.with(v, self.along(v, list))
    }

    /// A value as an operand with strides of the kernel's own.
    pub(crate) fn with(&self, v: ValueId, strides: Vec<isize>) -> Operand {
        Operand { dtype: self.graph.ty(v).dtype, strides }
    }

    /// The id of the first row that this rank holds of a table.
    pub(crate) fn first_row(&self, axis: AxisId) -> usize {
        let axis = &self.graph.axes()[axis];
        // The ops' rules let ranks alone cut it, so no micro-batch matters.
        axis.piece(0, self.place) as usize * axis.size
    }

    /// The sizes of axes.
    pub(crate) fn sizes(&self, list: &[AxisId]) -> Vec<usize> {
        self.graph.axes().sizes(list)
    }
}

/// The strides of a planned section's values. Values inside of regions have no slot; theirs are
/// those that one would have.
pub fn section_strides(s: &Section) -> Vec<SmallVec<[isize; 6]>> {
    (s.graph.values().iter().zip(&s.slots))
        .map(|(value, slot)| match slot {
            Some(slot) => slot.strides.clone(),
            None => Slot::contiguous(0, s.axes(), &value.ty.axes).strides,
        })
        .collect()
}
