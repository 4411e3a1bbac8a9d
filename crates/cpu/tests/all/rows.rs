use aerogel_cpu::kernel::{Dtype, Scalars};
use aerogel_cpu::kernels::copy::{Copy, Fill};
use aerogel_cpu::kernels::gather::{Gather, RowsSpec, Scatter, ScatterRows};
use proptest::prelude::*;

use super::common::{EPS, Rng, Tensor, cases, close, positions, run};

/// Table, ids (some outside the whole table if asked for) and rows over [batch, row, width]; the
/// table may be a piece of a longer one.
fn case(rng: &mut Rng, outside: bool) -> (RowsSpec, [Tensor; 3]) {
    let (batch, rows, width) = (rng.range(1, 3), rng.pick(&[1, 7, 300]), rng.pick(&[1, 5, 130]));
    let table_rows = rng.pick(&[1, 4, 90, 400]);
    let first_row = rng.pick(&[0, 0, 3, 200]);
    let all_rows = first_row + table_rows + if first_row > 0 { rng.pick(&[0, 50]) } else { 0 };
    let (table, own) = (rng.float(), rng.float());
    let table = Tensor::random(rng, table, &[batch, table_rows, width], 1.0);
    let mut ids = Tensor::blank(rng, Dtype::U32, &[batch, rows, 1]);
    ids.strides[2] = 0;
    ids.fill(|_| rng.below(all_rows + usize::from(outside)) as f64);
    let values = Tensor::random(rng, own, &[batch, rows, width], 1.0);
    let (batch, rows) = (vec![batch], vec![rows]);
    let spec = RowsSpec { batch, rows, table_rows, first_row, all_rows, width };
    (spec, [table, ids, values])
}

/// The row that an id names, if it is in this piece of the table.
fn own(spec: &RowsSpec, id: usize) -> Option<usize> {
    id.checked_sub(spec.first_row).filter(|&row| row < spec.table_rows)
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn gather_reads_rows(seed: u64) {
        let rng = &mut Rng(seed);
        let (spec, [table, ids, mut rows]) = case(rng, true);
        rows.fill(|_| f64::NAN);
        let operands = [&table, &ids, &rows].map(Tensor::operand);
        let kernel = Gather::new(&spec, operands.each_ref()).unwrap();
        run(kernel, &[table.clone(), ids.clone(), rows], 1, &Scalars::default(), |after| {
            for at in positions(&after[2].sizes) {
                let id = ids.get(&[at[0], at[1], 0]) as usize;
                let missing = if id < spec.all_rows { 0.0 } else { f64::NAN };
                let wanted = own(&spec, id).map_or(missing, |id| table.get(&[at[0], id, at[2]]));
                close(after[2].get(&at), wanted, 0.0, after[2].dtype, &at);
            }
        });
    }

    #[test]
    fn scatter_adds_or_sets_in_row_order(seed: u64) {
        let rng = &mut Rng(seed);
        let (spec, [mut table, ids, rows]) = case(rng, true);
        let how = rng.pick(&[Scatter::Add, Scatter::Set]);
        if how == Scatter::Add {
            table = Tensor::blank(rng, Dtype::F32, &table.sizes);
        }
        let mut wanted = vec![0.0; table.sizes.iter().product()];
        let at_of = |b: usize, id: usize, d: usize| (b * spec.table_rows + id) * spec.width + d;
        if how == Scatter::Set {
            for (slot, at) in wanted.iter_mut().zip(positions(&table.sizes)) {
                *slot = table.get(&at);
            }
        }
        for at in positions(&rows.sizes) {
            let id = ids.get(&[at[0], at[1], 0]) as usize;
            if let Some(id) = own(&spec, id) {
                let slot = &mut wanted[at_of(at[0], id, at[2])];
                *slot = rows.get(&at) + if how == Scatter::Add { *slot } else { 0.0 };
            }
        }
        let operands = [&table, &ids, &rows].map(Tensor::operand);
        let kernel = ScatterRows::new(&spec, operands.each_ref(), how).unwrap();
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
        let types = [Dtype::F32, Dtype::Bf16, Dtype::U32];
        let (from, to) = (rng.pick(&types), rng.pick(&types));
        let mut source = Tensor::random(rng, from, &sizes, 1.0);
        let big = if from == to { 4_294_967_295.0 } else { 200.0 };
        if from == Dtype::U32 || to == Dtype::U32 {
            source.fill(|_| (big * rng.value().abs()).floor());
        }
        let target = Tensor::blank(rng, to, &sizes);
        let kernel = Copy::new(&sizes, &source.operand(), &target.operand()).unwrap();
        run(kernel, &[source.clone(), target.clone()], 1, &Scalars::default(), |after| {
            for at in positions(&sizes) {
                let exact = from == to;
                let bound = if exact { 0.0 } else { 1e-6 };
                let step = if exact || to != Dtype::Bf16 { Dtype::F32 } else { Dtype::Bf16 };
                close(after[1].get(&at), source.get(&at), bound, step, &at);
            }
        });
        let fill = Fill::new(&sizes, &target.operand(), 3.0).unwrap();
        run(fill, &[target], 1, &Scalars::default(), |after| {
            assert!(positions(&sizes).iter().all(|at| after[0].get(at) == 3.0));
        });
    }
}
