//! Tensors with canaries, random layouts, and the run that every kernel goes through.

use aerogel_graph::DType;
use aerogel_graph::types::{f16_to_f32, f32_to_f16};
use aerogel_lower::Operand;
use std::sync::OnceLock;

use aerogel_cpu::executable::Library;
use aerogel_cpu::kernel::{Kernel, Ptr, Scalars};
use aerogel_cpu::math::{from_bf16, to_bf16};
use aerogel_cpu::pool::Pool;
use aerogel_cpu::simd::{Level, Simd};

/// Bytes that nobody writes: a NaN in every element type, and the canary around outputs.
const UNTOUCHED: u8 = 0xff;
const MARGIN: usize = 192;

/// SplitMix64: the tests' source of shapes and values.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn range(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// In [-1, 1).
    pub fn value(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// f32, bf16 or f16.
    pub fn float(&mut self) -> DType {
        self.pick(&[DType::F32, DType::F32, DType::Bf16, DType::F16])
    }

    /// Strides of distinct elements: a random order of the axes, sometimes with gaps.
    pub fn layout(&mut self, sizes: &[usize]) -> Vec<isize> {
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        if self.below(3) != 0 {
            for i in (1..order.len()).rev() {
                order.swap(i, self.below(i + 1));
            }
        }
        let gaps = self.below(2) == 1;
        let mut strides = vec![0; sizes.len()];
        let mut next = if gaps && self.below(4) == 0 { 2 } else { 1 };
        for &axis in order.iter().rev() {
            strides[axis] = next as isize;
            next *= sizes[axis].max(1);
            next += if gaps { self.below(4) } else { 0 };
        }
        strides
    }
}

#[derive(Clone, Debug)]
pub struct Tensor {
    pub dtype: DType,
    pub sizes: Vec<usize>,
    pub strides: Vec<isize>,
    /// Words, so that the origin is aligned for every element type.
    words: Vec<u64>,
}

impl Tensor {
    /// All NaN.
    pub fn new(dtype: DType, sizes: &[usize], strides: &[isize]) -> Tensor {
        let far: isize = sizes
            .iter()
            .zip(strides)
            .map(|(&size, &stride)| (size.max(1) as isize - 1) * stride)
            .sum();
        let bytes = (far as usize + 1) * dtype.bytes() + 2 * MARGIN;
        let words = vec![u64::from_ne_bytes([UNTOUCHED; 8]); bytes.div_ceil(8)];
        Tensor { dtype, sizes: sizes.to_vec(), strides: strides.to_vec(), words }
    }

    /// All NaN, in a random layout.
    pub fn blank(rng: &mut Rng, dtype: DType, sizes: &[usize]) -> Tensor {
        let strides = rng.layout(sizes);
        Tensor::new(dtype, sizes, &strides)
    }

    /// Values in [-scale, scale), in a random layout.
    pub fn random(rng: &mut Rng, dtype: DType, sizes: &[usize], scale: f64) -> Tensor {
        let mut tensor = Tensor::blank(rng, dtype, sizes);
        tensor.fill(|_| scale * rng.value());
        tensor
    }

    pub fn operand(&self) -> Operand {
        Operand { dtype: self.dtype, strides: self.strides.clone() }
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: a view of the same memory as plain bytes.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.words.len() * 8) }
    }

    fn address(&self, coords: &[usize]) -> usize {
        assert_eq!(coords.len(), self.sizes.len());
        let offset: isize =
            coords.iter().zip(&self.strides).map(|(&i, &stride)| i as isize * stride).sum();
        MARGIN + offset as usize * self.dtype.bytes()
    }

    pub fn get(&self, coords: &[usize]) -> f64 {
        let at = self.address(coords);
        let bytes = self.bytes();
        match self.dtype {
            DType::F32 => f32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()).into(),
            DType::Bf16 => {
                from_bf16(u16::from_ne_bytes(bytes[at..at + 2].try_into().unwrap())).into()
            }
            DType::F16 => {
                f16_to_f32(u16::from_ne_bytes(bytes[at..at + 2].try_into().unwrap())).into()
            }
            DType::U32 => u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()).into(),
        }
    }

    pub fn set(&mut self, coords: &[usize], value: f64) {
        let at = self.address(coords);
        // SAFETY: a view of the same memory as plain bytes, borrowed mutably.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(
                self.words.as_mut_ptr().cast::<u8>(),
                self.words.len() * 8,
            )
        };
        match self.dtype {
            DType::F32 => bytes[at..at + 4].copy_from_slice(&(value as f32).to_ne_bytes()),
            DType::Bf16 => bytes[at..at + 2].copy_from_slice(&to_bf16(value as f32).to_ne_bytes()),
            DType::F16 => {
                bytes[at..at + 2].copy_from_slice(&f32_to_f16(value as f32).to_ne_bytes());
            }
            DType::U32 => bytes[at..at + 4].copy_from_slice(&(value as u32).to_ne_bytes()),
        }
    }

    pub fn fill(&mut self, mut value: impl FnMut(&[usize]) -> f64) {
        for coords in positions(&self.sizes.clone()) {
            self.set(&coords, value(&coords));
        }
    }

    pub fn ptr(&self) -> Ptr {
        Ptr::new(self.bytes()[MARGIN..].as_ptr())
    }

    /// Whether all bytes are equal.
    pub fn is_same(&self, other: &Tensor) -> bool {
        self.bytes() == other.bytes()
    }

    /// Panics if a byte outside the elements was written.
    pub fn check_canaries(&self) {
        let mut owned = vec![false; self.bytes().len()];
        for coords in positions(&self.sizes) {
            let at = self.address(&coords);
            owned[at..at + self.dtype.bytes()].fill(true);
        }
        for (at, (&byte, owned)) in self.bytes().iter().zip(owned).enumerate() {
            assert!(owned || byte == UNTOUCHED, "canary at byte {at} was overwritten");
        }
    }
}

/// All coordinates, row-major.
pub fn positions(sizes: &[usize]) -> Vec<Vec<usize>> {
    let total: usize = sizes.iter().product();
    let coords = |mut linear: usize| {
        let mut coords = vec![0; sizes.len()];
        for axis in (0..sizes.len()).rev() {
            coords[axis] = linear % sizes[axis];
            linear /= sizes[axis];
        }
        coords
    };
    (0..total).map(coords).collect()
}

fn pools() -> &'static [Pool] {
    static POOLS: OnceLock<Vec<Pool>> = OnceLock::new();
    POOLS.get_or_init(|| {
        let mut pools: Vec<_> = [1, 2, 3].map(|threads| Pool::new(threads).unwrap()).into();
        let best = pools[0].simd().level();
        for level in Level::ALL.into_iter().filter(|level| *level < best) {
            pools.extend(Simd::force(level).map(|simd| Pool::with_simd(2, simd).unwrap()));
        }
        pools
    })
}

/// Runs the kernel on copies of the tensors (inputs, then outputs): bits must agree between thread
/// counts, repetitions, and with machine code or without; inputs and canaries must survive;
/// `verify` sees the results of every instruction set.
pub fn run(
    mut kernel: impl Kernel,
    tensors: &[Tensor],
    outputs: usize,
    scalars: &Scalars,
    verify: impl Fn(&[Tensor]),
) {
    let mut known: Vec<(Level, Vec<Tensor>)> = Vec::new();
    for prepared in [false, true] {
        let mut library = Library::new(Simd::best());
        if prepared {
            kernel.prepare(&mut library);
            if library.is_empty() {
                return; // it is the same kernel as before
            }
        }
        for pool in pools().iter().flat_map(|pool| [pool; 2]) {
            let after = once(&kernel, pool, tensors, outputs, scalars);
            let level = pool.simd().level();
            match known.iter().find(|(known, _)| *known == level) {
                Some((_, wanted)) => {
                    for (wanted, got) in wanted.iter().zip(&after) {
                        assert!(wanted.is_same(got), "bits differ, prepared: {prepared}");
                    }
                }
                None => {
                    verify(&after);
                    known.push((level, after));
                }
            }
        }
    }
}

/// One run: what becomes of the tensors.
fn once(
    kernel: &dyn Kernel,
    pool: &Pool,
    tensors: &[Tensor],
    outputs: usize,
    scalars: &Scalars,
) -> Vec<Tensor> {
    let copies = tensors.to_vec();
    let ptrs: Vec<_> = copies.iter().map(Tensor::ptr).collect();
    let bytes = kernel.scratch_bytes(pool.threads());
    let mut scratch = vec![UNTOUCHED; bytes + MARGIN];
    // SAFETY: the tensors cover what their strides reach, and live to the end of the run.
    unsafe { kernel.run(pool, &ptrs, scalars, &mut scratch[..bytes]) };
    assert!(scratch[bytes..].iter().all(|&b| b == UNTOUCHED), "scratch overrun");
    let inputs = tensors.len() - outputs;
    for (at, (before, after)) in tensors.iter().zip(&copies).enumerate() {
        assert!(at >= inputs || before.bytes() == after.bytes(), "input {at} changed");
        if at >= inputs {
            after.check_canaries();
        }
    }
    copies
}

/// Panics unless `got` is within `bound` of `wanted`, plus half a step of the stored type.
pub fn close(got: f64, wanted: f64, bound: f64, dtype: DType, what: &dyn std::fmt::Debug) {
    let step = match dtype {
        DType::Bf16 => wanted.abs() * 2f64.powi(-8),
        DType::F16 => wanted.abs() * 2f64.powi(-11) + 2f64.powi(-25),
        DType::F32 | DType::U32 => 0.0,
    };
    let beyond = dtype == DType::F16 && got == f64::INFINITY.copysign(wanted);
    if got == wanted
        || (got.is_nan() && wanted.is_nan())
        || (beyond && wanted.abs() + bound >= 65_520.0)
    {
        return;
    }
    let error = (got - wanted).abs();
    assert!(error <= bound + step, "{what:?}: got {got}, wanted {wanted}, bound {bound:e}");
}

/// The unit of f32 rounding.
pub const EPS: f64 = 1.2e-7;

/// Random cases from seeds; failures are rerun by their seed, so nothing is written to disk.
pub fn cases(cases: u32) -> proptest::test_runner::Config {
    let default = proptest::test_runner::Config::default();
    proptest::test_runner::Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 0,
        ..default
    }
}
