//! Rows of a table by id, and their adjoint.
//!
//! The space of all three kernels is [batch axes..., row axes..., width]: `rows[b, r, w] =
//! table[b, ids[b, r], w]`. Ids have stride 0 on width; a table has the stride of a table row on
//! the last row axis and 0 on the others.
//! A table may be a piece of a longer one that its ids count along: rows of other pieces are read
//! as zeros and not written, so that a sum over the pieces is the whole.
//! Scatters partition the table among tasks; each scans all ids in order, so repeated ids are
//! summed (or overwritten) in row order whoever does it.

use crate::axes::Space;
use crate::kernel::{
    Carve, Dtype, Kernel, KernelError, Operand, Ptr, Scalars, per_worker_bytes, scratch_for,
};
use crate::kernels::convert;
use crate::kernels::tile::check_output;
use crate::pool::Pool;
use crate::simd::multiversion;

/// Elements that make a task worth its hand-over.
const TASK_ELEMENTS: usize = 1 << 14;
const MOST_RANGES: usize = 16;

/// Shapes of a gather or scatter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowsSpec {
    /// Sizes of the batch axes.
    pub batch: Vec<usize>,
    /// Sizes of the axes of ids of one batch position; at least one.
    pub rows: Vec<usize>,
    /// Rows of the table.
    pub table_rows: usize,
    /// The id of its first row.
    pub first_row: usize,
    /// Rows of the whole table, of which this one is a piece.
    pub all_rows: usize,
    /// Elements of a row.
    pub width: usize,
}

const TABLE: usize = 0;
const IDS: usize = 1;
const ROWS: usize = 2;

#[derive(Clone, Debug)]
struct Layout {
    spec: RowsSpec,
    /// The batch axes over table, ids, rows.
    batch: Space,
    /// The row axes over table, ids, rows.
    rows: Space,
    /// Stride of a table row.
    table_row: isize,
    /// Strides along the width.
    col: [isize; 3],
    dtypes: [Dtype; 3],
}

impl Layout {
    fn new(
        spec: &RowsSpec,
        kernel: &'static str,
        operands: [&Operand; 3],
    ) -> Result<Layout, KernelError> {
        let (outer, rank) = (spec.batch.len(), spec.batch.len() + spec.rows.len() + 1);
        for (operand, own) in operands.iter().enumerate() {
            let got = own.strides.len();
            if got != rank {
                return Err(KernelError::Rank { kernel, operand, wanted: rank, got });
            }
            if (own.dtype == Dtype::U32) != (operand == IDS) {
                let what = "ids are u32, table and rows are f32 or bf16".to_string();
                return Err(KernelError::Unsupported { kernel, what });
            }
        }
        let within = |from: usize, to: usize| operands.map(|own| own.strides[from..to].to_vec());
        let mut batch = Space::new(kernel, &spec.batch, within(0, outer).to_vec())?;
        batch.collapse(spec.batch.len());
        let mut of_ids = within(outer, rank - 1);
        let table_row = of_ids[TABLE].last().copied().unwrap_or(0);
        of_ids[TABLE].fill(0);
        let mut rows = Space::new(kernel, &spec.rows, of_ids.to_vec())?;
        rows.collapse(spec.rows.len());
        Ok(Layout {
            spec: spec.clone(),
            batch: batch.finish(kernel)?,
            rows: rows.finish(kernel)?,
            table_row,
            col: operands.map(|own| own.strides[rank - 1]),
            dtypes: operands.map(|own| own.dtype),
        })
    }

    fn sizes(&self, rows: &[usize]) -> Vec<usize> {
        [&self.spec.batch[..], rows, &[self.spec.width]].concat()
    }

    /// Sizes of the table in the kernel's space.
    fn table_sizes(&self) -> Vec<usize> {
        let mut rows = vec![1; self.spec.rows.len()];
        if let Some(last) = rows.last_mut() {
            *last = self.spec.table_rows;
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
        id.checked_sub(self.spec.first_row).filter(|&row| row < self.spec.table_rows)
    }

    unsafe fn load(&self, pool: &Pool, ptr: Ptr, which: usize, offset: isize, to: *mut f32) {
        let from = (ptr, self.dtypes[which]);
        // SAFETY: forwarded; `to` holds one row.
        unsafe { convert::load(pool.simd(), to, from, offset, self.col[which], self.spec.width) }
    }

    unsafe fn store(&self, pool: &Pool, ptr: Ptr, which: usize, offset: isize, from: *const f32) {
        let to = (ptr, self.dtypes[which]);
        // SAFETY: forwarded; `from` holds one row.
        unsafe { convert::store(pool.simd(), from, to, offset, self.col[which], self.spec.width) }
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        scratch_for(&[per_worker_bytes(threads, 2 * self.spec.width * size_of::<f32>())])
    }

    /// Ranges of table rows: enough for the pool, few enough that scanning ids stays cheap.
    fn ranges(&self) -> (usize, usize) {
        let work = (self.spec.table_rows + self.rows.elements()) * self.spec.width;
        let ranges = (work / TASK_ELEMENTS).clamp(1, MOST_RANGES);
        let each = self.spec.table_rows.div_ceil(ranges).max(1);
        (self.spec.table_rows.div_ceil(each), each)
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
    pub fn new(spec: &RowsSpec, operands: [&Operand; 3]) -> Result<Gather, KernelError> {
        let layout = Layout::new(spec, "gather", operands)?;
        check_output("gather", ROWS, operands[ROWS], &layout.sizes(&spec.rows))?;
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
            Carve::new(scratch).per_worker(pool.threads(), 2 * own.spec.width * size_of::<f32>());
        let rows = own.batch.elements() * own.rows.elements();
        let chunk = (TASK_ELEMENTS / own.spec.width.max(1)).max(1);
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
                        let missing = if id < own.spec.all_rows { 0.0 } else { f32::NAN };
                        std::slice::from_raw_parts_mut(work, own.spec.width).fill(missing);
                    }
                    own.store(pool, ptrs[ROWS], ROWS, own.offset(ROWS, batch, row), work);
                }
            }
        });
    }
}

/// What a scatter does with a row that meets its table row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scatter {
    /// The table starts at zero; rows are added. The table is f32.
    Add,
    /// Rows replace what the table holds; the last one of an id stays.
    Set,
}

/// A prepared scatter. Addresses: table (written), ids, rows. Ids outside the table are skipped.
#[derive(Clone, Debug)]
pub struct ScatterRows {
    layout: Layout,
    how: Scatter,
}

impl ScatterRows {
    /// Checks storage of table, ids and rows.
    ///
    /// # Errors
    /// If strides or types do not fit, or the table repeats.
    pub fn new(
        spec: &RowsSpec,
        operands: [&Operand; 3],
        how: Scatter,
    ) -> Result<ScatterRows, KernelError> {
        let layout = Layout::new(spec, "scatter", operands)?;
        check_output("scatter", TABLE, operands[TABLE], &layout.table_sizes())?;
        if how == Scatter::Add && operands[TABLE].dtype != Dtype::F32 {
            let what = "adds into f32 tables only; sums in bf16 would lose rows".to_string();
            return Err(KernelError::Unsupported { kernel: "scatter", what });
        }
        Ok(ScatterRows { layout, how })
    }
}

multiversion! {
    fn plus(x: &mut [f32], by: &[f32]) {
        x.iter_mut().zip(by).for_each(|(x, &by)| *x += by);
    }
}

impl Kernel for ScatterRows {
    fn operands(&self) -> usize {
        3
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        self.layout.scratch_bytes(threads)
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], _: &Scalars, scratch: &mut [u8]) {
        assert_eq!(ptrs.len(), 3, "scatter: table, ids, rows");
        let own = &self.layout;
        let width = own.spec.width;
        let workers = Carve::new(scratch).per_worker(pool.threads(), 2 * width * size_of::<f32>());
        let (ranges, each) = own.ranges();
        pool.run(own.batch.elements() * ranges, &|task, worker| {
            let (batch, range) = (task / ranges, task % ranges);
            let table = range * each..((range + 1) * each).min(own.spec.table_rows);
            let work: *mut f32 = workers.of(worker).at(0);
            // SAFETY: the caller vouches for the operands; tasks own disjoint table rows; `work`
            // holds two rows.
            unsafe {
                let source = std::slice::from_raw_parts_mut(work, width);
                let sum = std::slice::from_raw_parts_mut(work.add(width), width);
                if self.how == Scatter::Add {
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
                    if self.how == Scatter::Add {
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
