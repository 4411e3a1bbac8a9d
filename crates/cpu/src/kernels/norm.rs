//! Normalisation over one axis: layer norm (Ba et al. 2016) and RMS norm (Zhang and Sennrich 2019).
//!
//! `y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * gain + bias`, without the mean if not
//! centred.
//! Statistics are two passes over a row in f32. The backward recomputes them; gradients of gain and
//! bias are summed over a fixed number of row chunks, which are combined in f64 in order.

use crate::axes::Space;
use crate::kernel::{
    Carve, Dtype, Kernel, KernelError, Operand, Ptr, Scalars, per_worker_bytes, scratch_for,
};
use crate::kernels::convert;
use crate::kernels::ops;
use crate::kernels::tile::check_output;
use crate::pool::Pool;
use crate::simd::{Simd, multiversion};

const CHUNKS: usize = 64;
/// Elements that make a task worth its hand-over.
const TASK_ELEMENTS: usize = 8192;

/// A normalisation; the last axis is the one normalised over.
#[derive(Clone, Debug, PartialEq)]
pub struct NormSpec {
    /// Axis sizes; the last is the width.
    pub sizes: Vec<usize>,
    /// Whether the mean is subtracted.
    pub center: bool,
    /// Added to the variance.
    pub eps: f32,
    /// Whether there is a gain and a bias, each with strides over all axes, zero but the last.
    pub gain: Option<Operand>,
    /// See `gain`.
    pub bias: Option<Operand>,
}

/// What forward and backward share.
#[derive(Clone, Debug)]
struct Rows {
    spec: NormSpec,
    space: Space,
    /// Stride of each operand along the width.
    inner: Vec<isize>,
    dtypes: Vec<Dtype>,
    width: usize,
    rows: usize,
    /// Rows of a task.
    chunk: usize,
}

impl Rows {
    fn new(
        spec: &NormSpec,
        kernel: &'static str,
        operands: &[&Operand],
    ) -> Result<Rows, KernelError> {
        let Some((&width, outer)) = spec.sizes.split_last() else {
            let what = "needs at least one axis".to_string();
            return Err(KernelError::Unsupported { kernel, what });
        };
        let all = operands.iter().copied().chain(&spec.gain).chain(&spec.bias);
        let (mut strides, mut inner, mut dtypes) = (Vec::new(), Vec::new(), Vec::new());
        for (operand, own) in all.enumerate() {
            let (wanted, got) = (spec.sizes.len(), own.strides.len());
            if got != wanted {
                return Err(KernelError::Rank { kernel, operand, wanted, got });
            }
            strides.push(own.strides[..wanted - 1].to_vec());
            inner.push(own.strides[wanted - 1]);
            dtypes.push(own.dtype);
        }
        let mut space = Space::new(kernel, outer, strides)?;
        space.collapse(outer.len());
        let rows = outer.iter().product();
        let chunk = (TASK_ELEMENTS / width.max(1)).max(1).max(usize::div_ceil(rows, CHUNKS));
        let space = space.finish(kernel)?;
        Ok(Rows { spec: spec.clone(), space, inner, dtypes, width, rows, chunk })
    }

    fn chunks(&self) -> usize {
        self.rows.div_ceil(self.chunk)
    }

    /// Reads one row of an operand.
    unsafe fn load<'a>(
        &self,
        simd: Simd,
        ptr: Ptr,
        operand: usize,
        row: usize,
        to: *mut f32,
    ) -> &'a mut [f32] {
        let offset = self.space.offset(operand, row);
        let from = (ptr, self.dtypes[operand]);
        // SAFETY: the caller of `run` vouches for the operand; `to` holds one row.
        unsafe {
            convert::load(simd, to, from, offset, self.inner[operand], self.width);
            std::slice::from_raw_parts_mut(to, self.width)
        }
    }

    /// One row of an operand: where it lies if it can be read there, else in `to`.
    unsafe fn read<'a>(
        &self,
        simd: Simd,
        ptrs: &[Ptr],
        operand: usize,
        row: usize,
        to: *mut f32,
        written: usize,
    ) -> &'a [f32] {
        // SAFETY: the caller of `run` vouches for the operand; a row that the kernel writes to the
        // same place is copied first.
        unsafe {
            match self.plain(ptrs, operand, row) {
                Some(at) if ptrs[operand].address() != ptrs[written].address() => {
                    std::slice::from_raw_parts(at, self.width)
                }
                _ => self.load(simd, ptrs[operand], operand, row, to),
            }
        }
    }

    /// Where a row lies, if as contiguous f32.
    fn plain(&self, ptrs: &[Ptr], operand: usize, row: usize) -> Option<*mut f32> {
        let plain = self.inner[operand] == 1 && self.dtypes[operand] == Dtype::F32;
        plain.then(|| ptrs[operand].at(self.space.offset(operand, row)))
    }

    /// Calls `write` with a row of the output to fill.
    unsafe fn write(
        &self,
        simd: Simd,
        ptrs: &[Ptr],
        operand: usize,
        row: usize,
        work: *mut f32,
        write: impl FnOnce(&mut [f32]),
    ) {
        let to = self.plain(ptrs, operand, row);
        // SAFETY: the caller of `run` vouches for the operand; `work` holds one row.
        unsafe {
            write(std::slice::from_raw_parts_mut(to.unwrap_or(work), self.width));
            if to.is_none() {
                let (offset, inner) = (self.space.offset(operand, row), self.inner[operand]);
                let to = (ptrs[operand], self.dtypes[operand]);
                convert::store(simd, work, to, offset, inner, self.width);
            }
        }
    }

    /// The gain or the bias as a row of floats, or what stands for it where there is none.
    unsafe fn constant<'a>(
        &self,
        simd: Simd,
        ptr: Option<(Ptr, usize)>,
        absent: f32,
        to: *mut f32,
    ) -> &'a [f32] {
        // SAFETY: as `load`.
        unsafe {
            match ptr {
                Some((ptr, operand)) => self.load(simd, ptr, operand, 0, to),
                None => {
                    let row = std::slice::from_raw_parts_mut(to, self.width);
                    row.fill(absent);
                    row
                }
            }
        }
    }
}

/// Mean (0 if not centred) and 1 / deviation of a row.
#[inline(always)]
fn statistics(x: &[f32], center: bool, eps: f32) -> (f32, f32) {
    let count = x.len() as f32;
    let add = |a, b| a + b;
    let mean = if center { ops::fold(x, x, 0.0, |sum, x, _| sum + x, add) / count } else { 0.0 };
    let square = |sum, x: f32, _| (x - mean).mul_add(x - mean, sum);
    let squares = ops::fold(x, x, 0.0, square, add);
    (mean, 1.0 / (squares / count + eps).sqrt())
}

multiversion! {
    /// `y = (x - mean) / deviation * gain + bias`.
    fn normalise(y: &mut [f32], x: &[f32], gain: &[f32], bias: &[f32], center: bool, eps: f32) {
        let (mean, inverse) = statistics(x, center, eps);
        for (((y, &x), &gain), &bias) in y.iter_mut().zip(x).zip(gain).zip(bias) {
            *y = ((x - mean) * inverse).mul_add(gain, bias);
        }
    }
}

multiversion! {
    /// `dx` of a row; its share of the gradients is added to `dgain` and `dbias`.
    fn normalise_grad(
        dx: &mut [f32],
        x: &[f32],
        dy: &[f32],
        gain: &[f32],
        dgain: &mut [f32],
        dbias: &mut [f32],
        center: bool,
        eps: f32,
    ) {
        let (mean, inverse) = statistics(x, center, eps);
        for (((dbias, dgain), &x), &dy) in dbias.iter_mut().zip(dgain).zip(x).zip(dy) {
            *dbias += dy;
            *dgain = dy.mul_add((x - mean) * inverse, *dgain);
        }
        let count = x.len() as f32;
        // The gradient of the normalised row, its mean and its slope along the row.
        dx.iter_mut().zip(dy).zip(gain).for_each(|((g, &dy), &gain)| *g = dy * gain);
        let add = |a, b| a + b;
        let level = if center { ops::fold(dx, dx, 0.0, |s, g, _| s + g, add) / count } else { 0.0 };
        let along = |sum, g: f32, x: f32| g.mul_add((x - mean) * inverse, sum);
        let slope = ops::fold(dx, x, 0.0, along, add) / count;
        for (g, &x) in dx.iter_mut().zip(x) {
            *g = (-slope).mul_add((x - mean) * inverse, *g - level) * inverse;
        }
    }
}

multiversion! {
    /// `total += part`.
    fn add_part(total: &mut [f64], part: &[f32]) {
        total.iter_mut().zip(part).for_each(|(total, &part)| *total += f64::from(part));
    }
}

/// A prepared forward. Addresses: x, y, then gain and bias where the spec has them; y may be x.
#[derive(Clone, Debug)]
pub struct Norm(Rows);

impl Norm {
    /// Checks storage of x and y.
    ///
    /// # Errors
    /// If strides do not match the sizes or y repeats.
    pub fn new(spec: &NormSpec, x: &Operand, y: &Operand) -> Result<Norm, KernelError> {
        check_output("norm", 1, y, &spec.sizes)?;
        Ok(Norm(Rows::new(spec, "norm", &[x, y])?))
    }
}

impl Kernel for Norm {
    fn operands(&self) -> usize {
        self.0.dtypes.len()
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        let row = self.0.width * size_of::<f32>();
        scratch_for(&[per_worker_bytes(threads, 2 * row), row, row])
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], _: &Scalars, scratch: &mut [u8]) {
        let rows = &self.0;
        assert_eq!(ptrs.len(), rows.dtypes.len(), "norm: one address per operand");
        let bytes = rows.width * size_of::<f32>();
        let simd = pool.simd();
        let mut carve = Carve::new(scratch);
        let workers = carve.per_worker(pool.threads(), 2 * bytes);
        let (gain_row, bias_row) = (carve.take(bytes), carve.take(bytes));
        let (center, eps) = (rows.spec.center, rows.spec.eps);
        // SAFETY: the caller vouches for the operands; tasks own disjoint rows.
        unsafe {
            let gain = rows.spec.gain.as_ref().map(|_| (ptrs[2], 2));
            let at = 2 + usize::from(gain.is_some());
            let bias = rows.spec.bias.as_ref().map(|_| (ptrs[at], at));
            let gain = rows.constant(simd, gain, 1.0, gain_row.at(0));
            let bias = rows.constant(simd, bias, 0.0, bias_row.at(0));
            pool.run(rows.chunks(), &|task, worker| {
                let work: *mut f32 = workers.of(worker).at(0);
                for row in task * rows.chunk..((task + 1) * rows.chunk).min(rows.rows) {
                    let x = rows.read(simd, ptrs, 0, row, work, 1);
                    rows.write(simd, ptrs, 1, row, work.add(rows.width), |y| {
                        normalise(simd, y, x, gain, bias, center, eps);
                    });
                }
            });
        }
    }
}

/// A prepared backward. Addresses: x, dy, dx, then gain where the spec has it (a bias of the spec
/// is not read), then dgain and dbias (f32, one row) as asked for; dx may be dy.
#[derive(Clone, Debug)]
pub struct NormGrad {
    rows: Rows,
    dgain: Option<isize>,
    dbias: Option<isize>,
}

impl NormGrad {
    /// Checks storage; `dgain` and `dbias` are the strides of these f32 outputs, if wanted.
    ///
    /// # Errors
    /// If strides do not match the sizes or dx repeats.
    pub fn new(
        spec: &NormSpec,
        [x, dy, dx]: [&Operand; 3],
        dgain: Option<isize>,
        dbias: Option<isize>,
    ) -> Result<NormGrad, KernelError> {
        check_output("norm_grad", 2, dx, &spec.sizes)?;
        let spec = NormSpec { bias: None, ..spec.clone() };
        Ok(NormGrad { rows: Rows::new(&spec, "norm_grad", &[x, dy, dx])?, dgain, dbias })
    }

    /// The rows of one task; `sums` are its partial dgain and dbias, `work` holds three rows.
    unsafe fn chunk(
        &self,
        simd: Simd,
        ptrs: &[Ptr],
        task: usize,
        gain: &[f32],
        work: *mut f32,
        sums: *mut f32,
    ) {
        let rows = &self.rows;
        let (width, center, eps) = (rows.width, rows.spec.center, rows.spec.eps);
        // SAFETY: as `run`; every task has its own partials.
        unsafe {
            let dgain = std::slice::from_raw_parts_mut(sums, width);
            let dbias = std::slice::from_raw_parts_mut(sums.add(width), width);
            dgain.fill(0.0);
            dbias.fill(0.0);
            for row in task * rows.chunk..((task + 1) * rows.chunk).min(rows.rows) {
                let x = rows.read(simd, ptrs, 0, row, work, 2);
                let dy = rows.read(simd, ptrs, 1, row, work.add(width), 2);
                rows.write(simd, ptrs, 2, row, work.add(2 * width), |dx| {
                    normalise_grad(simd, dx, x, dy, gain, dgain, dbias, center, eps);
                });
            }
        }
    }
}

impl Kernel for NormGrad {
    fn operands(&self) -> usize {
        self.rows.dtypes.len()
            + usize::from(self.dgain.is_some())
            + usize::from(self.dbias.is_some())
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        let row = self.rows.width * size_of::<f32>();
        let totals = self.rows.width * size_of::<f64>();
        let sums = self.rows.chunks() * 2 * row;
        scratch_for(&[per_worker_bytes(threads, 3 * row), row, sums, totals])
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], _: &Scalars, scratch: &mut [u8]) {
        assert_eq!(ptrs.len(), self.operands(), "norm_grad: one address per operand");
        let (rows, simd) = (&self.rows, pool.simd());
        let (width, bytes) = (rows.width, rows.width * size_of::<f32>());
        let mut carve = Carve::new(scratch);
        let workers = carve.per_worker(pool.threads(), 3 * bytes);
        let gain_row = carve.take(bytes);
        let sums = carve.take(rows.chunks() * 2 * bytes);
        let totals = carve.take(width * size_of::<f64>());
        // SAFETY: the caller vouches for the operands; tasks own disjoint rows and partials.
        unsafe {
            let gain = rows.spec.gain.as_ref().map(|_| (ptrs[3], 3));
            let gain = rows.constant(simd, gain, 1.0, gain_row.at(0));
            pool.run(rows.chunks(), &|task, worker| {
                let sums = sums.at((task * 2 * width) as isize);
                self.chunk(simd, ptrs, task, gain, workers.of(worker).at(0), sums);
            });
            let totals = std::slice::from_raw_parts_mut(totals.at::<f64>(0), width);
            let mut next = rows.dtypes.len();
            for (part, stride) in [self.dgain, self.dbias].into_iter().enumerate() {
                let Some(stride) = stride else { continue };
                totals.fill(0.0);
                for task in 0..rows.chunks() {
                    let at = ((task * 2 + part) * width) as isize;
                    add_part(simd, totals, std::slice::from_raw_parts(sums.at(at), width));
                }
                for (i, &total) in totals.iter().enumerate() {
                    *ptrs[next].at::<f32>(i as isize * stride) = total as f32;
                }
                next += 1;
            }
        }
    }
}
