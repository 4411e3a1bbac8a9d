//! Normalisation over one axis: layer norm (Ba et al. 2016) and RMS norm (Zhang and Sennrich 2019).
//!
//! Statistics are two passes over a row in f32. The backward recomputes them; gradients of gain and
//! bias are summed over a fixed number of row chunks, which are combined in f64 in order. Finished
//! rows can go through a tile program (residual, cast, dropout) while they are in cache.

mod row;

use crate::executable::Library;
use crate::kernel::{
    Carve, Kernel, KernelError, Ptr, Scalars, check_output, per_worker_bytes, scratch_for,
};
use crate::kernels::convert;
use crate::kernels::tile::{Engine, Frame, TILE};
use crate::pool::Pool;
use crate::simd::Simd;
use aerogel_graph::DType;
use aerogel_lower::space::Space;
use aerogel_lower::{NormGradSpec, NormSpec, Normalisation, Operand, Output};
use row::{add_part, normalise, normalise_grad};

const CHUNKS: usize = 64;
/// Elements that make a task worth its hand-over.
const TASK_ELEMENTS: usize = 8192;

/// A prepared `Output`.
#[derive(Clone, Debug)]
enum Finish {
    /// To the operand of this number, which comes after those that are read row by row.
    Store(usize),
    /// The program's addresses are the last ones of a run.
    Epilogue(Box<Engine>),
}

/// What forward and backward share.
#[derive(Clone, Debug)]
struct Rows {
    norm: Normalisation,
    has_bias: bool,
    finish: Finish,
    space: Space,
    /// Operands that are read row by row.
    reads: usize,
    /// Stride of each operand along the width.
    inner: Vec<isize>,
    dtypes: Vec<DType>,
    width: usize,
    rows: usize,
    /// Rows of a task.
    chunk: usize,
}

impl Rows {
    fn new(
        norm: &Normalisation,
        kernel: &'static str,
        reads: &[&Operand],
        bias: Option<&Operand>,
        output: &Output,
    ) -> Result<Rows, KernelError> {
        let Some((&width, outer)) = norm.sizes.split_last() else {
            let what = "needs at least one axis".to_string();
            return Err(KernelError::Unsupported { kernel, what });
        };
        let finish = Finish::new(norm, kernel, reads.len(), output)?;
        let stored = match output {
            Output::Store(operand) => Some(operand),
            Output::Epilogue(_) => None,
        };
        let all = reads.iter().copied().chain(stored).chain(&norm.gain).chain(bias);
        let (mut strides, mut inner, mut dtypes) = (Vec::new(), Vec::new(), Vec::new());
        for (operand, own) in all.enumerate() {
            let (wanted, got) = (norm.sizes.len(), own.strides.len());
            if got != wanted {
                return Err(aerogel_lower::LowerError::Rank { kernel, operand, wanted, got }.into());
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
        let (norm, has_bias, reads) = (norm.clone(), bias.is_some(), reads.len());
        Ok(Rows { norm, has_bias, finish, space, reads, inner, dtypes, width, rows, chunk })
    }

    /// The number of the gain, or of the bias without one.
    fn constants(&self) -> usize {
        self.reads + usize::from(matches!(self.finish, Finish::Store(_)))
    }

    /// Addresses that the program takes.
    fn program_operands(&self) -> usize {
        match &self.finish {
            Finish::Store(_) => 0,
            Finish::Epilogue(engine) => engine.operands(),
        }
    }

    fn prepare(&mut self, library: &mut Library) {
        if let Finish::Epilogue(engine) = &mut self.finish {
            engine.prepare(library);
        }
    }

    /// Rows that are finished together.
    fn group(&self) -> usize {
        match self.finish {
            Finish::Store(_) => 1,
            Finish::Epilogue(_) => (TILE / self.width.max(1)).clamp(1, self.chunk),
        }
    }

    /// Bytes of a worker's parts of scratch: rows that are read, finished rows, registers.
    fn worker_parts(&self) -> [usize; 3] {
        let row = self.width * size_of::<f32>();
        let registers = match &self.finish {
            Finish::Store(_) => 0,
            Finish::Epilogue(engine) => engine.register_bytes(),
        };
        [self.reads * row, self.group() * row, registers].map(|bytes| bytes.next_multiple_of(64))
    }

    fn worker_bytes(&self) -> usize {
        self.worker_parts().iter().sum()
    }

    /// Fills the rows of a task and sends them where they go. `fill` gets a row's number, room for
    /// the rows that it reads, and the row.
    ///
    /// # Safety
    /// The caller of `run` vouches for the operands; `scratch` has `worker_bytes`.
    unsafe fn finish(
        &self,
        (simd, ptrs, scalars): (Simd, &[Ptr], &Scalars),
        task: usize,
        scratch: Ptr,
        mut fill: impl FnMut(usize, *mut f32, &mut [f32]),
    ) {
        let [read, finished, _] = self.worker_parts();
        let work: *mut f32 = scratch.at(0);
        let (out, registers) =
            (work.wrapping_byte_add(read), work.wrapping_byte_add(read + finished));
        let (first, end) = (task * self.chunk, ((task + 1) * self.chunk).min(self.rows));
        // SAFETY: forwarded; the three parts are disjoint.
        unsafe {
            let engine = match &self.finish {
                Finish::Epilogue(engine) => engine,
                Finish::Store(operand) => {
                    for row in first..end {
                        self.write(simd, ptrs, *operand, row, out, |to| fill(row, work, to));
                    }
                    return;
                }
            };
            let ptrs = &ptrs[ptrs.len() - engine.operands()..];
            let frame = Frame { simd, ptrs, scalars, registers };
            engine.begin(frame);
            for group in (first..end).step_by(self.group()) {
                let count = self.group().min(end - group);
                for i in 0..count {
                    let to = std::slice::from_raw_parts_mut(out.add(i * self.width), self.width);
                    fill(group + i, work, to);
                }
                let size = [count, self.width];
                engine.block(frame, group * self.width, self.width, size, out, self.width);
            }
        }
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
    ) -> &'a [f32] {
        let is_written = match self.finish {
            Finish::Store(written) => ptrs[operand].address() == ptrs[written].address(),
            Finish::Epilogue(_) => false,
        };
        // SAFETY: the caller of `run` vouches for the operand; a row that the kernel writes to the
        // same place is copied first.
        unsafe {
            match self.plain(ptrs, operand, row) {
                Some(at) if !is_written => std::slice::from_raw_parts(at, self.width),
                _ => self.load(simd, ptrs[operand], operand, row, to),
            }
        }
    }

    /// Where a row lies, if as contiguous f32.
    fn plain(&self, ptrs: &[Ptr], operand: usize, row: usize) -> Option<*mut f32> {
        let plain = self.inner[operand] == 1 && self.dtypes[operand] == DType::F32;
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

impl Finish {
    fn new(
        norm: &Normalisation,
        kernel: &'static str,
        reads: usize,
        output: &Output,
    ) -> Result<Finish, KernelError> {
        let program = match output {
            Output::Store(operand) => {
                check_output(kernel, reads, operand, &norm.sizes)?;
                return Ok(Finish::Store(reads));
            }
            Output::Epilogue(program) => program,
        };
        if program.sizes != norm.sizes {
            let (wanted, got) = (&norm.sizes, &program.sizes);
            let what = format!("an epilogue over {got:?} for rows of {wanted:?}; give it the same");
            return Err(KernelError::Unsupported { kernel, what });
        }
        Ok(Finish::Epilogue(Box::new(Engine::epilogue(program, kernel)?)))
    }
}

/// A prepared forward. Addresses: x, y, then gain and bias where the spec has them; y may be x.
/// With an epilogue there is no y, and the program's inputs and outputs follow at the end; these
/// may share addresses as the program allows, but not that of x.
#[derive(Clone, Debug)]
pub struct Norm(Rows);

impl Norm {
    /// Checks storage of x and of the output.
    ///
    /// # Errors
    /// If strides do not match the sizes, an output repeats, or the epilogue is malformed or of
    /// other sizes.
    pub fn new(spec: &NormSpec) -> Result<Norm, KernelError> {
        let NormSpec { norm, x, bias, output } = spec;
        Ok(Norm(Rows::new(norm, "norm", &[x], bias.as_ref(), output)?))
    }
}

impl Kernel for Norm {
    fn operands(&self) -> usize {
        self.0.dtypes.len() + self.0.program_operands()
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        let row = self.0.width * size_of::<f32>();
        scratch_for(&[per_worker_bytes(threads, self.0.worker_bytes()), row, row])
    }

    fn prepare(&mut self, library: &mut Library) {
        self.0.prepare(library);
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], scalars: &Scalars, scratch: &mut [u8]) {
        let rows = &self.0;
        assert_eq!(ptrs.len(), self.operands(), "norm: one address per operand");
        let bytes = rows.width * size_of::<f32>();
        let simd = pool.simd();
        let mut carve = Carve::new(scratch);
        let workers = carve.per_worker(pool.threads(), rows.worker_bytes());
        let (gain_row, bias_row) = (carve.take(bytes), carve.take(bytes));
        let (center, eps) = (rows.norm.center, rows.norm.eps);
        // SAFETY: the caller vouches for the operands; tasks own disjoint rows.
        unsafe {
            let at = rows.constants();
            let gain = rows.norm.gain.as_ref().map(|_| (ptrs[at], at));
            let at = at + usize::from(gain.is_some());
            let bias = rows.has_bias.then(|| (ptrs[at], at));
            let gain = rows.constant(simd, gain, 1.0, gain_row.at(0));
            let bias = rows.constant(simd, bias, 0.0, bias_row.at(0));
            pool.run(rows.chunks(), &|task, worker| {
                rows.finish((simd, ptrs, scalars), task, workers.of(worker), |row, work, y| {
                    let x = rows.read(simd, ptrs, 0, row, work);
                    normalise(simd, y, x, gain, bias, center, eps);
                });
            });
        }
    }
}

/// A prepared backward. Addresses: x, dy, dx, then gain where the spec has it, then dgain and dbias
/// (f32, one row) as asked for; dx may be dy. With an epilogue there is no dx, and the program's
/// inputs and outputs follow at the end; these may share
/// addresses as the program allows, but not those of x and dy.
#[derive(Clone, Debug)]
pub struct NormGrad {
    rows: Rows,
    dgain: Option<isize>,
    dbias: Option<isize>,
}

impl NormGrad {
    /// Checks storage.
    ///
    /// # Errors
    /// If strides do not match the sizes, an output repeats, or the epilogue is malformed or of
    /// other sizes.
    pub fn new(spec: &NormGradSpec) -> Result<NormGrad, KernelError> {
        let reads = [&spec.x, &spec.dy];
        let rows = Rows::new(&spec.norm, "norm_grad", &reads, None, &spec.output)?;
        Ok(NormGrad { rows, dgain: spec.dgain, dbias: spec.dbias })
    }

    /// The rows of one task; `sums` are its partial dgain and dbias.
    unsafe fn chunk(
        &self,
        (simd, ptrs, scalars): (Simd, &[Ptr], &Scalars),
        task: usize,
        gain: &[f32],
        scratch: Ptr,
        sums: *mut f32,
    ) {
        let rows = &self.rows;
        let (width, center, eps) = (rows.width, rows.norm.center, rows.norm.eps);
        // SAFETY: as `run`; every task has its own partials.
        unsafe {
            let dgain = std::slice::from_raw_parts_mut(sums, width);
            let dbias = std::slice::from_raw_parts_mut(sums.add(width), width);
            dgain.fill(0.0);
            dbias.fill(0.0);
            rows.finish((simd, ptrs, scalars), task, scratch, |row, work, dx| {
                let x = rows.read(simd, ptrs, 0, row, work);
                let dy = rows.read(simd, ptrs, 1, row, work.add(width));
                normalise_grad(simd, dx, x, dy, gain, dgain, dbias, center, eps);
            });
        }
    }
}

impl Kernel for NormGrad {
    fn operands(&self) -> usize {
        self.rows.dtypes.len()
            + usize::from(self.dgain.is_some())
            + usize::from(self.dbias.is_some())
            + self.rows.program_operands()
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        let row = self.rows.width * size_of::<f32>();
        let totals = self.rows.width * size_of::<f64>();
        let sums = self.rows.chunks() * 2 * row;
        let workers = per_worker_bytes(threads, self.rows.worker_bytes());
        scratch_for(&[workers, row, sums, totals])
    }

    fn prepare(&mut self, library: &mut Library) {
        self.rows.prepare(library);
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], scalars: &Scalars, scratch: &mut [u8]) {
        assert_eq!(ptrs.len(), self.operands(), "norm_grad: one address per operand");
        let (rows, simd) = (&self.rows, pool.simd());
        let (width, bytes) = (rows.width, rows.width * size_of::<f32>());
        let mut carve = Carve::new(scratch);
        let workers = carve.per_worker(pool.threads(), rows.worker_bytes());
        let gain_row = carve.take(bytes);
        let sums = carve.take(rows.chunks() * 2 * bytes);
        let totals = carve.take(width * size_of::<f64>());
        // SAFETY: the caller vouches for the operands; tasks own disjoint rows and partials.
        unsafe {
            let at = rows.constants();
            let gain = rows.norm.gain.as_ref().map(|_| (ptrs[at], at));
            let gain = rows.constant(simd, gain, 1.0, gain_row.at(0));
            pool.run(rows.chunks(), &|task, worker| {
                let sums = sums.at((task * 2 * width) as isize);
                self.chunk((simd, ptrs, scalars), task, gain, workers.of(worker), sums);
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
