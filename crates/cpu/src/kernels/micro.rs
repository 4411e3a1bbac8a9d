//! Micro-kernels: a few rows times panels of 32 columns, sums in registers over the whole depth.
//!
//! Operands are 32-bit words along the depth: one f32, or two bf16 of consecutive depth, which is
//! what the bf16 instructions multiply. The right factor lies in panels (see
//! [`pack`](crate::kernels::pack)); the left one has any strides. Every element of the result is
//! one sum in the order of the depth, whatever the number of rows and columns around it: results
//! do not depend on how a product is cut into blocks.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use crate::simd::{Level, Simd};

/// Columns of a panel.
pub(crate) const COLS: usize = 32;
/// No micro-kernel takes more rows at once.
pub(crate) const MOST_ROWS: usize = 32;
/// Words that matrix tiles take from the depth at once.
const TILE_WORDS: usize = 16;

/// What a word holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// One f32.
    F32,
    /// Two bf16, the earlier one in the lower half.
    Bf16,
}

impl Word {
    /// Elements in a word.
    pub fn elements(self) -> usize {
        match self {
            Word::F32 => 1,
            Word::Bf16 => 2,
        }
    }

    /// Words of a row or column of `depth` elements, with the zeros at its end that the
    /// micro-kernels of `simd` ask for.
    pub fn words(self, simd: Simd, depth: usize) -> usize {
        let words = depth.div_ceil(self.elements());
        if self.tiles(simd) { words.next_multiple_of(TILE_WORDS) } else { words }
    }

    /// The most that [`Word::words`] says for any instruction set.
    pub fn most_words(self, depth: usize) -> usize {
        match self {
            Word::F32 => depth,
            Word::Bf16 => depth.div_ceil(2).next_multiple_of(TILE_WORDS),
        }
    }

    /// Whether products go through matrix tiles.
    pub fn tiles(self, simd: Simd) -> bool {
        self == Word::Bf16 && simd.level() == Level::Amx
    }
}

/// Rows of a micro-kernel on vectors: 28 of the 32 registers of AVX-512 hold sums.
pub(crate) const ROWS: usize = 14;

/// The left factor: address of its first word, and words from row to row and along the depth.
///
/// Matrix tiles want `step` 1, and read rows up to the next multiple of 16, which must be there.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub data: *const u32,
    pub row: isize,
    pub step: isize,
}

/// The right factor: address of its first word, words from panel to panel, and from one line of
/// 32 columns to the next along the depth ([`COLS`], if it is packed).
#[derive(Clone, Copy)]
pub(crate) struct Right {
    pub data: *const u32,
    pub panel: usize,
    pub step: usize,
}

/// The result: rows of consecutive f32.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    pub data: *mut f32,
    pub row: usize,
}

impl Out {
    /// From this row and column on.
    pub fn at(self, row: usize, col: usize) -> Out {
        Out { data: self.data.wrapping_add(row * self.row + col), ..self }
    }
}

/// How sums are stored: `out (= | +=) alpha * sum`.
#[derive(Clone, Copy)]
pub(crate) struct Store {
    pub alpha: f32,
    pub accumulate: bool,
}

impl Store {
    /// Replaces what is there.
    pub const REPLACE: Store = Store { alpha: 1.0, accumulate: false };
    /// Adds to what is there.
    pub const ADD: Store = Store { alpha: 1.0, accumulate: true };
}

/// One block in registers: at most [`ROWS`] rows and a whole panel.
#[derive(Clone, Copy)]
struct Block {
    rows: usize,
    words: usize,
    left: Left,
    right: *const u32,
    right_step: usize,
    out: Out,
    store: Store,
}

/// `out (= | +=) alpha * left * right` for `out: [m, n]` and a depth of `words`.
///
/// # Safety
/// All words that the sizes reach are valid and initialised: of the right factor whole panels, of
/// the left one the rows that [`Left`] says; `out` overlaps neither.
pub(crate) unsafe fn multiply(
    simd: Simd,
    word: Word,
    [m, n, words]: [usize; 3],
    left: Left,
    right: Right,
    out: Out,
    store: Store,
) {
    #[cfg(target_arch = "x86_64")]
    if word.tiles(simd) && left.step == 1 && words.is_multiple_of(TILE_WORDS) {
        // SAFETY: forwarded; a `Simd` of this level exists only where the tiles can be used.
        return unsafe { amx::multiply([m, n, words], left, right, out, store) };
    }
    let slivers = m.div_ceil(ROWS);
    let mut first = 0;
    for sliver in 0..slivers {
        let rows = (m - first).div_ceil(slivers - sliver);
        let left = Left { data: left.data.wrapping_offset(first as isize * left.row), ..left };
        for (panel, col) in (0..n).step_by(COLS).enumerate() {
            let block = Block {
                rows,
                words,
                left,
                right: right.data.wrapping_add(panel * right.panel),
                right_step: right.step,
                out: out.at(first, col),
                store,
            };
            // SAFETY: the block lies within the operands.
            unsafe {
                if n - col >= COLS {
                    run(simd, word, &block);
                } else {
                    edge(n - col, block, |whole| run(simd, word, whole));
                }
            }
        }
        first += rows;
    }
}

/// Makes a block of fewer columns than a panel has aside, and stores what there is room for.
unsafe fn edge(cols: usize, block: Block, run: impl FnOnce(&Block)) {
    let mut aside = [0.0f32; ROWS * COLS];
    let store = Store { accumulate: false, ..block.store };
    let out = Out { data: aside.as_mut_ptr(), row: COLS };
    run(&Block { out, store, ..block });
    for row in 0..block.rows {
        for col in 0..cols {
            // SAFETY: within the result.
            unsafe {
                let to = block.out.at(row, col).data;
                let sum = aside[row * COLS + col];
                *to = if block.store.accumulate { *to + sum } else { sum };
            }
        }
    }
}

unsafe fn run(simd: Simd, word: Word, block: &Block) {
    // SAFETY: forwarded; a `Simd` of a level exists only where its instructions do.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        match word {
            Word::F32 if simd.level() >= Level::Avx512 => return avx512::f32(block),
            Word::Bf16 if simd.level() >= Level::Avx512Bf16 => return avx512::bf16(block),
            _ => {}
        }
    }
    portable::run(simd, word, *block);
}

#[cfg(test)]
mod tests;
