//! Copies and fills.

use super::elements::{self, common_power, defines};
use super::space::{self, Units};
use super::{map, unsupported};
use crate::launch::{Address, Kernel, Launch, Parameters};
use aerogel_graph::DType;
use aerogel_graph::types::f32_to_f16;
use aerogel_lower::space::{Space, by_stride};
use aerogel_lower::{CopySpec, Draws, FillSpec, Instr, LowerError, Operand, Program};

#[cfg(test)]
mod tests;

const THREADS: usize = 256;
const UNROLL: usize = 4;
/// Side of a tile that is transposed.
const SIDE: usize = 64;
/// Steps along an axis from which on transposing tiles is worth it.
const TRANSPOSED: usize = 16;

pub(crate) fn copy(spec: &CopySpec, align: &[u64]) -> Result<Kernel, LowerError> {
    elements::check_ranks("copy", spec.sizes.len(), [&spec.from, &spec.to])?;
    if spec.sizes.contains(&0) {
        return Ok(Kernel::default());
    }
    if spec.from.dtype != spec.to.dtype {
        let program = Program {
            sizes: spec.sizes.clone(),
            inputs: vec![spec.from.clone()],
            outputs: vec![spec.to.clone()],
            instrs: vec![Instr::Load { dst: 0, input: 0 }, Instr::Store { output: 0, src: 0 }],
        };
        return map::map(&program, Draws::default(), align);
    }
    let axes: Vec<usize> = (0..spec.sizes.len()).collect();
    let order = by_stride(&axes, &[&spec.to.strides, &spec.from.strides]);
    let own = |o: &Operand| elements::ordered(&o.strides, &order);
    let sizes = elements::ordered(&spec.sizes, &order);
    let space = space::merged("copy", &sizes, vec![own(&spec.from), own(&spec.to)])?;
    let bytes = spec.to.dtype.bytes();
    let most = [align[0] as usize / bytes, align[1] as usize / bytes];
    let last = space.sizes.len() - 1;
    let wide = |axis: usize| space.sizes[axis] >= TRANSPOSED;
    let source = (0..last).find(|axis| space.strides[0][*axis] == 1 && wide(*axis));
    let tiles = match (source, space.strides[1][last], wide(last)) {
        (Some(a), 1, true) => transposed(&space, a, bytes, most)?,
        _ => None,
    };
    let launches = match tiles {
        Some(launch) => vec![launch],
        None => straight(&space, bytes, most)?,
    };
    Ok(elements::kernel(launches, 0))
}

/// Elements that a vector may have: those of 16 bytes, or as many as divide what all vectors begin
/// at multiples of.
fn vector(bytes: usize, most: [usize; 2], numbers: impl IntoIterator<Item = isize>) -> usize {
    let most = most.into_iter().fold(16 / bytes, usize::min).max(1);
    common_power(numbers.into_iter().map(isize::unsigned_abs), most)
}

fn type_of(bytes: usize) -> String {
    format!("T={}", if bytes == 2 { "bf16" } else { "u32" })
}

/// Along the target's innermost axis. A long flat copy of a length that vectors do not divide is
/// two: the vectors, and the rest.
fn straight(space: &Space, bytes: usize, most: [usize; 2]) -> Result<Vec<Launch>, LowerError> {
    let last = space.sizes.len() - 1;
    let size = space.sizes[last];
    let outer = space.strides.iter().flat_map(|own| own[..last].iter().copied());
    let v = match space.strides.iter().all(|own| own[last] == 1) {
        true => vector(bytes, most, outer),
        false => 1,
    };
    let flat = last == 0 && size >= 4096 && v > 1;
    let v = if flat { v } else { common_power([size], v) };
    let whole = if flat { size / v * v } else { size };
    let piece = |first: usize, length: usize, v: usize| {
        let mut space = space.clone();
        space.sizes[last] = length;
        let units = Units::new(&space, v);
        let mut p = Parameters::new();
        let at = (first * bytes) as i64;
        p.address(Address::operand(0).plus(at)).address(Address::operand(1).plus(at)).i64(0).i64(0);
        units.write(&mut p);
        space::divide(1, &mut p);
        p.u32(space::count("copy", units.count())?).u32(0).u32(0);
        let shape = [("V", v), ("AXES", units.axes()), ("UNROLL", UNROLL), ("THREADS", THREADS)];
        let mut constants = defines(&shape);
        constants.push(type_of(bytes));
        let blocks = units.count().div_ceil(THREADS * UNROLL) as u32;
        let grid = ([blocks, 1, 1], THREADS as u32);
        Ok(elements::launch(("copy.cu", "copy"), None, constants, grid, &p))
    };
    let mut launches = vec![piece(0, whole, v)?];
    if whole < size {
        launches.push(piece(whole, size - whole, 1)?);
    }
    Ok(launches)
}

/// By tiles of the source's contiguous axis `a` and the target's, which is the last one; nothing if
/// there are too many other positions for a grid.
fn transposed(
    space: &Space,
    a: usize,
    bytes: usize,
    most: [usize; 2],
) -> Result<Option<Launch>, LowerError> {
    let b = space.sizes.len() - 1;
    let others: Vec<usize> = (0..b).filter(|axis| *axis != a).collect();
    let strides = space.strides.iter().map(|own| elements::ordered(own, &others)).collect();
    let outer = space::merged("copy", &elements::ordered(&space.sizes, &others), strides)?;
    let (size_a, size_b) = (space.sizes[a], space.sizes[b]);
    let (from_b, to_a) = (space.strides[0][b], space.strides[1][a]);
    if outer.elements() > 65535 {
        return Ok(None);
    }
    let numbers = outer.strides.iter().flatten().copied();
    let lengths = [from_b, to_a, size_a as isize, size_b as isize];
    let v = vector(bytes, most, numbers.chain(lengths));
    let units = Units::whole(&outer, vec![0; 2]);
    let tiles = [size_a.div_ceil(SIDE), size_b.div_ceil(SIDE)];
    let mut p = Parameters::new();
    p.address(Address::operand(0)).address(Address::operand(1));
    p.i64(from_b as i64).i64(to_a as i64);
    units.write(&mut p);
    space::divide(tiles[0], &mut p);
    p.u32(0).u32(space::count("copy", size_a)?).u32(space::count("copy", size_b)?);
    let mut constants = defines(&[("V", v), ("AXES", units.axes())]);
    constants.push(type_of(bytes));
    let grid = [space::count("copy", tiles[0] * tiles[1])?, units.count() as u32, 1];
    let file = ("copy.cu", "copy_transpose");
    Ok(Some(elements::launch(file, None, constants, (grid, 256), &p)))
}

pub(crate) fn fill(spec: &FillSpec, align: &[u64]) -> Result<Kernel, LowerError> {
    fill_at(spec, Address::operand(0), align[0])
}

/// A fill of what lies at an address, a multiple of `align` bytes.
pub(super) fn fill_at(spec: &FillSpec, to: Address, align: u64) -> Result<Kernel, LowerError> {
    elements::check_ranks("fill", spec.sizes.len(), [&spec.to])?;
    if spec.sizes.contains(&0) {
        return Ok(Kernel::default());
    }
    let axes: Vec<usize> = (0..spec.sizes.len()).collect();
    let order = by_stride(&axes, &[&spec.to.strides]);
    let sizes = elements::ordered(&spec.sizes, &order);
    let strides = vec![elements::ordered(&spec.to.strides, &order)];
    let space = space::merged("fill", &sizes, strides)?;
    let (dtype, last) = (spec.to.dtype, space.sizes.len() - 1);
    let bytes = dtype.bytes();
    let flat = last == 0;
    let v = match space.strides[0][last] == 1 {
        true => {
            let length = (!flat).then_some(space.sizes[last] as isize);
            let steps = space.strides[0][..last].iter().copied().chain(length);
            vector(bytes, [align as usize / bytes; 2], steps)
        }
        false => 1,
    };
    let units = Units::new(&space, v);
    let mut p = Parameters::new();
    p.address(to);
    units.write(&mut p);
    let tail = if flat { space.sizes[0] % v } else { 0 };
    p.u32(space::count("fill", units.count())?).u32(tail as u32).u32(bits(spec.value, dtype));
    let shape = [("V", v), ("AXES", units.axes()), ("UNROLL", UNROLL), ("THREADS", THREADS)];
    let mut constants = defines(&shape);
    // Words are words: one source for both types of 4 bytes.
    constants.push(format!("T={}", if bytes == 2 { "bf16" } else { "f32" }));
    let blocks = units.count().div_ceil(THREADS * UNROLL).max(1) as u32;
    let grid = ([blocks, 1, 1], THREADS as u32);
    let launch = elements::launch(("fill.cu", "fill"), None, constants, grid, &p);
    Ok(elements::kernel(vec![launch], 0))
}

/// A value as it is stored.
fn bits(value: f32, dtype: DType) -> u32 {
    match dtype {
        DType::F32 => value.to_bits(),
        DType::U32 => value as u32,
        // As kernels round it.
        DType::Bf16 | DType::F16 if value.is_nan() => 0x7fff,
        DType::F16 => u32::from(f32_to_f16(value)),
        DType::Bf16 => {
            let word = value.to_bits();
            // To nearest, ties to even.
            (word + 0x7fff + (word >> 16 & 1)) >> 16
        }
    }
}

/// The bytes of one element each, so that a kernel that copies bits may take it.
pub(super) fn same_type(
    kernel: &'static str,
    what: [(&'static str, DType); 2],
) -> Result<(), LowerError> {
    let [(a, of_a), (b, of_b)] = what;
    if of_a == of_b {
        return Ok(());
    }
    Err(unsupported(kernel, format!("{a} of {of_a:?} and {b} of {of_b:?}; cast one of them first")))
}
