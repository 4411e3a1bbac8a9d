//! Small dense products on one thread, for tiles that sit in the first-level cache.
//!
//! `b` and `c` have rows of consecutive floats whose width is a multiple of [`LANES`]; `a` has any
//! strides, since its elements are broadcast. That covers all products of attention when scores are
//! held transposed (keys down, queries across).

use crate::simd::multiversion;

/// Widths are multiples of this.
pub(crate) const LANES: usize = 16;
const ROWS: usize = 6;

/// The next width that the products take.
pub(crate) fn padded(width: usize) -> usize {
    width.next_multiple_of(LANES)
}

/// The left factor: address and strides.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub data: *const f32,
    pub row: isize,
    pub col: isize,
}

/// A row-major factor or result: address and floats from row to row.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub data: *mut f32,
    pub row: usize,
}

/// One `R x W` block of `c`, the full depth in registers.
#[inline(always)]
unsafe fn block<const R: usize, const W: usize>(
    k: usize,
    a: Left,
    b: *const f32,
    b_row: usize,
    c: *mut f32,
    c_row: usize,
    accumulate: bool,
) {
    let mut sums = [[0.0f32; W]; R];
    // SAFETY: the caller of `multiply` vouches for all elements of the three matrices.
    unsafe {
        for depth in 0..k {
            let line = &*b.add(depth * b_row).cast::<[f32; W]>();
            for (i, row) in sums.iter_mut().enumerate() {
                let factor = *a.data.offset(i as isize * a.row + depth as isize * a.col);
                for j in 0..W {
                    row[j] = factor.mul_add(line[j], row[j]);
                }
            }
        }
        for (i, row) in sums.iter().enumerate() {
            let to = &mut *c.add(i * c_row).cast::<[f32; W]>();
            for j in 0..W {
                to[j] = if accumulate { to[j] + row[j] } else { row[j] };
            }
        }
    }
}

/// One column of blocks, `W` wide.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // three matrices, flat so that they stay in registers
unsafe fn columns<const W: usize>(
    m: usize,
    k: usize,
    a: Left,
    b: *const f32,
    b_row: usize,
    c: *mut f32,
    c_row: usize,
    accumulate: bool,
) {
    let mut i = 0;
    // SAFETY: as `block`; rows i.. lie within `a` and `c`.
    unsafe {
        let a = |i: usize| Left { data: a.data.offset(i as isize * a.row), ..a };
        while i + ROWS <= m {
            block::<ROWS, W>(k, a(i), b, b_row, c.add(i * c_row), c_row, accumulate);
            i += ROWS;
        }
        while i + 2 <= m {
            block::<2, W>(k, a(i), b, b_row, c.add(i * c_row), c_row, accumulate);
            i += 2;
        }
        while i < m {
            block::<1, W>(k, a(i), b, b_row, c.add(i * c_row), c_row, accumulate);
            i += 1;
        }
    }
}

multiversion! {
    /// `c (= | +=) a b` with `c: [m, n]`, depth `k`, `n` a multiple of [`LANES`]. All elements must
    /// be valid, and `c` apart from the others.
    pub(crate) fn multiply(size: [usize; 3], a: Left, b: Rows, c: Rows, accumulate: bool) {
        let [m, n, k] = size;
        let mut j = 0;
        // SAFETY: the kernels that call this lay out all three matrices themselves.
        unsafe {
            while j + 2 * LANES <= n {
                let (from, to) = (b.data.add(j), c.data.add(j));
                columns::<{ 2 * LANES }>(m, k, a, from, b.row, to, c.row, accumulate);
                j += 2 * LANES;
            }
            while j < n {
                let (from, to) = (b.data.add(j), c.data.add(j));
                columns::<LANES>(m, k, a, from, b.row, to, c.row, accumulate);
                j += LANES;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Level, Simd};

    #[test]
    fn products_equal_the_definition() {
        for level in [Level::Baseline, Level::Avx2, Level::Avx512] {
            let Some(simd) = Simd::force(level) else { continue };
            for (m, n, k) in [(1, 16, 1), (7, 48, 5), (64, 64, 33), (13, 32, 0)] {
                let a: Vec<f32> = (0..m * k).map(|i| (i % 13) as f32 - 6.0).collect();
                let mut b: Vec<f32> = (0..n * k).map(|i| (i % 7) as f32 - 3.0).collect();
                let mut c = vec![1.0f32; m * n];
                // a is stored by columns
                let left = Left { data: a.as_ptr(), row: 1, col: m as isize };
                let right = Rows { data: b.as_mut_ptr(), row: n };
                let out = Rows { data: c.as_mut_ptr(), row: n };
                multiply(simd, [m, n, k], left, right, out, true);
                for i in 0..m {
                    for j in 0..n {
                        let sum: f32 = (0..k).map(|d| a[d * m + i] * b[d * n + j]).sum();
                        assert_eq!(c[i * n + j], 1.0 + sum);
                    }
                }
            }
        }
    }
}
