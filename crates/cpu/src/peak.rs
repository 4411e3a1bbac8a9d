//! What the machine could reach at most: arithmetic that touches registers alone, and copies that
//! no cache can hold. Kernels are held against these; nothing here computes anything.

use crate::kernel::Ptr;
use crate::pool::Pool;
use std::hint::black_box;
use std::time::Instant;

/// Independent sums of a loop: more than the latency of a multiply-add times its throughput.
const SUMS: usize = 16;
/// Rounds of a loop, some milliseconds.
const ROUNDS: u64 = 1 << 21;
/// Pieces of a copy for each thread, so that a late one costs little.
const PIECES: usize = 8;

/// A rate that no kernel made of this instruction can exceed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// The instruction, as an assembler calls it, with the width of its registers.
    pub instruction: &'static str,
    /// FLOP/s of all threads, a multiply-add counted as two.
    pub flops_per_second: f64,
}

/// A loop over registers, and the FLOPs of one of its rounds.
struct Loop {
    instruction: &'static str,
    flops: u64,
    run: fn(u64),
}

/// The f32 multiply-adds that all threads of a pool reach together, the best of `repeats`.
pub fn peak_f32(pool: &Pool, repeats: usize) -> Peak {
    measure(pool, repeats, &f32_loop())
}

/// The same for products of bf16 summed in f32; `None` where there is no instruction for them.
/// Tile instructions have no loop here: where a machine has them, kernels may exceed this rate.
pub fn peak_bf16(pool: &Pool, repeats: usize) -> Option<Peak> {
    bf16_loop().map(|l| measure(pool, repeats, &l))
}

fn measure(pool: &Pool, repeats: usize, l: &Loop) -> Peak {
    let threads = pool.threads();
    let once = || {
        let started = Instant::now();
        pool.run(threads, &|_, _| (l.run)(ROUNDS));
        started.elapsed().as_secs_f64()
    };
    once();
    let seconds = (0..repeats.max(1)).map(|_| once()).fold(f64::INFINITY, f64::min);
    let flops = threads as f64 * ROUNDS as f64 * l.flops as f64;
    Peak { instruction: l.instruction, flops_per_second: flops / seconds }
}

/// Bytes a second that all threads of a pool copy together, read and written ones counted both:
/// the best of `repeats` copies of `bytes` from one place to another.
pub fn copy_bytes_per_second(pool: &Pool, bytes: usize, repeats: usize) -> f64 {
    let (from, mut to) = (vec![1u8; bytes], vec![0u8; bytes]);
    let pieces = PIECES * pool.threads();
    let (read, written) = (Ptr::new(from.as_ptr()), Ptr::new(to.as_mut_ptr()));
    let once = || {
        let started = Instant::now();
        pool.run(pieces, &|piece, _| {
            let (first, end) = (bytes * piece / pieces, bytes * (piece + 1) / pieces);
            let at = first as isize;
            // SAFETY: the pieces lie in buffers of `bytes` bytes each, which live until the run is
            // over, and no two tasks have the same piece.
            unsafe { written.at::<u8>(at).copy_from_nonoverlapping(read.at(at), end - first) };
        });
        started.elapsed().as_secs_f64()
    };
    once();
    let seconds = (0..repeats.max(1)).map(|_| once()).fold(f64::INFINITY, f64::min);
    black_box(&mut to);
    2.0 * bytes as f64 / seconds
}

/// Multiplies and adds as the compiler vectorises them for any machine of the architecture.
fn portable(rounds: u64) {
    const LANES: usize = 4 * SUMS;
    let (x, y) = (black_box(1.0f32), black_box(1e-9f32));
    let mut sums = [0.0f32; LANES];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = *sum * x + y;
        }
    }
    black_box(sums);
}

#[cfg(not(target_arch = "x86_64"))]
fn f32_loop() -> Loop {
    Loop { instruction: "multiply and add", flops: 2 * 4 * SUMS as u64, run: portable }
}

#[cfg(not(target_arch = "x86_64"))]
fn bf16_loop() -> Option<Loop> {
    None
}

#[cfg(target_arch = "x86_64")]
fn f32_loop() -> Loop {
    let sums = SUMS as u64;
    if is_x86_feature_detected!("avx512f") {
        let instruction = "vfmadd231ps zmm";
        // SAFETY: the feature was detected.
        return Loop { instruction, flops: 2 * 16 * sums, run: |n| unsafe { fma_avx512(n) } };
    }
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        let instruction = "vfmadd231ps ymm";
        // SAFETY: the features were detected.
        return Loop { instruction, flops: 2 * 8 * sums, run: |n| unsafe { fma_avx2(n) } };
    }
    Loop { instruction: "mulps and addps xmm", flops: 2 * 4 * sums, run: portable }
}

#[cfg(target_arch = "x86_64")]
fn bf16_loop() -> Option<Loop> {
    let present = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
    present.then_some(Loop {
        instruction: "vdpbf16ps zmm",
        flops: 4 * 16 * SUMS as u64,
        // SAFETY: the features were detected.
        run: |n| unsafe { dot_avx512(n) },
    })
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m512bh, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_set1_ps,
};

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn fma_avx512(rounds: u64) {
    let x = _mm512_set1_ps(black_box(1e-9));
    let y = _mm512_set1_ps(black_box(1.0));
    let mut sums = [0; SUMS].map(|_| _mm512_set1_ps(black_box(0.0)));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(x, y, *sum);
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fma_avx2(rounds: u64) {
    const REGISTERS: usize = SUMS - 4;
    let x = _mm256_set1_ps(black_box(1e-9));
    let y = _mm256_set1_ps(black_box(1.0));
    let mut sums = [0; REGISTERS].map(|_| _mm256_set1_ps(black_box(0.0)));
    // As many multiply-adds as `SUMS` sums have in `rounds`, in no more registers than there are.
    for _ in 0..rounds * SUMS as u64 / REGISTERS as u64 {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(x, y, *sum);
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot_avx512(rounds: u64) {
    // SAFETY: both types are 512 bits, of which every pattern is a value.
    let bits = |x: u32| unsafe { std::mem::transmute::<[u32; 16], __m512bh>([black_box(x); 16]) };
    // Pairs of 2^-30, and of 1.
    let (x, y) = (bits(0x3080_3080), bits(0x3f80_3f80));
    let mut sums = [0; SUMS].map(|_| _mm512_set1_ps(black_box(0.0)));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, x, y);
        }
    }
    black_box(sums);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_rates_that_a_machine_can_have() {
        let pool = Pool::new(1).unwrap();
        let f32 = peak_f32(&pool, 2).flops_per_second;
        // Some hundred MHz of scalar arithmetic, and all lanes of two units at 10 GHz.
        assert!((1e8..2e12).contains(&f32), "{f32:e} FLOP/s");
        if let Some(bf16) = peak_bf16(&pool, 2) {
            assert!((1e8..4e12).contains(&bf16.flops_per_second), "{bf16:?}");
        }
        let copied = copy_bytes_per_second(&pool, 1 << 22, 2);
        assert!((1e7..1e13).contains(&copied), "{copied:e} bytes/s");
    }
}
