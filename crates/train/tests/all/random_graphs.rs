//! Random small graphs through planner and device: whatever aliasing, writing in place or liveness
//! get wrong shows as NaN or as another number.

use crate::harness::check;
use crate::ranks::check_mesh;
use aerogel_graph::{Op, verify::verify};
use aerogel_train::selftest::graphs::{On, make};

/// Seeds of the graphs: all of them, or the one that a failure named, whose text is shown.
fn seeds(count: u64, on: On) -> std::ops::Range<u64> {
    match std::env::var("AEROGEL_GRAPH").ok().and_then(|n| n.parse().ok()) {
        Some(seed) => {
            let (g, envs, clock) = make(seed, on).unwrap();
            println!("{}\n{clock:?} {envs:?}", aerogel_graph::text::print(&g));
            seed..seed + 1
        }
        None => 0..count,
    }
}

fn all_hold(count: u64, on: On) {
    let fails = |seed: u64| {
        let made = make(seed, on).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let what = format!("AEROGEL_GRAPH={seed}");
        verify(&made.0).expect("a graph of the builder verifies");
        let run = || match &made {
            (g, envs, clock) if on == On::Ranks => drop(check_mesh(&what, g, envs, *clock)),
            (g, envs, clock) => drop(check(&what, g, &envs[0], *clock)),
        };
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err()
    };
    let exchanges = |seed: &u64| {
        let nodes = make(*seed, on).expect("it was made").0;
        nodes.nodes().iter().filter(|n| matches!(n.op, Op::Collective(_))).count()
    };
    let failed: Vec<u64> = seeds(count, on).filter(|seed| fails(*seed)).collect();
    assert!(failed.is_empty(), "graphs {failed:?} failed; run one with AEROGEL_GRAPH=N");
    let exchanged: usize = seeds(count, on).map(|seed| exchanges(&seed)).sum();
    println!("{exchanged} exchanges");
    assert_eq!(exchanged > count as usize, on == On::Ranks, "{exchanged} exchanges");
}

#[test]
fn of_all_ops() {
    all_hold(1500, On::Whole);
}

#[test]
fn of_all_ops_on_pieces_of_axes() {
    all_hold(500, On::Pieces);
}

#[test]
fn of_all_ops_and_exchanges_between_ranks() {
    all_hold(300, On::Ranks);
}
