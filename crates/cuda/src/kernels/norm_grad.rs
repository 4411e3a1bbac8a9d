//! Gradients of norms.

use super::copy::fill_at;
use super::norm::rows::{self, RowPart, RowShape, Rows};
use super::{elements, space, text};
use crate::launch::{Address, Kernel, Parameters};
use crate::source::Source;
use aerogel_lower::{Draws, FillSpec, Instr, LowerError, NormGradSpec, Operand, Output, Program};

#[cfg(test)]
mod tests;

const NAME: &str = "norm_grad";

/// Numbers of the operands that there may be.
struct Operands {
    gain: Option<usize>,
    dgain: Option<usize>,
    dbias: Option<usize>,
    /// Of the program that gets finished rows.
    finished: Vec<usize>,
}

impl Operands {
    fn of(spec: &NormGradSpec, count: usize) -> Operands {
        let mut numbers = 2..count;
        let mut next = |there: bool| if there { numbers.next() } else { None };
        let stored = next(matches!(spec.output, Output::Store(_)));
        let gain = next(spec.norm.gain.is_some());
        let (dgain, dbias) = (next(spec.dgain.is_some()), next(spec.dbias.is_some()));
        Operands { gain, dgain, dbias, finished: stored.into_iter().chain(numbers).collect() }
    }
}

pub(crate) fn norm_grad(
    spec: &NormGradSpec,
    draws: Draws,
    align: &[u64],
) -> Result<Kernel, LowerError> {
    let Operands { gain, dgain, dbias, finished } = Operands::of(spec, align.len());
    let sums = [(dgain, spec.dgain), (dbias, spec.dbias)];
    if spec.norm.sizes.contains(&0) {
        return zeros(spec, sums, align);
    }
    let (x, dy) = (rows::load(&spec.norm, &spec.x), rows::load(&spec.norm, &spec.dy));
    let finish = rows::finish(&spec.norm, &spec.output);
    let part = |name, program, result, operands| RowPart { name, program, result, operands };
    let parts = vec![
        part("SourceX", &x, Some(0), vec![0]),
        part("SourceDy", &dy, Some(0), vec![1]),
        part("Epilogue", &finish, None, finished),
    ];
    let rows = Rows::new(NAME, &spec.norm, parts)?;
    let variant = Variant::of(&rows, &finish);
    let summed = dgain.is_some() || dbias.is_some();
    let count = rows.units.count();
    let groups = variant.shape.threads / variant.shape.lanes;
    let chunk = count.div_ceil(variant.blocks).next_multiple_of(groups);
    let blocks = count.div_ceil(chunk);

    let mut p = Parameters::new();
    rows.write_operands(&mut p);
    p.address(gain.map_or(Address::Null, Address::operand));
    p.address(if summed { Address::Workspace(0) } else { Address::Null });
    for (operand, _) in sums {
        p.address(operand.map_or(Address::Null, Address::operand));
    }
    for (_, stride) in sums {
        p.i64(stride.unwrap_or(0) as i64);
    }
    p.address(elements::clock([&finish]));
    space::draws(draws, &text::streams([&x, &dy, &finish]), &mut p);
    rows.units.write(&mut p);
    for n in [count, rows.width, chunk, blocks] {
        p.u32(space::count(NAME, n)?);
    }
    p.f32(spec.norm.eps);

    let text = text::with_programs(Source::text("norm_grad.cu"), &rows.texts(align));
    let aligned = gain.map_or(0, |at| align[at]);
    let gains = [("GAIN", spec.norm.gain.as_ref(), aligned)];
    let mut constants = rows.defines(NAME, spec.norm.center, variant.shape, &gains)?;
    constants.push(format!("SUMS={}", u32::from(summed)));
    constants.push(format!("AHEAD={}", u32::from(variant.ahead)));
    constants.push(format!("WHOLE={}", u32::from(variant.whole)));
    constants.push(format!("ALIKE={}", u32::from(rows.units.alike())));
    let start = |entry, grid, threads| {
        let (text, constants) = (Some(text.clone()), constants.clone());
        elements::launch(("norm_grad.cu", entry), text, constants, (grid, threads), &p)
    };
    let own = start("norm_grad", [blocks as u32, 1, 1], variant.shape.threads as u32);
    if !summed {
        return Ok(elements::kernel(vec![own], 0));
    }
    let finish = start("norm_grad_finish", [rows.width.div_ceil(32) as u32, 2, 1], 1024);
    Ok(elements::kernel(vec![own, finish], 8 * (blocks * rows.width) as u64))
}

/// Without rows the gradients of gain and bias are zero.
fn zeros(
    spec: &NormGradSpec,
    sums: [(Option<usize>, Option<isize>); 2],
    align: &[u64],
) -> Result<Kernel, LowerError> {
    let width = spec.norm.sizes.last().copied().unwrap_or(0);
    let mut launches = vec![];
    for (operand, stride) in sums {
        let (Some(at), Some(stride)) = (operand, stride) else { continue };
        let fill = FillSpec { sizes: vec![width], to: Operand::f32([stride]), value: 0.0 };
        launches.extend(fill_at(&fill, Address::operand(at), align[at])?.launches);
    }
    Ok(elements::kernel(launches, 0))
}

/// What a width is walked with.
struct Variant {
    shape: RowShape,
    /// Whether a group asks for its next row while it works on one.
    ahead: bool,
    /// Whether each lane has one unit of a row, none of them being idle.
    whole: bool,
    /// Into how many blocks rows are cut: those that all multiprocessors hold at once.
    blocks: usize,
}

/// Widths, up to which they are walked by so many lanes and threads, cut for so many blocks; as
/// measured with rows of bf16.
const VARIANTS: [(usize, usize, usize, usize); 9] = [
    (256, 32, 256, 396),
    (512, 32, 256, 264),
    (768, 32, 128, 396),
    (1024, 128, 128, 792),
    (2048, 128, 128, 660),
    (4096, 256, 256, 264),
    (8192, 512, 512, 132),
    (16384, 512, 512, 132),
    (usize::MAX, 1024, 1024, 132),
];

impl Variant {
    fn of(rows: &Rows<'_>, finish: &Program) -> Variant {
        // Of an element a thread has its part of two sums, and its row and the next one as they
        // were loaded. Rows of more bytes are walked as wider ones.
        let words = |bytes: usize| 8 + 2 * bytes;
        let width = rows.width * words(rows.held_bytes().max(6)) / words(6);
        let own = VARIANTS.iter().find(|(most, ..)| width <= *most).unwrap_or(&VARIANTS[8]);
        let (widest, most, threads, mut blocks) = *own;
        let lanes = if most <= 32 { most.min(rows.row_units().next_power_of_two()) } else { most };
        // Of 512 threads each has 128 registers, in which the next row has room beside short
        // programs and few addresses.
        let draws = finish.instrs.iter().any(|i| matches!(i, Instr::Rand { .. }));
        let reads = !finish.inputs.is_empty();
        let short = !draws && rows.v > 1 && widest <= 8192;
        // Where no thread asks whether a row has its unit, the compiler orders loads as it likes:
        // that saves registers with one unit a thread, and takes many with more of them.
        let whole = rows.row_units() == lanes;
        // Draws take registers, and more of them beside another operand: a multiprocessor holds
        // one block less.
        let one = rows.row_units() <= lanes;
        blocks = match blocks {
            396 if draws && (one && !(whole && lanes == 32) || !one && reads) => 264,
            792 if draws && reads => 660,
            _ => blocks,
        };
        let ahead = threads < 512 || threads == 512 && short;
        Variant { shape: RowShape { lanes, threads }, ahead, whole, blocks }
    }
}
