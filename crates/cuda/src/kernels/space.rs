//! Spaces as kernels take them: `Space`, `Divide` and `Draws` of `lib/strided.cuh`.

use super::text::STREAMS;
use super::unsupported;
use crate::launch::Parameters;
use aerogel_lower::space::Space;
use aerogel_lower::{Draws, LowerError};

/// Axes cut into units of lanes along the innermost one.
pub(crate) struct Units {
    /// Sizes, outermost first; of the innermost axis in whole units.
    pub sizes: Vec<usize>,
    /// Strides in elements, of the innermost axis for a whole unit: by operand.
    pub strides: Vec<Vec<isize>>,
    /// Elements from lane to lane, by operand.
    pub lanes: Vec<isize>,
}

impl Units {
    /// A space whose innermost axis is cut into units of so many lanes; what does not fill a unit
    /// is left out.
    pub fn new(space: &Space, lanes: usize) -> Units {
        let mut sizes = space.sizes.clone();
        let mut strides = space.strides.clone();
        let last = sizes.len() - 1;
        sizes[last] /= lanes;
        let along = strides.iter().map(|own| own[last]).collect();
        strides.iter_mut().for_each(|own| own[last] *= lanes as isize);
        Units { sizes, strides, lanes: along }
    }

    /// A space whose positions are not cut: the operands' lanes go another way.
    pub fn whole(space: &Space, lanes: Vec<isize>) -> Units {
        Units { sizes: space.sizes.clone(), strides: space.strides.clone(), lanes }
    }

    /// Positions in it.
    pub fn count(&self) -> usize {
        self.sizes.iter().product()
    }

    /// How many axes it has.
    pub fn axes(&self) -> usize {
        self.sizes.len()
    }

    /// Whether all operands go alike from position to position, and from lane to lane by one
    /// element.
    pub fn alike(&self) -> bool {
        self.lanes.iter().all(|lane| *lane == 1) && self.strides.windows(2).all(|s| s[0] == s[1])
    }

    /// Writes the struct.
    pub fn write(&self, to: &mut Parameters) {
        to.align(8);
        for stride in self.strides.iter().flatten().chain(&self.lanes) {
            to.i64(*stride as i64);
        }
        self.sizes.iter().for_each(|size| divide(*size, to));
        to.align(8);
    }
}

/// A space of at least one axis, merged as far as all operands allow.
///
/// # Errors
/// More axes are left than any device walks.
pub(crate) fn merged(
    kernel: &'static str,
    sizes: &[usize],
    strides: Vec<Vec<isize>>,
) -> Result<Space, LowerError> {
    let mut space = Space::new(kernel, sizes, strides)?;
    space.collapse(0);
    space.finish(kernel)
}

/// Writes a `Divide`: Granlund and Montgomery, "Division by invariant integers using
/// multiplication", 1994.
pub(crate) fn divide(divisor: usize, to: &mut Parameters) {
    let d = divisor.max(1) as u64;
    let shift = (d - 1).checked_ilog2().map_or(0, |log| log + 1);
    let multiplier = (((1u128 << 32) * ((1u128 << shift) - u128::from(d))) / u128::from(d)) + 1;
    to.u32(d as u32).u32(multiplier as u32).u32(shift);
}

/// Writes a `Draws`, with the streams that [`streams`](super::text::streams) gives.
pub(crate) fn draws(draws: Draws, streams: &[u64], to: &mut Parameters) {
    to.u64(draws.first).u64(draws.step);
    (0..STREAMS).for_each(|n| _ = to.u64(streams.get(n).copied().unwrap_or(0)));
}

/// A count as kernels take it.
///
/// # Errors
/// It is not under 2^31, which the kernels' divisions ask for.
pub(crate) fn count(kernel: &'static str, n: usize) -> Result<u32, LowerError> {
    match u32::try_from(n) {
        Ok(small) if small < 1 << 31 => Ok(small),
        _ => Err(unsupported(kernel, format!("{n} units are too many; at most 2^31 - 1"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotients_are_exact() {
        for d in [1usize, 2, 3, 7, 64, 641, 50_257, 65_536, 1 << 30] {
            let mut p = Parameters::new();
            divide(d, &mut p);
            let word = |i: usize| u32::from_le_bytes(p.bytes()[4 * i..][..4].try_into().unwrap());
            for n in [0u32, 1, 2, 640, 641, 642, 99_999, 1 << 29, (1 << 31) - 1] {
                let high = ((u64::from(n) * u64::from(word(1))) >> 32) as u32;
                let quotient = (u64::from(high) + u64::from(n)) as u32 >> word(2);
                assert_eq!(quotient, n / d as u32, "{n} / {d}");
            }
        }
    }
}
