//! Stretches of f16 to f32 and back: by the instructions for it (AVX-512, F16C), with the bits of
//! the functions of `graph`, which are taken elsewhere and for what is left of a stretch.

use crate::simd::{Level, Simd};
use aerogel_graph::types::{f16_to_f32, f32_to_f16};

/// f16 to f32; the slices have one length.
pub(super) fn widen(simd: Simd, out: &mut [f32], from: &[u16]) {
    match simd.level() {
        // SAFETY: a `Simd` of this level exists only where these features were detected.
        #[cfg(target_arch = "x86_64")]
        level if level >= Level::Avx512 => unsafe { hardware::widen_avx512(out, from) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { hardware::widen_f16c(out, from) },
        _ => out.iter_mut().zip(from).for_each(|(o, &x)| *o = f16_to_f32(x)),
    }
}

/// f32 to the nearest f16, ties to even; the slices have one length.
pub(super) fn narrow(simd: Simd, out: &mut [u16], from: &[f32]) {
    match simd.level() {
        // SAFETY: a `Simd` of this level exists only where these features were detected.
        #[cfg(target_arch = "x86_64")]
        level if level >= Level::Avx512 => unsafe { hardware::narrow_avx512(out, from) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { hardware::narrow_f16c(out, from) },
        _ => out.iter_mut().zip(from).for_each(|(o, &x)| *o = f32_to_f16(x)),
    }
}

#[cfg(target_arch = "x86_64")]
mod hardware {
    use aerogel_graph::types::{f16_to_f32, f32_to_f16};
    use std::arch::x86_64::*;

    /// A function for stretches from one for blocks, `(to, from)`, and one for single elements.
    macro_rules! stretches {
        ($name:ident, $features:literal, $lanes:literal, [$from:ty] -> [$to:ty],
            $block:expr, $one:expr) => {
            #[target_feature(enable = $features)]
            pub fn $name(out: &mut [$to], from: &[$from]) {
                let (blocks, rest) = from.as_chunks::<$lanes>();
                let (to, last) = out.as_chunks_mut::<$lanes>();
                for (to, block) in to.iter_mut().zip(blocks) {
                    // SAFETY: both have room for all lanes.
                    unsafe { $block(to.as_mut_ptr(), block.as_ptr()) }
                }
                for (to, &x) in last.iter_mut().zip(rest) {
                    *to = $one(x);
                }
            }
        };
    }

    stretches!(
        widen_avx512,
        "avx512f",
        16,
        [u16] -> [f32],
        |to, from: *const u16| {
            _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())))
        },
        f16_to_f32
    );
    stretches!(
        narrow_avx512,
        "avx512f",
        16,
        [f32] -> [u16],
        |to: *mut u16, from| {
            let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_loadu_ps(from));
            _mm256_storeu_si256(to.cast(), halves)
        },
        f32_to_f16
    );
    stretches!(
        widen_f16c,
        "avx,f16c",
        8,
        [u16] -> [f32],
        |to, from: *const u16| {
            _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(from.cast())))
        },
        f16_to_f32
    );
    stretches!(
        narrow_f16c,
        "avx,f16c",
        8,
        [f32] -> [u16],
        |to: *mut u16, from| {
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(from));
            _mm_storeu_si128(to.cast(), halves)
        },
        f32_to_f16
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All f16, and f32 of all sizes, in stretches of many lengths.
    #[test]
    fn every_level_has_the_same_bits() {
        let halves: Vec<u16> = (0..=u16::MAX).collect();
        let floats: Vec<f32> =
            (0..1 << 20).map(|i: u32| f32::from_bits(i.wrapping_mul(2_654_435_761))).collect();
        for simd in Level::ALL.into_iter().filter_map(Simd::force) {
            for length in [1, 7, 8, 15, 16, 40, 1000] {
                for part in halves.chunks(length) {
                    let mut out = vec![0.0; part.len()];
                    widen(simd, &mut out, part);
                    for (got, &x) in out.iter().zip(part) {
                        assert_eq!(got.to_bits(), f16_to_f32(x).to_bits(), "{simd:?} {x:#x}");
                    }
                }
                for part in floats.chunks(length) {
                    let mut out = vec![0; part.len()];
                    narrow(simd, &mut out, part);
                    for (&got, &x) in out.iter().zip(part) {
                        assert_eq!(got, f32_to_f16(x), "{simd:?} {:#x}", x.to_bits());
                    }
                }
            }
        }
    }
}
