use aerogel_cpu::kernel::Scalars;
use aerogel_cpu::kernels::copy::{Copy, Fill};
use aerogel_cpu::kernels::gather::{Gather, Scatter};
use aerogel_graph::DType;
use aerogel_graph::ops::ScatterMode;
use aerogel_lower::{CopySpec, FillSpec, GatherSpec, RowsShape, ScatterSpec};
use proptest::prelude::*;

use super::common::{EPS, Rng, Tensor, cases, close, positions, run};

/// Table, ids (some outside the whole table if asked for) and rows over [batch, row, width]; the
/// table may be a piece of a longer one.
fn case(rng: &mut Rng, outside: bool) -> (RowsShape, [Tensor; 3]) {
    let (batch, rows, width) = (rng.range(1, 3), rng.pick(&[1, 7, 300]), rng.pick(&[1, 5, 130]));
    let table_rows = rng.pick(&[1, 4, 90, 400]);
    let first_row = rng.pick(&[0, 0, 3, 200]);
    let all_rows = first_row + table_rows + if first_row > 0 { rng.pick(&[0, 50]) } else { 0 };
    let (table, own) = (rng.float(), rng.float());
    let table = Tensor::random(rng, table, &[batch, table_rows, width], 1.0);
    let mut ids = Tensor::blank(rng, DType::U32, &[batch, rows, 1]);
    ids.strides[2] = 0;
    ids.fill(|_| rng.below(all_rows + usize::from(outside)) as f64);
    let values = Tensor::random(rng, own, &[batch, rows, width], 1.0);
    let (batch, rows) = (vec![batch], vec![rows]);
    let shape = RowsShape { batch, rows, table_rows, first_row, all_rows, width };
    (shape, [table, ids, values])
}

/// The row that an id names, if it is in this piece of the table.
fn own(shape: &RowsShape, id: usize) -> Option<usize> {
    id.checked_sub(shape.first_row).filter(|&row| row < shape.table_rows)
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn gather_reads_rows(seed: u64) {
        let rng = &mut Rng(seed);
        let (shape, [table, ids, mut rows]) = case(rng, true);
        rows.fill(|_| f64::NAN);
        let [of_table, of_ids, of_rows] = [&table, &ids, &rows].map(Tensor::operand);
        let gather =
            GatherSpec { shape: shape.clone(), table: of_table, ids: of_ids, rows: of_rows };
        let kernel = Gather::new(&gather).unwrap();
        run(kernel, &[table.clone(), ids.clone(), rows], 1, &Scalars::default(), |after| {
            for at in positions(&after[2].sizes) {
                let id = ids.get(&[at[0], at[1], 0]) as usize;
                let missing = if id < shape.all_rows { 0.0 } else { f64::NAN };
                let wanted = own(&shape, id).map_or(missing, |id| table.get(&[at[0], id, at[2]]));
                close(after[2].get(&at), wanted, 0.0, after[2].dtype, &at);
            }
        });
    }

    #[test]
    fn scatter_adds_or_sets_in_row_order(seed: u64) {
        let rng = &mut Rng(seed);
        let (shape, [mut table, ids, rows]) = case(rng, true);
        let mode = rng.pick(&[ScatterMode::Add, ScatterMode::Set]);
        if mode == ScatterMode::Add {
            table = Tensor::blank(rng, DType::F32, &table.sizes);
        }
        let mut wanted = vec![0.0; table.sizes.iter().product()];
        let at_of = |b: usize, id: usize, d: usize| (b * shape.table_rows + id) * shape.width + d;
        if mode == ScatterMode::Set {
            for (slot, at) in wanted.iter_mut().zip(positions(&table.sizes)) {
                *slot = table.get(&at);
            }
        }
        for at in positions(&rows.sizes) {
            let id = ids.get(&[at[0], at[1], 0]) as usize;
            if let Some(id) = own(&shape, id) {
                let slot = &mut wanted[at_of(at[0], id, at[2])];
                *slot = rows.get(&at) + if mode == ScatterMode::Add { *slot } else { 0.0 };
            }
        }
        let [of_table, of_ids, of_rows] = [&table, &ids, &rows].map(Tensor::operand);
        let scatter = ScatterSpec { shape, table: of_table, ids: of_ids, rows: of_rows, mode };
        let kernel = Scatter::new(&scatter).unwrap();
        let all = [table.clone(), ids, rows];
        run(kernel, &all, 3, &Scalars::default(), |after| {
            for (at, wanted) in positions(&table.sizes).iter().zip(&wanted) {
                close(after[0].get(at), *wanted, 300.0 * EPS, table.dtype, at);
            }
        });
    }

    #[test]
    fn copies_and_fills(seed: u64) {
        let rng = &mut Rng(seed);
        let sizes: Vec<_> = (0..rng.below(4)).map(|_| rng.pick(&[0, 1, 3, 20, 70])).collect();
        let types = [DType::F32, DType::Bf16, DType::F16, DType::U32];
        let (from, to) = (rng.pick(&types), rng.pick(&types));
        let mut source = Tensor::random(rng, from, &sizes, 1.0);
        let big = if from == to { 4_294_967_295.0 } else { 200.0 };
        if from == DType::U32 || to == DType::U32 {
            source.fill(|_| (big * rng.value().abs()).floor());
        }
        let target = Tensor::blank(rng, to, &sizes);
        let copy =
            CopySpec { sizes: sizes.clone(), from: source.operand(), to: target.operand() };
        let kernel = Copy::new(&copy).unwrap();
        run(kernel, &[source.clone(), target.clone()], 1, &Scalars::default(), |after| {
            for at in positions(&sizes) {
                let exact = from == to;
                let bound = if exact { 0.0 } else { 1e-6 };
                let step = if exact { DType::F32 } else { to };
                close(after[1].get(&at), source.get(&at), bound, step, &at);
            }
        });
        let fill = FillSpec { sizes: sizes.clone(), to: target.operand(), value: 3.0 };
        let fill = Fill::new(&fill).unwrap();
        run(fill, &[target], 1, &Scalars::default(), |after| {
            assert!(positions(&sizes).iter().all(|at| after[0].get(at) == 3.0));
        });
    }
}
