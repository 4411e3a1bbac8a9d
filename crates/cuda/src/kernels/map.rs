//! Element-wise regions.

use super::elements::{self, Numbers, defines};
use super::space::{self, Units};
use super::text::{self, Along};
use crate::launch::{Address, Kernel, Parameters};
use crate::source::Source;
use aerogel_lower::{Draws, Instr, LowerError, Operand, Program};

#[cfg(test)]
mod tests;

const NAME: &str = "map";
const THREADS: usize = 256;

pub(crate) fn map(program: &Program, draws: Draws, align: &[u64]) -> Result<Kernel, LowerError> {
    let both = || program.inputs.iter().chain(&program.outputs);
    elements::check_ranks(NAME, program.sizes.len(), both())?;
    if program.sizes.contains(&0) || program.outputs.is_empty() {
        return Ok(Kernel::default());
    }
    // What is written leads: a store that is cut in pieces costs more than such a load.
    let operands: Vec<&Operand> = program.outputs.iter().chain(&program.inputs).collect();
    let axes: Vec<usize> = (0..program.sizes.len()).collect();
    let order = elements::order(&program.sizes, &axes, &operands);
    let strides = elements::strides(program);
    let strides = strides.iter().map(|own| elements::ordered(own, &order)).collect();
    let space = space::merged(NAME, &elements::ordered(&program.sizes, &order), strides)?;
    let (last, flat) = (space.sizes.len() - 1, space.sizes.len() == 1);
    let along: Vec<isize> = space.strides.iter().map(|own| own[last]).collect();
    let lanes = elements::lanes(both(), &along, space.sizes[last], flat);
    let units = Units::new(&space, lanes);
    let numbers = Numbers { operand: 0, index: operands.len() };
    let part = elements::part(("Program", program, None), numbers, align, &[&units], lanes);
    let unroll = unroll(program, &part.along, lanes);
    let text = text::with_programs(Source::text("map.cu"), &[part]);

    let mut p = Parameters::new();
    for operand in 0..operands.len() {
        p.address(Address::operand(operand));
    }
    p.address(elements::clock([program]));
    space::draws(draws, &text::streams([program]), &mut p);
    units.write(&mut p);
    let count = space::count(NAME, units.count())?;
    let tail = if flat { space.sizes[0] % lanes } else { 0 };
    p.u32(count).u32(tail as u32);
    let constants =
        [("V", lanes), ("AXES", units.axes()), ("UNROLL", unroll), ("THREADS", THREADS)];
    let blocks = units.count().div_ceil(THREADS * unroll).max(1) as u32;
    let shape = ([blocks, 1, 1], THREADS as u32);
    let launch = elements::launch(("map.cu", "map"), Some(text), defines(&constants), shape, &p);
    Ok(elements::kernel(vec![launch], 0))
}

/// Units that a thread has in flight: what a thread asks for at once is to be 32 bytes or more,
/// but long programs need the registers for themselves.
fn unroll(program: &Program, along: &[Along], lanes: usize) -> usize {
    let moved = along.iter().filter(|a| **a != Along::Repeat).count();
    let long =
        program.instrs.len() > 16 || program.instrs.iter().any(|i| matches!(i, Instr::Rand { .. }));
    match moved {
        0..=3 if !long && lanes <= 2 => 4,
        0..=3 if !long => 2,
        _ => 1,
    }
}
