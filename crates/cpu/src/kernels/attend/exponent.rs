//! Powers of two for softmax, and stretches of scores as the products take them.

/// Vectors are worked through in blocks of this many floats.
pub(crate) const BLOCK: usize = 32;
/// A block of consecutive floats.
pub(crate) type Floats = [f32; BLOCK];

/// 2^x for x up to 126, within 1.5 units in the last place; results under 2^-126 are 0. NaN stays.
///
/// Softmax subtracts the maximum first, so it needs no more; the general `exp` takes half as long
/// again. Scores are held times log2(e), which costs nothing where they are scaled anyway.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    // Adding it leaves the nearest integer, plus the bias of exponents, in the low bits.
    const ROUND: f32 = 12_582_912.0 + 127.0; // 1.5 * 2^23
    let x = if x < -127.0 { -127.0 } else { x };
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let p = 0.001_330_060_5f32;
    let p = p.mul_add(r, 0.009_669_691);
    let p = p.mul_add(r, 0.055_505_585);
    let p = p.mul_add(r, 0.240_222_83);
    let p = p.mul_add(r, std::f32::consts::LN_2);
    let p = p.mul_add(r, 1.0);
    p * f32::from_bits(shifted.to_bits() << 23)
}

/// Folds a block by halves, in a fixed order.
#[inline(always)]
pub(crate) fn fold(block: &Floats, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut block = *block;
    for width in [16, 8, 4, 2, 1] {
        for i in 0..width {
            block[i] = f(block[i], block[i + width]);
        }
    }
    block[0]
}

/// Minus infinity where the bit is not set.
#[inline(always)]
pub(crate) fn masked(block: &mut Floats, word: u32) {
    for (i, x) in block.iter_mut().enumerate() {
        *x = if (word >> i) & 1 == 0 { f32::NEG_INFINITY } else { *x };
    }
}

/// How f32 become bf16: the instructions for it, or arithmetic.
pub(crate) trait Narrow: Copy {
    /// Rounds to nearest, ties to even.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn narrow(self, block: &Floats) -> [u16; BLOCK];
}

/// By arithmetic.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Narrow for Plain {
    #[inline(always)]
    unsafe fn narrow(self, block: &Floats) -> [u16; BLOCK] {
        block.map(crate::math::to_bf16)
    }
}

/// By AVX512-BF16.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Native;

#[cfg(target_arch = "x86_64")]
impl Narrow for Native {
    #[inline(always)]
    unsafe fn narrow(self, block: &Floats) -> [u16; BLOCK] {
        use std::arch::x86_64::{_mm512_cvtne2ps_pbh, _mm512_loadu_ps};
        // SAFETY: the caller has seen the instructions; the halves lie within the block, and the
        // result is 32 bf16.
        unsafe {
            let low = _mm512_loadu_ps(block.as_ptr());
            let high = _mm512_loadu_ps(block.as_ptr().add(BLOCK / 2));
            std::mem::transmute(_mm512_cvtne2ps_pbh(high, low))
        }
    }
}

/// Compiles one function, generic over [`Narrow`] by its last argument, for every level.
macro_rules! narrowing {
    ($(#[$meta:meta])* $vis:vis fn $name:ident = $body:ident($($arg:ident: $ty:ty),* $(,)?)) => {
        $(#[$meta])*
        $vis unsafe fn $name(simd: $crate::simd::Simd, $($arg: $ty),*) {
            $crate::simd::multiversion! {
                fn plain($($arg: $ty),*) {
                    // SAFETY: forwarded.
                    unsafe { $body($($arg,)* $crate::kernels::attend::exponent::Plain) }
                }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
            unsafe fn native($($arg: $ty),*) {
                // SAFETY: forwarded.
                unsafe { $body($($arg,)* $crate::kernels::attend::exponent::Native) }
            }
            #[cfg(target_arch = "x86_64")]
            if simd.level() >= $crate::simd::Level::Avx512Bf16 {
                // SAFETY: forwarded; a `Simd` of this level exists only where the instructions do.
                return unsafe { native($($arg),*) };
            }
            plain(simd, $($arg),*);
        }
    };
}
pub(crate) use narrowing;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_within_their_bound() {
        for i in 0..2_000_000 {
            let x = i as f32 / 2_000_000.0 * -126.0 + 0.3;
            let (got, wanted) = (f64::from(exp2(x)), f64::from(x).exp2());
            assert!((got - wanted).abs() <= 1.5 * 1.2e-7 * wanted, "{x}: {got} {wanted}");
        }
        assert_eq!([exp2(0.0), exp2(-1.0), exp2(-127.0)], [1.0, 0.5, 0.0]);
        assert_eq!([exp2(f32::NEG_INFINITY), exp2(-1e30)], [0.0, 0.0]);
        assert!(exp2(f32::NAN).is_nan());
    }
}
