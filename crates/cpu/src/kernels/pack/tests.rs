//! Packed factors hold the elements of the matrix, and zeros.

use super::*;
use crate::simd::Level;
use aerogel_graph::types::f32_to_f16;

/// Every layout, kind of word and edge against the element-wise definition.
#[test]
fn packed_factors_hold_every_element() {
    let sizes =
        [(32, 64), (64, 32), (14, 37), (33, 1), (1, 50), (40, 96), (16, 32), (7, 0), (61, 9)];
    for simd in Level::ALL.into_iter().filter_map(Simd::force) {
        for (dtype, word) in [
            (DType::F32, Word::F32),
            (DType::Bf16, Word::Bf16),
            (DType::Bf16, Word::F32),
            (DType::F16, Word::F32),
        ] {
            for (sides, depth) in sizes {
                for (side, along) in [(1, 70), (100, 1), (200, 2), (1024, 1), (2048, 1)] {
                    check(simd, word, dtype, [sides, depth], [side, along]);
                }
            }
        }
    }
}

fn check(simd: Simd, word: Word, dtype: DType, [sides, depth]: [usize; 2], stride: [usize; 2]) {
    let held = sides.max(16).next_multiple_of(32) * stride[0] + (depth + 2) * stride[1];
    let value = |at: usize| (at % 251) as f32;
    let f32s: Vec<f32> = (0..held).map(value).collect();
    let bf16s: Vec<u16> = (0..held).map(|at| crate::math::to_bf16(value(at))).collect();
    let f16s: Vec<u16> = (0..held).map(|at| f32_to_f16(value(at))).collect();
    let ptr = match dtype {
        DType::F16 => Ptr::new(f16s.as_ptr()),
        DType::Bf16 => Ptr::new(bf16s.as_ptr()),
        _ => Ptr::new(f32s.as_ptr()),
    };
    let from =
        Factor { ptr, dtype, offset: 0, side: stride[0] as isize, depth: stride[1] as isize };
    let words = word.words(simd, depth);
    let wanted = |side: usize, w: usize| {
        let part = |d: usize| {
            let inside = side < sides && d < depth;
            if inside { value(side * stride[0] + d * stride[1]).to_bits() } else { 0 }
        };
        match word {
            Word::F32 => part(w),
            Word::Bf16 => part(2 * w) >> 16 | part(2 * w + 1),
        }
    };
    let mut to = vec![0xffff_ffffu32; right_words(word, sides, depth)];
    // SAFETY: the vectors are as large as strides and packing reach.
    let packed = unsafe { right(simd, word, from, [sides, depth], to.as_mut_ptr()) };
    for (side, w) in (0..sides.next_multiple_of(COLS)).flat_map(|s| (0..words).map(move |w| (s, w)))
    {
        let got = to[side / COLS * packed.panel + w * packed.step + side % COLS];
        assert_eq!(got, wanted(side, w), "{simd:?} {word:?} {dtype:?} right {side} {w}");
    }
    let mut to = vec![0xffff_ffffu32; left_words(word, sides, depth)];
    // SAFETY: as above.
    let packed = unsafe { left(simd, word, from, [sides, depth], to.as_mut_ptr()) };
    let mut seen = 0;
    for (first, rows, left) in packed.of(sides) {
        assert_eq!(first, seen);
        for (row, w) in (0..rows).flat_map(|row| (0..words).map(move |w| (row, w))) {
            // SAFETY: the row and the word were packed, or lie in the factor.
            let got =
                unsafe { *left.data.offset(row as isize * left.row + w as isize * left.step) };
            let what = format!("{simd:?} {word:?} {dtype:?} left {row} {w}");
            assert_eq!(got, wanted(first + row, w), "{what}");
        }
        seen += rows;
    }
    assert_eq!(seen, sides);
}
