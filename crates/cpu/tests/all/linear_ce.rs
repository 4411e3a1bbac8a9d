use aerogel_cpu::kernel::{Kernel, Scalars};
use aerogel_cpu::kernels::linear_ce::LinearCe;
use aerogel_cpu::pool::Pool;
use aerogel_graph::DType;
use aerogel_lower::{LinearCeSpec, Operand};
use proptest::prelude::*;

use super::common::{Rng, Tensor, cases, close, positions, run};

/// Axes of rows, and a piece of a vocabulary.
#[derive(Clone)]
struct Shape {
    rows: Vec<usize>,
    vocab: usize,
    first_row: usize,
    all_rows: usize,
    width: usize,
}

impl Shape {
    fn whole(rows: &[usize], vocab: usize, width: usize) -> Shape {
        Shape { rows: rows.to_vec(), vocab, first_row: 0, all_rows: vocab, width }
    }

    /// A [rows.., vocabulary, width] operand in a random layout, of 1 and stride 0 on the axes that
    /// it lacks.
    fn tensor(&self, rng: &mut Rng, dtype: DType, has: [bool; 3], scale: f64) -> Tensor {
        let row = |&size| if has[0] { size } else { 1 };
        let inner = [(has[1], self.vocab), (has[2], self.width)];
        let inner = inner.map(|(has, size)| if has { size } else { 1 });
        let sizes: Vec<_> = self.rows.iter().map(row).chain(inner).collect();
        let mut tensor = Tensor::random(rng, dtype, &sizes, scale);
        let axes = self.rows.iter().map(|_| has[0]).chain([has[1], has[2]]);
        axes.enumerate().filter(|(_, has)| !has).for_each(|(axis, _)| tensor.strides[axis] = 0);
        tensor
    }

    fn spec(&self, operands: [&Tensor; 3], more: &[Option<Tensor>; 7]) -> LinearCeSpec {
        let [x, w, targets] = operands.map(Tensor::operand);
        let each = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::operand);
        let [weights, given, ce, lse, hit, dx, dw]: [Option<Operand>; 7] =
            more.each_ref().map(each);
        let Shape { rows, vocab, first_row, all_rows, width } = self.clone();
        LinearCeSpec {
            rows,
            vocab,
            first_row,
            all_rows,
            width,
            x,
            w,
            targets,
            weights,
            given,
            ce,
            lse,
            hit,
            dx,
            dw,
        }
    }
}

const EACH: [bool; 3] = [true, false, false];
const LIKE_X: [bool; 3] = [true, false, true];
const LIKE_W: [bool; 3] = [false, true, true];

/// ce, lse, hit, dx and dw in f64, row-major, and the size of a row's terms.
#[derive(Default)]
struct Wanted {
    rows: [Vec<f64>; 3],
    sizes: Vec<f64>,
    dx: Vec<f64>,
    dw: Vec<f64>,
    /// The sums of the absolute terms of dx and dw.
    magnitudes: [Vec<f64>; 2],
}

fn naive(
    shape: &Shape,
    [x, w, targets]: [&Tensor; 3],
    [weights, given]: [Option<&Tensor>; 2],
) -> Wanted {
    let Shape { vocab, width, .. } = *shape;
    let zeros = vec![0.0; vocab * width];
    let magnitudes = [vec![], zeros.clone()];
    let mut wanted = Wanted { dw: zeros, magnitudes, ..Wanted::default() };
    let at = |row: &[usize], v: usize, d: usize| [row, &[v, d]].concat();
    let entry = |v: usize, d: usize| w.get(&at(&vec![0; shape.rows.len()], v, d));
    for row in &positions(&shape.rows) {
        let weight = weights.map_or(1.0, |w| w.get(&at(row, 0, 0)));
        let target = targets.get(&at(row, 0, 0)) as usize;
        let product = |v: usize| (0..width).map(|d| x.get(&at(row, 0, d)) * entry(v, d)).sum();
        let logits: Vec<f64> = (0..vocab).map(product).collect();
        let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let own = top + logits.iter().map(|l| (l - top).exp()).sum::<f64>().ln();
        let lse = given.map_or(own, |given| given.get(&at(row, 0, 0)));
        let target = target.checked_sub(shape.first_row).filter(|&v| v < vocab);
        let hit = target.map_or(0.0, |v| logits[v]);
        for (list, value) in wanted.rows.iter_mut().zip([weight * (lse - hit), lse, hit]) {
            list.push(value);
        }
        wanted.sizes.push(lse.abs() + hit.abs() + top.abs());
        let slope =
            |v: usize| weight * ((logits[v] - lse).exp() - f64::from(u8::from(Some(v) == target)));
        let slopes: Vec<f64> = (0..vocab).map(slope).collect();
        for d in 0..width {
            wanted.dx.push((0..vocab).map(|v| slopes[v] * entry(v, d)).sum());
            wanted.magnitudes[0].push((0..vocab).map(|v| (slopes[v] * entry(v, d)).abs()).sum());
            for (v, slope) in slopes.iter().enumerate() {
                let term = slope * x.get(&at(row, 0, d));
                wanted.dw[v * width + d] += term;
                wanted.magnitudes[1][v * width + d] += term.abs();
            }
        }
    }
    wanted
}

/// Any of the outputs, with or without weights and log-sum-exps that come from elsewhere.
fn check(rng: &mut Rng, shape: &Shape, far: f64) {
    let (x_type, w_type, dx_type) = (rng.float(), rng.float(), rng.float());
    let x = shape.tensor(rng, x_type, LIKE_X, 1.0);
    let w = shape.tensor(rng, w_type, LIKE_W, far);
    let mut targets = shape.tensor(rng, DType::U32, EACH, 1.0);
    targets.fill(|_| rng.below(shape.all_rows) as f64);
    let mut weights = shape.tensor(rng, DType::F32, EACH, 1.0);
    let last: Vec<_> = weights.sizes.iter().map(|size| size - 1).collect();
    weights.set(&last, 0.0);
    let mut given = shape.tensor(rng, DType::F32, EACH, 1.0);
    // Near those that the row has, so that no exponential is beyond f32.
    let own = naive(shape, [&x, &w, &targets], [None, None]).rows[1].clone();
    for (at, own) in positions(&given.sizes).iter().zip(own) {
        given.set(at, own + rng.value());
    }
    let each = shape.tensor(rng, DType::F32, EACH, 1.0);
    let dx = shape.tensor(rng, dx_type, LIKE_X, 1.0);
    let dw = shape.tensor(rng, DType::F32, LIKE_W, 1.0);
    let mut more = [weights, given, each.clone(), each.clone(), each, dx, dw].map(Some);
    for (i, tensor) in more.iter_mut().enumerate() {
        match rng.below(3) {
            0 => *tensor = None,
            _ if i >= 2 => tensor.as_mut().unwrap().fill(|_| f64::NAN),
            _ => {}
        }
    }
    let kernel = LinearCe::new(&shape.spec([&x, &w, &targets], &more)).unwrap();
    let wanted = naive(shape, [&x, &w, &targets], [more[0].as_ref(), more[1].as_ref()]);
    let mut all = vec![x, w, targets];
    all.extend(more.iter().flatten().cloned());
    let outputs = more[2..].iter().flatten().count();
    let rows = wanted.sizes.len() as f64;
    let bound = 2e-5 * (1.0 + far * far) * (1.0 + rows.sqrt() / 10.0);
    // Between bf16 factors the gradients of the logits are bf16 too; else they are f32.
    let rounded = x_type == DType::Bf16 && w_type == DType::Bf16;
    let rounding = if rounded { 2f64.powi(-8) } else { 0.0 };
    run(kernel, &all, outputs, &Scalars::default(), |after| {
        let asked = (2..7).filter(|&i| more[i].is_some());
        for (i, got) in asked.zip(&after[all.len() - outputs..]) {
            let list = match i {
                5 => &wanted.dx,
                6 => &wanted.dw,
                _ => &wanted.rows[i - 2],
            };
            for (n, (at, wanted_one)) in positions(&got.sizes).iter().zip(list).enumerate() {
                let bound = match i {
                    5 | 6 => bound + rounding * wanted.magnitudes[i - 5][n],
                    _ => 2e-6 * (wanted.sizes[n] + 1.0),
                };
                close(got.get(at), *wanted_one, bound, got.dtype, &(i, at));
            }
        }
    });
}

proptest! {
    #![proptest_config(cases(30))]

    #[test]
    fn outputs_equal_the_definition(seed: u64) {
        let rng = &mut Rng(seed);
        let rows = [rng.pick(&[1, 3, 40, 70]), rng.pick(&[1, 1, 2])];
        let (vocab, width) = (rng.pick(&[1, 17, 600]), rng.pick(&[1, 9, 70]));
        let before = rng.pick(&[0, 0, 5, 400]);
        let all_rows = before + vocab + if before > 0 { rng.pick(&[0, 7]) } else { 0 };
        let whole = Shape::whole(&rows, vocab, width);
        check(rng, &Shape { first_row: before, all_rows, ..whole }, 1.0);
    }
}

#[test]
fn several_chunks_and_large_logits() {
    // 70,000 entries leave room for sixteen rows at a time.
    check(&mut Rng(1), &Shape::whole(&[35], 70_000, 3), 1.0);
    check(&mut Rng(2), &Shape::whole(&[20], 300, 5), 40.0);
}

#[test]
fn a_target_beyond_the_whole_vocabulary_is_seen_in_the_loss() {
    let rng = &mut Rng(3);
    let shape = Shape { first_row: 4, all_rows: 9, ..Shape::whole(&[3], 5, 2) };
    let (x, w) =
        (shape.tensor(rng, DType::F32, LIKE_X, 1.0), shape.tensor(rng, DType::F32, LIKE_W, 1.0));
    let mut targets = shape.tensor(rng, DType::U32, EACH, 1.0);
    targets.fill(|at| [9.0, 3.0, 8.0][at[0]]);
    let each = shape.tensor(rng, DType::F32, EACH, 1.0);
    let more = [None, None, Some(each.clone()), None, Some(each.clone()), None, None];
    let kernel = LinearCe::new(&shape.spec([&x, &w, &targets], &more)).unwrap();
    run(kernel, &[x, w, targets, each.clone(), each], 2, &Scalars::default(), |after| {
        let missing =
            |i: usize| after[3..].iter().map(|t| t.get(&[i, 0, 0]).is_nan()).collect::<Vec<_>>();
        assert_eq!([0, 1, 2].map(missing), [[true; 2], [false; 2], [false; 2]]);
        assert_eq!(after[4].get(&[1, 0, 0]), 0.0);
    });
}

/// Bits of ce, lse, hit and dx of each row, for rows `from..from + rows` of what is given alone.
fn bits(
    (pool, rng): (&Pool, &mut Rng),
    shape: &Shape,
    [x, w, targets]: [&Tensor; 3],
    from: usize,
) -> Vec<Vec<u64>> {
    let rows = shape.rows[0];
    let mut own = shape.tensor(rng, x.dtype, LIKE_X, 1.0);
    own.fill(|at| x.get(&[from + at[0], 0, at[2]]));
    let mut ids = shape.tensor(rng, DType::U32, EACH, 1.0);
    ids.fill(|at| targets.get(&[from + at[0], 0, 0]));
    let each = shape.tensor(rng, DType::F32, EACH, 1.0);
    let dx = shape.tensor(rng, DType::F32, LIKE_X, 1.0);
    let dw = shape.tensor(rng, DType::F32, LIKE_W, 1.0);
    let [ce, lse, hit] = [(); 3].map(|()| Some(each.clone()));
    let more = [None, None, ce, lse, hit, Some(dx), Some(dw)];
    let kernel = LinearCe::new(&shape.spec([&own, w, &ids], &more)).unwrap();
    let mut all = vec![own, w.clone(), ids];
    all.extend(more.into_iter().flatten());
    let ptrs: Vec<_> = all.iter().map(Tensor::ptr).collect();
    let mut scratch = vec![0xff; kernel.scratch_bytes(pool.threads())];
    // SAFETY: the tensors cover what their strides reach, and live to the end of the run.
    unsafe { kernel.run(pool, &ptrs, &Scalars::default(), &mut scratch) };
    let of = |row: usize| {
        let each = all[3..6].iter().map(|t| t.get(&[row, 0, 0]).to_bits());
        each.chain((0..shape.width).map(|d| all[6].get(&[row, 0, d]).to_bits())).collect()
    };
    (0..rows).map(of).collect()
}

/// A chunked loss is the whole loss, bit for bit: shapes for which the matrix products take their
/// various paths, more rows than a block, fewer, and all in another storage order.
#[test]
fn a_row_gets_the_same_bits_in_any_company() {
    let (pool, rng) = (Pool::new(2).unwrap(), &mut Rng(4));
    for (vocab, width) in [
        (1, 1),
        (1, 40),
        (2, 5),
        (3, 1),
        (17, 2),
        (60, 64),
        (513, 65),
        (514, 3),
        (600, 130),
        (70_000, 2),
    ] {
        for w_type in [DType::F32, DType::Bf16, DType::F16] {
            let x_type = rng.float();
            let many = if vocab > 1000 { 40 } else { 150 };
            let whole = Shape::whole(&[many], vocab, width);
            let x = whole.tensor(rng, x_type, LIKE_X, 1.0);
            let mut w = Tensor::random(rng, w_type, &[1, vocab, width], 1.0);
            w.strides[0] = 0;
            let mut targets = whole.tensor(rng, DType::U32, EACH, 1.0);
            targets.fill(|_| rng.below(vocab) as f64);
            let wanted = bits((&pool, rng), &whole, [&x, &w, &targets], 0);
            for rows in [1, 2, 16, 17, 63, 64, 65, 100].into_iter().filter(|&rows| rows < many) {
                for from in (0..many).step_by(rows) {
                    let part = Shape::whole(&[rows.min(many - from)], vocab, width);
                    // The first, the last and a few in between.
                    if rows < 16 && from % 29 > 1 && from + rows < many {
                        continue;
                    }
                    let got = bits((&pool, rng), &part, [&x, &w, &targets], from);
                    let same = got[..] == wanted[from..from + got.len()];
                    assert!(same, "{vocab} x {width}, {w_type:?}: rows {from}.. of {rows}");
                }
            }
        }
    }
}
