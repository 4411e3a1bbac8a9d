//! What is common to element-wise kernels: operands of a program over a space, and how many lanes
//! a unit of it may have.

use super::space::Units;
use super::text::{Along, Part, indices};
use crate::launch::{Address, Kernel, Launch, Parameters};
use crate::source::Source;
use aerogel_lower::{Instr, LowerError, Operand, Program, Value, space};

#[cfg(test)]
pub(crate) mod testing;

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

/// Refuses operands with another number of strides than there are axes.
pub(crate) fn check_ranks<'a>(
    kernel: &'static str,
    wanted: usize,
    operands: impl IntoIterator<Item = &'a Operand>,
) -> Result<(), LowerError> {
    let ranks = operands.into_iter().map(|o| o.strides.len()).enumerate();
    match ranks.into_iter().find(|(_, got)| *got != wanted) {
        Some((operand, got)) => Err(LowerError::Rank { kernel, operand, wanted, got }),
        None => Ok(()),
    }
}

/// Strides of a program's operands (inputs, then outputs), then of its indices, over its axes.
pub(crate) fn strides(program: &Program) -> Vec<Vec<isize>> {
    let operands = program.inputs.iter().chain(&program.outputs);
    operands.map(|o| o.strides.clone()).chain(indices(program)).collect()
}

/// What kernels call the strides of a program's operands and indices: the operands of all programs
/// are numbered first, then their indices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    /// Of the program's first operand.
    pub operand: usize,
    /// Of its first index.
    pub index: usize,
}

/// A program as a struct of the text. Its operands lie at multiples of `align` bytes and are walked
/// in all of the `spaces`, of which the last one has their lanes: `lanes` to a unit.
pub(crate) fn part<'a>(
    (name, program, result): (&'a str, &'a Program, Option<Value>),
    first: Numbers,
    align: &[u64],
    spaces: &[&Units],
    lanes: usize,
) -> Part<'a> {
    let lane_of = |k: usize| spaces[spaces.len() - 1].lanes[k];
    let operands = program.inputs.iter().chain(&program.outputs).zip(align).enumerate();
    let ways = operands.map(|(i, (operand, align))| {
        let k = first.operand + i;
        let mut steps: Vec<isize> =
            spaces.iter().flat_map(|s| s.strides[k].iter().copied()).collect();
        steps.push(lanes as isize);
        along(lane_of(k), alignment(operand, *align, &steps))
    });
    let numbers = 0..indices(program).len();
    Part {
        name,
        program,
        along: ways.collect(),
        indices_along: numbers.map(|i| along(lane_of(first.index + i), 1)).collect(),
        result,
    }
}

/// Axes in the order to walk them, outermost first: the innermost is the one along which most bytes
/// lie side by side, the others follow each other by falling stride, of the first operand above
/// all.
pub(crate) fn order(sizes: &[usize], axes: &[usize], operands: &[&Operand]) -> Vec<usize> {
    let strides: Vec<&[isize]> = operands.iter().map(|o| &o.strides[..]).collect();
    let mut order = space::by_stride(axes, &strides);
    let bytes = |axis: usize| -> usize {
        operands.iter().filter(|o| o.strides[axis] == 1).map(|o| o.dtype.bytes()).sum()
    };
    let wide = (0..order.len()).filter(|at| sizes[order[*at]] > 1);
    if let Some(best) = wide.max_by_key(|at| bytes(order[*at])) {
        let axis = order.remove(best);
        order.push(axis);
    }
    order
}

/// The axes of this order, of all these.
pub(crate) fn ordered<T: Copy>(all: &[T], order: &[usize]) -> Vec<T> {
    order.iter().map(|&axis| all[axis]).collect()
}

/// Lanes of a unit along an axis of this size: 16 bytes of what is read or written one element
/// after the other, where most of it has elements of 2 bytes; else 16 bytes of 4. `ragged` axes
/// may leave a rest.
pub(crate) fn lanes<'a>(
    operands: impl IntoIterator<Item = &'a Operand>,
    lane: &[isize],
    size: usize,
    ragged: bool,
) -> usize {
    let mut count = [0usize; 2];
    for (operand, _) in operands.into_iter().zip(lane).filter(|(_, lane)| **lane == 1) {
        count[usize::from(operand.dtype.bytes() == 2)] += 1;
    }
    let most = match count {
        [0, 0] => 1,
        [wide, narrow] if narrow >= wide => 8,
        _ => 4,
    };
    match ragged {
        true => (0..=3).rev().map(|log| 1 << log).find(|v| *v <= most.min(size)).unwrap_or(1),
        false => common_power([size], most),
    }
}

/// The clock's address, where a program looks at it.
pub(crate) fn clock<'a>(programs: impl IntoIterator<Item = &'a Program>) -> Address {
    let looks = |i: &Instr| matches!(i, Instr::Rand { .. } | Instr::Piece { .. });
    match programs.into_iter().flat_map(|p| &p.instrs).any(looks) {
        true => Address::Clock,
        false => Address::Null,
    }
}

/// One launch of an entry of a source whose argument is `Params`, without shared memory.
pub(crate) fn launch(
    (file, entry): (&'static str, &'static str),
    text: Option<String>,
    defines: Vec<String>,
    (grid, threads): ([u32; 3], u32),
    parameters: &Parameters,
) -> Launch {
    let mut parameters = parameters.clone();
    parameters.align(8);
    let argument = ("Params", parameters.bytes().len());
    let source = Source::launched(file, text, defines, argument);
    Launch { source, entry, grid, threads, shared_bytes: 0, parameters }
}

/// Launches without tables.
pub(crate) fn kernel(launches: Vec<Launch>, workspace_bytes: u64) -> Kernel {
    Kernel { launches, workspace_bytes, tables: vec![] }
}

/// `NAME=VALUE` of numbers.
pub(crate) fn defines(list: &[(&str, usize)]) -> Vec<String> {
    list.iter().map(|(name, value)| format!("{name}={value}")).collect()
}
