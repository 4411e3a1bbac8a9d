//! Rows of a table by id, and their adjoint.
//!
//! Scatters partition the table among tasks; each scans all ids in order, so repeated ids are
//! summed (or overwritten) in row order whoever does it.

use crate::kernel::{
    Carve, Kernel, KernelError, Ptr, Scalars, check_output, per_worker_bytes, scratch_for,
};
use crate::kernels::convert;
use crate::pool::Pool;
use crate::simd::multiversion;
use aerogel_graph::DType;
use aerogel_graph::ops::ScatterMode;
use aerogel_lower::space::Space;
use aerogel_lower::{GatherSpec, Operand, RowsShape, ScatterSpec};

/// Elements that make a task worth its hand-over.
const TASK_ELEMENTS: usize = 1 << 14;
const MOST_RANGES: usize = 16;

const TABLE: usize = 0;
const IDS: usize = 1;
const ROWS: usize = 2;

#[derive(Clone, Debug)]
struct Layout {
    shape: RowsShape,
    /// The batch axes over table, ids, rows.
    batch: Space,
    /// The row axes over table, ids, rows.
    rows: Space,
    /// Stride of a table row.
    table_row: isize,
    /// Strides along the width.
    col: [isize; 3],
    dtypes: [DType; 3],
}

impl Layout {
    fn new(
        shape: &RowsShape,
        kernel: &'static str,
        operands: [&Operand; 3],
    ) -> Result<Layout, KernelError> {
        let (outer, rank) = (shape.batch.len(), shape.batch.len() + shape.rows.len() + 1);
        for (operand, own) in operands.iter().enumerate() {
            let got = own.strides.len();
            if got != rank {
                return Err(
                    aerogel_lower::LowerError::Rank { kernel, operand, wanted: rank, got }.into()
                );
            }
            if (own.dtype == DType::U32) != (operand == IDS) {
                let what = "ids are u32, table and rows are floats".to_string();
                return Err(KernelError::Unsupported { kernel, what });
            }
        }
        let within = |from: usize, to: usize| operands.map(|own| own.strides[from..to].to_vec());
        let mut batch = Space::new(kernel, &shape.batch, within(0, outer).to_vec())?;
        batch.collapse(shape.batch.len());
        let mut of_ids = within(outer, rank - 1);
        let table_row = of_ids[TABLE].last().copied().unwrap_or(0);
        of_ids[TABLE].fill(0);
        let mut rows = Space::new(kernel, &shape.rows, of_ids.to_vec())?;
        rows.collapse(shape.rows.len());
        Ok(Layout {
            shape: shape.clone(),
            batch: batch.finish(kernel)?,
            rows: rows.finish(kernel)?,
            table_row,
            col: operands.map(|own| own.strides[rank - 1]),
            dtypes: operands.map(|own| own.dtype),
        })
    }

    fn sizes(&self, rows: &[usize]) -> Vec<usize> {
        [&self.shape.batch[..], rows, &[self.shape.width]].concat()
    }

    /// Sizes of the table in the kernel's space.
    fn table_sizes(&self) -> Vec<usize> {
        let mut rows = vec![1; self.shape.rows.len()];
        if let Some(last) = rows.last_mut() {
            *last = self.shape.table_rows;
        }
        self.sizes(&rows)
    }

    /// The first element of a row of ids, of rows, or of the table.
    fn offset(&self, which: usize, batch: usize, row: usize) -> isize {
        let inner = match which {
            TABLE => row as isize * self.table_row,
            _ => self.rows.offset(which, row),
        };
        self.batch.offset(which, batch) + inner
    }

    unsafe fn id(&self, ids: Ptr, batch: usize, row: usize) -> usize {
        // SAFETY: the caller of `run` vouches for the ids.
        unsafe { *ids.at::<u32>(self.offset(IDS, batch, row)) as usize }
    }

    /// The row here that an id names, if there is one.
    fn own(&self, id: usize) -> Option<usize> {
        id.checked_sub(self.shape.first_row).filter(|&row| row < self.shape.table_rows)
    }

    unsafe fn load(&self, pool: &Pool, ptr: Ptr, which: usize, offset: isize, to: *mut f32) {
        let from = (ptr, self.dtypes[which]);
        // SAFETY: forwarded; `to` holds one row.
        unsafe { convert::load(pool.simd(), to, from, offset, self.col[which], self.shape.width) }
    }

    unsafe fn store(&self, pool: &Pool, ptr: Ptr, which: usize, offset: isize, from: *const f32) {
        let to = (ptr, self.dtypes[which]);
        // SAFETY: forwarded; `from` holds one row.
        unsafe { convert::store(pool.simd(), from, to, offset, self.col[which], self.shape.width) }
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        scratch_for(&[per_worker_bytes(threads, 2 * self.shape.width * size_of::<f32>())])
    }

    /// Ranges of table rows: enough for the pool, few enough that scanning ids stays cheap.
    fn ranges(&self) -> (usize, usize) {
        let work = (self.shape.table_rows + self.rows.elements()) * self.shape.width;
        let ranges = (work / TASK_ELEMENTS).clamp(1, MOST_RANGES);
        let each = self.shape.table_rows.div_ceil(ranges).max(1);
        (self.shape.table_rows.div_ceil(each), each)
    }
}

/// A prepared gather. Addresses: table, ids, rows. An id outside the whole table gives NaN.
#[derive(Clone, Debug)]
pub struct Gather(Layout);

impl Gather {
    /// Checks storage of table, ids and rows.
    ///
    /// # Errors
    /// If strides or types do not fit, or the output repeats.
    pub fn new(spec: &GatherSpec) -> Result<Gather, KernelError> {
        let layout = Layout::new(&spec.shape, "gather", [&spec.table, &spec.ids, &spec.rows])?;
        check_output("gather", ROWS, &spec.rows, &layout.sizes(&spec.shape.rows))?;
        Ok(Gather(layout))
    }
}

impl Kernel for Gather {
    fn operands(&self) -> usize {
        3
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        self.0.scratch_bytes(threads)
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], _: &Scalars, scratch: &mut [u8]) {
        assert_eq!(ptrs.len(), 3, "gather: table, ids, rows");
        let own = &self.0;
        let workers =
            Carve::new(scratch).per_worker(pool.threads(), 2 * own.shape.width * size_of::<f32>());
        let rows = own.batch.elements() * own.rows.elements();
        let chunk = (TASK_ELEMENTS / own.shape.width.max(1)).max(1);
        pool.run(rows.div_ceil(chunk), &|task, worker| {
            let work: *mut f32 = workers.of(worker).at(0);
            for at in task * chunk..((task + 1) * chunk).min(rows) {
                let (batch, row) = (at / own.rows.elements(), at % own.rows.elements());
                // SAFETY: the caller vouches for the operands; tasks own disjoint rows; the id has
                // been compared with the table.
                unsafe {
                    let id = own.id(ptrs[IDS], batch, row);
                    if let Some(from) = own.own(id) {
                        own.load(pool, ptrs[TABLE], TABLE, own.offset(TABLE, batch, from), work);
                    } else {
                        let missing = if id < own.shape.all_rows { 0.0 } else { f32::NAN };
                        std::slice::from_raw_parts_mut(work, own.shape.width).fill(missing);
                    }
                    own.store(pool, ptrs[ROWS], ROWS, own.offset(ROWS, batch, row), work);
                }
            }
        });
    }
}

/// A prepared scatter. Addresses: table (written), ids, rows. Ids outside the table are skipped; of
/// rows that replace the same table row the last one stays.
#[derive(Clone, Debug)]
pub struct Scatter {
    layout: Layout,
    mode: ScatterMode,
}

impl Scatter {
    /// Checks storage of table, ids and rows.
    ///
    /// # Errors
    /// If strides or types do not fit, or the table repeats.
    pub fn new(spec: &ScatterSpec) -> Result<Scatter, KernelError> {
        let layout = Layout::new(&spec.shape, "scatter", [&spec.table, &spec.ids, &spec.rows])?;
        check_output("scatter", TABLE, &spec.table, &layout.table_sizes())?;
        if spec.mode == ScatterMode::Add && spec.table.dtype != DType::F32 {
            let what = "adds into f32 tables only; sums in 16 bits would lose rows".to_string();
            return Err(KernelError::Unsupported { kernel: "scatter", what });
        }
        Ok(Scatter { layout, mode: spec.mode })
    }
}

multiversion! {
    fn plus(x: &mut [f32], by: &[f32]) {
        x.iter_mut().zip(by).for_each(|(x, &by)| *x += by);
    }
}

impl Kernel for Scatter {
    fn operands(&self) -> usize {
        3
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        self.layout.scratch_bytes(threads)
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], _: &Scalars, scratch: &mut [u8]) {
        assert_eq!(ptrs.len(), 3, "scatter: table, ids, rows");
        let own = &self.layout;
        let width = own.shape.width;
        let workers = Carve::new(scratch).per_worker(pool.threads(), 2 * width * size_of::<f32>());
        let (ranges, each) = own.ranges();
        pool.run(own.batch.elements() * ranges, &|task, worker| {
            let (batch, range) = (task / ranges, task % ranges);
            let table = range * each..((range + 1) * each).min(own.shape.table_rows);
            let work: *mut f32 = workers.of(worker).at(0);
            // SAFETY: the caller vouches for the operands; tasks own disjoint table rows; `work`
            // holds two rows.
            unsafe {
                let source = std::slice::from_raw_parts_mut(work, width);
                let sum = std::slice::from_raw_parts_mut(work.add(width), width);
                if self.mode == ScatterMode::Add {
                    sum.fill(0.0);
                    for id in table.clone() {
                        let offset = own.offset(TABLE, batch, id);
                        own.store(pool, ptrs[TABLE], TABLE, offset, sum.as_ptr());
                    }
                }
                for row in 0..own.rows.elements() {
                    let to = own.own(own.id(ptrs[IDS], batch, row));
                    let Some(to) = to.filter(|row| table.contains(row)) else { continue };
                    let offset = own.offset(TABLE, batch, to);
                    let from = own.offset(ROWS, batch, row);
                    own.load(pool, ptrs[ROWS], ROWS, from, source.as_mut_ptr());
                    if self.mode == ScatterMode::Add {
                        own.load(pool, ptrs[TABLE], TABLE, offset, sum.as_mut_ptr());
                        plus(pool.simd(), sum, source);
                        own.store(pool, ptrs[TABLE], TABLE, offset, sum.as_ptr());
                    } else {
                        own.store(pool, ptrs[TABLE], TABLE, offset, source.as_ptr());
                    }
                }
            }
        });
    }
}
