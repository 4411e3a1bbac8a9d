//! tile through the interpreter: the sums of the whole batch, by the tree that is promised.

use super::support::{accumulators, difference, environment, network, run, step, tile};
use aerogel_graph::{Build, DType, Env, Graph, Init, Op, Rounding, Tensor};
use aerogel_passes::{Compute, Order, PassError, accumulate, backward, precision, section_of};

#[test]
fn micro_batches_sum_to_the_whole_batch() {
    for (batch, counts) in [(8, &[1, 2, 4, 8][..]), (12, &[3]), (5, &[5]), (7, &[7])] {
        let whole = backward(&network(batch, batch == 12)).unwrap();
        let wanted = run(&whole, &mut environment(&whole), 0, Rounding::Exact);
        assert!(wanted["tokens"].data[0] < (3 * batch) as f64, "some tokens have no weight");
        for &m in counts {
            for order in [Order::Tree, Order::Fold] {
                let states = step(&whole, m, order, Rounding::Exact);
                for (name, tensor) in &wanted {
                    let error = difference(&states[&format!("sum.0.{name}")], tensor);
                    assert!(error <= 1e-12, "{name} of {m} micro-batches of {batch}: {error}");
                }
            }
        }
    }
}

/// loss = sum over the batch of x, so that a micro-batch of one row contributes that row.
fn row_sum(batch: usize) -> Graph {
    let mut g = Graph::new();
    let axis = g.axis("batch", batch).unwrap();
    let x = g.input("x", DType::F32, &[axis]).unwrap();
    let loss = g.sum(x, &[axis]).unwrap();
    g.output("loss", loss);
    g.output("tokens", loss);
    g
}

/// The balanced tree over leaves: perfect subtrees of the binary digits of their number, and the
/// smaller ones, which are the later ones, combined first.
fn tree(leaves: &[f32]) -> f32 {
    if leaves.len() == 1 {
        return leaves[0];
    }
    let left = leaves.len().next_power_of_two() / 2;
    tree(&leaves[..left]) + tree(&leaves[left..])
}

/// One after another.
fn chain(leaves: &[f32]) -> f32 {
    leaves[1..].iter().fold(leaves[0], |s, x| s + x)
}

/// The sum that the sections leave, one row a micro-batch.
fn summed(rows: &[f32], order: Order) -> f64 {
    let m = rows.len();
    let whole = row_sum(m);
    let sections = tile(&whole, m, order).unwrap();
    let mut env = Env::new();
    accumulators(&sections[0].1, &mut env, f64::NAN);
    for (j, row) in rows.iter().enumerate() {
        let name = section_of(j, m, order);
        let section = &sections.iter().find(|(n, _)| *n == name).unwrap().1;
        let x = Tensor::from_vec(
            section.axes(),
            &whole.ty(whole.inputs()[0].value).axes,
            vec![f64::from(*row)],
        );
        env.insert("x".to_owned(), x);
        run(section, &mut env, j as u64, Rounding::Declared);
    }
    env["sum.0.loss"].data[0]
}

#[test]
fn the_order_of_sums_is_the_balanced_tree_or_the_chain() {
    let mut differ = 0;
    for m in 1..=33 {
        let rows: Vec<f32> =
            (0..m).map(|i| (super::support::noise("row", i) * 1e3) as f32).collect();
        let got = summed(&rows, Order::Tree);
        assert_eq!(got, f64::from(tree(&rows)), "{m} micro-batches");
        let folded = summed(&rows, Order::Fold);
        assert_eq!(folded, f64::from(chain(&rows)), "{m} micro-batches");
        differ += usize::from(got != folded);
    }
    assert!(differ > 10, "the test can tell a tree from a chain");
}

#[test]
fn as_many_levels_as_the_counter_has_digits() {
    for (m, levels) in [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4), (16, 4)] {
        let sections = tile(&row_sum(m), m, Order::Tree).unwrap();
        let states: Vec<Vec<String>> = sections
            .iter()
            .map(|(_, g)| g.states().iter().map(|s| s.name.clone()).collect())
            .collect();
        assert_eq!(states[0].len(), 2 * levels, "{m} micro-batches");
        assert!(states.iter().all(|s| *s == states[0]), "{m} micro-batches");
        let last = &sections.last().unwrap().1;
        let carried = (m - 1).count_ones() as usize;
        let adds = last.nodes().iter().filter(|n| matches!(n.op, Op::Map(_))).count();
        assert_eq!(adds, 2 * carried, "{m} micro-batches");
    }
}

#[test]
fn bf16_sums_in_f32() {
    let whole = backward(&precision(&network(8, true), Compute::Bf16).unwrap()).unwrap();
    let states = step(&whole, 4, Order::Tree, Rounding::Declared);
    let wanted = run(&whole, &mut environment(&whole), 0, Rounding::Declared);
    for (name, tensor) in &wanted {
        let error = difference(&states[&format!("sum.0.{name}")], tensor);
        assert!(error <= 1e-6, "{name}: {error}");
    }
}

#[test]
fn what_cannot_be_cut_is_refused() {
    let g = row_sum(6);
    let refused = |g: &Graph, m: usize| tile(g, m, Order::Tree).unwrap_err().to_string();
    assert!(refused(&g, 4).contains("`batch` of 6 does not divide into 4"));
    assert!(refused(&g, 0).contains("does not divide into 0"));
    assert!(accumulate(&g, 0, Order::Fold).unwrap_err().to_string().contains("at least one"));
    let mut no_sums = g.clone();
    no_sums.outputs.clear();
    assert!(refused(&no_sums, 2).contains("no output `loss`"));
    let axis = g.axes().find("batch").unwrap();
    let mut stateful = g.clone();
    let init = Init::Constant(0.0);
    stateful.parameter("w", aerogel_graph::ParamClass::Bias, &[axis], init).unwrap();
    assert_eq!(tile(&stateful, 2, Order::Tree), Err(PassError::OverBatch { name: "w".to_owned() }));
    let mut merged = Graph::new();
    let (b, s) = (merged.axis("batch", 6).unwrap(), merged.axis("seq", 2).unwrap());
    let rows = merged.axis("row", 12).unwrap();
    let x = merged.input("x", DType::F32, &[b, s]).unwrap();
    let flat = merged.merge(x, &[b, s], rows).unwrap();
    let loss = merged.sum(flat, &[rows]).unwrap();
    merged.output("loss", loss);
    merged.output("tokens", loss);
    assert!(refused(&merged, 2).starts_with("tile: node 0"), "{}", refused(&merged, 2));
}
