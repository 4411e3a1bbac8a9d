//! What runs on a GPU, as plain data: kernels in order, with parameters in which addresses are
//! still names.
//!
//! Nothing here needs a driver, so a plan can ask for it on any machine. A [`Device`] puts numbers
//! where the names are, once, when it loads a program.
//!
//! [`Device`]: aerogel_machine::Device

use crate::source::Source;
use aerogel_graph::DType;
use std::sync::Arc;

/// Something that lies in the GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// So many bytes after an operand's element at the origin.
    Operand {
        /// Which, in the order of the spec.
        operand: usize,
        /// Bytes.
        bytes: i64,
    },
    /// A byte of the workspace.
    Workspace(u64),
    /// The first byte of one of the kernel's tables.
    Table(usize),
    /// The `Clock` of the section.
    Clock,
    /// The scalar that holds the position of the first query, for decoding.
    Position,
    /// Nothing.
    Null,
}

impl Address {
    /// An operand's element at the origin.
    pub fn operand(operand: usize) -> Address {
        Address::Operand { operand, bytes: 0 }
    }

    /// So many bytes further; tables and scalars are not moved in.
    #[must_use]
    pub fn plus(self, more: i64) -> Address {
        match self {
            Address::Operand { operand, bytes } => {
                Address::Operand { operand, bytes: bytes + more }
            }
            Address::Workspace(at) => Address::Workspace(at.wrapping_add_signed(more)),
            other => other,
        }
    }
}

/// A map for the tensor copy engine of Hopper: rank 5, a swizzle of 128 bytes, zeros out of bounds.
/// Axes are listed from inside; the innermost is contiguous.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// What it is of: bf16 or f16.
    pub dtype: DType,
    /// Where it begins, a multiple of 16 bytes.
    pub address: Address,
    /// Sizes of the axes.
    pub sizes: [u64; 5],
    /// Elements from step to step of the four outer axes, multiples of 8.
    pub strides: [u64; 4],
    /// Sizes of what one copy takes.
    pub tile: [u32; 5],
}

/// The one argument of a kernel: its bytes in the layout of C, and where addresses belong in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    bytes: Vec<u8>,
    /// Byte and address, 8 bytes each.
    addresses: Vec<(usize, Address)>,
    /// Byte and map, 128 bytes each.
    maps: Vec<(usize, TensorMap)>,
}

/// Bytes of an encoded tensor map.
pub(crate) const MAP_BYTES: usize = 128;

impl Parameters {
    /// No fields yet.
    pub fn new() -> Parameters {
        Parameters::default()
    }

    /// Fills up to a multiple of `bytes`: what a field of that alignment, or the end of a struct
    /// that has one, asks for.
    pub fn align(&mut self, bytes: usize) -> &mut Parameters {
        self.bytes.resize(self.bytes.len().next_multiple_of(bytes), 0);
        self
    }

    fn field(&mut self, bytes: &[u8]) -> &mut Parameters {
        self.align(bytes.len()).bytes.extend(bytes);
        self
    }

    /// A field of 4 bytes.
    pub fn u32(&mut self, x: u32) -> &mut Parameters {
        self.field(&x.to_le_bytes())
    }

    /// A field of 4 bytes.
    pub fn f32(&mut self, x: f32) -> &mut Parameters {
        self.field(&x.to_le_bytes())
    }

    /// A field of 8 bytes.
    pub fn u64(&mut self, x: u64) -> &mut Parameters {
        self.field(&x.to_le_bytes())
    }

    /// A field of 8 bytes: a stride in elements, mostly.
    pub fn i64(&mut self, x: i64) -> &mut Parameters {
        self.field(&x.to_le_bytes())
    }

    /// A field of 8 bytes that becomes an address.
    pub fn address(&mut self, address: Address) -> &mut Parameters {
        self.field(&[0; 8]);
        if address != Address::Null {
            self.addresses.push((self.bytes.len() - 8, address));
        }
        self
    }

    /// A field of 128 bytes, 64-byte aligned, that becomes an encoded map.
    pub fn map(&mut self, map: TensorMap) -> &mut Parameters {
        self.align(64).bytes.extend([0; MAP_BYTES]);
        self.maps.push((self.bytes.len() - MAP_BYTES, map));
        self
    }

    /// The fields of another struct of 8-byte alignment (64 if it has maps), as a field.
    pub fn append(&mut self, other: &Parameters) -> &mut Parameters {
        self.align(if other.maps.is_empty() { 8 } else { 64 });
        let at = self.bytes.len();
        self.bytes.extend(&other.bytes);
        self.addresses.extend(other.addresses.iter().map(|&(byte, a)| (at + byte, a)));
        self.maps.extend(other.maps.iter().map(|(byte, m)| (at + byte, m.clone())));
        self
    }

    /// Puts other addresses for those that there are.
    pub fn rename(&mut self, of: impl Fn(Address) -> Address) {
        self.addresses.iter_mut().for_each(|(_, address)| *address = of(*address));
        self.maps.iter_mut().for_each(|(_, map)| map.address = of(map.address));
    }

    /// What of them lies in these bytes, as an argument of its own.
    #[cfg(test)]
    pub(crate) fn part(&self, bytes: std::ops::Range<usize>) -> Parameters {
        let inside = |byte: &usize| bytes.contains(byte).then(|| byte - bytes.start);
        let addresses = self.addresses.iter().filter_map(|(byte, a)| Some((inside(byte)?, *a)));
        let maps = self.maps.iter().filter_map(|(byte, m)| Some((inside(byte)?, m.clone())));
        let (addresses, maps) = (addresses.collect(), maps.collect());
        Parameters { bytes: self.bytes[bytes].to_vec(), addresses, maps }
    }

    /// The bytes, zero where addresses and maps belong.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where addresses belong: byte and address.
    pub fn addresses(&self) -> &[(usize, Address)] {
        &self.addresses
    }

    /// Where encoded maps belong: byte and map.
    pub fn maps(&self) -> &[(usize, TensorMap)] {
        &self.maps
    }
}

/// One start of a compiled kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// What is compiled.
    pub source: Source,
    /// The kernel in it.
    pub entry: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Its argument.
    pub parameters: Parameters,
}

/// What a spec becomes on a GPU: launches that run in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kernel {
    /// The launches.
    pub launches: Vec<Launch>,
    /// Scratch that they need, of which nothing is left to the next run.
    pub workspace_bytes: u64,
    /// Constants that they read, which stay in the GPU's memory: lists of tiles, say. Layers share
    /// equal ones.
    pub tables: Vec<Arc<[u8]>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_as_in_c() {
        let mut inner = Parameters::new();
        inner.u32(7).address(Address::Clock).f32(1.0).align(8);
        let mut outer = Parameters::new();
        outer.u32(1).append(&inner).u32(2).i64(-1);
        let at = outer.addresses()[0];
        assert_eq!((outer.bytes().len(), at), (48, (16, Address::Clock)));
        assert_eq!(outer.bytes()[8..12], 7u32.to_le_bytes());
        assert_eq!(outer.bytes()[32..36], 2u32.to_le_bytes());
        assert_eq!(outer.bytes()[40..48], (-1i64).to_le_bytes());
    }
}
