//! Micro-kernels of AVX-512, with and without bf16 products: 1 to 14 rows times two vectors.
//!
//! The loop over the depth is written in assembly: of its 32 registers 28 hold sums, two a line of
//! the panel and one an element of the left factor, and a compiler that moves loads forward has to
//! spill. Each step of the depth loads two vectors and one word a row for two products a row, which
//! is less than the two loads a cycle that processors do.

use super::Block;
use std::arch::asm;
use std::arch::x86_64::{
    __m512, _mm512_add_ps, _mm512_loadu_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_storeu_ps,
};

type Tile = unsafe fn(&Block);

/// Stores the two vectors of one row.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(block: &Block, row: usize, sums: [__m512; 2]) {
    let alpha = _mm512_set1_ps(block.store.alpha);
    for (half, sum) in sums.into_iter().enumerate() {
        let to = block.out.at(row, 16 * half).data;
        let sum = _mm512_mul_ps(alpha, sum);
        // SAFETY: the caller of `multiply` vouches for the row.
        unsafe {
            let sum =
                if block.store.accumulate { _mm512_add_ps(_mm512_loadu_ps(to), sum) } else { sum };
            _mm512_storeu_ps(to, sum);
        }
    }
}

/// A kernel for the rows listed: where a row's word is, from pointers to every third row, and its
/// two registers of sums.
macro_rules! tile {
    ($name:ident, $fma:literal, [$(($row:literal, $at:literal, $s0:tt, $s1:tt))*]) => {
        #[target_feature(enable = "avx512f")]
        unsafe fn $name(block: &Block) {
            let Block { words, left, right, right_step, .. } = *block;
            let row = left.row * 4;
            let base = left.data.cast::<u8>();
            let mut sums = [[_mm512_set1_ps(0.0); 2]; 14];
            // SAFETY: reads the words of the block that the caller of `multiply` vouches for.
            unsafe {
                asm!(
                    "test {count}, {count}",
                    "jz 3f",
                    "2:",
                    "vmovups zmm28, [{right}]",
                    "vmovups zmm29, [{right} + 64]",
                    $(
                        concat!("vbroadcastss zmm30, dword ptr [", $at, "]"),
                        concat!($fma, " ", $s0, ", zmm30, zmm28"),
                        concat!($fma, " ", $s1, ", zmm30, zmm29"),
                    )*
                    "add {right}, {right_step}",
                    "add {p0}, {step}",
                    "add {p3}, {step}",
                    "add {p6}, {step}",
                    "add {p9}, {step}",
                    "add {p12}, {step}",
                    "dec {count}",
                    "jnz 2b",
                    "3:",
                    // Kernels of few rows do without some of the pointers.
                    "/* {row} */",
                    right = inout(reg) right => _,
                    right_step = in(reg) 4 * right_step,
                    count = inout(reg) words => _,
                    row = in(reg) row,
                    step = in(reg) 4 * left.step,
                    p0 = inout(reg) base => _,
                    p3 = inout(reg) base.wrapping_offset(3 * row) => _,
                    p6 = inout(reg) base.wrapping_offset(6 * row) => _,
                    p9 = inout(reg) base.wrapping_offset(9 * row) => _,
                    p12 = inout(reg) base.wrapping_offset(12 * row) => _,
                    $(
                        inout($s0) sums[$row][0],
                        inout($s1) sums[$row][1],
                    )*
                    out("zmm28") _,
                    out("zmm29") _,
                    out("zmm30") _,
                    options(nostack, readonly),
                );
                $( store(block, $row, sums[$row]); )*
            }
        }
    };
}

/// Kernels of the first row, the first two, and so on, and a table of them.
macro_rules! ladder {
    ($table:ident, $fma:literal, $($name:ident $row:tt)*) => {
        ladder!(@ $fma, [], $($name $row)*);
        static $table: [Tile; 14] = [$($name),*];
    };
    (@ $fma:literal, [$($done:tt)*], $name:ident $row:tt $($rest:tt)*) => {
        tile!($name, $fma, [$($done)* $row]);
        ladder!(@ $fma, [$($done)* $row], $($rest)*);
    };
    (@ $fma:literal, [$($done:tt)*],) => {};
}

/// The same rows for each kind of product.
macro_rules! kernels {
    ($table:ident, $fma:literal, $($name:ident)*) => {
        kernels!(@ $table, $fma, [$($name)*] [
            (0, "{p0}", "zmm0", "zmm1")
            (1, "{p0} + {row}", "zmm2", "zmm3")
            (2, "{p0} + 2*{row}", "zmm4", "zmm5")
            (3, "{p3}", "zmm6", "zmm7")
            (4, "{p3} + {row}", "zmm8", "zmm9")
            (5, "{p3} + 2*{row}", "zmm10", "zmm11")
            (6, "{p6}", "zmm12", "zmm13")
            (7, "{p6} + {row}", "zmm14", "zmm15")
            (8, "{p6} + 2*{row}", "zmm16", "zmm17")
            (9, "{p9}", "zmm18", "zmm19")
            (10, "{p9} + {row}", "zmm20", "zmm21")
            (11, "{p9} + 2*{row}", "zmm22", "zmm23")
            (12, "{p12}", "zmm24", "zmm25")
            (13, "{p12} + {row}", "zmm26", "zmm27")
        ]);
    };
    (@ $table:ident, $fma:literal, [$($name:ident)*] [$($row:tt)*]) => {
        ladder!($table, $fma, $($name $row)*);
    };
}

kernels!(F32, "vfmadd231ps", f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 f11 f12 f13 f14);
kernels!(BF16, "vdpbf16ps", b1 b2 b3 b4 b5 b6 b7 b8 b9 b10 b11 b12 b13 b14);

/// # Safety
/// As `multiply`, and the processor has AVX-512.
pub(super) unsafe fn f32(block: &Block) {
    // SAFETY: forwarded.
    unsafe { F32[block.rows - 1](block) }
}

/// # Safety
/// As `multiply`, and the processor has AVX-512 and its bf16 products.
pub(super) unsafe fn bf16(block: &Block) {
    // SAFETY: forwarded.
    unsafe { BF16[block.rows - 1](block) }
}
