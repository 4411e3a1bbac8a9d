//! Strided copies, casts and fills.

use crate::kernel::{
    Carve, Kernel, KernelError, Ptr, Scalars, check_output, per_worker_bytes, scratch_for,
};
use crate::kernels::convert;
use crate::pool::Pool;
use aerogel_graph::DType;
use aerogel_lower::space::{Space, by_stride};
use aerogel_lower::{CopySpec, FillSpec};

/// Elements of a task.
const TASK_ELEMENTS: usize = 1 << 14;
/// Elements converted at once.
const STRETCH: usize = 1024;

/// A prepared copy. Addresses: from, to. Equal types are copied bit for bit; others go through f32.
#[derive(Clone, Debug)]
pub struct Copy {
    space: Space,
    from: DType,
    to: DType,
}

impl Copy {
    /// Orders the axes for walking memory forward.
    ///
    /// # Errors
    /// If strides do not match the sizes or `to` repeats.
    pub fn new(spec: &CopySpec) -> Result<Copy, KernelError> {
        let CopySpec { sizes, from, to } = spec;
        check_output("copy", 1, to, sizes)?;
        let strides = vec![from.strides.clone(), to.strides.clone()];
        let mut space = Space::new("copy", sizes, strides)?;
        let axes: Vec<_> = (0..sizes.len()).collect();
        let order = by_stride(&axes, &[&space.strides[1], &space.strides[0]]);
        space.permute(&order);
        space.collapse(sizes.len());
        Ok(Copy { space: space.finish("copy")?, from: from.dtype, to: to.dtype })
    }

    /// Copies one stretch along the innermost axis.
    unsafe fn stretch(
        &self,
        pool: &Pool,
        ptrs: &[Ptr],
        from: isize,
        to: isize,
        n: usize,
        work: Ptr,
    ) {
        let [from_stride, to_stride] =
            [0, 1].map(|which| self.space.strides[which as usize][self.space.sizes.len() - 1]);
        // SAFETY: forwarded from `run`.
        unsafe {
            if self.from == self.to {
                return match self.from.bytes() {
                    2 => elements::<u16>(ptrs, [from, to], [from_stride, to_stride], n),
                    _ => elements::<u32>(ptrs, [from, to], [from_stride, to_stride], n),
                };
            }
            for at in (0..n).step_by(STRETCH) {
                let len = STRETCH.min(n - at);
                let place = |offset: isize, stride: isize| offset + at as isize * stride;
                let (source, target) = ((ptrs[0], self.from), (ptrs[1], self.to));
                let offset = place(from, from_stride);
                convert::load(pool.simd(), work.at(0), source, offset, from_stride, len);
                let offset = place(to, to_stride);
                convert::store(pool.simd(), work.at(0), target, offset, to_stride, len);
            }
        }
    }
}

unsafe fn elements<T: std::marker::Copy>(
    ptrs: &[Ptr],
    [from, to]: [isize; 2],
    [from_stride, to_stride]: [isize; 2],
    n: usize,
) {
    let (from, to) = (ptrs[0].at::<T>(from), ptrs[1].at::<T>(to));
    // SAFETY: the caller of `run` vouches for the elements; the two do not overlap.
    unsafe {
        if from_stride == 1 && to_stride == 1 {
            to.copy_from_nonoverlapping(from, n);
        } else {
            for i in 0..n as isize {
                *to.offset(i * to_stride) = *from.offset(i * from_stride);
            }
        }
    }
}

impl Kernel for Copy {
    fn operands(&self) -> usize {
        2
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        scratch_for(&[per_worker_bytes(threads, STRETCH * size_of::<f32>())])
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], _: &Scalars, scratch: &mut [u8]) {
        assert_eq!(ptrs.len(), 2, "copy: from, to");
        let workers = Carve::new(scratch).per_worker(pool.threads(), STRETCH * size_of::<f32>());
        let elements = self.space.elements();
        pool.run(elements.div_ceil(TASK_ELEMENTS), &|task, worker| {
            let start = task * TASK_ELEMENTS;
            let len = TASK_ELEMENTS.min(elements - start);
            self.space.runs(1, start, len, |at, to, n| {
                let from = self.space.offset(0, start + at);
                // SAFETY: the caller vouches for the operands; tasks write disjoint positions.
                unsafe { self.stretch(pool, ptrs, from, to, n, workers.of(worker)) }
            });
        });
    }
}

/// A prepared fill with one value. Address: to.
#[derive(Clone, Debug)]
pub struct Fill {
    space: Space,
    dtype: DType,
    value: f32,
}

impl Fill {
    /// Orders the axes for walking memory forward.
    ///
    /// # Errors
    /// If strides do not match the sizes or `to` repeats.
    pub fn new(spec: &FillSpec) -> Result<Fill, KernelError> {
        let FillSpec { sizes, to, value } = spec;
        check_output("fill", 0, to, sizes)?;
        let mut space = Space::new("fill", sizes, vec![to.strides.clone()])?;
        let axes: Vec<_> = (0..sizes.len()).collect();
        let order = by_stride(&axes, &[&space.strides[0]]);
        space.permute(&order);
        space.collapse(sizes.len());
        Ok(Fill { space: space.finish("fill")?, dtype: to.dtype, value: *value })
    }
}

impl Kernel for Fill {
    fn operands(&self) -> usize {
        1
    }

    fn scratch_bytes(&self, _: usize) -> usize {
        scratch_for(&[STRETCH * size_of::<f32>()])
    }

    unsafe fn run(&self, pool: &Pool, ptrs: &[Ptr], _: &Scalars, scratch: &mut [u8]) {
        assert_eq!(ptrs.len(), 1, "fill: to");
        let values = Carve::new(scratch).take(STRETCH * size_of::<f32>());
        // SAFETY: the part holds STRETCH floats.
        unsafe { std::slice::from_raw_parts_mut(values.at::<f32>(0), STRETCH).fill(self.value) };
        let elements = self.space.elements();
        let stride = *self.space.strides[0].last().unwrap_or(&0);
        pool.run(elements.div_ceil(TASK_ELEMENTS), &|task, _| {
            let start = task * TASK_ELEMENTS;
            let len = TASK_ELEMENTS.min(elements - start);
            self.space.runs(0, start, len, |_, offset, n| {
                for at in (0..n).step_by(STRETCH) {
                    let (to, len) = ((ptrs[0], self.dtype), STRETCH.min(n - at));
                    let offset = offset + at as isize * stride;
                    // SAFETY: the caller vouches for the operand; tasks write disjoint positions.
                    unsafe { convert::store(pool.simd(), values.at(0), to, offset, stride, len) }
                }
            });
        });
    }
}
