//! Linear layer and cross entropy in one pass: losses, log-sum-exps and gradients, without the
//! logits of a batch.
//!
//! Rows go in chunks whose logits fit in scratch. A chunk is three contractions with a softmax
//! between the first and the others: logits; then per row the log-sum-exp, and the logits become
//! their gradients (in bf16, where x and w are, and else in f32); then dx, and dw, which adds chunk
//! after chunk.
//! What a row gets depends on nothing but that row, since the elements of a contraction do.

use crate::kernel::{Carve, Kernel, KernelError, Ptr, Scalars, check_output, scratch_for};
use crate::kernels::convert;
use crate::kernels::gemm::Gemm;
use crate::kernels::micro::Word;
use crate::kernels::ops;
use crate::kernels::pack;
use crate::math;
use crate::pool::Pool;
use crate::simd::{Simd, multiversion};
use aerogel_graph::DType;
use aerogel_lower::space::Space;
use aerogel_lower::{Axis, Contraction, LinearCeSpec, Operand, Role};

/// Logits of a chunk, if that is enough for the fewest rows.
const CHUNK_BYTES: usize = 8 << 20;
/// Rows of a chunk at least: all of dw is read and written for each chunk.
const FEWEST_ROWS: usize = 128;
/// Rows of a task that works row by row.
const TASK_ROWS: usize = 8;

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

/// Refuses storage that a pass does not take.
fn check(spec: &LinearCeSpec) -> Result<(), KernelError> {
    let kernel = "linear_ce";
    let operands = spec.operands();
    let rank = spec.rows.len() + 2;
    for (operand, own) in operands.iter().enumerate().filter_map(|(i, o)| Some((i, (*o)?))) {
        let fits = match operand {
            X | W | DX => own.dtype != DType::U32,
            TARGETS => own.dtype == DType::U32,
            _ => own.dtype == DType::F32,
        };
        if !fits || spec.vocab == 0 {
            let what = "wants floats as x, w and dx, u32 as targets, f32 as all else, \
                        and a vocabulary"
                .to_string();
            return Err(KernelError::Unsupported { kernel, what });
        }
        let got = own.strides.len();
        if got != rank {
            return Err(
                aerogel_lower::LowerError::Rank { kernel, operand, wanted: rank, got }.into()
            );
        }
        let sizes = |rows: bool, inner: [usize; 2]| {
            let row = |&size| if rows { size } else { 1 };
            spec.rows.iter().map(row).chain(inner).collect::<Vec<_>>()
        };
        match operand {
            CE | LSE | HIT => check_output(kernel, operand, own, &sizes(true, [1, 1]))?,
            DX => check_output(kernel, operand, own, &sizes(true, [1, spec.width]))?,
            DW => check_output(kernel, operand, own, &sizes(false, [spec.vocab, spec.width]))?,
            _ => {}
        }
    }
    Ok(())
}

/// The contractions of a chunk of so many rows.
#[derive(Clone, Debug)]
struct Products {
    rows: usize,
    logits: Gemm,
    dx: Option<Gemm>,
    /// Of the first chunk, and of the others, which add.
    dw: Option<[Gemm; 2]>,
}

impl Products {
    fn new(spec: &LinearCeSpec, rows: usize) -> Result<Products, KernelError> {
        let ([.., by_entry, by_col], d) = (&spec.w.strides[..], spec.width as isize) else {
            unreachable!("checked when prepared")
        };
        let (by_entry, by_col, v) = (*by_entry, *by_col, spec.vocab as isize);
        let axis = |role, size, [a, b, c]: [isize; 3]| Axis { role, size, a, b, c };
        let product = |axes: [Axis; 3], [a, b]: [DType; 2], accumulate| {
            let axes = axes.to_vec();
            let (c, alpha, epilogue) = (DType::F32, 1.0, None);
            Gemm::new(&Contraction { axes, a, b, c, accumulate, alpha, epilogue, sums: None })
        };
        let (x, w, g) = (spec.x.dtype, spec.w.dtype, gradient_dtype(spec));
        let logits = [
            axis(Role::M, rows, [d, 0, v]),
            axis(Role::N, spec.vocab, [0, by_entry, 1]),
            axis(Role::K, spec.width, [1, by_col, 0]),
        ];
        let dx = [
            axis(Role::M, rows, [v, 0, d]),
            axis(Role::N, spec.width, [0, by_col, 1]),
            axis(Role::K, spec.vocab, [1, by_entry, 0]),
        ];
        let dw = |out: &Operand| {
            let [.., entry, col] = out.strides[..] else { unreachable!("checked when prepared") };
            let axes = [
                axis(Role::M, spec.vocab, [1, 0, entry]),
                axis(Role::N, spec.width, [0, 1, col]),
                axis(Role::K, rows, [v, d, 0]),
            ];
            Ok::<_, KernelError>([product(axes, [g, x], false)?, product(axes, [g, x], true)?])
        };
        Ok(Products {
            rows,
            logits: product(logits, [x, w], false)?,
            dx: spec.dx.as_ref().map(|_| product(dx, [g, w], false)).transpose()?,
            dw: spec.dw.as_ref().map(dw).transpose()?,
        })
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        let others = self.dx.iter().chain(self.dw.iter().flatten());
        let all = others.chain([&self.logits]).map(|gemm| gemm.scratch_bytes(threads));
        all.max().unwrap_or(0)
    }
}

/// A prepared pass. Addresses: x, w, targets, then those of weights, given, ce, lse, hit, dx, dw
/// that the spec has, in this order.
#[derive(Clone, Debug)]
pub struct LinearCe {
    spec: LinearCeSpec,
    /// The rows over all operands.
    rows: Space,
    /// Whole chunks, and the last one.
    whole: Products,
    last: Products,
}

/// Addresses by operand.
type Io = [Option<Ptr>; OPERANDS];

/// Parts of scratch, all row-major.
struct Parts {
    /// Rows of x, as they are stored.
    x: Ptr,
    /// f32.
    logits: Ptr,
    /// The gradients of the logits: the logits themselves, or copies in bf16.
    gradients: Ptr,
    /// f32.
    dx: Ptr,
}

/// How gradients of logits are stored: as what they are multiplied with.
fn gradient_dtype(spec: &LinearCeSpec) -> DType {
    match pack::word([spec.x.dtype, spec.w.dtype]) {
        Word::Bf16 => DType::Bf16,
        Word::F32 => DType::F32,
    }
}

impl LinearCe {
    /// Checks storage and chooses chunks.
    ///
    /// # Errors
    /// If strides or types do not fit, or an output repeats.
    pub fn new(spec: &LinearCeSpec) -> Result<LinearCe, KernelError> {
        check(spec)?;
        let kernel = "linear_ce";
        let none = vec![0; spec.rows.len()];
        let of = |o: Option<&Operand>| o.map_or(none.clone(), |o| o.strides[..none.len()].to_vec());
        let mut rows = Space::new(kernel, &spec.rows, spec.operands().map(of).to_vec())?;
        rows.collapse(spec.rows.len());
        let rows = rows.finish(kernel)?;
        let fitting = CHUNK_BYTES / (spec.vocab * size_of::<f32>());
        let chunk = fitting.max(FEWEST_ROWS).min(rows.elements().max(1));
        let whole = Products::new(spec, chunk)?;
        let last = Products::new(spec, rows.elements() % chunk)?;
        Ok(LinearCe { spec: spec.clone(), rows, whole, last })
    }

    /// Bytes of the parts of scratch: x, logits, gradients of their own, dx, and the contractions'.
    fn scratch_parts(&self, threads: usize) -> [usize; 5] {
        let (spec, rows) = (&self.spec, self.whole.rows);
        let apart = if gradient_dtype(spec) == DType::Bf16 { 2 * rows * spec.vocab } else { 0 };
        let products = self.whole.scratch_bytes(threads).max(self.last.scratch_bytes(threads));
        [
            rows * spec.width * spec.x.dtype.bytes(),
            4 * rows * spec.vocab,
            apart,
            4 * rows * spec.width,
            products,
        ]
    }

    /// Where the f32 of a row is stored, if the spec has the operand.
    fn cell(&self, io: &Io, operand: usize, row: usize) -> Option<*mut f32> {
        io[operand].map(|ptr| ptr.at::<f32>(self.rows.offset(operand, row)))
    }

    /// Copies one row of x to scratch.
    unsafe fn stage(&self, io: &Io, parts: &Parts, first: usize, row: usize) {
        let (spec, ptr) = (&self.spec, io[X].expect("every spec has x"));
        let (col, width) = (spec.x.strides[spec.rows.len() + 1], spec.width);
        let (from, to) = (self.rows.offset(X, first + row), (row * width) as isize);
        // SAFETY: the caller of `run` vouches for x; each row of the chunk has one owner.
        unsafe {
            match spec.x.dtype {
                DType::Bf16 | DType::F16 => copy(ptr.at::<u16>(from), col, parts.x.at(to), width),
                _ => copy(ptr.at::<u32>(from), col, parts.x.at(to), width),
            }
        }
    }

    /// What is asked for of one row; its logits become their gradients.
    unsafe fn row(&self, simd: Simd, io: &Io, parts: &Parts, first: usize, row: usize) {
        let spec = &self.spec;
        let (at, offset) = (first + row, (row * spec.vocab) as isize);
        // SAFETY: the caller of `run` vouches for the operands; each row has one owner.
        unsafe {
            let logits = std::slice::from_raw_parts_mut(parts.logits.at::<f32>(offset), spec.vocab);
            let targets = io[TARGETS].expect("every spec has targets");
            let id = *targets.at::<u32>(self.rows.offset(TARGETS, at)) as usize;
            let target = id.checked_sub(spec.first_row).filter(|&row| row < spec.vocab);
            let missing = if id < spec.all_rows { 0.0 } else { f32::NAN };
            let hit = target.map_or(missing, |target| logits[target]);
            let weight = self.cell(io, WEIGHTS, at).map_or(1.0, |weight| *weight);
            let (lse, factor) = match self.cell(io, GIVEN, at) {
                Some(lse) => {
                    exponentials(simd, logits, *lse);
                    (f64::from(*lse), 1.0)
                }
                None => {
                    let (mut top, mut sum) = (0.0, 0.0);
                    ops::largest(simd, &mut top, logits);
                    exponentials(simd, logits, top);
                    ops::sum(simd, &mut sum, logits);
                    (f64::from(top) + f64::from(sum).ln(), 1.0 / sum)
                }
            };
            if let Some(to) = self.cell(io, CE, at) {
                // A row of weight 0 does not count, whatever its target.
                let ce = f64::from(weight) * (lse - f64::from(hit));
                *to = if weight == 0.0 { 0.0 } else { ce as f32 };
            }
            if let Some(to) = self.cell(io, LSE, at) {
                *to = lse as f32;
            }
            if let Some(to) = self.cell(io, HIT, at) {
                *to = hit;
            }
            if io[DX].is_some() || io[DW].is_some() {
                scale(simd, logits, weight * factor);
                if let Some(target) = target {
                    logits[target] -= weight;
                }
                if gradient_dtype(spec) == DType::Bf16 {
                    let to = (parts.gradients, DType::Bf16);
                    convert::store(simd, logits.as_ptr(), to, offset, 1, spec.vocab);
                }
            }
        }
    }

    /// Writes one row of dx.
    unsafe fn store(&self, simd: Simd, io: &Io, parts: &Parts, first: usize, row: usize) {
        let (spec, Some(ptr), Some(dx)) = (&self.spec, io[DX], &self.spec.dx) else { return };
        let from = parts.dx.at::<f32>((row * spec.width) as isize);
        let (offset, col) = (self.rows.offset(DX, first + row), dx.strides[spec.rows.len() + 1]);
        // SAFETY: the caller of `run` vouches for dx; each row has one owner.
        unsafe { convert::store(simd, from, (ptr, dx.dtype), offset, col, spec.width) }
    }

    /// One chunk, phase by phase.
    unsafe fn chunk(
        &self,
        pool: &Pool,
        io: &Io,
        (parts, scratch): (&Parts, &mut [u8]),
        first: usize,
        products: &Products,
    ) {
        let (simd, rows, none) = (pool.simd(), products.rows, Scalars::default());
        let each = |body: &(dyn Fn(usize) + Sync)| {
            pool.run(rows.div_ceil(TASK_ROWS), &|task, _| {
                (task * TASK_ROWS..((task + 1) * TASK_ROWS).min(rows)).for_each(body);
            });
        };
        let w = io[W].expect("every spec has w");
        // SAFETY: forwarded; phases are separated by the pool, and within a phase every element
        // has one owner.
        unsafe {
            each(&|row| self.stage(io, parts, first, row));
            products.logits.run(pool, &[parts.x, w, parts.logits], &none, scratch);
            each(&|row| self.row(simd, io, parts, first, row));
            if let Some(dx) = &products.dx {
                dx.run(pool, &[parts.gradients, w, parts.dx], &none, scratch);
                each(&|row| self.store(simd, io, parts, first, row));
            }
            if let (Some([start, more]), Some(to)) = (&products.dw, io[DW]) {
                let dw = if first > 0 { more } else { start };
                dw.run(pool, &[parts.gradients, parts.x, to], &none, scratch);
            }
        }
    }
}

/// Copies elements that are `stride` apart.
unsafe fn copy<T: Copy>(from: *const T, stride: isize, to: *mut T, count: usize) {
    // SAFETY: forwarded.
    unsafe {
        if stride == 1 {
            return to.copy_from_nonoverlapping(from, count);
        }
        (0..count).for_each(|i| *to.add(i) = *from.offset(i as isize * stride));
    }
}

multiversion! {
    fn exponentials(x: &mut [f32], less: f32) {
        x.iter_mut().for_each(|x| *x = math::exp(*x - less));
    }
}

multiversion! {
    fn scale(x: &mut [f32], by: f32) {
        x.iter_mut().for_each(|x| *x *= by);
    }
}

impl Kernel for LinearCe {
    fn operands(&self) -> usize {
        self.spec.operands().into_iter().flatten().count()
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        scratch_for(&self.scratch_parts(threads))
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], _: &Scalars, scratch: &mut [u8]) {
        assert_eq!(ptrs.len(), self.operands(), "linear_ce: one address per operand");
        let mut rest = ptrs.iter().copied();
        let io = self.spec.operands().map(|operand| operand.and_then(|_| rest.next()));
        let bytes = self.scratch_parts(pool.threads());
        let mut carve = Carve::new(scratch);
        let [x, logits, gradients, dx, products] = bytes.map(|bytes| carve.take(bytes));
        let gradients = if gradient_dtype(&self.spec) == DType::Bf16 { gradients } else { logits };
        let parts = Parts { x, logits, gradients, dx };
        // SAFETY: the part of scratch is this run's own.
        let products = unsafe { std::slice::from_raw_parts_mut(products.at::<u8>(0), bytes[4]) };
        let (all, step) = (self.rows.elements(), self.whole.rows);
        // SAFETY: the caller vouches for the operands.
        unsafe {
            for first in (0..all).step_by(step) {
                let chunk = if all - first < step { &self.last } else { &self.whole };
                self.chunk(pool, &io, (&parts, products), first, chunk);
            }
            if all == 0 {
                // Nothing but zeros for dw.
                self.chunk(pool, &io, (&parts, products), 0, &self.last);
            }
        }
    }
}
