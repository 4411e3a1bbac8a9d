//! What launches mean, element by element, against what the specs say: every index goes through
//! the numbers that the kernels get.

use super::super::sums::Known;
use super::*;
use crate::launch::TensorMap;
use std::collections::HashMap;

mod random;

use random::Random;

/// Numbers by place, as every operand has them before anything runs: small integers, so that all
/// sums are exact.
#[derive(Clone, Default)]
pub(crate) struct Memory(pub HashMap<(usize, i64), f64>);

/// Stands for the workspace among the operands.
pub(crate) const WORKSPACE: usize = usize::MAX;

impl Memory {
    pub fn get(&self, place: (usize, i64)) -> f64 {
        let (operand, byte) = place;
        let mixed = (byte as u64 ^ (operand as u64) << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let before = if operand == WORKSPACE { f64::NAN } else { (mixed >> 61) as f64 - 3.0 };
        self.0.get(&place).copied().unwrap_or(before)
    }
}

/// The address of a field.
fn address(launch: &Launch, byte: usize) -> (usize, i64) {
    let fields = launch.parameters.addresses();
    resolved(fields.iter().find(|field| field.0 == byte).expect("an address").1)
}

pub(crate) fn resolved(address: Address) -> (usize, i64) {
    match address {
        Address::Operand { operand, bytes } => (operand, bytes),
        Address::Workspace(at) => (WORKSPACE, at as i64),
        other => panic!("{other:?}"),
    }
}

fn plus((operand, byte): (usize, i64), bytes: i64) -> (usize, i64) {
    (operand, byte + bytes)
}

pub(crate) fn long(launch: &Launch, byte: usize) -> i64 {
    i64::from_le_bytes(launch.parameters.bytes()[byte..byte + 8].try_into().unwrap())
}

pub(crate) fn int(launch: &Launch, byte: usize) -> i64 {
    let word = launch.parameters.bytes()[byte..byte + 4].try_into().unwrap();
    i64::from(i32::from_le_bytes(word))
}

pub(crate) fn defined(launch: &Launch, name: &str) -> i64 {
    let value = |d: &String| d.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
    launch.source.defines.iter().find_map(value).expect("a constant of this name")
}

/// Where a launch stands: batch indices, row, column.
type At = [i64; 5];

/// One operand, or one index, of an epilogue.
struct Field {
    name: String,
    bytes: i64,
    /// Of operands.
    place: (usize, i64),
    /// Of indices.
    first: i64,
    strides: [i64; 5],
}

impl Field {
    fn offset(&self, at: At) -> i64 {
        self.strides.iter().zip(at).map(|(stride, index)| stride * index).sum()
    }
}

/// Reads `Epi` as its text declares it; where it ends.
fn fields(launch: &Launch, mut byte: usize) -> (Vec<Field>, usize) {
    let text = &launch.source.generated;
    let body = text.split("struct Epi {\n").nth(1).unwrap().split("};").next().unwrap();
    let mut list: Vec<Field> = vec![];
    let mut first = 0;
    for line in body.lines().map(str::trim) {
        let (kind, name) = line.trim_end_matches(';').rsplit_once(' ').unwrap();
        match kind {
            "Strides" => {
                let strides: [i64; 5] = std::array::from_fn(|i| long(launch, byte + 8 * i));
                byte += 40;
                match list.iter_mut().find(|field| format!("at_{}", field.name) == name) {
                    Some(field) => field.strides = strides,
                    None => {
                        let (name, place) = (name.to_owned(), (0, 0));
                        list.push(Field { name, bytes: 0, place, first, strides });
                    }
                }
            }
            "i64" => {
                first = long(launch, byte);
                byte += 8;
            }
            _ => {
                let bytes = if kind.contains("f16") { 2 } else { 4 };
                let (name, place) = (name.to_owned(), address(launch, byte));
                list.push(Field { name, bytes, place, first: 0, strides: [0; 5] });
                byte += 8;
            }
        }
    }
    for field in &list {
        let wide = [format!("{}.load(", field.name), format!(" store(e.{} ", field.name)];
        if wide.iter().any(|call| text.contains(call)) {
            let vector = 16 / field.bytes;
            assert_eq!(field.place.1 % 16, 0);
            assert!(field.strides[..4].iter().all(|stride| stride % vector == 0));
            assert_eq!(field.strides[4], 1);
        }
    }
    (list, byte)
}

/// A factor of a launch, by batch indices, place along its side, and depth (outer, inner).
type Factor<'a> = Box<dyn Fn([i64; 3], i64, [i64; 2]) -> Option<(usize, i64)> + 'a>;

fn general(launch: &Launch, which: usize, bytes: i64) -> Factor<'_> {
    let base = address(launch, 8 * which);
    let strides: [i64; 3] = std::array::from_fn(|i| long(launch, 24 + 24 * which + 8 * i));
    let batch: [i64; 3] = std::array::from_fn(|i| long(launch, 72 + 24 * which + 8 * i));
    let layout = defined(launch, ["A_LAYOUT", "B_LAYOUT"][which]);
    let sizes = [int(launch, 96 + 24 + 4 * which), int(launch, 128)];
    if layout < 2 {
        let (along, across) = if layout == 0 { (1, 0) } else { (0, 1) };
        assert!(strides[along] == 1 || sizes[along] <= 1, "{strides:?} {sizes:?}");
        let others = [strides[across], strides[2]].into_iter().chain(batch);
        assert!(base.1 % 16 == 0 && others.into_iter().all(|stride| stride % 8 == 0));
    }
    Box::new(move |b, side, [outer, k]| {
        let own: i64 = b.iter().zip(batch).map(|(i, stride)| i * stride).sum();
        let at = own + side * strides[0] + k * strides[1] + outer * strides[2];
        Some(plus(base, bytes * at))
    })
}

fn mapped(launch: &Launch, term: usize, which: usize) -> Factor<'_> {
    let map: &TensorMap = &launch.parameters.maps()[2 * term + which].1;
    assert!(map.dtype.is_half());
    let k_inside = defined(launch, ["A_K", "B_K"][which]) == 1;
    let permuted = which == 1 && defined(launch, "B_PERMUTED") == 1;
    let has: [i64; 3] = std::array::from_fn(|i| int(launch, 288 + 12 * which + 4 * i));
    let (operand, bytes) = resolved(map.address);
    assert!(bytes % 16 == 0 && map.strides.iter().all(|stride| stride % 8 == 0 && *stride > 0));
    Box::new(move |b, side, [outer, k]| {
        assert_eq!(outer, 0);
        let batch: [i64; 3] = std::array::from_fn(|i| b[i] * has[i]);
        let index = match (permuted, k_inside) {
            (true, _) => [k, side % 2, side % 32 / 8, side % 8 / 2, side / 32],
            (_, true) => [k, side, batch[2], batch[1], batch[0]],
            (_, false) => [side, k, batch[2], batch[1], batch[0]],
        };
        let inside = index.iter().zip(map.sizes).all(|(i, size)| (0..size as i64).contains(i));
        let outer = index[1..].iter().zip(map.strides).map(|(i, stride)| i * stride as i64);
        let at = index[0] + outer.sum::<i64>();
        inside.then_some((operand, bytes + 2 * at))
    })
}

pub(super) fn makes_sums(launch: &Launch) -> bool {
    launch.source.defines.contains(&"SUMS=1".to_owned())
}

/// The factors and depths of what is added to a product.
fn further(launch: &Launch) -> Vec<(Factor<'_>, Factor<'_>, i64)> {
    let terms = launch.source.defines.iter().find_map(|d| d.strip_prefix("TERMS=")?.parse().ok());
    let term = |i: usize| {
        let depth = int(launch, launch.parameters.maps()[2 * i + 1].0 + 128);
        (mapped(launch, i, 0), mapped(launch, i, 1), depth)
    };
    (1..terms.unwrap_or(1)).map(term).collect()
}

/// Runs a product whose epilogue stores the sum of everything it is given.
pub(crate) fn run(launch: &Launch, memory: &mut Memory) {
    let is_general = launch.source.file == "gemm.cu";
    let bytes = |name: &str| if defined(launch, name) == 1 { 4 } else { 2 };
    let (a, b, at_epi, at_sizes) = if is_general {
        let b = general(launch, 1, bytes("B_F32"));
        (general(launch, 0, bytes("A_F32")), b, 160, 120)
    } else {
        (mapped(launch, 0, 0), mapped(launch, 0, 1), 320, 264)
    };
    let size: [i64; 3] = std::array::from_fn(|i| int(launch, at_sizes + 4 * i));
    let k_outer = if is_general { int(launch, at_sizes + 12) } else { 1 };
    let at_batch = at_sizes + if is_general { 16 } else { 12 };
    let batch: [i64; 3] = std::array::from_fn(|i| int(launch, at_batch + 4 * i));
    let at_alpha = if is_general { 152 } else { 316 };
    let alpha = f64::from(f32::from_bits(int(launch, at_alpha) as u32));
    assert!(defined(launch, "BATCHED") == 1 || batch == [1; 3]);
    assert!(defined(launch, "N_WHOLE") == 0 || size[1] % 8 == 0);
    let (fields, end) = fields(launch, at_epi);
    let more = further(launch);
    let mut written = HashMap::new();
    if makes_sums(launch) {
        assert!(batch == [1; 3] && defined(launch, "A_K") == 0 && k_outer == 1);
        let (to, stride) = (address(launch, end), long(launch, end + 8));
        for row in 0..size[0] {
            let places = (0..size[2]).filter_map(|k| a([0; 3], row, [0, k]));
            let sum = places.map(|place| memory.get(place)).sum();
            assert_eq!(written.insert(plus(to, 4 * row * stride), sum), None, "written twice");
        }
    }
    for number in 0..batch.iter().product() {
        let i = [number / batch[2] / batch[1], number / batch[2] % batch[1], number % batch[2]];
        for row in 0..size[0] {
            for col in 0..size[1] {
                let mut sum = 0.0;
                for (a, b, depth) in &more {
                    let places = (0..*depth).map(|k| (a(i, row, [0, k]), b(i, col, [0, k])));
                    let numbers = places.filter_map(|(x, y)| Some((x?, y?)));
                    sum += numbers.map(|(x, y)| memory.get(x) * memory.get(y)).sum::<f64>();
                }
                for outer in 0..k_outer {
                    for k in 0..size[2] {
                        let places = (a(i, row, [outer, k]), b(i, col, [outer, k]));
                        if let (Some(x), Some(y)) = places {
                            sum += memory.get(x) * memory.get(y);
                        }
                    }
                }
                let at = [i[0], i[1], i[2], row, col];
                let mut value = alpha * sum;
                let place = |f: &Field| plus(f.place, f.bytes * f.offset(at));
                for field in fields.iter().filter(|f| !f.name.starts_with("out")) {
                    value += match field.bytes {
                        0 => (field.first + field.offset(at)) as f64,
                        _ => memory.get(place(field)),
                    };
                }
                for field in fields.iter().filter(|f| f.name.starts_with("out")) {
                    assert_eq!(written.insert(place(field), value), None, "written twice");
                }
            }
        }
    }
    memory.0.extend(written);
}

/// What a contraction says that its outputs hold.
pub(super) fn meaning(spec: &Contraction, before: &Memory) -> HashMap<(usize, i64), f64> {
    let program = matrix::program(spec).unwrap();
    let of = |role| spec.axes.iter().filter(move |axis| axis.role == role);
    let order: Vec<Axis> =
        [Role::Batch, Role::M, Role::N, Role::K].into_iter().flat_map(of).copied().collect();
    let (outside, inside) = order.split_at(program.sizes.len());
    let operands: Vec<&Operand> = program.inputs.iter().chain(&program.outputs).collect();
    let count = |axes: &[Axis]| axes.iter().map(|axis| axis.size).product::<usize>();
    let indices = |axes: &[Axis], mut number: usize| {
        let each = axes.iter().rev().map(|axis| {
            let index = (number % axis.size) as isize;
            number /= axis.size;
            index
        });
        let mut list: Vec<isize> = each.collect();
        list.reverse();
        list
    };
    let mut out = HashMap::new();
    for place in 0..count(outside) {
        let index = indices(outside, place);
        let mut sum = 0.0;
        for depth in 0..count(inside) {
            let all = [&index[..], &indices(inside, depth)].concat();
            let at = |bytes: usize, stride: fn(&Axis) -> isize, but: Role| {
                let own = order.iter().zip(&all).filter(|(axis, _)| axis.role != but);
                own.map(|(axis, i)| stride(axis) * i).sum::<isize>() as i64 * bytes as i64
            };
            let x = before.get((0, at(spec.a.bytes(), |axis| axis.a, Role::N)));
            let y = before.get((1, at(spec.b.bytes(), |axis| axis.b, Role::M)));
            sum += x * y;
        }
        let mut value = f64::from(spec.alpha) * sum;
        let at = |o: usize, number: usize| {
            let offset: isize = operands[o].strides.iter().zip(&index).map(|(s, i)| s * i).sum();
            (number, operands[o].dtype.bytes() as i64 * offset as i64)
        };
        let inputs = program.inputs.len();
        for i in 0..inputs {
            // What adds to C reads it where it writes.
            value += before.get(at(i, 2 + i));
        }
        for instr in &program.instrs {
            if let Instr::Coord { axis, .. } = instr {
                value += index[*axis] as f64;
            }
        }
        for o in inputs..operands.len() {
            let number = if spec.epilogue.is_some() { 2 + o } else { 2 };
            out.insert(at(o, number), value);
        }
    }
    out
}

/// What the sums of a factor are, summed by themselves, as the operand of this number.
pub(super) fn summed(
    spec: &Contraction,
    number: usize,
    before: &Memory,
) -> HashMap<(usize, i64), f64> {
    let Some(own) = &spec.sums else { return HashMap::new() };
    let known = Known { address: Address::Null, align: 4 };
    let reduction = Sums::new(spec, own, known).unwrap().reduction();
    let (sizes, from) = (&reduction.program.sizes, &reduction.program.inputs[0]);
    let mut out = HashMap::new();
    for place in 0..sizes.iter().product::<usize>() {
        let (mut rest, mut at, mut to) = (place, 0, 0);
        for axis in (0..sizes.len()).rev() {
            let index = (rest % sizes[axis]) as i64;
            rest /= sizes[axis];
            at += index * from.strides[axis] as i64;
            let kept = !reduction.reduced[axis];
            to += if kept { index * reduction.output.strides[axis] as i64 } else { 0 };
        }
        let x = before.get((own.factor, from.dtype.bytes() as i64 * at));
        *out.entry((number, own.output.dtype.bytes() as i64 * to)).or_default() += x;
    }
    out
}

fn check(spec: &Contraction, chip: Chip, align: u64, files: &mut HashMap<String, usize>) {
    let kernel = product(spec, Draws::default(), &[align; 8], chip).unwrap();
    let mut memory = Memory::default();
    let mut wanted = meaning(spec, &memory);
    let operands = spec.epilogue.as_ref().map_or(3, |p| 2 + p.inputs.len() + p.outputs.len());
    let sums = summed(spec, operands, &memory);
    if kernel.launches.iter().any(makes_sums) {
        wanted.extend(sums);
        *files.entry("sums".to_owned()).or_default() += 1;
    } else if let Some(own) = &spec.sums {
        // The reduction has tests of its own.
        let has = |launch: &&Launch, operand: usize| {
            let all = launch.parameters.addresses();
            all.iter().any(|(_, a)| *a == Address::operand(operand))
        };
        let mut others = kernel.launches.iter().filter(|l| l.source.file != "gemm.cu");
        let end = others.clone().next_back().unwrap();
        assert!(has(&end, operands) && ["reduce", "reduce_finish", "fill"].contains(&end.entry));
        assert!(end.entry == "fill" || others.any(|l| l.entry == "reduce" && has(&l, own.factor)));
        *files.entry("sums alone".to_owned()).or_default() += 1;
    }
    for launch in kernel.launches.iter().filter(|launch| launch.entry == "gemm") {
        run(launch, &mut memory);
        *files.entry(launch.source.file.clone()).or_default() += 1;
        *files.entry("permuted".to_owned()).or_default() +=
            usize::from(launch.source.defines.contains(&"B_PERMUTED=1".to_owned()));
    }
    *files.entry("several".to_owned()).or_default() += usize::from(kernel.launches.len() > 1);
    *files.entry("scratch".to_owned()).or_default() += usize::from(kernel.workspace_bytes > 0);
    let written = memory.0.keys().filter(|place| place.0 != WORKSPACE).count();
    assert_eq!(written, wanted.len(), "{spec:?}");
    for (place, value) in wanted {
        let got = memory.get(place);
        assert!((got - value).abs() < 1e-6, "{place:?}: {got} for {value}; {spec:?}");
    }
}

#[test]
fn launches_mean_what_the_specs_say() {
    let mut random = Random(1);
    let mut files = HashMap::new();
    for number in 0..600 {
        let large = number % 20 == 0;
        let spec = random.spec(large);
        let work: usize = spec.axes.iter().map(|axis| axis.size).product();
        if work > if large { 400_000 } else { 8_000 } {
            continue;
        }
        let chip = if large || random.one_in(2) { HOPPER } else { AMPERE };
        check(&spec, chip, [64, 64, 4][random.below(3)], &mut files);
    }
    let kinds = ["gemm.cu", "gemm_resident_sm90.cu", "several", "scratch", "sums alone"];
    assert!(kinds.iter().all(|kind| files.get(*kind).is_some_and(|n| *n > 3)), "{files:?}");
}

#[test]
fn tall_and_deep_products_mean_what_they_say() {
    let mut files = HashMap::new();
    for (sizes, k_inside) in [
        ([72, 96, 320], [true, true]),
        ([72, 72, 264], [true, false]),
        ([80, 72, 300], [false, false]),
    ] {
        let mut spec = plain(sizes, k_inside, [DType::Bf16; 3]);
        check(&spec, HOPPER, 64, &mut files);
        for (factor, strides) in [(0, [3, 9, 0]), (1, [0, 1, 9])] {
            spec.sums = Some(OperandSums { factor, output: Operand::f32(strides) });
            check(&spec, HOPPER, 64, &mut files);
        }
        spec.sums = None;
        spec.accumulate = true;
        check(&spec, AMPERE, 64, &mut files);
    }
    assert!(files["gemm_sm90.cu"] >= 2 && files["permuted"] >= 1, "{files:?}");
    assert!(files["sums"] >= 3 && files["sums alone"] >= 3, "{files:?}");
    // More batches than a grid holds.
    let axis = |role, size, a, b, c| Axis { role, size, a, b, c };
    let mut spec = plain([1, 1, 2], [true; 2], [DType::Bf16; 3]);
    spec.axes.push(axis(Role::Batch, 70_000, 2, 6, 1));
    check(&spec, HOPPER, 64, &mut files);
}
