//! Packing: matrices as the [micro-kernels](crate::kernels::micro) read them.
//!
//! The right factor goes into panels: 32 columns side by side, a line for every word of the depth,
//! zeros beyond the last column and the last element. The left factor is read where it lies if its
//! depth is contiguous, and else goes into lines or rows of its own. A word of bf16 holds two
//! elements of consecutive depth, so rows of a row-major right factor are interleaved by pairs, and
//! columns of a column-major one are transposed as words.

mod lines;
pub(crate) mod transpose;

use crate::kernel::Ptr;
use crate::kernels::convert;
use crate::kernels::micro::{COLS, Left, MOST_ROWS, ROWS, Right, Word};
use crate::math::from_bf16;
use crate::simd::{self, Simd};
use aerogel_graph::DType;
use aerogel_graph::types::f16_to_f32;
use lines::{LINE, Lines, copied, halves, pairs, widened};
use std::mem::MaybeUninit;
use transpose::transpose;

/// A factor in memory, of floats: strides in elements along its side (rows of a left factor,
/// columns of a right one) and along the depth.
#[derive(Clone, Copy)]
pub(crate) struct Factor {
    pub ptr: Ptr,
    pub dtype: DType,
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
                (DType::F32 | DType::U32, _) => *self.ptr.at::<u32>(at),
                (DType::F16, _) => f16_to_f32(*self.ptr.at::<u16>(at)).to_bits(),
                (DType::Bf16, Word::F32) => from_bf16(*self.ptr.at::<u16>(at)).to_bits(),
                (DType::Bf16, Word::Bf16) => u32::from(*self.ptr.at::<u16>(at)),
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

    /// Asks for some sides, whose depth is contiguous.
    pub fn prefetch(self, [sides, depth]: [usize; 2]) {
        let bytes = self.dtype.bytes();
        for side in 0..sides {
            let at = self.from(side, 0).offset * bytes as isize;
            simd::prefetch(self.ptr.at(at), depth * bytes);
        }
    }

    /// Whether the factor holds words as they are multiplied.
    fn holds(self, word: Word) -> bool {
        match self.dtype {
            DType::F32 | DType::U32 => word == Word::F32,
            DType::Bf16 => word == Word::Bf16,
            DType::F16 => false,
        }
    }
}

/// The kind of words that products of all these factors are made of: bf16 if all are. Those of f16
/// are products of f32, which holds every f16: no instructions here multiply f16 and sum in f32.
pub(crate) fn word(dtypes: impl IntoIterator<Item = DType>) -> Word {
    if dtypes.into_iter().all(|dtype| dtype == DType::Bf16) { Word::Bf16 } else { Word::F32 }
}

/// Words that a right factor takes, packed for any instruction set.
pub(crate) fn right_words(word: Word, cols: usize, depth: usize) -> usize {
    cols.next_multiple_of(COLS) * word.most_words(depth)
}

/// Words that a left factor takes, packed for any instruction set.
pub(crate) fn left_words(word: Word, rows: usize, depth: usize) -> usize {
    let rows = (rows.div_ceil(ROWS) * LINE).max(rows.next_multiple_of(COLS));
    rows * (word.most_words(depth) + GAP)
}

/// Words between packed rows of a left factor: rows a power of two apart would share few sets of
/// the first-level cache.
const GAP: usize = 16;
/// Words of a row that are widened before they are transposed.
const WIDENED: usize = 256;

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
    let to = Lines { data: to, group: words * COLS, width: COLS, sides: COLS };
    // SAFETY: forwarded.
    unsafe { lines(simd, word, from, [cols, depth], words, to) };
    Right { data: to.data, panel: to.group, step: COLS }
}

/// A left factor of several slivers: as many rows as a micro-kernel takes, or a little fewer.
#[derive(Clone, Copy)]
pub(crate) struct Slivers {
    first: Left,
    /// Rows of a sliver, and words from one sliver to the next.
    rows: usize,
    words: isize,
}

impl Slivers {
    /// The slivers: their first rows, their numbers of rows, and where they are.
    pub fn of(self, rows: usize) -> impl Iterator<Item = (usize, usize, Left)> {
        (0..rows).step_by(self.rows).enumerate().map(move |(number, row)| {
            let data = self.first.data.wrapping_offset(number as isize * self.words);
            (row, self.rows.min(rows - row), Left { data, ..self.first })
        })
    }
}

/// The left factor of some rows: where it lies, or packed into `to`.
///
/// # Safety
/// As [`right`], with [`left_words`].
pub(crate) unsafe fn left(
    simd: Simd,
    word: Word,
    from: Factor,
    [rows, depth]: [usize; 2],
    to: *mut u32,
) -> Slivers {
    let most = if word.tiles(simd) { MOST_ROWS } else { ROWS };
    let sliver = rows.div_ceil(rows.div_ceil(most).max(1)).max(1);
    if from.depth == 1 || word.tiles(simd) {
        let sliver = if word.tiles(simd) { most } else { sliver };
        // SAFETY: forwarded.
        let first = unsafe { left_rows(simd, word, from, [rows, depth], to) };
        return Slivers { first, rows: sliver, words: sliver as isize * first.row };
    }
    let words = word.words(simd, depth);
    let lines_to = Lines { data: to, group: words * LINE, width: LINE, sides: sliver };
    // SAFETY: forwarded.
    unsafe { lines(simd, word, from, [rows, depth], words, lines_to) };
    let first = Left { data: to, row: 1, step: LINE as isize };
    Slivers { first, rows: sliver, words: lines_to.group as isize }
}

/// The same in one piece, row after row.
///
/// # Safety
/// As [`left`].
pub(crate) unsafe fn left_rows(
    simd: Simd,
    word: Word,
    from: Factor,
    [rows, depth]: [usize; 2],
    to: *mut u32,
) -> Left {
    let words = word.words(simd, depth);
    let whole = words * word.elements() == depth;
    let by_words = from.side % word.elements() as isize == 0;
    // Rows a multiple of 2 KiB apart share two sets of the first-level cache.
    let apart = 4 * from.side / word.elements() as isize % 2048 != 0 || rows <= 4;
    let data = match word {
        Word::F32 => from.ptr.at::<u32>(from.offset),
        Word::Bf16 => from.ptr.at::<u16>(from.offset).cast(),
    };
    // A row of bf16 may begin at the second half of a word, and tiles read whole lines of rows.
    let readable = data.is_aligned() && (!word.tiles(simd) || rows.is_multiple_of(LINE));
    if from.depth == 1 && from.holds(word) && whole && by_words && apart && readable {
        return Left { data, row: from.side / word.elements() as isize, step: 1 };
    }
    let row = words + GAP;
    // SAFETY: forwarded.
    unsafe {
        if word.tiles(simd) && from.depth != 1 {
            rows_of_tiles(simd, from, [rows, depth], to, row);
        } else {
            for side in 0..rows {
                line(simd, word, from.from(side, 0), depth, words, to.add(side * row));
            }
        }
    }
    Left { data: to, row: row as isize, step: 1 }
}

/// Rows of bf16 words from a factor whose rows are not contiguous, for matrix tiles: lines of 16
/// rows, transposed.
unsafe fn rows_of_tiles(
    simd: Simd,
    from: Factor,
    [rows, depth]: [usize; 2],
    to: *mut u32,
    row: usize,
) {
    let mut block = [0u32; LINE * LINE];
    let aside = Lines { data: block.as_mut_ptr(), group: 0, width: LINE, sides: LINE };
    for side in (0..rows).step_by(LINE) {
        for (chunk, first) in (0..depth).step_by(2 * LINE).enumerate() {
            let size = [LINE.min(rows - side), (2 * LINE).min(depth - first)];
            let to = to.wrapping_add(side * row + chunk * LINE);
            // SAFETY: the caller of `left` vouches for the factor, and for whole tiles of `to`.
            unsafe {
                lines(simd, Word::Bf16, from.from(side, first), size, LINE, aside);
                let (data, bytes) = (aside.data.cast::<u8>().cast_const(), 4 * LINE as isize);
                transpose(simd, data, bytes, LINE, to, row);
            }
        }
    }
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

/// Lines of words, in groups of sides: word `w` of side `j` of a group at `j` of its line `w`,
/// zeros elsewhere.
unsafe fn lines(
    simd: Simd,
    word: Word,
    from: Factor,
    [sides, depth]: [usize; 2],
    words: usize,
    to: Lines,
) {
    let held = depth.div_ceil(word.elements());
    let groups = sides.div_ceil(to.sides);
    // SAFETY: the caller of `right` or `left` vouches for the factor and for the lines.
    unsafe {
        for (group, w) in (0..groups).flat_map(|group| (held..words).map(move |w| (group, w))) {
            std::slice::from_raw_parts_mut(to.at(group, w), to.width).fill(0);
        }
        if from.side == 1 {
            let (at, stride) = (from.offset, from.depth);
            match (word, from.dtype) {
                (Word::Bf16, _) => pairs(simd, from.ptr.at(at), stride, [sides, depth], to),
                (_, DType::Bf16) => widened(simd, from.ptr.at(at), stride, [sides, depth], to),
                (_, DType::F16) => halves(simd, from.ptr.at(at), stride, [sides, depth], to),
                _ => copied(simd, from.ptr.at(at), stride, [sides, depth], to),
            }
            return;
        }
        for group in 0..groups {
            let here = from.from(group * to.sides, 0);
            let own = Lines { data: to.at(group, 0), ..to };
            let count = to.sides.min(sides - group * to.sides);
            group_of_lines(simd, word, here, [count, depth], own);
        }
    }
}

/// One group of any strides, or with missing sides.
unsafe fn group_of_lines(
    simd: Simd,
    word: Word,
    from: Factor,
    [sides, depth]: [usize; 2],
    to: Lines,
) {
    let mut done = 0;
    // SAFETY: as `lines`.
    unsafe {
        if from.depth == 1 {
            done = transposed(simd, word, from, [sides, depth], to);
        }
        for (first, w) in (done * word.elements()..depth).step_by(word.elements()).zip(done..) {
            let line = std::slice::from_raw_parts_mut(to.at(0, w), to.width);
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
    to: Lines,
) -> usize {
    let words = depth / word.elements() / 16 * 16;
    let mut wide = MaybeUninit::<[u32; 16 * WIDENED]>::uninit();
    let wide: *mut u32 = wide.as_mut_ptr().cast();
    let each = if from.holds(word) { 16 } else { WIDENED };
    for first in (0..words).step_by(each) {
        let count = each.min(words - first);
        for side in (0..to.width).step_by(16) {
            let here = from.from(side, first * word.elements());
            let rows = sides.saturating_sub(side).min(16);
            // SAFETY: `rows` rows of `count` words lie within the factor, and `wide` has room.
            unsafe {
                let (data, bytes) = if from.holds(word) {
                    let bytes = 4 / word.elements() as isize;
                    (here.ptr.at::<u8>(bytes * here.offset).cast_const(), bytes * from.side)
                } else {
                    for row in 0..rows {
                        let to = wide.add(row * WIDENED);
                        line(simd, Word::F32, here.from(row, 0), count, count, to);
                    }
                    (wide.cast::<u8>().cast_const(), 4 * WIDENED as isize)
                };
                for at in (0..count).step_by(16) {
                    let to_lines = to.at(0, first + at).add(side);
                    transpose(simd, data.wrapping_add(4 * at), bytes, rows, to_lines, to.width);
                }
            }
        }
    }
    words
}

#[cfg(test)]
mod tests;
