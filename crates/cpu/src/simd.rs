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
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
}

/// Proof that this machine executes the instructions of a [`Level`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Simd(Level);

impl Simd {
    /// The widest level of this machine.
    pub fn best() -> Simd {
        [Level::Avx512, Level::Avx2]
            .into_iter()
            .find_map(Simd::force)
            .unwrap_or(Simd(Level::Baseline))
    }

    /// Exactly this level, or `None` if the machine lacks it. Tests hold the levels against each
    /// other with it.
    pub fn force(level: Level) -> Option<Simd> {
        let present = match level {
            Level::Baseline => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
            }
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

/// Compiles one function body for every [`Level`]; the first argument of the result is a [`Simd`].
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
                $crate::simd::Level::Avx512 => unsafe { avx512($($arg),*) },
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
