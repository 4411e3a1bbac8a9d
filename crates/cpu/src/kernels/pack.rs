//! Packing: matrices as the [micro-kernels](crate::kernels::micro) read them.
//!
//! The right factor goes into panels: 32 columns side by side, a line for every word of the depth,
//! zeros beyond the last column and the last element. The left factor is read where it lies if its
//! depth is contiguous, and else goes into lines or rows of its own. A word of bf16 holds two
//! elements of consecutive depth, so rows of a row-major right factor are interleaved by pairs, and
//! columns of a column-major one are transposed as words.

pub(crate) mod transpose;

use crate::kernel::{Dtype, Ptr};
use crate::kernels::convert;
use crate::kernels::micro::{COLS, Left, Right, Word};
use crate::math::from_bf16;
use crate::simd::{Simd, multiversion};
use transpose::transpose;

/// A factor in memory, f32 or bf16: strides in elements along its side (rows of a left factor,
/// columns of a right one) and along the depth.
#[derive(Clone, Copy)]
pub(crate) struct Factor {
    pub ptr: Ptr,
    pub dtype: Dtype,
    pub offset: isize,
    pub side: isize,
    pub depth: isize,
}

impl Factor {
    /// From this place on.
    pub fn from(self, side: usize, depth: usize) -> Factor {
        let offset = self.offset + side as isize * self.side + depth as isize * self.depth;
        Factor { offset, ..self }
    }

    /// The element, as the bits of a word of this kind, in its lower half if it is bf16.
    unsafe fn bits(self, word: Word, side: usize, depth: usize) -> u32 {
        let at = self.from(side, depth).offset;
        // SAFETY: the caller vouches for the element.
        unsafe {
            match (self.dtype, word) {
                (Dtype::F32 | Dtype::U32, _) => *self.ptr.at::<u32>(at),
                (Dtype::Bf16, Word::F32) => from_bf16(*self.ptr.at::<u16>(at)).to_bits(),
                (Dtype::Bf16, Word::Bf16) => u32::from(*self.ptr.at::<u16>(at)),
            }
        }
    }

    /// One word, zeros beyond the depth.
    unsafe fn word(self, word: Word, side: usize, first: usize, depth: usize) -> u32 {
        let mut bits = 0;
        for part in 0..word.elements().min(depth.saturating_sub(first)) {
            // SAFETY: forwarded.
            bits |= unsafe { self.bits(word, side, first + part) } << (16 * part);
        }
        bits
    }

    /// Whether the factor holds words as they are multiplied.
    fn holds(self, word: Word) -> bool {
        (self.dtype == Dtype::Bf16) == (word == Word::Bf16)
    }
}

/// The kind of words that the product of two factors is made of: bf16 if both are.
pub(crate) fn word(a: Dtype, b: Dtype) -> Word {
    if a == Dtype::Bf16 && b == Dtype::Bf16 { Word::Bf16 } else { Word::F32 }
}

/// Words that a right factor takes, packed for any instruction set.
pub(crate) fn right_words(word: Word, cols: usize, depth: usize) -> usize {
    cols.next_multiple_of(COLS) * word.most_words(depth)
}

/// Words that a left factor takes, packed for any instruction set.
pub(crate) fn left_words(word: Word, rows: usize, depth: usize) -> usize {
    rows.next_multiple_of(COLS) * (word.most_words(depth) + GAP)
}

/// Words between packed rows of a left factor: rows a power of two apart would share few sets of
/// the first-level cache.
const GAP: usize = 16;

/// Packs a right factor of `cols` columns into `to`.
///
/// # Safety
/// The elements are valid for reads, `to` for [`right_words`].
pub(crate) unsafe fn right(
    simd: Simd,
    word: Word,
    from: Factor,
    [cols, depth]: [usize; 2],
    to: *mut u32,
) -> Right {
    let words = word.words(simd, depth);
    for first in (0..cols).step_by(COLS) {
        let sides = COLS.min(cols - first);
        // SAFETY: forwarded.
        unsafe {
            lines(simd, word, from.from(first, 0), [sides, depth], words, to.add(first * words));
        }
    }
    Right { data: to, panel: words * COLS, step: COLS }
}

/// The left factor of at most [`COLS`] rows: where it lies, or packed into `to`.
///
/// # Safety
/// As [`right`], with [`left_words`].
pub(crate) unsafe fn left(
    simd: Simd,
    word: Word,
    from: Factor,
    [rows, depth]: [usize; 2],
    to: *mut u32,
) -> Left {
    let words = word.words(simd, depth);
    if from.depth != 1 && !word.tiles(simd) {
        // SAFETY: forwarded.
        unsafe { lines(simd, word, from, [rows, depth], words, to) };
        return Left { data: to, row: 1, step: COLS as isize };
    }
    let whole = depth.is_multiple_of(word.elements()) && words * word.elements() == depth;
    let by_words = from.side % word.elements() as isize == 0;
    let apart = 4 * from.side / word.elements() as isize % 4096 != 0 || rows <= 4;
    let safe = !word.tiles(simd) || rows.is_multiple_of(16);
    let data = match word {
        Word::F32 => from.ptr.at::<u32>(from.offset),
        Word::Bf16 => from.ptr.at::<u16>(from.offset).cast(),
    };
    // A row of bf16 may begin at the second half of a word.
    let safe = safe && data.is_aligned();
    if from.depth == 1 && from.holds(word) && whole && by_words && apart && safe {
        return Left { data, row: from.side / word.elements() as isize, step: 1 };
    }
    let row = words + GAP;
    for side in 0..rows {
        // SAFETY: forwarded.
        unsafe { line(simd, word, from.from(side, 0), depth, words, to.add(side * row)) };
    }
    Left { data: to, row: row as isize, step: 1 }
}

/// One row of a left factor: words one after another, and zeros.
unsafe fn line(simd: Simd, word: Word, from: Factor, depth: usize, words: usize, to: *mut u32) {
    // SAFETY: the caller of `left` vouches for the row.
    unsafe {
        match word {
            Word::F32 => {
                let source = (from.ptr, from.dtype);
                convert::load(simd, to.cast(), source, from.offset, from.depth, depth);
            }
            Word::Bf16 => {
                let to = to.cast::<u16>();
                if from.depth == 1 {
                    to.copy_from_nonoverlapping(from.ptr.at(from.offset), depth);
                } else {
                    for d in 0..depth {
                        *to.add(d) = *from.ptr.at::<u16>(from.from(0, d).offset);
                    }
                }
                std::slice::from_raw_parts_mut(to.add(depth), 2 * words - depth).fill(0);
            }
        }
    }
}

/// Lines of [`COLS`] words: word `w` of side `j` at `to[w * COLS + j]`, zeros elsewhere.
unsafe fn lines(
    simd: Simd,
    word: Word,
    from: Factor,
    [sides, depth]: [usize; 2],
    words: usize,
    to: *mut u32,
) {
    let held = depth.div_ceil(word.elements());
    // SAFETY: the caller of `right` or `left` vouches for the factor and for the lines.
    unsafe {
        std::slice::from_raw_parts_mut(to.add(held * COLS), (words - held) * COLS).fill(0);
        if from.side == 1 && sides == COLS {
            let at = from.offset;
            match (word, from.dtype) {
                (Word::Bf16, _) => pairs(simd, from.ptr.at(at), from.depth, depth, to),
                (_, Dtype::Bf16) => widened(simd, from.ptr.at(at), from.depth, depth, to),
                _ => copied(simd, from.ptr.at(at), from.depth, depth, to),
            }
            return;
        }
        let mut done = 0;
        if from.depth == 1 && from.holds(word) {
            done = transposed(simd, word, from, [sides, depth], to);
        }
        for (first, w) in (done * word.elements()..depth).step_by(word.elements()).zip(done..) {
            let line = std::slice::from_raw_parts_mut(to.add(w * COLS), COLS);
            line[sides..].fill(0);
            for (side, to) in line[..sides].iter_mut().enumerate() {
                *to = from.word(word, side, first, depth);
            }
        }
    }
}

/// The lines of a factor whose depth is contiguous, as many as whole blocks of 16 words make; their
/// number.
unsafe fn transposed(
    simd: Simd,
    word: Word,
    from: Factor,
    [sides, depth]: [usize; 2],
    to: *mut u32,
) -> usize {
    let words = depth / word.elements() / 16 * 16;
    for first in (0..words).step_by(16) {
        for side in (0..COLS).step_by(16) {
            let here = from.from(side, first * word.elements());
            let data = match word {
                Word::F32 => here.ptr.at::<u8>(4 * here.offset),
                Word::Bf16 => here.ptr.at::<u8>(2 * here.offset),
            };
            let bytes = from.side * (4 / word.elements() as isize);
            let rows = sides.saturating_sub(side).min(16);
            // SAFETY: `rows` rows of 16 words lie within the factor.
            unsafe { transpose(simd, data, bytes, rows, to.add(first * COLS + side), COLS) };
        }
    }
    words
}

multiversion! {
    /// Lines of f32 that lie side by side.
    fn copied(from: *const f32, stride: isize, depth: usize, to: *mut u32) {
        for d in 0..depth {
            // SAFETY: the caller of `lines` vouches for the factor and the lines.
            unsafe {
                let from = from.offset(d as isize * stride).cast::<[u32; COLS]>();
                to.add(d * COLS).cast::<[u32; COLS]>().write(from.read_unaligned());
            }
        }
    }
}

multiversion! {
    /// Lines of bf16 that lie side by side, as f32.
    fn widened(from: *const u16, stride: isize, depth: usize, to: *mut u32) {
        for d in 0..depth {
            // SAFETY: as for `copied`.
            unsafe {
                let from = &*from.offset(d as isize * stride).cast::<[u16; COLS]>();
                let to = &mut *to.add(d * COLS).cast::<[u32; COLS]>();
                for (to, &from) in to.iter_mut().zip(from) {
                    *to = u32::from(from) << 16;
                }
            }
        }
    }
}

multiversion! {
    /// Lines of pairs, from two rows of bf16 each.
    fn pairs(from: *const u16, stride: isize, depth: usize, to: *mut u32) {
        for d in (0..depth).step_by(2) {
            // SAFETY: as for `copied`; an odd last row is paired with zeros.
            unsafe {
                let low = &*from.offset(d as isize * stride).cast::<[u16; COLS]>();
                let to = &mut *to.add(d / 2 * COLS).cast::<[u32; COLS]>();
                if d + 1 < depth {
                    let high = &*from.offset((d + 1) as isize * stride).cast::<[u16; COLS]>();
                    for ((to, &low), &high) in to.iter_mut().zip(low).zip(high) {
                        *to = u32::from(low) | u32::from(high) << 16;
                    }
                } else {
                    for (to, &low) in to.iter_mut().zip(low) {
                        *to = u32::from(low);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
