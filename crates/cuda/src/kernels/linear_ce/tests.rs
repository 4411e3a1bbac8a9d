use super::super::gemm::tests::compile::spills;
use super::super::gemm::tests::emulate::{Memory, WORKSPACE, defined, int, long, resolved, run};
use super::*;
use crate::gpu::Architecture;
use std::collections::HashMap;

const HOPPER: Chip = Chip { architecture: Architecture::SM90A };
const AMPERE: Chip = Chip { architecture: Architecture::SM80 };

/// What is asked for beside x, w and targets.
#[derive(Clone, Copy)]
struct Asked {
    weights: bool,
    given: bool,
    losses: bool,
    gradients: bool,
}

const LOSSES: Asked = Asked { weights: true, given: false, losses: true, gradients: false };
const ALL: Asked = Asked { gradients: true, ..LOSSES };
const GIVEN_GRADIENTS: Asked = Asked { weights: true, given: true, losses: false, gradients: true };

/// Row-major operands; `gap` rows lie behind each line of the last axis of rows of x.
fn layer(
    rows: &[usize],
    [vocab, width]: [usize; 2],
    gap: usize,
    dtype: DType,
    asked: Asked,
) -> LinearCeSpec {
    let lines = |step: usize, gap: usize| {
        let mut strides = vec![];
        let mut next = step as isize;
        for (i, &size) in rows.iter().enumerate().rev() {
            strides.push(next);
            next *= (size + if i + 1 == rows.len() { gap } else { 0 }) as isize;
        }
        strides.reverse();
        strides
    };
    let operand = |dtype, rows: Vec<isize>, inner: [isize; 2]| Operand {
        dtype,
        strides: [&rows[..], &inner].concat(),
    };
    let (none, width_) = (vec![0; rows.len()], width as isize);
    let cell = |wanted: bool| wanted.then(|| operand(DType::F32, lines(1, 0), [0, 0]));
    LinearCeSpec {
        rows: rows.to_vec(),
        vocab,
        first_row: 5,
        all_rows: vocab + 9,
        width,
        x: operand(dtype, lines(width, gap), [0, 1]),
        w: operand(dtype, none.clone(), [width_, 1]),
        targets: operand(DType::U32, lines(1, 1), [0, 0]),
        weights: cell(asked.weights),
        given: cell(asked.given),
        ce: cell(asked.losses),
        lse: cell(asked.losses),
        hit: cell(asked.losses),
        dx: asked.gradients.then(|| operand(dtype, lines(width, 0), [0, 1])),
        dw: asked.gradients.then(|| operand(DType::F32, none, [width_, 1])),
    }
}

/// A row of the softmax, by definition: log-sum-exp, loss, the target's logit, gradients.
fn row(logits: &[f64], target: i64, weight: f64, given: Option<f64>) -> ([f64; 3], Vec<f64>) {
    let lse = given.unwrap_or_else(|| logits.iter().map(|x| x.exp()).sum::<f64>().ln());
    let here = usize::try_from(target).ok().filter(|t| *t < logits.len());
    let hit = here.map_or(0.0, |t| logits[t]);
    let gradient = |(i, x): (usize, &f64)| {
        weight * ((x - lse).exp() - if here == Some(i) { 1.0 } else { 0.0 })
    };
    ([weight * (lse - hit), lse, hit], logits.iter().enumerate().map(gradient).collect())
}

/// `cross_entropy.cu`, by its parameters.
fn softmax_of(launch: &Launch, memory: &mut Memory) {
    let addresses: HashMap<usize, Address> =
        launch.parameters.addresses().iter().copied().collect();
    let place = |i: usize| addresses.get(&(8 * i)).map(|a| resolved(*a));
    let axes = defined_text(launch, "AXES").parse::<usize>().unwrap();
    let bytes = if defined_text(launch, "LOGITS") == "f32" { 4 } else { 2 };
    let strides = |k: usize, axis: usize| long(launch, 80 + 8 * (k * axes + axis));
    let sizes = |axis: usize| int(launch, 80 + 8 * 6 * (axes + 1) + 12 * axis);
    let after = 80 + (8 * 6 * (axes + 1) + 12 * axes).next_multiple_of(8);
    let [first, count, vocab, first_row, _]: [i64; 5] =
        std::array::from_fn(|i| int(launch, after + 4 * i));
    for own in 0..count {
        let (mut rest, mut offset) = (first + own, [0; 6]);
        for axis in (0..axes).rev() {
            let size = if axis == 0 { i64::MAX } else { sizes(axis) };
            (0..6).for_each(|k| offset[k] += rest % size * strides(k, axis));
            rest /= size;
        }
        let at = |k: usize| place(2 + k).map(|(o, byte)| (o, byte + 4 * offset[k]));
        let logit = |i: i64| (WORKSPACE, bytes * (own * long(launch, 64) + i));
        let logits: Vec<f64> = (0..vocab).map(|i| memory.get(logit(i))).collect();
        let target = memory.get(at(0).unwrap()) as i64 - first_row;
        let weight = at(1).map_or(1.0, |at| memory.get(at));
        let given = at(2).map(|at| memory.get(at));
        assert_eq!(given.is_some(), defined(launch, "GIVEN") == 1);
        let (cells, gradient) = row(&logits, target, weight, given);
        let places = (0..3).filter_map(|i| Some((at(3 + i)?, cells[i])));
        memory.0.extend(places);
        if launch.source.defines.iter().any(|d| d.starts_with("GRADIENT=")) {
            let cells = gradient.into_iter().enumerate();
            memory.0.extend(cells.map(|(i, g)| (logit(i as i64), g)));
        }
    }
}

fn defined_text<'a>(launch: &'a Launch, name: &str) -> &'a str {
    let value = |d: &'a String| d.strip_prefix(name)?.strip_prefix('=');
    launch.source.defines.iter().find_map(value).unwrap()
}

/// What the spec says, written down.
fn meaning(spec: &LinearCeSpec, numbers: &[Option<usize>; 10], before: &Memory) -> Memory {
    let mut out = Memory::default();
    let operands = spec.operands();
    let count: usize = spec.rows.iter().product();
    let mut dw = vec![0.0; spec.vocab * spec.width];
    for number in 0..count {
        let mut rest = number;
        let mut index = vec![];
        for &size in spec.rows.iter().rev() {
            index.push((rest % size) as isize);
            rest /= size;
        }
        index.reverse();
        let at = |o: usize, entry: usize, col: usize| {
            let index = index.iter().copied().chain([entry as isize, col as isize]);
            let own = operands[o]?;
            let offset: isize = own.strides.iter().zip(index).map(|(s, i)| s * i).sum();
            Some((numbers[o]?, (own.dtype.bytes() as isize * offset) as i64))
        };
        let get = |o: usize, entry: usize, col: usize| at(o, entry, col).map(|at| before.get(at));
        let product = |entry: usize| {
            let each = |col| get(X, 0, col).unwrap() * get(W, entry, col).unwrap();
            (0..spec.width).map(each).sum::<f64>()
        };
        let logits: Vec<f64> = (0..spec.vocab).map(product).collect();
        let target = get(TARGETS, 0, 0).unwrap() as i64 - spec.first_row as i64;
        let weight = get(WEIGHTS, 0, 0).unwrap_or(1.0);
        let (cells, gradient) = row(&logits, target, weight, get(GIVEN, 0, 0));
        for (i, cell) in [CE, LSE, HIT].into_iter().zip(cells) {
            at(i, 0, 0).map(|at| out.0.insert(at, cell));
        }
        for col in 0..spec.width {
            let each = |entry: usize| gradient[entry] * get(W, entry, col).unwrap();
            let dx = (0..spec.vocab).map(each).sum::<f64>();
            at(DX, 0, col).map(|at| out.0.insert(at, dx));
            for entry in 0..spec.vocab {
                dw[entry * spec.width + col] += gradient[entry] * get(X, 0, col).unwrap();
            }
        }
    }
    if let Some(number) = numbers[DW] {
        out.0.extend(dw.into_iter().enumerate().map(|(i, x)| ((number, 4 * i as i64), x)));
    }
    out
}

fn check(spec: &LinearCeSpec, chip: Chip, chunk_bytes: usize, chunks: usize) {
    let kernel = in_chunks(spec, &[64; 10], chip, chunk_bytes).unwrap();
    let mut next = 0..;
    let numbers = spec.operands().map(|operand| operand.and_then(|_| next.next()));
    let mut memory = Memory::default();
    for place in 0..2000 {
        memory.0.insert((2, 4 * place), 5.0 + (place * 7 % (spec.vocab as i64 + 4)) as f64);
    }
    let wanted = meaning(spec, &numbers, &memory);
    let before = memory.0.len();
    let mut softmaxes = 0;
    for launch in &kernel.launches {
        match launch.entry {
            "gemm" => run(launch, &mut memory),
            "cross_entropy" => {
                softmaxes += 1;
                softmax_of(launch, &mut memory);
            }
            _ => {}
        }
    }
    assert_eq!(softmaxes, chunks);
    let written = memory.0.keys().filter(|place| place.0 != WORKSPACE).count() - before;
    assert_eq!(written, wanted.0.len());
    for (place, value) in wanted.0 {
        let got = memory.get(place);
        assert!((got - value).abs() <= 1e-9 * value.abs().max(1.0), "{place:?}: {got}, {value}");
    }
}

#[test]
fn launches_mean_what_the_specs_say() {
    let sizes = [21, 8];
    // Rows of 24 logits of 2 or 4 bytes.
    for (dtype, most) in [(DType::Bf16, 128 * 48), (DType::F16, 128 * 48), (DType::F32, 128 * 96)] {
        for asked in [ALL, LOSSES, GIVEN_GRADIENTS] {
            check(&layer(&[300], sizes, 0, dtype, asked), HOPPER, most, 3);
            check(&layer(&[3, 50], sizes, 2, dtype, asked), HOPPER, most, 2);
            check(&layer(&[2, 150], sizes, 1, dtype, asked), AMPERE, most, 4);
            check(&layer(&[2, 3, 20], sizes, 0, dtype, asked), AMPERE, most, 1);
        }
    }
}

#[test]
fn without_rows_the_gradient_of_the_weights_is_zero() {
    let spec = layer(&[0, 7], [21, 8], 0, DType::Bf16, ALL);
    let kernel = linear_ce(&spec, &[64; 8], HOPPER).unwrap();
    let [launch] = &kernel.launches[..] else { panic!("{} launches", kernel.launches.len()) };
    let mut memory = Memory::default();
    run(launch, &mut memory);
    assert_eq!(memory.0.len(), 21 * 8);
    assert!(memory.0.values().all(|x| *x == 0.0));
    let spec = layer(&[0, 7], [21, 8], 0, DType::Bf16, LOSSES);
    assert!(linear_ce(&spec, &[64; 8], HOPPER).unwrap().launches.is_empty());
}

#[test]
fn chunks_cover_all_rows_once() {
    for (sizes, most) in [
        (vec![1000], 256),
        (vec![7, 100], 256),
        (vec![3, 7, 100], 256),
        (vec![2, 600], 256),
        (vec![5, 2, 600], 256),
        (vec![1], 128),
    ] {
        let all: usize = sizes.iter().product();
        let mut next = 0;
        for chunk in chunks(&sizes, all.div_ceil(all.div_ceil(most)), most) {
            assert_eq!(chunk.first, next);
            let count = chunk.sizes.iter().product::<usize>();
            assert!(count <= most);
            next += count;
        }
        assert_eq!(next, all);
    }
}

#[test]
fn a_batch_of_gpt2_goes_in_chunks_of_even_size() {
    let spec = layer(&[64, 1024], [50_304, 768], 0, DType::Bf16, ALL);
    let kernel = linear_ce(&spec, &[64; 8], HOPPER).unwrap();
    let softmaxes: Vec<&Launch> =
        kernel.launches.iter().filter(|l| l.entry == "cross_entropy").collect();
    assert_eq!((softmaxes.len(), softmaxes[0].grid), (13, [5120, 1, 1]));
    assert_eq!((softmaxes[0].threads, softmaxes[0].shared_bytes), (512, 10 * 512 * 16));
    assert!(kernel.workspace_bytes < 600 << 20, "{}", kernel.workspace_bytes);
    let none = linear_ce(&spec, &[4, 4, 4, 4, 4, 4, 4, 4], HOPPER).unwrap().workspace_bytes;
    for align in [[64, 2, 4, 4, 4, 4, 2, 4], [2, 64, 4, 4, 4, 4, 64, 64]] {
        let some = linear_ce(&spec, &align, HOPPER).unwrap().workspace_bytes;
        assert!(some <= none.max(kernel.workspace_bytes));
    }
}

/// Rows are held where they fit on the chip: `lab/rows_builds.py` has the same forms.
#[test]
fn rows_are_held_where_they_fit() {
    let of = |units, given, gradient, chip| {
        let s = softmax(units, given, gradient, chip);
        (s.lanes, s.threads, s.units, s.shared)
    };
    assert_eq!(of(32, false, true, HOPPER), (32, 256, 1, 0));
    assert_eq!(of(128, false, true, HOPPER), (32, 256, 3, 1));
    assert_eq!(of(2048, false, true, HOPPER), (256, 256, 3, 5));
    assert_eq!(of(50_304 / 8, false, true, HOPPER), (512, 512, 3, 10));
    assert_eq!(of(131_072 / 8, false, true, HOPPER), (1024, 1024, 3, 14));
    assert_eq!(of(131_072 / 8, false, true, AMPERE), (512, 512, 0, 0));
    assert_eq!(of(50_304 / 8, true, true, HOPPER), (512, 512, 0, 0));
    assert_eq!(of(50_304 / 8, false, false, HOPPER), (512, 512, 0, 0));
}

#[test]
#[ignore = "needs NVRTC"]
fn all_sources_compile_without_spills() {
    let mut kernels = vec![];
    for chip in [AMPERE, HOPPER] {
        for dtype in [DType::Bf16, DType::F32] {
            for asked in [ALL, LOSSES, GIVEN_GRADIENTS] {
                for vocab in [65, 50_257, 50_304, 131_072] {
                    let spec = layer(&[8, 1024], [vocab, 768], 1, dtype, asked);
                    kernels.push((chip, linear_ce(&spec, &[64; 10], chip).unwrap()));
                }
            }
        }
        for asked in [ALL, LOSSES] {
            let spec = layer(&[8, 1024], [50_304, 768], 1, DType::F16, asked);
            kernels.push((chip, linear_ce(&spec, &[64; 10], chip).unwrap()));
        }
    }
    let bad = spills(kernels);
    assert!(bad.is_empty(), "{}:\n{}", bad.len(), bad.join("\n"));
}
