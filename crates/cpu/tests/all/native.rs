//! Generated code against the interpreter: the same bits, except which NaN a NaN is.

use aerogel_cpu::executable::Library;
use aerogel_cpu::kernel::{Kernel, Ptr, Scalars};
use aerogel_cpu::kernels::map::Map;
use aerogel_cpu::math::to_bf16;
use aerogel_cpu::pool::Pool;
use aerogel_cpu::simd::{Level, Simd};
use aerogel_graph::DType;
use aerogel_graph::types::f32_to_f16;
use aerogel_lower::{Binary, Instr, Operand, Program, Unary};
use proptest::prelude::*;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use super::common::{Rng, Tensor, cases, positions};

const UNARY: [Unary; 16] = [
    Unary::Neg,
    Unary::Exp,
    Unary::Ln,
    Unary::Tanh,
    Unary::Sqrt,
    Unary::Rsqrt,
    Unary::Recip,
    Unary::Sigmoid,
    Unary::Erf,
    Unary::Abs,
    Unary::Floor,
    Unary::Not,
    Unary::RoundBf16,
    Unary::RoundF16,
    Unary::Sin,
    Unary::Cos,
];
const BINARY: [Binary; 10] = [
    Binary::Add,
    Binary::Sub,
    Binary::Mul,
    Binary::Div,
    Binary::Min,
    Binary::Max,
    Binary::Lt,
    Binary::Le,
    Binary::Eq,
    Binary::Pow,
];
const SPECIAL: [f32; 20] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::MIN_POSITIVE,
    1e-45,
    -1e-40,
    f32::MAX,
    88.8,
    -103.5,
    // Around the limits of f16.
    65_519.99,
    -65_520.0,
    6.1e-5,
    -6.0e-8,
    2.99e-8,
    2.98e-8,
];
const SCALARS: Scalars = Scalars { seed: 3, step: 9, element: 77, piece: 2, position: 0 };

/// The widest instructions, if there is code for them here.
fn simd() -> Option<Simd> {
    let simd = Simd::best();
    let has_code = cfg!(target_arch = "x86_64") && simd.level() >= Level::Avx512;
    has_code.then_some(simd)
}

/// Runs a kernel on its operands.
fn run(kernel: &Map, pool: &Pool, ptrs: &[Ptr]) {
    let mut scratch = vec![0xff; kernel.scratch_bytes(pool.threads())];
    // SAFETY: the callers' operands cover what the strides reach.
    unsafe { kernel.run(pool, ptrs, &SCALARS, &mut scratch) }
}

fn prepared(kernel: &Map, simd: Simd) -> (Map, Library) {
    let (mut kernel, mut library) = (kernel.clone(), Library::new(simd));
    kernel.prepare(&mut library);
    (kernel, library)
}

/// Applies a program of one instruction to floats.
fn applied(kernel: &Map, pool: &Pool, inputs: &[&[f32]]) -> Vec<f32> {
    let out = vec![0.0f32; inputs[0].len()];
    let all = inputs.iter().map(|x| x.as_ptr()).chain([out.as_ptr()]);
    run(kernel, pool, &all.map(Ptr::new).collect::<Vec<_>>());
    out
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// A program of one instruction that stores its value.
fn single(inputs: usize, size: usize, instr: Instr) -> Program {
    let mut instrs: Vec<_> =
        (0..inputs).map(|input| Instr::Load { dst: input as u16, input }).collect();
    instrs.extend([instr, Instr::Store { output: 0, src: 9 }]);
    let all = vec![Operand::f32([1]); inputs];
    Program { sizes: vec![size], inputs: all, outputs: vec![Operand::f32([1])], instrs }
}

/// Bit patterns of every exponent and sign, and every special value.
fn patterns(rng: &mut Rng) -> Vec<f32> {
    let mut all: Vec<f32> = (0..200_000u64)
        .map(|i| f32::from_bits(((i << 32) / 200_000) as u32 ^ (rng.next() as u32 & 0xffff)))
        .collect();
    all.extend((0..100_000).map(|_| (rng.value() * 12.0) as f32));
    all.extend(SPECIAL);
    all
}

#[test]
fn every_operation_has_the_same_bits() {
    let Some(simd) = simd() else { return };
    let pool = Pool::with_simd(1, simd).unwrap();
    let rng = &mut Rng(1);
    let x = patterns(rng);
    let pick = |rng: &mut Rng| if rng.below(3) == 0 { rng.pick(&SPECIAL) } else { rng.pick(&x) };
    let [a, b, c] = [0; 3].map(|_| (0..x.len()).map(|_| pick(rng)).collect::<Vec<f32>>());
    let check = |what: &dyn std::fmt::Debug, instr: Instr, inputs: &[&[f32]], has_code: bool| {
        let kernel = Map::new(&single(inputs.len(), x.len(), instr)).unwrap();
        let (fast, library) = prepared(&kernel, simd);
        assert_eq!(library.is_empty(), !has_code, "{what:?}");
        let (wanted, got) = (applied(&kernel, &pool, inputs), applied(&fast, &pool, inputs));
        for (i, (&wanted, &got)) in wanted.iter().zip(&got).enumerate() {
            let at: Vec<f32> = inputs.iter().map(|x| x[i]).collect();
            assert!(same(wanted, got), "{what:?} of {at:?}: {got:e}, interpreted {wanted:e}");
        }
    };
    for op in UNARY {
        // A wave is interpreted, and code only stores it.
        check(&op, Instr::Unary { op, dst: 9, a: 0 }, &[&x], true);
    }
    for op in BINARY {
        check(&op, Instr::Binary { op, dst: 9, a: 0, b: 1 }, &[&a, &b], true);
    }
    check(&"fma", Instr::Fma { dst: 9, a: 0, b: 1, c: 2 }, &[&a, &b, &c], true);
    check(&"select", Instr::Select { dst: 9, cond: 0, a: 1, b: 2 }, &[&a, &b, &c], true);
}

#[test]
fn code_is_shared_and_only_made_for_its_instructions() {
    let Some(simd) = simd() else { return };
    let program = |size| single(1, size, Instr::Unary { op: Unary::Exp, dst: 9, a: 0 });
    let mut library = Library::new(simd);
    for size in [3, 1000] {
        Map::new(&program(size)).unwrap().prepare(&mut library);
    }
    assert_eq!(library.len(), 1);
    let weak = Simd::force(Level::Avx2).unwrap();
    let mut kernel = Map::new(&program(40)).unwrap();
    let bytes = kernel.scratch_bytes(2);
    let mut none = Library::new(weak);
    kernel.prepare(&mut none);
    assert!(none.is_empty());
    // Code that exists is left alone by a pool of lower instructions.
    kernel.prepare(&mut library);
    assert_eq!(kernel.scratch_bytes(2), bytes);
    let x: Vec<f32> = (0..40).map(|i| i as f32).collect();
    let low = Pool::with_simd(1, weak).unwrap();
    let wanted = applied(&Map::new(&program(40)).unwrap(), &low, &[&x]);
    assert_eq!(applied(&kernel, &low, &[&x]), wanted);
}

/// Values in a layout in which most rows are contiguous or repeat.
fn input(rng: &mut Rng, sizes: &[usize]) -> Tensor {
    let dtype = rng.pick(&[DType::F32, DType::F32, DType::Bf16, DType::F16, DType::U32]);
    let mut tensor = Tensor::blank(rng, dtype, sizes);
    if rng.below(2) == 0 {
        let mut step = 1;
        let gap = rng.below(3);
        for (own, &size) in tensor.strides.iter_mut().zip(sizes).rev() {
            (*own, step) = (step as isize, step * size + gap);
        }
        tensor = Tensor::new(dtype, sizes, &tensor.strides);
    }
    tensor.fill(|_| match (dtype, rng.below(4)) {
        (DType::U32, _) => rng.below(5000) as f64,
        (_, 0) => rng.pick(&SPECIAL).into(),
        _ => 3.0 * rng.value(),
    });
    let all = rng.below(8) == 0;
    for stride in &mut tensor.strides {
        *stride *= isize::from(!all && rng.below(5) != 0);
    }
    tensor
}

fn instr(rng: &mut Rng, sizes: &[usize], dst: u16) -> Instr {
    let mut v = || rng.below(dst.into()) as u16;
    let (a, b, c) = (v(), v(), v());
    match rng.below(16) {
        0 if !sizes.is_empty() => Instr::Coord { dst, axis: rng.below(sizes.len()) },
        1 => Instr::Rand { dst, stream: 7, strides: rng.layout(sizes) },
        2 => Instr::Piece { dst },
        3 => Instr::Const { dst, value: rng.pick(&SPECIAL) },
        4 | 5 => Instr::Fma { dst, a, b, c },
        6 | 7 => Instr::Select { dst, cond: a, a: b, b: c },
        8..11 => Instr::Unary { op: UNARY[rng.below(14)], dst, a },
        // What is interpreted, with all that it depends on.
        11 if rng.below(3) == 0 => Instr::Unary { op: UNARY[rng.below(16)], dst, a },
        12 if rng.below(3) == 0 => Instr::Binary { op: rng.pick(&BINARY), dst, a, b },
        _ => Instr::Binary { op: BINARY[rng.below(9)], dst, a, b },
    }
}

/// A random program, its tensors, and by address which tensor it is of: outputs may be inputs.
fn program(rng: &mut Rng, sizes: &[usize]) -> (Program, Vec<Tensor>, Vec<usize>) {
    let mut tensors: Vec<_> = (0..rng.range(0, 4)).map(|_| input(rng, sizes)).collect();
    let mut instrs = vec![Instr::Const { dst: 0, value: 0.75 }];
    for input in 0..tensors.len() {
        instrs.push(Instr::Load { dst: input as u16 + 1, input });
    }
    let count = rng.pick(&[1, 4, 12, 30, 60]);
    for _ in 0..rng.range(1, count) {
        instrs.push(instr(rng, sizes, instrs.len() as u16));
    }
    let inputs: Vec<_> = tensors.iter().map(Tensor::operand).collect();
    let mut of: Vec<_> = (0..inputs.len()).collect();
    let (mut outputs, values) = (Vec::new(), instrs.len());
    for output in 0..rng.range(1, 3) {
        let own = rng.below(inputs.len() + 1);
        let is_free = |own: usize| {
            let plain = inputs[own].strides.iter().all(|&stride| stride != 0);
            plain && inputs[own].dtype != DType::U32 && !of[inputs.len()..].contains(&own)
        };
        if own < inputs.len() && is_free(own) {
            of.push(own);
        } else {
            let float = rng.float();
            tensors.push(Tensor::blank(rng, float, sizes));
            of.push(tensors.len() - 1);
        }
        outputs.push(tensors[of[inputs.len() + output]].operand());
        instrs.push(Instr::Store { output, src: rng.below(values) as u16 });
    }
    (Program { sizes: sizes.to_vec(), inputs, outputs, instrs }, tensors, of)
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn random_programs_have_the_same_bits(seed: u64) {
        let Some(simd) = simd() else { return Ok(()) };
        let rng = &mut Rng(seed);
        let mut sizes: Vec<usize> =
            (0..rng.range(0, 3)).map(|_| rng.pick(&[1, 2, 3, 7, 16, 33, 70])).collect();
        if rng.below(3) == 0 && sizes.len() < 3 {
            sizes.push(rng.pick(&[48, 100, 1030, 2500]));
        }
        let (program, tensors, of) = program(rng, &sizes);
        let kernel = Map::new(&program).unwrap();
        let (fast, _) = prepared(&kernel, simd);
        let pool = Pool::with_simd(2, simd).unwrap();
        let results = [&kernel, &fast].map(|kernel| {
            let copies = tensors.clone();
            let ptrs: Vec<_> = of.iter().map(|&own| copies[own].ptr()).collect();
            run(kernel, &pool, &ptrs);
            copies
        });
        for (wanted, got) in results[0].iter().zip(&results[1]) {
            if wanted.is_same(got) {
                continue;
            }
            got.check_canaries();
            for at in positions(&sizes) {
                let (wanted, got) = (wanted.get(&at) as f32, got.get(&at) as f32);
                prop_assert!(same(wanted, got), "{at:?}: {got:e} for {wanted:e} in {program:?}");
            }
        }
    }
}

/// More values are alive than there are registers.
#[test]
fn values_move_to_the_stack() {
    let Some(simd) = simd() else { return };
    let size = 333;
    let mut instrs = vec![Instr::Load { dst: 0, input: 0 }];
    for dst in 1..70 {
        let (a, b) = (dst - 1, dst / 2);
        let op = [Binary::Add, Binary::Mul, Binary::Sub][usize::from(dst % 3)];
        instrs.push(Instr::Binary { op, dst, a, b });
    }
    for i in 1..70 {
        let (dst, a) = (69 + i, if i == 1 { 0 } else { 68 + i });
        instrs.push(Instr::Binary { op: Binary::Sub, dst, a, b: i });
    }
    instrs.push(Instr::Store { output: 0, src: 138 });
    let (inputs, outputs) = (vec![Operand::f32([1])], vec![Operand::f32([1])]);
    let kernel = Map::new(&Program { sizes: vec![size], inputs, outputs, instrs }).unwrap();
    let (fast, library) = prepared(&kernel, simd);
    assert_eq!(library.len(), 1);
    let pool = Pool::with_simd(1, simd).unwrap();
    let x: Vec<f32> = (0..size).map(|i| 0.003 * i as f32 - 0.4).collect();
    assert_eq!(applied(&kernel, &pool, &[&x]), applied(&fast, &pool, &[&x]));
}

/// Memory between two pages that nobody may touch.
struct Guarded {
    base: *mut u8,
    inner: usize,
}

impl Guarded {
    const PAGE: usize = 16384;

    fn new(inner: usize) -> Guarded {
        let (inner, flags) = (inner.next_multiple_of(Self::PAGE), ProtFlags::empty());
        let room = inner + 2 * Self::PAGE;
        // SAFETY: a new mapping, of which the middle is made accessible.
        unsafe {
            let base = mmap_anonymous(std::ptr::null_mut(), room, flags, MapFlags::PRIVATE);
            let base: *mut u8 = base.unwrap().cast();
            let allowed = MprotectFlags::READ | MprotectFlags::WRITE;
            mprotect(base.add(Self::PAGE).cast(), inner, allowed).unwrap();
            Guarded { base, inner }
        }
    }

    /// So many bytes directly before the last page, or directly behind the first one.
    fn at(&self, bytes: usize, end: bool) -> *mut u8 {
        let skip = if end { self.inner - bytes } else { 0 };
        self.base.wrapping_add(Self::PAGE + skip)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { munmap(self.base.cast(), self.inner + 2 * Self::PAGE).unwrap() }
    }
}

/// Every length up to a few vectors, at both ends of what may be touched.
#[test]
fn nothing_outside_of_the_operands_is_touched() {
    let Some(simd) = simd() else { return };
    let pool = Pool::with_simd(1, simd).unwrap();
    let memory = [0; 6].map(|_| Guarded::new(1 << 14));
    for (rows, cols) in (1..130).map(|n| (1, n)).chain((1..70).map(|n| (3, n))) {
        let wide = cols as isize;
        let [f, b] = [Operand::f32([wide, 1]), Operand::bf16([wide, 1])];
        let h = Operand { dtype: DType::F16, strides: vec![wide, 1] };
        let instrs = vec![
            Instr::Load { dst: 0, input: 0 },
            Instr::Load { dst: 1, input: 1 },
            Instr::Load { dst: 2, input: 2 },
            Instr::Fma { dst: 3, a: 1, b: 2, c: 0 },
            Instr::Store { output: 0, src: 3 },
            Instr::Store { output: 1, src: 3 },
            Instr::Store { output: 2, src: 3 },
        ];
        let inputs = vec![f.clone(), b.clone(), h.clone()];
        let program = Program { sizes: vec![rows, cols], inputs, outputs: vec![f, b, h], instrs };
        let (kernel, library) = prepared(&Map::new(&program).unwrap(), simd);
        assert!(!library.is_empty());
        for end in [false, true] {
            let count = rows * cols;
            let at: Vec<_> = (memory.iter().zip([4, 2, 2, 4, 2, 2]))
                .map(|(memory, bytes)| memory.at(count * bytes, end))
                .collect();
            // SAFETY: each part has room for the elements.
            unsafe {
                for i in 0..count {
                    *at[0].cast::<f32>().add(i) = i as f32;
                    *at[1].cast::<u16>().add(i) = 0x3f80;
                    *at[2].cast::<u16>().add(i) = f32_to_f16(2.0);
                }
                run(&kernel, &pool, &at.iter().map(|&at| Ptr::new(at)).collect::<Vec<_>>());
                for i in 0..count {
                    assert_eq!(*at[3].cast::<f32>().add(i), i as f32 + 2.0);
                    assert_eq!(*at[4].cast::<u16>().add(i), to_bf16(i as f32 + 2.0));
                    assert_eq!(*at[5].cast::<u16>().add(i), f32_to_f16(i as f32 + 2.0));
                }
            }
        }
    }
}
