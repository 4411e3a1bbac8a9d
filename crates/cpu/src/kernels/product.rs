//! One block of a matrix product on one thread: the `gemm` crate, with bf16 widened on the way.

use crate::kernel::{Dtype, Ptr};
use crate::kernels::convert;
use crate::simd::Simd;

/// Depth that bf16 operands are widened in.
const STAGE: usize = 256;

/// A matrix in memory: address of its first element, and strides in elements.
#[derive(Clone, Copy)]
pub(crate) struct Matrix {
    pub ptr: Ptr,
    pub dtype: Dtype,
    pub offset: isize,
    pub row: isize,
    pub col: isize,
}

/// Staging floats that [`product`] needs for bf16 operands; 0 if both are f32.
pub(crate) fn staging(m: usize, n: usize, k: usize, a: Dtype, b: Dtype) -> usize {
    let one = |dtype: Dtype, side: usize| if dtype == Dtype::F32 { 0 } else { side };
    (one(a, m) + one(b, n)) * k.min(STAGE)
}

/// `c (= | +=) alpha * a * b` for `a: [m, k]`, `b: [k, n]` and f32 `c: [m, n]` with strides.
///
/// # Safety
/// All elements that sizes and strides reach are valid and nobody else touches `c`; `stage` holds
/// [`staging`] floats.
#[allow(clippy::too_many_arguments)] // three matrices and how to combine them
pub(crate) unsafe fn product(
    simd: Simd,
    [m, n, k]: [usize; 3],
    (c, c_row, c_col): (*mut f32, isize, isize),
    accumulate: bool,
    alpha: f32,
    a: Matrix,
    b: Matrix,
    stage: *mut f32,
) {
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if !accumulate {
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                // SAFETY: within `c`.
                unsafe { *c.offset(i as isize * c_row + j as isize * c_col) = 0.0 };
            }
        }
        return;
    }
    let depth = if a.dtype == Dtype::F32 && b.dtype == Dtype::F32 { k } else { STAGE };
    for k0 in (0..k).step_by(depth) {
        let k1 = depth.min(k - k0);
        let a_part = Matrix { offset: a.offset + k0 as isize * a.col, ..a };
        let b_part = Matrix { offset: b.offset + k0 as isize * b.row, ..b };
        // SAFETY: the parts lie within the matrices; the staging area is split as sized.
        unsafe {
            let (a_ptr, a_row, a_col) = widened(simd, a_part, m, k1, stage);
            let after = if a.dtype == Dtype::F32 { stage } else { stage.add(m * depth.min(k)) };
            let (b_ptr, b_row, b_col) = widened(simd, b_part, k1, n, after);
            gemm::gemm(
                m,
                n,
                k1,
                c,
                c_col,
                c_row,
                accumulate || k0 > 0,
                a_ptr,
                a_col,
                a_row,
                b_ptr,
                b_col,
                b_row,
                1.0,
                alpha,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}

/// The matrix as f32: itself, or a copy in `stage` that keeps its faster axis.
unsafe fn widened(
    simd: Simd,
    from: Matrix,
    rows: usize,
    cols: usize,
    stage: *mut f32,
) -> (*const f32, isize, isize) {
    if from.dtype == Dtype::F32 {
        return (from.ptr.at(from.offset), from.row, from.col);
    }
    let by_rows = from.col.unsigned_abs() <= from.row.unsigned_abs();
    let (outer, inner) = if by_rows { (rows, cols) } else { (cols, rows) };
    let (step, stride) = if by_rows { (from.row, from.col) } else { (from.col, from.row) };
    for i in 0..outer {
        let offset = from.offset + i as isize * step;
        // SAFETY: the elements belong to the matrix, the copy to the staging area.
        unsafe {
            convert::load(
                simd,
                stage.add(i * inner),
                (from.ptr, from.dtype),
                offset,
                stride,
                inner,
            );
        }
    }
    if by_rows { (stage, inner as isize, 1) } else { (stage, 1, inner as isize) }
}
