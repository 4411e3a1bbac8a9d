//! Rows into tables.

use super::copy::{fill_at, same_type};
use super::elements::{self, common_power, defines};
use super::gather::{check, table_row, vector};
use super::space::{self, Units};
use super::{text, unsupported};
use crate::launch::{Address, Kernel, Launch, Parameters};
use aerogel_graph::DType;
use aerogel_graph::ops::ScatterMode;
use aerogel_lower::{FillSpec, LowerError, ScatterSpec};

#[cfg(test)]
mod tests;

const NAME: &str = "scatter";
/// Positions of a tile of the sort, and of a stretch of a long sum.
const TILE: usize = 2048;
const STRETCH: usize = 64;
/// Table rows of a block that adds.
const ROWS: usize = 32;
/// Columns of units that a warp has side by side.
const SLICE: usize = 32;
const DIGITS: usize = 256;
const THREADS: u32 = 256;

pub(crate) fn scatter(spec: &ScatterSpec, align: &[u64]) -> Result<Kernel, LowerError> {
    let shape = &spec.shape;
    check(NAME, shape, [&spec.table, &spec.ids, &spec.rows])?;
    if spec.mode == ScatterMode::Set {
        same_type(NAME, [("table", spec.table.dtype), ("rows", spec.rows.dtype)])?;
    } else if spec.table.dtype != DType::F32 {
        let what = "adds into f32 tables only; sums in 16 bits would lose rows";
        return Err(unsupported(NAME, what));
    }
    let nothing = shape.batch.contains(&0) || shape.table_rows == 0 || shape.width == 0;
    if nothing {
        return Ok(Kernel::default());
    }
    if shape.rows.contains(&0) {
        return untouched(spec, align);
    }
    let plan = Plan::new(spec, align)?;
    match spec.mode {
        ScatterMode::Add => plan.add(),
        ScatterMode::Set => plan.set(),
    }
}

/// No ids at all: a table that is added into is zero.
fn untouched(spec: &ScatterSpec, align: &[u64]) -> Result<Kernel, LowerError> {
    if spec.mode == ScatterMode::Set {
        return Ok(Kernel::default());
    }
    let (shape, batch) = (&spec.shape, spec.shape.batch.len());
    let rank = batch + shape.rows.len();
    let mut to = spec.table.clone();
    let along = [table_row(&spec.table, rank), spec.table.strides[rank]];
    to.strides = [&spec.table.strides[..batch], &along].concat();
    let sizes = [&shape.batch[..], &[shape.table_rows, shape.width]].concat();
    fill_at(&FillSpec { sizes, to, value: 0.0 }, Address::operand(0), align[0])
}

/// Where the parts of the workspace begin.
#[derive(Default)]
struct Scratch {
    keys: [u64; 2],
    order: [u64; 2],
    counts: u64,
    bounds: u64,
    sums: u64,
    bytes: u64,
}

struct Plan<'a> {
    spec: &'a ScatterSpec,
    positions: Units,
    batch: Units,
    table_row: isize,
    v: usize,
    /// Positions, and batches that share their ids.
    count: usize,
    batches: usize,
    passes: usize,
    tiles: usize,
    stretches: usize,
    scratch: Scratch,
}

impl Plan<'_> {
    fn new<'a>(spec: &'a ScatterSpec, align: &[u64]) -> Result<Plan<'a>, LowerError> {
        let shape = &spec.shape;
        let (outer, rank) = (shape.batch.len(), shape.batch.len() + shape.rows.len());
        let own = |list: &[isize], from: usize, to: usize| list[from..to].to_vec();
        let (table, rows) = (&spec.table.strides, &spec.rows.strides);
        let by_id = vec![own(&spec.ids.strides, outer, rank), own(rows, outer, rank)];
        let positions = space::merged(NAME, &shape.rows, by_id)?;
        let by_batch = vec![own(table, 0, outer), own(rows, 0, outer)];
        let batch = space::merged(NAME, &shape.batch, by_batch)?;
        let table_row = table_row(&spec.table, rank);
        let table_steps = [&batch.strides[0][..], &[table_row]].concat();
        let row_steps = [&batch.strides[1][..], &positions.strides[1]].concat();
        let v = vector([
            (&spec.table, align[0], table[rank], &table_steps),
            (&spec.rows, align[2], rows[rank], &row_steps),
        ]);
        let (count, batches) = (positions.elements(), batch.elements());
        let mut plan = Plan {
            spec,
            positions: Units::whole(&positions, vec![0, rows[rank]]),
            batch: Units::whole(&batch, vec![table[rank], rows[rank]]),
            table_row,
            v: common_power([shape.width], v),
            count,
            batches,
            passes: (usize::BITS - shape.table_rows.leading_zeros()).div_ceil(8) as usize,
            tiles: count.div_ceil(TILE),
            stretches: count.div_ceil(STRETCH),
            scratch: Scratch::default(),
        };
        if plan.batches > 65535 {
            let what = format!("{batches} batches of a table, at most 65535");
            return Err(unsupported(NAME, what));
        }
        plan.scratch = plan.scratch();
        Ok(plan)
    }

    fn scratch(&self) -> Scratch {
        let mut bytes = 0u64;
        let mut take = |words: usize| {
            let at = bytes;
            bytes += (4 * words as u64).next_multiple_of(256);
            at
        };
        let keys = [take(self.count), take(self.count)];
        let order = [take(self.count), take(self.count)];
        let counts = take(self.passes * self.tiles * DIGITS);
        let bounds = take(self.spec.shape.table_rows + 1);
        let sums = take(self.stretches * 2 * self.spec.shape.width * self.batches);
        Scratch { keys, order, counts, bounds, sums, bytes }
    }

    /// Units of a row.
    fn units(&self) -> usize {
        self.spec.shape.width / self.v
    }

    fn slices(&self) -> usize {
        self.units().div_ceil(SLICE)
    }

    fn parameters(&self, pass: usize, sorts: bool) -> Result<Parameters, LowerError> {
        let (shape, at) = (&self.spec.shape, &self.scratch);
        let mut p = Parameters::new();
        for operand in 0..3 {
            p.address(Address::operand(operand));
        }
        for part in
            [at.keys[0], at.keys[1], at.order[0], at.order[1], at.counts, at.bounds, at.sums]
        {
            p.address(if sorts { Address::Workspace(part) } else { Address::Null });
        }
        p.i64(self.table_row as i64);
        self.positions.write(&mut p);
        self.batch.write(&mut p);
        let sizes = [self.count, self.tiles, self.units(), self.batches];
        let rows = [shape.first_row, shape.table_rows, self.passes, pass];
        for n in sizes.into_iter().chain(rows) {
            p.u32(space::count(NAME, n)?);
        }
        Ok(p)
    }

    fn launch(
        &self,
        entry: &'static str,
        grid: [usize; 3],
        p: &Parameters,
    ) -> Result<Launch, LowerError> {
        if grid[1] > 65535 {
            let width = self.spec.shape.width;
            return Err(unsupported(NAME, format!("rows of {width} elements are too wide")));
        }
        let shape = [("V", self.v), ("AXES", self.positions.axes()), ("BATCH", self.batch.axes())];
        let mut constants = defines(&shape);
        constants.push(format!("T={}", text::type_name(self.spec.rows.dtype)));
        let grid = grid.map(|n| n as u32);
        Ok(elements::launch(("scatter.cu", entry), None, constants, (grid, THREADS), p))
    }

    fn add(&self) -> Result<Kernel, LowerError> {
        let first = self.parameters(0, true)?;
        let rows = self.spec.shape.table_rows;
        let mut launches = vec![self.launch("scatter_count", [self.tiles, 1, 1], &first)?];
        for pass in 0..self.passes {
            let p = self.parameters(pass, true)?;
            launches.push(self.launch("scatter_place", [self.tiles, 1, 1], &p)?);
        }
        let runs = self.stretches.div_ceil(8) + (rows + 1).div_ceil(256);
        let (slices, batches) = (self.slices(), self.batches);
        launches.push(self.launch("scatter_runs", [runs, slices, batches], &first)?);
        launches.push(self.launch(
            "scatter_add",
            [rows.div_ceil(ROWS), slices, batches],
            &first,
        )?);
        Ok(elements::kernel(launches, self.scratch.bytes))
    }

    fn set(&self) -> Result<Kernel, LowerError> {
        let grid = [self.count.div_ceil(8), self.slices(), self.batches];
        let launch = self.launch("scatter_set", grid, &self.parameters(0, false)?)?;
        Ok(elements::kernel(vec![launch], 0))
    }
}
