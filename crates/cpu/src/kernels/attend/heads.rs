//! What both directions share: where a head's matrices lie, and how scratch is laid out.

use crate::kernel::{KernelError, Ptr};
use crate::kernels::convert;
use crate::kernels::micro::COLS;
use crate::kernels::pack::Factor;
use crate::kernels::pattern::BlockList;
use crate::simd::Simd;
use aerogel_graph::DType;
use aerogel_lower::space::Space;
use aerogel_lower::{Attention, Operand};

/// Where the matrices of each head lie: the space [batch..., kv], and the strides [group, position,
/// width] and the element type of each operand.
#[derive(Clone, Debug)]
pub(crate) struct Heads {
    space: Space,
    inner: Vec<[isize; 3]>,
    pub dtypes: Vec<DType>,
}

impl Heads {
    /// Checks the operands, and that the pattern has as many heads.
    pub fn new(
        spec: &Attention,
        pattern: &BlockList,
        operands: &[&Operand],
    ) -> Result<Heads, KernelError> {
        let rank = spec.batch.len() + 4;
        let mut strides = Vec::new();
        let mut inner = Vec::new();
        for (operand, own) in operands.iter().enumerate() {
            let got = own.strides.len();
            if got != rank {
                return Err(aerogel_lower::LowerError::Rank {
                    kernel: "attend",
                    operand,
                    wanted: rank,
                    got,
                }
                .into());
            }
            if own.dtype == DType::U32 {
                let what = format!("operand {operand} holds u32; attention takes floats");
                return Err(KernelError::Unsupported { kernel: "attend", what });
            }
            let (outer, rest) = own.strides.split_at(rank - 3);
            strides.push(outer.to_vec());
            inner.push([rest[0], rest[1], rest[2]]);
        }
        let heads = pattern.heads;
        if heads != 1 && heads != spec.kv * spec.group {
            let what = format!(
                "the pattern has {heads} heads, the attention {} x {}",
                spec.kv, spec.group
            );
            return Err(KernelError::Unsupported { kernel: "attend", what });
        }
        let sizes = [&spec.batch[..], &[spec.kv]].concat();
        let mut space = Space::new("attend", &sizes, strides)?;
        let count = space.sizes.len();
        space.collapse(count);
        let dtypes = operands.iter().map(|operand| operand.dtype).collect();
        Ok(Heads { space: space.finish("attend")?, inner, dtypes })
    }

    /// The matrix of a head from a position on.
    pub fn at(
        &self,
        ptrs: &[Ptr],
        operand: usize,
        [outer, group]: [usize; 2],
        first: usize,
    ) -> Matrix {
        let [by_group, row, col] = self.inner[operand];
        let offset =
            self.space.offset(operand, outer) + group as isize * by_group + first as isize * row;
        Matrix { ptr: ptrs[operand], dtype: self.dtypes[operand], offset, row, col }
    }
}

/// A matrix [position, width] within an operand.
#[derive(Clone, Copy)]
pub(crate) struct Matrix {
    pub ptr: Ptr,
    pub dtype: DType,
    pub offset: isize,
    pub row: isize,
    pub col: isize,
}

impl Matrix {
    /// From this row on.
    pub fn from(self, row: usize) -> Matrix {
        Matrix { offset: self.offset + row as isize * self.row, ..self }
    }

    /// A factor whose depth is the width.
    pub fn across(self) -> Factor {
        let Matrix { ptr, dtype, offset, row, col } = self;
        Factor { ptr, dtype, offset, side: row, depth: col }
    }

    /// A factor whose depth is the positions.
    pub fn down(self) -> Factor {
        let Matrix { ptr, dtype, offset, row, col } = self;
        Factor { ptr, dtype, offset, side: col, depth: row }
    }

    /// Reads the first row.
    pub unsafe fn load(self, simd: Simd, to: &mut [f32]) {
        let (from, cols) = ((self.ptr, self.dtype), to.len());
        // SAFETY: the caller vouches for the row of the operand.
        unsafe { convert::load(simd, to.as_mut_ptr(), from, self.offset, self.col, cols) }
    }

    /// Reads the first column, as many elements as `to` has.
    pub unsafe fn load_column(self, simd: Simd, to: &mut [f32]) {
        let (from, rows) = ((self.ptr, self.dtype), to.len());
        // SAFETY: the caller vouches for the column of the operand.
        unsafe { convert::load(simd, to.as_mut_ptr(), from, self.offset, self.row, rows) }
    }

    /// Writes the first column, as many elements as `column` has.
    pub unsafe fn store_column(self, simd: Simd, column: &[f32]) {
        let to = (self.ptr, self.dtype);
        // SAFETY: the caller vouches for the column of the operand.
        unsafe {
            convert::store(simd, column.as_ptr(), to, self.offset, self.row, column.len());
        }
    }

    /// Writes the first row.
    pub unsafe fn store(self, simd: Simd, row: &[f32]) {
        let to = (self.ptr, self.dtype);
        // SAFETY: the caller vouches for the row of the operand.
        unsafe { convert::store(simd, row.as_ptr(), to, self.offset, self.col, row.len()) }
    }
}

/// The next width that whole panels have.
pub(crate) fn padded(width: usize) -> usize {
    width.next_multiple_of(COLS)
}

/// Lays out a worker's scratch: parts of so many 32-bit words, each from a cache line on.
#[derive(Clone, Copy, Default)]
pub(crate) struct Layout {
    /// Words so far.
    pub words: usize,
}

impl Layout {
    /// The place of a part.
    pub fn take(&mut self, words: usize) -> usize {
        let at = self.words;
        self.words += words.next_multiple_of(16);
        at
    }
}
