//! Products of small integers, which every instruction set computes exactly.

use super::*;

/// A word whose elements are small integers that depend on `seed`.
fn word(kind: Word, seed: usize) -> u32 {
    let value = |seed: usize| ((seed * 37) % 11) as f32 - 5.0;
    match kind {
        Word::F32 => value(seed).to_bits(),
        Word::Bf16 => value(seed).to_bits() >> 16 | value(seed + 3).to_bits() & 0xffff_0000,
    }
}

fn dot(kind: Word, a: u32, b: u32) -> f32 {
    match kind {
        Word::F32 => f32::from_bits(a) * f32::from_bits(b),
        Word::Bf16 => {
            let part =
                |x: u32, high: bool| f32::from_bits(if high { x & 0xffff_0000 } else { x << 16 });
            part(a, false) * part(b, false) + part(a, true) * part(b, true)
        }
    }
}

fn check(simd: Simd, kind: Word, [m, n, depth]: [usize; 3], by_depth: bool, store: Store) {
    let words = kind.words(simd, depth);
    let panels = n.div_ceil(COLS);
    let inside = |d: usize| d < depth.div_ceil(kind.elements());
    // The rows that tiles may read beyond m are there.
    let (row, step) = if by_depth { (1, 40) } else { (words as isize + 3, 1) };
    let held = if by_depth { 40 * (words + 1) } else { (m + MOST_ROWS) * (words + 3) };
    let mut left = vec![0x7fc0_7fc0u32; held];
    for (i, d) in (0..m).flat_map(|i| (0..words).map(move |d| (i, d))) {
        let at = i as isize * row + d as isize * step;
        left[at as usize] = if inside(d) { word(kind, i * 5 + d) } else { 0 };
    }
    let mut right = vec![0u32; panels * words * COLS];
    for (j, d) in (0..n).flat_map(|j| (0..words).map(move |d| (j, d))) {
        let at = j / COLS * words * COLS + d * COLS + j % COLS;
        right[at] = if inside(d) { word(kind, j * 7 + d + 1) } else { 0 };
    }
    let width = n + 2;
    let mut out = vec![2.0f32; m * width];
    // SAFETY: the vectors are as large as the strides reach.
    unsafe {
        let left = Left { data: left.as_ptr(), row, step };
        let right = Right { data: right.as_ptr(), panel: words * COLS, step: COLS };
        let out = Out { data: out.as_mut_ptr(), row: width };
        multiply(simd, kind, [m, n, words], left, right, out, store);
    }
    for (i, j) in (0..m).flat_map(|i| (0..width).map(move |j| (i, j))) {
        let sum: f32 = (0..depth.div_ceil(kind.elements()))
            .map(|d| dot(kind, word(kind, i * 5 + d), word(kind, j * 7 + d + 1)))
            .sum();
        let old = if store.accumulate { 2.0 } else { 0.0 };
        let wanted = if j < n { old + store.alpha * sum } else { 2.0 };
        assert_eq!(out[i * width + j], wanted, "{simd:?} {kind:?} {m} {n} {depth} at {i} {j}");
    }
}

#[test]
fn products_equal_the_definition_on_every_instruction_set() {
    for simd in Level::ALL.into_iter().filter_map(Simd::force) {
        for kind in [Word::F32, Word::Bf16] {
            for m in (1..=15).chain([16, 17, 32, 33, 64]) {
                for (n, depth) in [(1, 1), (31, 64), (32, 33), (65, 7), (96, 0)] {
                    check(simd, kind, [m, n, depth], false, Store::REPLACE);
                }
            }
            check(simd, kind, [14, 64, 128], true, Store::ADD);
            check(simd, kind, [33, 40, 50], false, Store { alpha: 0.5, accumulate: true });
        }
    }
}
