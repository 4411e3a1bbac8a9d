//! Run-time choice of the vector instructions.
//!
//! Inner loops are plain Rust that the compiler vectorises; [`multiversion!`] instantiates one body
//! for AVX-512, for AVX2 with FMA, and for the baseline. A [`Simd`] value is the proof that its
//! instructions exist on this machine, so kernels take one instead of asking again.
//! Fused multiply-add is written out (`f32::mul_add`), never left to the compiler.

/// An instruction set that the inner loops can be compiled for, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every machine of this architecture has.
    Baseline,
    /// AVX2, FMA and F16C.
    Avx2,
    /// The same with AVX-512 F, BW, DQ, VL.
    Avx512,
    /// The same with products of bf16 pairs (AVX512-BF16).
    Avx512Bf16,
    /// The same with bf16 matrix tiles (AMX-BF16), where the system lets a process use them.
    Amx,
}

impl Level {
    /// All levels, weakest first.
    pub const ALL: [Level; 5] =
        [Level::Baseline, Level::Avx2, Level::Avx512, Level::Avx512Bf16, Level::Amx];
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Level::Baseline => "baseline",
            Level::Avx2 => "AVX2",
            Level::Avx512 => "AVX-512",
            Level::Avx512Bf16 => "AVX-512 with bf16",
            Level::Amx => "AMX",
        })
    }
}

/// Proof that this machine executes the instructions of a [`Level`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Simd(Level);

impl Simd {
    /// The widest level of this machine.
    pub fn best() -> Simd {
        Level::ALL.into_iter().rev().find_map(Simd::force).unwrap_or(Simd(Level::Baseline))
    }

    /// Exactly this level, or `None` if the machine lacks it. Tests hold the levels against each
    /// other with it.
    pub fn force(level: Level) -> Option<Simd> {
        let present = match level {
            Level::Baseline => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                Simd::force(Level::Avx2).is_some()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => {
                Simd::force(Level::Avx512).is_some() && is_x86_feature_detected!("avx512bf16")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Amx => Simd::force(Level::Avx512Bf16).is_some() && amx::usable(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        };
        present.then_some(Simd(level))
    }

    /// The level that this value stands for.
    pub fn level(self) -> Level {
        self.0
    }
}

/// Asks for `bytes` from an address to be brought to the second-level cache. Any address will do:
/// nothing is read.
#[inline]
pub(crate) fn prefetch(from: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..bytes).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, bytes);
}

/// The matrix tiles: whether the processor has them, and whether the system lets us use them.
#[cfg(target_arch = "x86_64")]
mod amx {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid_count, _xgetbv};
    use std::sync::OnceLock;

    /// Detects once; the permission then holds for all threads of the process that start later.
    pub(super) fn usable() -> bool {
        static USABLE: OnceLock<bool> = OnceLock::new();
        *USABLE.get_or_init(|| has_tiles() && permitted())
    }

    /// AMX-TILE and AMX-BF16 (leaf 7), and a system that saves the tiles (XCR0).
    fn has_tiles() -> bool {
        const TILE: u32 = 1 << 24;
        const BF16: u32 = 1 << 22;
        const SAVED: u64 = 3 << 17;
        if !is_x86_feature_detected!("xsave") {
            return false;
        }
        let features = __cpuid_count(7, 0).edx;
        // SAFETY: XSAVE is there, so XCR0 can be read.
        features & TILE != 0 && features & BF16 != 0 && unsafe { saved_state() } & SAVED == SAVED
    }

    #[target_feature(enable = "xsave")]
    unsafe fn saved_state() -> u64 {
        // SAFETY: the caller has seen XSAVE.
        unsafe { _xgetbv(0) }
    }

    /// Linux gives a process the 8 KiB of tile data only when asked (arch_prctl, REQ_XCOMP_PERM).
    #[cfg(target_os = "linux")]
    fn permitted() -> bool {
        const ARCH_PRCTL: isize = 158;
        const REQUEST: usize = 0x1023;
        const TILE_DATA: usize = 18;
        let mut result = ARCH_PRCTL;
        // SAFETY: a system call that reads two numbers and touches no memory of ours.
        unsafe {
            asm!("syscall", inout("rax") result, in("rdi") REQUEST, in("rsi") TILE_DATA,
                out("rcx") _, out("r11") _, options(nostack));
        }
        result == 0
    }

    #[cfg(not(target_os = "linux"))]
    fn permitted() -> bool {
        false
    }
}

/// Compiles one function body for every [`Level`] that changes plain loops; the first argument of
/// the result is a [`Simd`].
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name(simd: $crate::simd::Simd, $($arg: $ty),*) {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn portable($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx512($($arg: $ty),*) { portable($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx2($($arg: $ty),*) { portable($($arg),*) }
            match simd.level() {
                // SAFETY: a `Simd` of this level exists only where these features were detected.
                #[cfg(target_arch = "x86_64")]
                level if level >= $crate::simd::Level::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx2 => unsafe { avx2($($arg),*) },
                _ => portable($($arg),*),
            }
        }
    };
}
pub(crate) use multiversion;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_level_can_be_forced() {
        assert_eq!(Simd::force(Simd::best().level()), Some(Simd::best()));
        assert!(Simd::force(Level::Baseline).is_some());
    }
}
