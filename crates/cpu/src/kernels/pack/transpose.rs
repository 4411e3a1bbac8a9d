//! Transposing blocks of 16 by 16 words.

use crate::simd::{Level, Simd};

/// `to[c * to_row + r] = from[r][c]` for `rows <= 16` rows of 16 words, `from_row` bytes apart, and
/// zeros for the other rows.
///
/// # Safety
/// The rows are valid for reads (not aligned, perhaps), the 16 stretches of 16 words of `to` for
/// writes.
pub(crate) unsafe fn transpose(
    simd: Simd,
    from: *const u8,
    from_row: isize,
    rows: usize,
    to: *mut u32,
    to_row: usize,
) {
    #[cfg(target_arch = "x86_64")]
    if simd.level() >= Level::Avx512 {
        // SAFETY: forwarded; a `Simd` of this level exists only where AVX-512 does.
        return unsafe { avx512(from, from_row, rows, to, to_row) };
    }
    let _ = (simd, Level::Avx512);
    for c in 0..16 {
        for r in 0..16 {
            // SAFETY: forwarded.
            unsafe {
                let word = from.offset(r as isize * from_row).cast::<u32>().wrapping_add(c);
                *to.add(c * to_row + r) = if r < rows { word.read_unaligned() } else { 0 };
            }
        }
    }
}

/// Four rounds of exchanges: words, pairs of words, then 128-bit parts twice.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(from: *const u8, from_row: isize, rows: usize, to: *mut u32, to_row: usize) {
    use std::arch::x86_64::*;
    let mut a = [_mm512_setzero_si512(); 16];
    for (r, row) in a.iter_mut().enumerate().take(rows) {
        // SAFETY: forwarded.
        *row = unsafe { _mm512_loadu_si512(from.offset(r as isize * from_row).cast()) };
    }
    let mut b = a;
    for i in 0..8 {
        b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    for i in 0..4 {
        a[4 * i] = _mm512_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
        a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
    }
    // a[4g + i], part p: column 4p + i of rows 4g..4g + 4.
    for i in 0..4 {
        b[i] = _mm512_shuffle_i32x4::<0x88>(a[i], a[4 + i]);
        b[4 + i] = _mm512_shuffle_i32x4::<0xdd>(a[i], a[4 + i]);
        b[8 + i] = _mm512_shuffle_i32x4::<0x88>(a[8 + i], a[12 + i]);
        b[12 + i] = _mm512_shuffle_i32x4::<0xdd>(a[8 + i], a[12 + i]);
    }
    // b[i]: columns i, 8 + i of the first eight rows; b[4 + i]: columns 4 + i, 12 + i.
    for i in 0..4 {
        a[i] = _mm512_shuffle_i32x4::<0x88>(b[i], b[8 + i]);
        a[8 + i] = _mm512_shuffle_i32x4::<0xdd>(b[i], b[8 + i]);
        a[4 + i] = _mm512_shuffle_i32x4::<0x88>(b[4 + i], b[12 + i]);
        a[12 + i] = _mm512_shuffle_i32x4::<0xdd>(b[4 + i], b[12 + i]);
    }
    for (c, column) in a.iter().enumerate() {
        // SAFETY: forwarded.
        unsafe { _mm512_storeu_si512(to.add(c * to_row).cast(), *column) };
    }
}
