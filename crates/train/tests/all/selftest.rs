//! The self-test holds on the CPU, and notices what is wrong.

use crate::harness::{Reference, Rng, bytes_of, fill, loaded, numbers_of};
use aerogel_graph::{Build, Clock, DType, Env, Graph};
use aerogel_machine::DeviceError;
use aerogel_train::selftest::exact::{COMBINATIONS, TECHNIQUES};
use aerogel_train::selftest::reference::{Bound, judge, nearest, same_bits};
use aerogel_train::selftest::runner::{Runner, alone};
use aerogel_train::selftest::{Ended, Failure, SelfTest, groups, selftest};
use aerogel_train::{Backend, Exit, TrainError};
use std::collections::BTreeMap;

fn ask(cases: usize, only: Option<&str>) -> SelfTest {
    SelfTest { backend: Backend::Cpu, seed: 5, cases: Some(cases), only: only.map(str::to_owned) }
}

#[test]
fn some_cases_of_every_group_hold_on_the_cpu() {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let ended = selftest(&ask(12, None), &mut |done| {
        *counts.entry(done.group).or_default() += 1;
        let what = format!("{} {}: {}", done.group, done.number, done.name);
        let worst = done.result.unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!((0.0..=1.0).contains(&worst), "{what}: {worst}");
    });
    assert_eq!(ended.unwrap(), Ended::Whole);
    assert_eq!(counts, groups().map(|g| (g.0, 12)).collect());
}

/// What techniques of one rank claim: twice the same bits are the same losses and weights.
#[test]
fn techniques_of_one_rank_keep_the_bits() {
    let mut exact = 0;
    let ended = selftest(&ask(COMBINATIONS, Some("exact")), &mut |done| {
        let worst = done.result.unwrap_or_else(|e| panic!("{}: {e}", done.name));
        exact += usize::from(worst == 0.0);
    });
    assert_eq!(ended.unwrap(), Ended::Whole);
    let near = TECHNIQUES.iter().filter(|t| !t.is_exact).count();
    assert!((COMBINATIONS - 8 * near..COMBINATIONS).contains(&exact), "{exact}");
}

#[test]
fn a_group_runs_alone_and_an_unknown_one_is_refused() {
    let mut seen = vec![];
    selftest(&ask(2, Some("update")), &mut |done| seen.push((done.group, done.number))).unwrap();
    assert_eq!(seen, [("update", 0), ("update", 1)]);
    let refused = selftest(&ask(2, Some("updates")), &mut |_| ()).unwrap_err();
    assert!(matches!(refused, TrainError::Contradiction { .. }), "{refused}");
    assert!(refused.to_string().contains("attention"), "{refused}");
}

/// Only what breaks the device stops the cases after it.
#[test]
fn a_lost_device_is_told_from_a_failure() {
    let failed = |is_lost| {
        let (device, reason) = ("cuda".to_owned(), "an illegal address".to_owned());
        DeviceError::Failed { device, reason, is_lost }
    };
    for is_lost in [true, false] {
        assert_eq!(Failure::Device(failed(is_lost)).is_lost(), is_lost);
        assert_eq!(Failure::Train(TrainError::Device(failed(is_lost))).is_lost(), is_lost);
        assert_eq!(TrainError::Device(failed(is_lost)).exit(), Exit::Hardware);
    }
}

/// A product of 64 terms, from which one term is missing in one element.
#[test]
fn a_lost_term_is_noticed() {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        let mut g = Graph::new();
        let axes = [("m", 24), ("n", 40), ("k", 64)].map(|(n, size)| g.axis(n, size).unwrap());
        let [m, n, k] = axes;
        let (x, y) = (g.input("x", dtype, &[m, k]).unwrap(), g.input("y", dtype, &[k, n]).unwrap());
        let product = g.einsum_to(&[x, y], &[m, n], dtype).unwrap();
        g.output("product", product);
        let mut env = Env::new();
        fill(&g, &mut env, &mut Rng(1), 1);
        let clock = Clock::default();
        let got = loaded(alone(&g), 1).unwrap().run(0, &env, clock).unwrap();
        assert!(Reference::new(&g, &env, clock, 0.0).agrees(&env, &got).is_ok());
        let exact = Reference::new(&g, &env, clock, 0.0).values(product).data.clone();
        let bound = Bound { relative: 8.0 * 2f64.powi(-9), floor: 0.0 };
        let mut numbers = numbers_of(dtype, &got["output product"]);
        assert!(judge("product", "", &numbers, &exact, bound).is_ok());
        numbers[77] -= 0.5;
        let failure = judge("product", "", &numbers, &exact, bound).unwrap_err();
        assert!(matches!(failure, Failure::Element { element: 77, .. }), "{failure}");
        assert!(failure.to_string().contains("times the bound"), "{failure}");
        let mut bent = got.clone();
        bent.insert("output product".to_owned(), bytes_of(dtype, &numbers));
        assert!(matches!(same_bits(&bent, &got), Err(Failure::Bits { .. })));
        // All elements off by what one of them may be.
        let shifted: Vec<f64> = exact.iter().map(|x| x + 0.1).collect();
        let failure = judge("product", "", &shifted, &exact, bound).unwrap_err();
        assert!(matches!(failure, Failure::Mean { .. }), "{failure}");
    }
}

#[test]
fn what_is_no_number_is_far_from_all() {
    assert!(nearest("x", "", &[1.0, f64::NAN], &[1.0, 2.0], 1e9).is_err());
    assert!(nearest("x", "", &[1.0, 2.0], &[1.0, f64::NAN], 1e9).is_err());
    assert!(nearest("x", "", &[1.0, f64::NAN], &[1.0, f64::NAN], 0.0).is_ok());
    assert!(nearest("x", "", &[f64::INFINITY], &[1.0], 1e9).is_err());
    assert!(nearest("x", "", &[1.0], &[1.0, 2.0], 1e9).is_err());
    let infinite = [f64::NEG_INFINITY, 1.0];
    assert_eq!(nearest("lse", "", &infinite, &infinite, 0.0).unwrap(), 0.0);
}

/// Nothing but NaN comes out where nothing was written.
#[test]
fn a_state_that_is_not_written_is_noticed() {
    let mut g = Graph::new();
    let a = g.axis("a", 5).unwrap();
    let ty = aerogel_graph::Type::new(DType::F32, [a]);
    let (role, init) = (aerogel_graph::Role::Optimizer, aerogel_graph::Init::Constant(0.0));
    let s = g.state("s", ty, role, None, init).unwrap();
    let y = g.map(&[s], &|v| 2.0 * &v[0]).unwrap();
    g.output("y", y);
    let runner = Runner::new(Backend::Cpu).unwrap();
    let mut loaded = runner.load(alone(&g)).unwrap();
    let got = loaded.run(0, &Env::new(), Clock::default()).unwrap();
    assert!(numbers_of(DType::F32, &got["output y"]).iter().all(|x| x.is_nan()));
}
