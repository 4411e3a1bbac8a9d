//! Lines of words from rows that lie side by side: copied, widened to f32, or interleaved by pairs.

use crate::kernels::micro::COLS;
use crate::simd::{self, multiversion};
use aerogel_graph::types::f16_to_f32;

/// Words of a line of a left factor: a cache line, of which [`ROWS`](crate::kernels::micro::ROWS)
/// are rows.
pub(super) const LINE: usize = 16;

/// Where lines go: words from one group of sides to the next, words of a line, sides of a group.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    pub data: *mut u32,
    pub group: usize,
    pub width: usize,
    pub sides: usize,
}

impl Lines {
    /// A line of a group.
    pub fn at(self, group: usize, line: usize) -> *mut u32 {
        self.data.wrapping_add(group * self.group + line * self.width)
    }
}

/// How a line is made of rows that lie side by side.
trait Fill {
    type Element: Copy + Default;
    /// Rows of a line.
    const ROWS: usize;
    fn fill<const W: usize>(rows: &[[Self::Element; W]; 2], to: &mut [u32; W]);
}

/// f32 as they are.
struct Copied;
/// bf16 as f32.
struct Widened;
/// f16 as f32.
struct Halves;
/// Pairs of bf16 from two rows.
struct Pairs;

impl Fill for Copied {
    type Element = u32;
    const ROWS: usize = 1;

    #[inline(always)]
    fn fill<const W: usize>([row, _]: &[[u32; W]; 2], to: &mut [u32; W]) {
        *to = *row;
    }
}

impl Fill for Widened {
    type Element = u16;
    const ROWS: usize = 1;

    #[inline(always)]
    fn fill<const W: usize>([row, _]: &[[u16; W]; 2], to: &mut [u32; W]) {
        for j in 0..W {
            to[j] = u32::from(row[j]) << 16;
        }
    }
}

impl Fill for Halves {
    type Element = u16;
    const ROWS: usize = 1;

    #[inline(always)]
    fn fill<const W: usize>([row, _]: &[[u16; W]; 2], to: &mut [u32; W]) {
        for j in 0..W {
            to[j] = f16_to_f32(row[j]).to_bits();
        }
    }
}

impl Fill for Pairs {
    type Element = u16;
    const ROWS: usize = 2;

    #[inline(always)]
    fn fill<const W: usize>([low, high]: &[[u16; W]; 2], to: &mut [u32; W]) {
        for j in 0..W {
            to[j] = u32::from(low[j]) | u32::from(high[j]) << 16;
        }
    }
}

/// Rows from the one that is read to the one that is asked for.
const AHEAD: usize = 16;

/// Lines of `W` words. Rows are read from end to end, whatever the number of groups that they go
/// to: memory is read forward. A missing last row of a pair is zeros.
#[inline(always)]
unsafe fn side_by_side<F: Fill, const W: usize>(
    from: *const F::Element,
    stride: isize,
    [sides, depth]: [usize; 2],
    to: Lines,
) {
    // Whole lines are read, and those of the last groups may reach beyond the factor.
    let whole = if sides < W { 0 } else { (sides - W) / to.sides + 1 };
    let groups = sides.div_ceil(to.sides);
    for (line, first) in (0..depth).step_by(F::ROWS).enumerate() {
        let held = F::ROWS.min(depth - first);
        for number in first + AHEAD..(first + AHEAD + F::ROWS).min(depth) {
            let next = from.wrapping_offset(number as isize * stride);
            simd::prefetch(next.cast(), sides * size_of::<F::Element>());
        }
        // SAFETY: the caller of `lines` vouches for the factor and the lines.
        unsafe {
            let row = |number: usize, group: usize| {
                from.offset((first + number) as isize * stride).add(group * to.sides)
            };
            for group in 0..whole {
                let mut rows = [[F::Element::default(); W]; 2];
                for (number, own) in rows.iter_mut().enumerate().take(F::ROWS) {
                    if number < held {
                        *own = row(number, group).cast::<[F::Element; W]>().read_unaligned();
                    }
                }
                F::fill(&rows, &mut *to.at(group, line).cast::<[u32; W]>());
            }
            for group in whole..groups {
                let mut rows = [[F::Element::default(); W]; 2];
                let count = to.sides.min(sides - group * to.sides);
                for (number, own) in rows.iter_mut().enumerate().take(held) {
                    let from = std::slice::from_raw_parts(row(number, group), count);
                    own[..count].copy_from_slice(from);
                }
                F::fill(&rows, &mut *to.at(group, line).cast::<[u32; W]>());
            }
        }
    }
}

/// Lines of either width.
#[inline(always)]
unsafe fn of_width<F: Fill>(from: *const F::Element, stride: isize, size: [usize; 2], to: Lines) {
    // SAFETY: forwarded.
    unsafe {
        if to.width == COLS {
            side_by_side::<F, COLS>(from, stride, size, to);
        } else {
            side_by_side::<F, LINE>(from, stride, size, to);
        }
    }
}

multiversion! {
    pub(super) fn copied(from: *const u32, stride: isize, size: [usize; 2], to: Lines) {
        // SAFETY: forwarded.
        unsafe { of_width::<Copied>(from, stride, size, to) }
    }
}

multiversion! {
    pub(super) fn widened(from: *const u16, stride: isize, size: [usize; 2], to: Lines) {
        // SAFETY: forwarded.
        unsafe { of_width::<Widened>(from, stride, size, to) }
    }
}

multiversion! {
    pub(super) fn halves(from: *const u16, stride: isize, size: [usize; 2], to: Lines) {
        // SAFETY: forwarded.
        unsafe { of_width::<Halves>(from, stride, size, to) }
    }
}

multiversion! {
    pub(super) fn pairs(from: *const u16, stride: isize, size: [usize; 2], to: Lines) {
        // SAFETY: forwarded.
        unsafe { of_width::<Pairs>(from, stride, size, to) }
    }
}
