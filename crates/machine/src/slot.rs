//! Slots: where a value lies.

use aerogel_graph::{Axes, AxisId, Type};
use smallvec::SmallVec;

/// Every slot starts on a cache line.
pub const ALIGN: u64 = 64;

/// A value's place in the arena: byte offset of its first element, and strides in elements along
/// the value's axes, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Bytes from the start of the arena.
    pub offset: u64,
    /// Elements from one to the next along each axis.
    pub strides: SmallVec<[isize; 6]>,
}

impl Slot {
    /// A row-major slot for a type.
    pub fn contiguous(offset: u64, axes: &Axes, list: &[AxisId]) -> Slot {
        let mut strides: SmallVec<[isize; 6]> = SmallVec::from_elem(1, list.len());
        for i in (0..list.len().saturating_sub(1)).rev() {
            strides[i] = strides[i + 1] * axes.size(list[i + 1]) as isize;
        }
        Slot { offset, strides }
    }

    /// Whether the elements lie row-major without gaps.
    pub fn is_contiguous(&self, axes: &Axes, ty: &Type) -> bool {
        let plain = Slot::contiguous(self.offset, axes, &ty.axes);
        let differs = |i: usize| axes.size(ty.axes[i]) > 1 && self.strides[i] != plain.strides[i];
        !(0..ty.axes.len()).any(differs)
    }
}
