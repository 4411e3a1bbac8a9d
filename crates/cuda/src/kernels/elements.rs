//! What is common to element-wise kernels: operands of a program over a space, and how many lanes
//! a unit of it may have.

use super::text::{Along, indices};
use aerogel_lower::{Operand, Program};

/// The largest power of two that divides all of these; `most` for none, or for zeros.
pub(crate) fn common_power(numbers: impl IntoIterator<Item = usize>, most: usize) -> usize {
    numbers
        .into_iter()
        .filter(|n| *n > 0)
        .fold(most, |power, n| power.min(1 << n.trailing_zeros().min(31)))
}

/// Elements that an operand's units are known to begin at multiples of, if the address at the
/// origin is a multiple of `align` bytes and the strides between units are these.
pub(crate) fn alignment(operand: &Operand, align: u64, steps: &[isize]) -> usize {
    let elements = (align as usize / operand.dtype.bytes()).max(1);
    common_power(steps.iter().map(|s| s.unsigned_abs()), elements.next_power_of_two())
}

/// How an operand of this stride along the lanes is read.
pub(crate) fn along(lane: isize, align: usize) -> Along {
    match lane {
        0 => Along::Repeat,
        1 => Along::Unit(align),
        _ => Along::Strided,
    }
}

/// Strides of a program's operands (inputs, then outputs), then of its indices, over its axes.
pub(crate) fn strides(program: &Program) -> Vec<Vec<isize>> {
    let operands = program.inputs.iter().chain(&program.outputs);
    operands.map(|o| o.strides.clone()).chain(indices(program)).collect()
}
