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

    unsafe fn store(&self, simd: Simd, ptr: Ptr, operand: usize, row: usize, from: &[f32]) {
        let offset = self.space.offset(operand, row);
        let to = (ptr, self.dtypes[operand]);
        // SAFETY: the caller of `run` vouches for the operand.
        unsafe { convert::store(simd, from.as_ptr(), to, offset, self.inner[operand], self.width) }
    }

    /// Makes a row `(x - mean) / deviation`; returns 1 / deviation.
    fn normalise(&self, simd: Simd, x: &mut [f32]) -> f32 {
        let count = self.width as f32;
        let mut sum = 0.0;
        if self.spec.center {
            ops::sum(simd, &mut sum, x);
            shift(simd, x, sum / count);
        }
        let mut squares = 0.0;
        ops::dot(simd, &mut squares, x, x);
        let inverse = 1.0 / (squares / count + self.spec.eps).sqrt();
        scale(simd, x, inverse);
        inverse
    }
}

multiversion! {
    fn shift(x: &mut [f32], by: f32) {
        x.iter_mut().for_each(|x| *x -= by);
    }
}

multiversion! {
    fn scale(x: &mut [f32], by: f32) {
        x.iter_mut().for_each(|x| *x *= by);
    }
}

multiversion! {
    fn times(x: &mut [f32], by: &[f32]) {
        x.iter_mut().zip(by).for_each(|(x, &by)| *x *= by);
    }
}

multiversion! {
    fn plus(x: &mut [f32], by: &[f32]) {
        x.iter_mut().zip(by).for_each(|(x, &by)| *x += by);
    }
}

multiversion! {
    /// `sums += a * b`.
    fn plus_product(sums: &mut [f32], a: &[f32], b: &[f32]) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum = a.mul_add(b, *sum);
        }
    }
}

multiversion! {
    /// `g = (g - mean - normal * slope) * inverse`.
    fn to_dx(g: &mut [f32], normal: &[f32], mean: f32, slope: f32, inverse: f32) {
        for (g, &normal) in g.iter_mut().zip(normal) {
            *g = (-slope).mul_add(normal, *g - mean) * inverse;
        }
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
        scratch_for(&[per_worker_bytes(threads, row), row, row])
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], _: &Scalars, scratch: &mut [u8]) {
        let rows = &self.0;
        assert_eq!(ptrs.len(), rows.dtypes.len(), "norm: one address per operand");
        let bytes = rows.width * size_of::<f32>();
        let simd = pool.simd();
        let mut carve = Carve::new(scratch);
        let workers = carve.per_worker(pool.threads(), bytes);
        // SAFETY: the caller vouches for the operands; tasks own disjoint rows.
        unsafe {
            let mut next = 2;
            let mut row_of = |present: bool| {
                present.then(|| {
                    next += 1;
                    &*rows.load(simd, ptrs[next - 1], next - 1, 0, carve.take(bytes).at(0))
                })
            };
            let (gain, bias) = (row_of(rows.spec.gain.is_some()), row_of(rows.spec.bias.is_some()));
            pool.run(rows.chunks(), &|task, worker| {
                for row in task * rows.chunk..((task + 1) * rows.chunk).min(rows.rows) {
                    let x = rows.load(simd, ptrs[0], 0, row, workers.of(worker).at(0));
                    rows.normalise(simd, x);
                    if let Some(gain) = gain {
                        times(simd, x, gain);
                    }
                    if let Some(bias) = bias {
                        plus(simd, x, bias);
                    }
                    rows.store(simd, ptrs[1], 1, row, x);
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

    /// The rows of one task; `sums` are its partial dgain and dbias.
    unsafe fn chunk(
        &self,
        simd: Simd,
        ptrs: &[Ptr],
        task: usize,
        gain: Option<&[f32]>,
        [x_row, g_row]: [*mut f32; 2],
        sums: *mut f32,
    ) {
        let rows = &self.rows;
        let width = rows.width;
        // SAFETY: as `run`; every task has its own partials.
        unsafe {
            let dgain = std::slice::from_raw_parts_mut(sums, width);
            let dbias = std::slice::from_raw_parts_mut(sums.add(width), width);
            dgain.fill(0.0);
            dbias.fill(0.0);
            for row in task * rows.chunk..((task + 1) * rows.chunk).min(rows.rows) {
                let x = rows.load(simd, ptrs[0], 0, row, x_row);
                let g = rows.load(simd, ptrs[1], 1, row, g_row);
                let inverse = rows.normalise(simd, x);
                if self.dgain.is_some() {
                    plus_product(simd, dgain, g, x);
                }
                if self.dbias.is_some() {
                    plus(simd, dbias, g);
                }
                if let Some(gain) = gain {
                    times(simd, g, gain);
                }
                let (mut mean, mut slope) = (0.0, 0.0);
                if rows.spec.center {
                    ops::sum(simd, &mut mean, g);
                }
                ops::dot(simd, &mut slope, g, x);
                let count = width as f32;
                to_dx(simd, g, x, mean / count, slope / count, inverse);
                rows.store(simd, ptrs[2], 2, row, g);
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
        scratch_for(&[per_worker_bytes(threads, 2 * row), row, self.rows.chunks() * 2 * row])
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], _: &Scalars, scratch: &mut [u8]) {
        assert_eq!(ptrs.len(), self.operands(), "norm_grad: one address per operand");
        let (rows, simd) = (&self.rows, pool.simd());
        let (width, bytes) = (rows.width, rows.width * size_of::<f32>());
        let mut carve = Carve::new(scratch);
        let workers = carve.per_worker(pool.threads(), 2 * bytes);
        let gain_row = carve.take(bytes);
        let sums = carve.take(rows.chunks() * 2 * bytes);
        // SAFETY: the caller vouches for the operands; tasks own disjoint rows and partials.
        unsafe {
            let gain =
                rows.spec.gain.is_some().then(|| &*rows.load(simd, ptrs[3], 3, 0, gain_row.at(0)));
            pool.run(rows.chunks(), &|task, worker| {
                let x: *mut f32 = workers.of(worker).at(0);
                let sums = sums.at((task * 2 * width) as isize);
                self.chunk(simd, ptrs, task, gain, [x, x.add(width)], sums);
            });
            let outputs = [(0, self.dgain), (1, self.dbias)];
            let mut next = rows.dtypes.len();
            for (part, stride) in outputs {
                let Some(stride) = stride else { continue };
                for i in 0..width {
                    let at = |task: usize| ((task * 2 + part) * width + i) as isize;
                    let sum: f64 =
                        (0..rows.chunks()).map(|t| f64::from(*sums.at::<f32>(at(t)))).sum();
                    *ptrs[next].at::<f32>(i as isize * stride) = sum as f32;
                }
                next += 1;
            }
        }
    }
}
