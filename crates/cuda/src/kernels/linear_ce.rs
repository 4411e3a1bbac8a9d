//! The output layer: chunks of rows, each three products with a softmax between the first and the
//! others, so that only the logits of one chunk ever exist.
//!
//! Logits are stored as what their gradients are multiplied with: in 16 bits where x and w both are
//! bf16 or both f16, else in f32.
//! The gradients take their place.

#[cfg(test)]
mod tests;

use super::gemm::{self, Place};
use super::space::{self, Units};
use super::{Chip, unsupported};
use crate::launch::{Address, Kernel, Launch, Parameters};
use crate::source::Source;
use aerogel_graph::DType;
use aerogel_lower::space::Space;
use aerogel_lower::{Axis, Contraction, Draws, LinearCeSpec, LowerError, Operand, Role};

const KERNEL: &str = "linear_ce";
/// Logits of a chunk at most, if that is enough for the fewest rows.
const CHUNK_BYTES: usize = 512 << 20;
/// Rows of a chunk are a multiple of this: whole tiles of products.
const ROW_STEP: usize = 128;
/// Entries that rows of logits are padded to a multiple of.
const LINE: usize = 8;

const X: usize = 0;
const W: usize = 1;
const TARGETS: usize = 2;
const WEIGHTS: usize = 3;
const GIVEN: usize = 4;
const CE: usize = 5;
const LSE: usize = 6;
const HIT: usize = 7;
const DX: usize = 8;
const DW: usize = 9;
const OPERANDS: usize = 10;

/// A layer whose storage has been checked.
struct Layer<'a> {
    spec: &'a LinearCeSpec,
    operands: [Option<&'a Operand>; OPERANDS],
    places: [Option<Place>; OPERANDS],
    chip: Chip,
    /// Type of the logits and of their gradients.
    dtype: DType,
    /// Elements from row to row of the logits.
    line: usize,
    /// Rows over the operands that the softmax reads and writes.
    rows: Space,
}

/// Rows that are worked on together: a box of the axes of rows, whose rows follow each other.
struct Chunk {
    /// The first row.
    first: usize,
    /// How many there are along each of the axes of [`Rows`].
    sizes: Vec<usize>,
}

pub(crate) fn linear_ce(
    spec: &LinearCeSpec,
    align: &[u64],
    chip: Chip,
) -> Result<Kernel, LowerError> {
    in_chunks(spec, align, chip, CHUNK_BYTES)
}

/// The launches, chunk by chunk, of at most so many bytes of logits.
fn in_chunks(
    spec: &LinearCeSpec,
    align: &[u64],
    chip: Chip,
    chunk_bytes: usize,
) -> Result<Kernel, LowerError> {
    let layer = Layer::new(spec, align, chip)?;
    // The rows as x and dx have them.
    let factors = [X, DX].map(|i| layer.row_strides(i)).to_vec();
    let rows = space::merged(KERNEL, &spec.rows, factors)?;
    let all: usize = rows.elements();
    let most = (chunk_bytes / (layer.line * layer.dtype.bytes())).max(ROW_STEP);
    let most = most / ROW_STEP * ROW_STEP;
    let chunks = chunks(&rows.sizes, all.div_ceil(all.div_ceil(most).max(1)), most);
    let tallest = chunks.iter().map(|c| c.sizes.iter().product::<usize>()).max().unwrap_or(0);
    let logits = (tallest * layer.line * layer.dtype.bytes()) as u64;
    let work = logits.next_multiple_of(256);
    let (mut launches, mut most) = (vec![], 0);
    let mut add = |(list, bytes): (Vec<Launch>, u64)| {
        most = most.max(bytes);
        launches.extend(list);
    };
    for (number, chunk) in chunks.iter().enumerate() {
        add(layer.logits(&rows, chunk, work)?);
        add((vec![layer.cross_entropy(chunk)?], 0));
        // First dw, which reads x: dx may take its place.
        layer.dw(&rows, chunk, number > 0, work)?.map(&mut add);
        layer.dx(&rows, chunk, work)?.map(&mut add);
    }
    if chunks.is_empty() {
        // Nothing but zeros for dw.
        let none = Chunk { first: 0, sizes: vec![0; rows.sizes.len()] };
        layer.dw(&rows, &none, false, work)?.map(&mut add);
    }
    Ok(Kernel { launches, workspace_bytes: work + most, tables: vec![] })
}

/// Cuts rows into boxes of `wanted` rows or somewhat more, and at most `most`. Of the axes before
/// the one that is cut, each box has a single index.
fn chunks(sizes: &[usize], wanted: usize, most: usize) -> Vec<Chunk> {
    if sizes.contains(&0) {
        return vec![];
    }
    let inner = |axis: usize| sizes[axis + 1..].iter().product::<usize>();
    let cut = (0..sizes.len()).find(|&axis| inner(axis) <= most).unwrap_or(0);
    let each = inner(cut);
    let step = match each {
        1 => wanted.next_multiple_of(ROW_STEP),
        _ => wanted.div_ceil(each),
    };
    let step = step.min(most / each).max(1);
    let outer: usize = sizes[..cut].iter().product();
    let mut all = vec![];
    for index in 0..outer {
        for from in (0..sizes[cut]).step_by(step) {
            let mut own = vec![1; cut];
            own.push(step.min(sizes[cut] - from));
            own.extend(&sizes[cut + 1..]);
            all.push(Chunk { first: (index * sizes[cut] + from) * each, sizes: own });
        }
    }
    all
}

impl<'a> Layer<'a> {
    fn new(spec: &'a LinearCeSpec, align: &[u64], chip: Chip) -> Result<Layer<'a>, LowerError> {
        let operands = spec.operands();
        let rank = spec.rows.len() + 2;
        for (operand, own) in operands.iter().enumerate().filter_map(|(i, o)| Some((i, (*o)?))) {
            let fits = match operand {
                X | W | DX => own.dtype != DType::U32,
                TARGETS => own.dtype == DType::U32,
                _ => own.dtype == DType::F32,
            };
            if !fits || spec.vocab == 0 {
                let what = "wants x, w and dx in f32, bf16 or f16, targets in u32, all else in \
                            f32, and a vocabulary";
                return Err(unsupported(KERNEL, what));
            }
            if own.strides.len() != rank {
                let got = own.strides.len();
                return Err(LowerError::Rank { kernel: KERNEL, operand, wanted: rank, got });
            }
        }
        space::count(KERNEL, spec.vocab.max(spec.all_rows))?;
        space::count(KERNEL, spec.rows.iter().product())?;
        let mut given = align.iter().copied().chain(std::iter::repeat(1)).enumerate();
        let places = operands.map(|operand| {
            let operand = operand?;
            let (number, align) = given.next()?;
            Some(Place::operand(number, align, operand.dtype))
        });
        let half = spec.x.dtype.is_half() && spec.w.dtype == spec.x.dtype;
        let dtype = if half { spec.x.dtype } else { DType::F32 };
        let strides = |i: usize| strides_of(operands[i], spec.rows.len());
        let each = [TARGETS, WEIGHTS, GIVEN, CE, LSE, HIT].map(strides).to_vec();
        let rows = space::merged(KERNEL, &spec.rows, each)?;
        let line = spec.vocab.next_multiple_of(LINE);
        Ok(Layer { spec, operands, places, chip, dtype, line, rows })
    }

    /// An operand's strides over the axes of rows; of one that is not there, zeros.
    fn row_strides(&self, operand: usize) -> Vec<isize> {
        strides_of(self.operands[operand], self.spec.rows.len())
    }

    /// Strides over vocabulary and width.
    fn inner(&self, operand: usize) -> [isize; 2] {
        match self.operands[operand].map(|o| &o.strides[..]) {
            Some([.., entry, col]) => [*entry, *col],
            _ => [0; 2],
        }
    }

    /// Where x or dx (0 or 1 among the strides of the rows) has a chunk.
    fn rows_place(&self, operand: usize, rows: &Space, which: usize, chunk: &Chunk) -> Place {
        let dtype = self.operands[operand].map_or(DType::F32, |o| o.dtype);
        let place = self.places[operand].unwrap_or(Place::workspace(0));
        let offset = if rows.elements() == 0 { 0 } else { rows.offset(which, chunk.first) };
        place.plus((offset * dtype.bytes() as isize) as i64)
    }

    /// The axes of a chunk's rows: strides of x or dx, and of the logits.
    fn row_axes(&self, rows: &Space, which: usize, chunk: &Chunk) -> Vec<(usize, [isize; 2])> {
        let mut line = self.line as isize;
        let mut all = vec![];
        for (axis, &size) in chunk.sizes.iter().enumerate().rev() {
            all.push((size, [rows.strides[which][axis], line]));
            line *= size as isize;
        }
        all.reverse();
        all
    }

    fn product(
        &self,
        axes: Vec<Axis>,
        [a, b, c]: [DType; 3],
        accumulate: bool,
        places: [Place; 3],
        work: u64,
    ) -> Result<(Vec<Launch>, u64), LowerError> {
        let spec =
            Contraction { axes, a, b, c, accumulate, alpha: 1.0, epilogue: None, sums: None };
        gemm::launches(&spec, Draws::default(), &places, self.chip, work)
    }

    fn place(&self, operand: usize) -> Result<Place, LowerError> {
        self.places[operand].ok_or_else(|| unsupported(KERNEL, "an operand has no address"))
    }

    /// logits = x w^T
    fn logits(
        &self,
        rows: &Space,
        chunk: &Chunk,
        work: u64,
    ) -> Result<(Vec<Launch>, u64), LowerError> {
        let spec = self.spec;
        let ([_, x], [entry, col]) = (self.inner(X), self.inner(W));
        let sides = self.row_axes(rows, 0, chunk).into_iter();
        let mut axes: Vec<Axis> =
            sides.map(|(size, [a, c])| Axis { role: Role::M, size, a, b: 0, c }).collect();
        axes.push(Axis { role: Role::N, size: spec.vocab, a: 0, b: entry, c: 1 });
        axes.push(Axis { role: Role::K, size: spec.width, a: x, b: col, c: 0 });
        let places = [self.rows_place(X, rows, 0, chunk), self.place(W)?, Place::workspace(0)];
        let dtypes = [spec.x.dtype, spec.w.dtype, self.dtype];
        self.product(axes, dtypes, false, places, work)
    }

    /// dx = g w
    fn dx(
        &self,
        rows: &Space,
        chunk: &Chunk,
        work: u64,
    ) -> Result<Option<(Vec<Launch>, u64)>, LowerError> {
        let Some(dx) = self.operands[DX] else { return Ok(None) };
        let spec = self.spec;
        let ([_, out], [entry, col]) = (self.inner(DX), self.inner(W));
        let sides = self.row_axes(rows, 1, chunk).into_iter();
        let mut axes: Vec<Axis> =
            sides.map(|(size, [c, a])| Axis { role: Role::M, size, a, b: 0, c }).collect();
        axes.push(Axis { role: Role::N, size: spec.width, a: 0, b: col, c: out });
        axes.push(Axis { role: Role::K, size: spec.vocab, a: 1, b: entry, c: 0 });
        let places = [Place::workspace(0), self.place(W)?, self.rows_place(DX, rows, 1, chunk)];
        let dtypes = [self.dtype, spec.w.dtype, dx.dtype];
        self.product(axes, dtypes, false, places, work).map(Some)
    }

    /// dw = g^T x, of the first chunk, or added to what is there.
    fn dw(
        &self,
        rows: &Space,
        chunk: &Chunk,
        accumulate: bool,
        work: u64,
    ) -> Result<Option<(Vec<Launch>, u64)>, LowerError> {
        let Some(dw) = self.operands[DW] else { return Ok(None) };
        let spec = self.spec;
        let ([_, x], [entry, col]) = (self.inner(X), self.inner(DW));
        let sides = self.row_axes(rows, 0, chunk).into_iter();
        let mut axes: Vec<Axis> =
            sides.map(|(size, [b, a])| Axis { role: Role::K, size, a, b, c: 0 }).collect();
        axes.push(Axis { role: Role::M, size: spec.vocab, a: 1, b: 0, c: entry });
        axes.push(Axis { role: Role::N, size: spec.width, a: 0, b: x, c: col });
        let places = [Place::workspace(0), self.rows_place(X, rows, 0, chunk), self.place(DW)?];
        let dtypes = [self.dtype, spec.x.dtype, dw.dtype];
        self.product(axes, dtypes, accumulate, places, work).map(Some)
    }

    /// Log-sum-exps, losses, and the logits' gradients in their place.
    fn cross_entropy(&self, chunk: &Chunk) -> Result<Launch, LowerError> {
        let spec = self.spec;
        let gradient = spec.dx.is_some() || spec.dw.is_some();
        let given = spec.given.is_some();
        let lanes = 16 / self.dtype.bytes();
        let softmax = softmax(spec.vocab / lanes, given, gradient, self.chip);
        let count: usize = chunk.sizes.iter().product();
        let mut p = Parameters::new();
        p.address(Address::Workspace(0)).address(Address::Workspace(0));
        for operand in [TARGETS, WEIGHTS, GIVEN, CE, LSE, HIT] {
            p.address(self.places[operand].map_or(Address::Null, |place| place.address));
        }
        p.i64(self.line as i64).i64(self.line as i64);
        Units::whole(&self.rows, vec![0; 6]).write(&mut p);
        let numbers = [chunk.first, count, spec.vocab, spec.first_row, spec.all_rows];
        for number in numbers {
            p.u32(number as u32);
        }
        p.align(8);
        let t = super::text::type_name(self.dtype);
        let values = [
            ("LANES", softmax.lanes),
            ("THREADS", softmax.threads),
            ("UNITS", softmax.units),
            ("SHARED", softmax.shared),
            ("AXES", self.rows.sizes.len()),
            ("GIVEN", usize::from(given)),
        ];
        let mut defines: Vec<String> =
            values.iter().map(|(name, value)| format!("{name}={value}")).collect();
        defines.push(format!("LOGITS={t}"));
        if gradient {
            defines.push(format!("GRADIENT={t}"));
        }
        let bytes = p.bytes().len();
        Ok(Launch {
            source: Source::launched("cross_entropy.cu", None, defines, ("Params", bytes)),
            entry: "cross_entropy",
            grid: [count.div_ceil(softmax.threads / softmax.lanes) as u32, 1, 1],
            threads: softmax.threads as u32,
            shared_bytes: (softmax.shared * softmax.threads * 16) as u32,
            parameters: p,
        })
    }
}

fn strides_of(operand: Option<&Operand>, rows: usize) -> Vec<isize> {
    operand.map_or(vec![0; rows], |o| o.strides[..rows].to_vec())
}

/// How a row of logits is worked on: threads that share it, and units of 16 bytes that each of them
/// holds in registers and in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Softmax {
    lanes: usize,
    threads: usize,
    units: usize,
    shared: usize,
}

/// Rows are held on the chip where they fit and are read twice otherwise; where they are read once
/// in any case, long ones are not held.
fn softmax(units: usize, given: bool, gradient: bool, chip: Chip) -> Softmax {
    let make = |lanes, threads, units, shared| Softmax { lanes, threads, units, shared };
    let most = if chip.architecture.is_hopper() { 14 } else { 5 };
    let held = [
        make(32, 256, 1, 0),
        make(32, 256, 3, 1),
        make(256, 256, 3, 5),
        make(512, 512, 3, 10),
        make(1024, 1024, 3, most),
    ];
    let usable = match (given, gradient) {
        (_, false) => 0,
        (true, true) => 3,
        (false, true) => held.len(),
    };
    let fitting = held[..usable].iter().find(|s| units <= s.lanes * (s.units + s.shared));
    fitting.copied().unwrap_or(make(512, 512, 0, 0))
}
