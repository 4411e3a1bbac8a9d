//! Norms.

pub(super) mod rows;

use super::elements;
use super::space;
use super::text;
use crate::launch::{Address, Kernel, Parameters};
use crate::source::Source;
use aerogel_lower::{Draws, LowerError, NormSpec, Output};
use rows::{RowPart, RowShape, Rows};

#[cfg(test)]
mod tests;

const NAME: &str = "norm";

pub(crate) fn norm(spec: &NormSpec, draws: Draws, align: &[u64]) -> Result<Kernel, LowerError> {
    if spec.norm.sizes.contains(&0) {
        return Ok(Kernel::default());
    }
    let (load, finish) = (rows::load(&spec.norm, &spec.x), rows::finish(&spec.norm, &spec.output));
    let mut numbers = 1..align.len();
    let mut next = |there: bool| if there { numbers.next() } else { None };
    let stored = next(matches!(spec.output, Output::Store(_)));
    let (gain, bias) = (next(spec.norm.gain.is_some()), next(spec.bias.is_some()));
    let finished = stored.into_iter().chain(numbers).collect();
    let prologue = RowPart { name: "Prologue", program: &load, result: Some(0), operands: vec![0] };
    let epilogue = RowPart { name: "Epilogue", program: &finish, result: None, operands: finished };
    let rows = Rows::new(NAME, &spec.norm, vec![prologue, epilogue])?;
    let shape = shape(&rows);

    let mut p = Parameters::new();
    rows.write_operands(&mut p);
    for operand in [gain, bias] {
        p.address(operand.map_or(Address::Null, Address::operand));
    }
    p.address(elements::clock([&finish]));
    space::draws(draws, &text::streams([&load, &finish]), &mut p);
    rows.units.write(&mut p);
    let count = space::count(NAME, rows.units.count())?;
    p.u32(count).u32(rows.width as u32).f32(spec.norm.eps);

    let text = text::with_programs(Source::text("norm.cu"), &rows.texts(align));
    let aligned = |operand: Option<usize>| operand.map_or(0, |at| align[at]);
    let constants = [
        ("GAIN", spec.norm.gain.as_ref(), aligned(gain)),
        ("BIAS", spec.bias.as_ref(), aligned(bias)),
    ];
    let constants = rows.defines(NAME, spec.norm.center, shape, &constants)?;
    let blocks = rows.units.count().div_ceil(shape.threads / shape.lanes) as u32;
    let grid = ([blocks, 1, 1], shape.threads as u32);
    let launch = elements::launch(("norm.cu", "norm_rows"), Some(text), constants, grid, &p);
    Ok(elements::kernel(vec![launch], 0))
}

/// A warp or a part of one has a row that it can hold; longer ones have a block each, of the fewest
/// threads among which a row does not fill all registers.
fn shape(rows: &Rows<'_>) -> RowShape {
    let (units, v) = (rows.row_units(), rows.v);
    // Half the elements where each of them takes twice the registers: a thread has it in f32, and
    // what was loaded.
    let share = (4 + rows.held_bytes()).div_ceil(8);
    let fits = |lanes: usize, most: usize| units.div_ceil(lanes) * v * share <= most.max(v * share);
    let lanes = units.next_power_of_two();
    if lanes <= 32 {
        return RowShape { lanes, threads: 256 };
    }
    if fits(32, 24) {
        return RowShape { lanes: 32, threads: 256 };
    }
    let blocks = [(128, 16), (256, 32), (512, 32)];
    let own = blocks.into_iter().find(|(threads, most)| fits(*threads, *most));
    let lanes = own.map_or(1024, |(threads, _)| threads);
    RowShape { lanes, threads: lanes }
}
