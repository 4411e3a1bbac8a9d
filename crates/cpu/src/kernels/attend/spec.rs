//! What both directions share: shapes, storage, and where a head's matrices lie.

use std::sync::Arc;

use crate::axes::Space;
use crate::kernel::{Dtype, KernelError, Operand, Ptr};
use crate::kernels::convert;
use crate::kernels::micro::COLS;
use crate::kernels::pack::Factor;
use crate::kernels::pattern::BlockList;
use crate::simd::Simd;

/// Shapes and storage of an attention.
///
/// The iteration space of every operand is [batch axes..., kv, group, position, width]; k and v
/// have stride 0 on group; lse, its gradient and D lack width (stride 0). The head that a pattern
/// sees is `kv * group_size + group`.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Sizes of the batch axes.
    pub batch: Vec<usize>,
    /// Key/value heads.
    pub kv: usize,
    /// Query heads that share a key/value head.
    pub group: usize,
    /// Queries of one run; the pattern may have more (decoding).
    pub queries: usize,
    /// Width of queries and keys.
    pub key_width: usize,
    /// Width of values.
    pub value_width: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// The allowed tiles.
    pub pattern: Arc<BlockList>,
}

impl Attention {
    /// Heads over batch and kv, the outer loop of both directions.
    pub(crate) fn outer(&self) -> usize {
        self.batch.iter().product::<usize>() * self.kv
    }

    /// Where the operands lie.
    pub(crate) fn place(&self, operands: &[&Operand]) -> Result<Heads, KernelError> {
        let rank = self.batch.len() + 4;
        let mut strides = Vec::new();
        let mut inner = Vec::new();
        for (operand, own) in operands.iter().enumerate() {
            let got = own.strides.len();
            if got != rank {
                return Err(KernelError::Rank { kernel: "attend", operand, wanted: rank, got });
            }
            if own.dtype == Dtype::U32 {
                let what = format!("operand {operand} holds u32; attention takes f32 and bf16");
                return Err(KernelError::Unsupported { kernel: "attend", what });
            }
            let (outer, rest) = own.strides.split_at(rank - 3);
            strides.push(outer.to_vec());
            inner.push([rest[0], rest[1], rest[2]]);
        }
        let heads = self.pattern.heads;
        if heads != 1 && heads != self.kv * self.group {
            let what = format!(
                "the pattern has {heads} heads, the attention {} x {}",
                self.kv, self.group
            );
            return Err(KernelError::Unsupported { kernel: "attend", what });
        }
        let sizes = [&self.batch[..], &[self.kv]].concat();
        let mut space = Space::new("attend", &sizes, strides)?;
        let count = space.sizes.len();
        space.collapse(count);
        let dtypes = operands.iter().map(|operand| operand.dtype).collect();
        Ok(Heads { space: space.finish("attend")?, inner, dtypes })
    }

    /// Sizes of the iteration space with this position length and width.
    pub(crate) fn sizes(&self, positions: usize, width: usize) -> Vec<usize> {
        [&self.batch[..], &[self.kv, self.group, positions, width]].concat()
    }

    /// The head that the pattern sees.
    pub(crate) fn head(&self, outer: usize, group: usize) -> usize {
        (outer % self.kv) * self.group + group
    }
}

/// Where the matrices of each head lie: the space [batch..., kv], and the strides [group, position,
/// width] and the element type of each operand.
#[derive(Clone, Debug)]
pub(crate) struct Heads {
    space: Space,
    inner: Vec<[isize; 3]>,
    pub dtypes: Vec<Dtype>,
}

impl Heads {
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
    pub dtype: Dtype,
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
