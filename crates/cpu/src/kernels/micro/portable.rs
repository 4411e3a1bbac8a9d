//! Micro-kernels in plain Rust, for the compiler to vectorise: AVX2, AVX-512 without bf16
//! products, and the baseline. bf16 words are widened on the way.

use super::{Block, COLS, Word};
use crate::simd::{Level, Simd, multiversion};

/// `a * b + c`: fused, but not where that would be a call of a library (x86 before FMA).
#[inline(always)]
fn add_product<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// One part of a block: `R` rows and `W` columns from `row` and `col` on.
#[inline(always)]
unsafe fn part<const R: usize, const W: usize, const BF16: bool, const FUSED: bool>(
    block: &Block,
    row: usize,
    col: usize,
) {
    let mut sums = [[0.0f32; W]; R];
    let Block { words, left, right_step, store, .. } = *block;
    let low = |word: u32| f32::from_bits(word << 16);
    let high = |word: u32| f32::from_bits(word & 0xffff_0000);
    // SAFETY: the caller of `multiply` vouches for all words of the block.
    unsafe {
        let data = left.data.offset(row as isize * left.row);
        for depth in 0..words {
            let line = &*block.right.add(depth * right_step + col).cast::<[u32; W]>();
            for (i, sums) in sums.iter_mut().enumerate() {
                let factor = *data.offset(i as isize * left.row + depth as isize * left.step);
                for j in 0..W {
                    sums[j] = if BF16 {
                        let sum = add_product::<FUSED>(low(factor), low(line[j]), sums[j]);
                        add_product::<FUSED>(high(factor), high(line[j]), sum)
                    } else {
                        let (a, b) = (f32::from_bits(factor), f32::from_bits(line[j]));
                        add_product::<FUSED>(a, b, sums[j])
                    };
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            let to = &mut *block.out.at(row + i, col).data.cast::<[f32; W]>();
            for j in 0..W {
                let sum = store.alpha * sums[j];
                to[j] = if store.accumulate { to[j] + sum } else { sum };
            }
        }
    }
}

/// One column of parts.
#[inline(always)]
unsafe fn column<const R: usize, const W: usize, const BF16: bool, const FUSED: bool>(
    block: &Block,
    col: usize,
) {
    let mut row = 0;
    // SAFETY: forwarded.
    unsafe {
        while row + R <= block.rows {
            part::<R, W, BF16, FUSED>(block, row, col);
            row += R;
        }
        while row + 2 <= block.rows {
            part::<2, W, BF16, FUSED>(block, row, col);
            row += 2;
        }
        if row < block.rows {
            part::<1, W, BF16, FUSED>(block, row, col);
        }
    }
}

// Rows and columns are what the sums, a line and a factor of each instruction set's registers
// allow.
multiversion! {
    fn wide(block: Block, bf16: bool) {
        // SAFETY: forwarded.
        unsafe {
            match bf16 {
                false => column::<6, COLS, false, true>(&block, 0),
                true => column::<6, COLS, true, true>(&block, 0),
            }
        }
    }
}

multiversion! {
    fn narrow(block: Block, bf16: bool, fused: bool) {
        for col in (0..COLS).step_by(16) {
            // SAFETY: forwarded.
            unsafe {
                match (bf16, fused) {
                    (false, true) => column::<6, 16, false, true>(&block, col),
                    (true, true) => column::<4, 16, true, true>(&block, col),
                    (false, false) => column::<2, 16, false, false>(&block, col),
                    (true, false) => column::<2, 16, true, false>(&block, col),
                }
            }
        }
    }
}

pub(super) fn run(simd: Simd, word: Word, block: Block) {
    let bf16 = word == Word::Bf16;
    if simd.level() >= Level::Avx512 {
        wide(simd, block, bf16);
    } else {
        let fused = simd.level() > Level::Baseline || !cfg!(target_arch = "x86_64");
        narrow(simd, block, bf16, fused);
    }
}
