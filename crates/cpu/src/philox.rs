//! Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As
//! Easy as 1, 2, 3").
//!
//! A draw is a pure function of (seed, step, stream, element), so it does not depend on threads,
//! tiles or recomputation. Key: the seed's low and high half. Counter: element / 4 (low, high),
//! the step's low half, the stream folded to 32 bits. Word: element % 4.

use crate::simd::multiversion;

/// Philox4x32 with ten rounds.
#[inline(always)]
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    let mut round = 0;
    while round < 10 {
        let (p0, p1) = (u64::from(c0) * 0xD251_1F53, u64::from(c2) * 0xCD9E_8D57);
        (c0, c1, c2, c3) =
            ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
        round += 1;
    }
    [c0, c1, c2, c3]
}

#[inline(always)]
fn words(seed: u64, step: u64, stream: u64, group: u64) -> [u32; 4] {
    let folded = (stream ^ (stream >> 32)) as u32;
    let counter = [group as u32, (group >> 32) as u32, step as u32, folded];
    philox4x32_10(counter, [seed as u32, (seed >> 32) as u32])
}

#[inline(always)]
fn to_unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// The draw of one element: uniform in [0, 1), a multiple of 2^-24.
pub fn uniform(seed: u64, step: u64, stream: u64, element: u64) -> f32 {
    to_unit(words(seed, step, stream, element / 4)[(element % 4) as usize])
}

multiversion! {
    /// The draws of the consecutive elements `first..first + out.len()`.
    pub(crate) fn fill_uniform(out: &mut [f32], seed: u64, step: u64, stream: u64, first: u64) {
        const GROUPS: usize = 16;
        let head = ((4 - first % 4) % 4).min(out.len() as u64) as usize;
        let (start, rest) = out.split_at_mut(head);
        for (element, slot) in (first..).zip(start) {
            *slot = uniform(seed, step, stream, element);
        }
        let mut element = first + head as u64;
        let mut blocks = rest.chunks_exact_mut(4 * GROUPS);
        for block in &mut blocks {
            let mut lanes = [[0f32; GROUPS]; 4];
            #[allow(clippy::needless_range_loop)] // transposes; four iterators would hide it
            for g in 0..GROUPS {
                let drawn = words(seed, step, stream, element / 4 + g as u64);
                for lane in 0..4 {
                    lanes[lane][g] = to_unit(drawn[lane]);
                }
            }
            for (i, slot) in block.iter_mut().enumerate() {
                *slot = lanes[i % 4][i / 4];
            }
            element += 4 * GROUPS as u64;
        }
        for (element, slot) in (element..).zip(blocks.into_remainder()) {
            *slot = uniform(seed, step, stream, element);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Level, Simd};

    #[test]
    fn known_answers_of_random123() {
        let zero = philox4x32_10([0; 4], [0; 2]);
        assert_eq!(zero, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = philox4x32_10([u32::MAX; 4], [u32::MAX; 2]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn consecutive_draws_equal_single_draws() {
        for level in [Level::Baseline, Level::Avx2, Level::Avx512] {
            let Some(simd) = Simd::force(level) else { continue };
            for (first, len) in [(0, 257), (3, 1), (5, 400), ((1 << 34) - 7, 64)] {
                let mut out = vec![f32::NAN; len];
                fill_uniform(simd, &mut out, 7 << 40, 3, 0xdead_beef_0123, first);
                for (i, got) in out.iter().enumerate() {
                    let wanted = uniform(7 << 40, 3, 0xdead_beef_0123, first + i as u64);
                    assert_eq!(got.to_bits(), wanted.to_bits());
                    assert!((0.0..1.0).contains(got));
                }
            }
        }
    }
}
