//! The device against the interpreter, with the parts that `aerogel selftest` is made of: a graph
//! is planned, loaded into an arena full of NaN, run twice on one, two and three threads, and every
//! output and state is compared.

use crate::ranks::Placed;
use aerogel_cpu::pool::Pool;
use aerogel_cpu::{CpuDevice, CpuTarget};
use aerogel_graph::{Build, Clock, Env, Graph};
use aerogel_machine::{Collectives, Machine, Program};
use aerogel_plan::{Ask, Plan, PlanError, plan};
use aerogel_train::selftest::reference;
use aerogel_train::selftest::runner::Loaded;
use std::sync::Arc;

pub use aerogel_train::selftest::reference::Reference;
pub use aerogel_train::selftest::rng::Rng;
pub use aerogel_train::selftest::runner::alone;
pub use aerogel_train::selftest::values::{Bytes, bytes_of, fill, numbers_of};

/// Plans sections for the CPU.
pub fn planned(asks: Vec<Ask>, threads: usize) -> Result<Plan, PlanError> {
    let machine = Machine::cpu(threads, 1 << 34);
    plan(asks, &CpuTarget::new(machine.clone()), &machine)
}

/// Plans and loads, as rank 0 of the mesh that the graphs know.
pub fn loaded(asks: Vec<Ask>, threads: usize) -> Result<Loaded, PlanError> {
    loaded_at(asks, threads, 0)
}

/// The same as one rank, which cannot exchange anything.
pub fn loaded_at(asks: Vec<Ask>, threads: usize, rank: usize) -> Result<Loaded, PlanError> {
    let ties = Placed { mesh: asks[0].graph.axes().mesh.clone(), rank };
    let program = Arc::new(planned(asks, threads)?.program);
    let pool = Arc::new(Pool::new(threads).expect("a few threads can be had"));
    Ok(loaded_tied(program, pool, Arc::new(ties)))
}

/// The same as one rank of several.
pub fn loaded_tied(program: Arc<Program>, pool: Arc<Pool>, ties: Arc<dyn Collectives>) -> Loaded {
    let device = CpuDevice::load_rank(program.clone(), pool, ties);
    let device = device.expect("a plan can be loaded");
    Loaded::new(Box::new(device), program).unwrap()
}

/// Asserts that the device computes what the interpreter does, whatever the threads.
pub fn check(what: &str, g: &Graph, env: &Env, clock: Clock) -> Bytes {
    check_near(what, g, env, clock, 1.0)
}

/// `check`, where what values are computed from is as large as `floor`.
pub fn check_near(what: &str, g: &Graph, env: &Env, clock: Clock, floor: f64) -> Bytes {
    let mut first: Option<Bytes> = None;
    let rank = g.axes().mesh.rank(clock.place);
    for threads in 1..=3 {
        let loaded = loaded_at(alone(g), threads, rank);
        let mut loaded = loaded.unwrap_or_else(|e| panic!("{what}: {e}"));
        // The second run finds the arena as the first one left it.
        for run in 0..2 {
            loaded.write_states(0, env).unwrap();
            let got = loaded.run(0, env, clock).unwrap();
            match &first {
                Some(first) => {
                    same_bits(&format!("{what}, {threads} threads, run {run}"), &got, first);
                }
                None => {
                    holds(what, Reference::new(g, env, clock, floor).agrees(env, &got));
                    first = Some(got);
                }
            }
        }
    }
    first.expect("it ran")
}

/// Asserts that two runs gave the same bits.
pub fn same_bits(what: &str, got: &Bytes, wanted: &Bytes) {
    holds(what, reference::same_bits(got, wanted));
}

/// Asserts that a comparison did not fail.
pub fn holds<T>(what: &str, result: Result<T, impl std::fmt::Display>) -> T {
    result.unwrap_or_else(|e| panic!("{what}: {e}"))
}
