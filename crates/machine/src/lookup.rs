//! Where a device finds what it is asked for by name.

use crate::device::DeviceError;
use crate::program::{Program, Section, StateSlot};
use aerogel_graph::{Build, ValueId};

/// Where a value begins in the arena, and by how much it moves from one copy to the next if it lies
/// in a state of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Byte offset in the arena, in copy 0.
    pub offset: u64,
    /// How many copies there are.
    pub copies: u32,
    /// Bytes from one to the next.
    pub stride_bytes: u64,
}

impl Placed {
    /// Byte offset in the arena, in a copy.
    pub fn at(&self, copy: u32) -> u64 {
        self.offset + u64::from(copy) * self.stride_bytes
    }
}

impl Program {
    /// Byte offset in the arena of `bytes` bytes of a state, from `offset_bytes` of it on.
    ///
    /// # Errors
    /// There is none of that name with so many bytes.
    pub fn state_bytes(
        &self,
        name: &str,
        offset_bytes: u64,
        bytes: usize,
    ) -> Result<u64, DeviceError> {
        let end = offset_bytes.checked_add(bytes as u64);
        let found = self.state(name).filter(|s| end.is_some_and(|end| end <= s.bytes));
        let unknown = || DeviceError::Unknown { kind: "state", name: name.to_owned(), bytes };
        Ok(found.ok_or_else(unknown)?.offset + offset_bytes)
    }

    /// Byte offset in the arena of an input of a section, which has so many bytes.
    ///
    /// # Errors
    /// There is none of that name and size.
    pub fn input_bytes(
        &self,
        section: usize,
        name: &str,
        bytes: usize,
    ) -> Result<u64, DeviceError> {
        self.value_bytes(section, "input", name, bytes, |s| s.input(name))
    }

    /// The same of an output.
    ///
    /// # Errors
    /// There is none of that name and size.
    pub fn output_bytes(
        &self,
        section: usize,
        name: &str,
        bytes: usize,
    ) -> Result<u64, DeviceError> {
        self.value_bytes(section, "output", name, bytes, |s| s.graph.find_output(name))
    }

    fn value_bytes(
        &self,
        section: usize,
        kind: &'static str,
        name: &str,
        bytes: usize,
        find: impl Fn(&Section) -> Option<ValueId>,
    ) -> Result<u64, DeviceError> {
        let unknown = || DeviceError::Unknown { kind, name: name.to_owned(), bytes };
        let s = self.sections.get(section).ok_or_else(unknown)?;
        let v = find(s).ok_or_else(unknown)?;
        let (slot, ty) = (s.slot(v).ok_or_else(unknown)?, s.graph.ty(v));
        let fits = ty.bytes(s.axes()) == bytes as u64 && slot.is_contiguous(s.axes(), ty);
        if fits { Ok(slot.offset) } else { Err(unknown()) }
    }

    /// Where a value lies; `None` for those inside of regions.
    pub fn placed(&self, s: &Section, v: ValueId) -> Option<Placed> {
        let offset = s.slot(v)?.offset;
        let within = |x: &&StateSlot| {
            x.copies > 1 && (x.offset..x.offset + x.stride_bytes).contains(&offset)
        };
        let several = self.states.iter().find(within);
        let (copies, stride_bytes) = several.map_or((1, 0), |x| (x.copies, x.stride_bytes));
        Some(Placed { offset, copies, stride_bytes })
    }
}
