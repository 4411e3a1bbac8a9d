//! How the elements of an operand are stored.

use aerogel_graph::DType;

/// The storage of one operand: an element type, and a stride in elements for each axis of the
/// kernel's iteration space (0 repeats the operand along that axis). Arithmetic is always f32.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operand {
    /// Element type. Floats are written with rounding to nearest, ties to even; arithmetic sees
    /// u32 as f32, exact up to 2^24.
    pub dtype: DType,
    /// Strides in elements, one per axis.
    pub strides: Vec<isize>,
}

impl Operand {
    /// An f32 operand.
    pub fn f32(strides: impl Into<Vec<isize>>) -> Operand {
        Operand { dtype: DType::F32, strides: strides.into() }
    }

    /// A bf16 operand.
    pub fn bf16(strides: impl Into<Vec<isize>>) -> Operand {
        Operand { dtype: DType::Bf16, strides: strides.into() }
    }

    /// A u32 operand.
    pub fn u32(strides: impl Into<Vec<isize>>) -> Operand {
        Operand { dtype: DType::U32, strides: strides.into() }
    }
}
