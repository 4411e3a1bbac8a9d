//! Products on AMX matrix tiles: 32 rows times a panel of 32 columns, four tiles of sums.
//!
//! A tile of the left factor is 16 rows of 16 words; one of the right factor is 16 lines of half a
//! panel. The tiles are configured for a product and released after it, so that no other code ever
//! runs with live tiles, which are expensive to save.

use super::{COLS, Left, MOST_ROWS, Out, Right, Store, TILE_WORDS};
use std::arch::asm;

/// Rows of a tile.
const TILE_ROWS: usize = 16;

/// The operand of `ldtilecfg`: eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// A block of sums on the stack.
#[repr(C, align(64))]
struct Sums([[f32; COLS]; MOST_ROWS]);

/// As [`multiply`](super::multiply), for bf16 words, a left factor of step 1 and a depth of whole
/// tiles.
///
/// # Safety
/// As there, and the tiles can be used.
pub(super) unsafe fn multiply(
    [m, n, words]: [usize; 3],
    left: Left,
    right: Right,
    out: Out,
    store: Store,
) {
    let mut aside = Sums([[0.0; COLS]; MOST_ROWS]);
    // SAFETY: the tiles can be used; the blocks lie within the operands.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly));
        for first in (0..m).step_by(MOST_ROWS) {
            let rows = MOST_ROWS.min(m - first);
            let left = Left { data: left.data.wrapping_offset(first as isize * left.row), ..left };
            let high = rows > TILE_ROWS;
            for (panel, col) in (0..n).step_by(COLS).enumerate() {
                let data = right.data.wrapping_add(panel * right.panel);
                let right = Right { data, ..right };
                let out = out.at(first, col);
                // Whole tiles go from and to the result itself.
                let whole = rows.is_multiple_of(TILE_ROWS) && n - col >= COLS && store.alpha == 1.0;
                zero_or_load((whole && store.accumulate).then_some(out), high);
                if high {
                    four_tiles(words, left, right);
                } else {
                    two_tiles(words, left, right);
                }
                if whole {
                    put(out, high);
                } else {
                    put(Out { data: aside.0.as_mut_ptr().cast(), row: COLS }, high);
                    keep(&aside, rows, COLS.min(n - col), out, store);
                }
            }
        }
        asm!("tilerelease", options(nostack, nomem));
    }
}

/// Starts sums at zero, or at what is there.
unsafe fn zero_or_load(out: Option<Out>, high: bool) {
    // SAFETY: the tiles are configured; `multiply` vouches for whole tiles.
    unsafe {
        match out {
            None => asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, nomem)
            ),
            Some(out) => {
                asm!("tileloadd tmm0, [{out} + {row}]", "tileloadd tmm1, [{out} + {row} + 64]",
                    out = in(reg) out.data, row = in(reg) 4 * out.row, options(nostack, readonly));
                if high {
                    asm!("tileloadd tmm2, [{out} + {row}]", "tileloadd tmm3, [{out} + {row} + 64]",
                        out = in(reg) out.at(TILE_ROWS, 0).data, row = in(reg) 4 * out.row,
                        options(nostack, readonly));
                }
            }
        }
    }
}

/// Stores the sums of 16 or 32 rows.
unsafe fn put(out: Out, high: bool) {
    // SAFETY: as `zero_or_load`.
    unsafe {
        asm!("tilestored [{out} + {row}], tmm0", "tilestored [{out} + {row} + 64], tmm1",
            out = in(reg) out.data, row = in(reg) 4 * out.row, options(nostack));
        if high {
            asm!("tilestored [{out} + {row}], tmm2", "tilestored [{out} + {row} + 64], tmm3",
                out = in(reg) out.at(TILE_ROWS, 0).data, row = in(reg) 4 * out.row,
                options(nostack));
        }
    }
}

/// Adds the products of 32 rows.
unsafe fn four_tiles(words: usize, left: Left, right: Right) {
    let row = left.row * 4;
    let upper = left.data.cast::<u8>();
    // SAFETY: the tiles are configured; the caller of `multiply` vouches for the words.
    unsafe {
        asm!(
            "test {count}, {count}",
            "jz 3f",
            "2:",
            "tileloadd tmm4, [{upper} + {row}]",
            "tileloadd tmm6, [{right} + {line}]",
            "tileloadd tmm7, [{right} + {line} + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{lower} + {row}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {upper}, 64",
            "add {lower}, 64",
            "add {right}, {lines}",
            "dec {count}",
            "jnz 2b",
            "3:",
            upper = inout(reg) upper => _,
            lower = inout(reg) upper.wrapping_offset(TILE_ROWS as isize * row) => _,
            row = in(reg) row,
            right = inout(reg) right.data => _,
            line = in(reg) 4 * right.step,
            lines = in(reg) 4 * right.step * TILE_WORDS,
            count = inout(reg) words / TILE_WORDS => _,
            options(nostack, readonly),
        );
    }
}

/// Adds the products of 16 rows.
unsafe fn two_tiles(words: usize, left: Left, right: Right) {
    // SAFETY: as `four_tiles`.
    unsafe {
        asm!(
            "test {count}, {count}",
            "jz 3f",
            "2:",
            "tileloadd tmm4, [{left} + {row}]",
            "tileloadd tmm6, [{right} + {line}]",
            "tileloadd tmm7, [{right} + {line} + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {left}, 64",
            "add {right}, {lines}",
            "dec {count}",
            "jnz 2b",
            "3:",
            left = inout(reg) left.data => _,
            row = in(reg) left.row * 4,
            right = inout(reg) right.data => _,
            line = in(reg) 4 * right.step,
            lines = in(reg) 4 * right.step * TILE_WORDS,
            count = inout(reg) words / TILE_WORDS => _,
            options(nostack, readonly),
        );
    }
}

/// Stores what there is room for.
unsafe fn keep(sums: &Sums, rows: usize, cols: usize, out: Out, store: Store) {
    for (row, sums) in sums.0.iter().enumerate().take(rows) {
        // SAFETY: the caller of `multiply` vouches for the rows of the result.
        let to = unsafe { std::slice::from_raw_parts_mut(out.at(row, 0).data, cols) };
        for (to, sum) in to.iter_mut().zip(sums) {
            *to = store.alpha * sum + if store.accumulate { *to } else { 0.0 };
        }
    }
}
