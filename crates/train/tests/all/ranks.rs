//! A graph on all ranks of its mesh, each a device on a thread of its own, against the interpreter
//! running them in lockstep.

use crate::harness::{Bytes, Reference, alone, holds, loaded_tied, planned, same_bits};
use aerogel_comm::{Fabric, Options};
use aerogel_cpu::pool::Pool;
use aerogel_graph::{Clock, Env, Graph, Mesh, Rounding, Tensor, interpret_mesh};
use aerogel_machine::{Call, Collectives, CommError, Program, Traffic};
use aerogel_train::selftest::runner::Loaded;
use std::sync::Arc;
use std::time::Duration;

/// A rank that knows its place and has no way to the others.
pub struct Placed {
    pub mesh: Mesh,
    pub rank: usize,
}

impl Placed {
    fn refuse(&self, to: usize, call: &str) -> Result<(), CommError> {
        let (reason, call) = ("it was never started".to_owned(), call.to_owned());
        Err(CommError::Gone { rank: to, reason, waiting: self.rank, call })
    }
}

impl Collectives for Placed {
    fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn exchange(&self, call: &Call, _input: &[u8], _output: &mut [u8]) -> Result<(), CommError> {
        self.refuse(self.mesh.ranks(), &call.site)
    }

    fn send(&self, to: usize, _tag: u64, site: &str, _bytes: &[u8]) -> Result<(), CommError> {
        self.refuse(to, site)
    }

    fn receive(
        &self,
        from: usize,
        _tag: u64,
        site: &str,
        _bytes: &mut [u8],
    ) -> Result<(), CommError> {
        self.refuse(from, site)
    }

    fn leave(&self, _reason: &str) {}

    fn progress(&self, _site: &Arc<str>) {}

    fn traffic(&self) -> Vec<Traffic> {
        vec![]
    }

    fn held_bytes(&self) -> u64 {
        0
    }
}

/// Asserts that the devices of all ranks compute what the interpreter does, whatever the threads.
pub fn check_mesh(what: &str, g: &Graph, envs: &[Env], clock: Clock) -> Vec<Bytes> {
    let mut first: Option<Vec<Bytes>> = None;
    for threads in 1..=2 {
        let plan = planned(alone(g), threads).unwrap_or_else(|e| panic!("{what}: {e}"));
        let mut ranks = tied(&Arc::new(plan.program), threads);
        // The second run finds the arenas as the first one left them.
        for run in 0..2 {
            let got;
            (ranks, got) = run_all(ranks, 0, envs, clock);
            match &first {
                Some(first) => {
                    let what = format!("{what}, {threads} threads, run {run}");
                    got.iter().zip(first).for_each(|(got, first)| same_bits(&what, got, first));
                }
                None => {
                    all_agree(what, g, envs, clock, &got);
                    first = Some(got);
                }
            }
        }
    }
    first.expect("it ran")
}

/// All ranks of a program's mesh, in arenas full of NaN.
pub fn tied(program: &Arc<Program>, threads: usize) -> Vec<Loaded> {
    let pool = Arc::new(Pool::new(threads).expect("a few threads can be had"));
    let options = Options { timeout: Duration::from_secs(20) };
    Fabric::new(program.sections[0].axes().mesh.clone(), options)
        .into_iter()
        .map(|tie| loaded_tied(program.clone(), pool.clone(), Arc::new(tie)))
        .collect()
}

/// Runs a section on every rank. A rank that panics takes its tie with it, so that the others do
/// not wait for it.
pub fn run_all(
    ranks: Vec<Loaded>,
    section: usize,
    envs: &[Env],
    clock: Clock,
) -> (Vec<Loaded>, Vec<Bytes>) {
    std::thread::scope(|scope| {
        let start = |(mut rank, env): (Loaded, _)| {
            scope.spawn(move || {
                rank.write_states(section, env).unwrap();
                let got = rank.run(section, env, clock).unwrap();
                (rank, got)
            })
        };
        let threads: Vec<_> = ranks.into_iter().zip(envs).map(start).collect();
        threads.into_iter().map(|t| t.join().expect("the rank has run")).unzip()
    })
}

fn all_agree(what: &str, g: &Graph, envs: &[Env], clock: Clock, got: &[Bytes]) {
    let [declared, exact] = [Rounding::Declared, Rounding::Exact].map(|mode| {
        let runs = interpret_mesh(g, envs, clock, mode).expect("all is given");
        runs.into_iter().map(|run| run.values).collect::<Vec<Vec<Tensor>>>()
    });
    for (rank, (declared, exact)) in declared.into_iter().zip(exact).enumerate() {
        let reference = Reference::of(g, [declared, exact], 1.0);
        holds(&format!("{what}, rank {rank}"), reference.agrees(&envs[rank], &got[rank]));
    }
}
