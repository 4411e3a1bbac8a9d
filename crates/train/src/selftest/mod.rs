//! Whether a device computes what it should, on this machine: what `aerogel selftest` runs.
//!
//! Read [`selftest`] first. Graphs of random shapes are planned and loaded as those of a run are,
//! into memory full of NaN; each runs twice, which has to give the same bits, and is compared with
//! the interpreter in f64, or, where that would take long, with the CPU in f32 and primitive ops.
//! Bounds follow from the dtype and the length of sums. A case is a function of the seed and its
//! number alone, so that one that fails can be run again by itself.

mod attention;
#[doc(hidden)]
pub mod cases;
#[doc(hidden)]
pub mod exact;
mod failure;
#[doc(hidden)]
pub mod graphs;
mod models;
#[doc(hidden)]
pub mod ops;
#[doc(hidden)]
pub mod parity;
mod products;
#[doc(hidden)]
pub mod reference;
#[doc(hidden)]
pub mod rng;
mod rows;
#[doc(hidden)]
pub mod runner;
mod shared;
mod suite;
#[doc(hidden)]
pub mod values;
#[doc(hidden)]
pub mod world;

pub use failure::Failure;

use crate::backend::Backend;
use crate::error::TrainError;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;
use suite::{Bench, Case};

/// What to hold to what.
#[derive(Clone, Debug)]
pub struct SelfTest {
    /// The device.
    pub backend: Backend,
    /// Of shapes and numbers.
    pub seed: u64,
    /// Cases of each group; else as many as take about a minute on a CPU in all.
    pub cases: Option<usize>,
    /// Only the group of this name.
    pub only: Option<String>,
}

/// A kind of cases.
struct Group {
    name: &'static str,
    about: &'static str,
    /// Cases where nobody asks for a number of them.
    usual: usize,
    case: fn(u64, usize) -> Case,
}

const GROUPS: [Group; 13] = [
    Group { name: "ops", about: "every op and its gradients", usual: 140, case: ops::case },
    Group { name: "graphs", about: "random graphs", usual: 150, case: ops::graph_case },
    Group {
        name: "products",
        about: "products with chains of maps",
        usual: 84,
        case: products::case,
    },
    Group {
        name: "shared",
        about: "linear layers of one value, and back",
        usual: 42,
        case: shared::case,
    },
    Group {
        name: "attention",
        about: "attention of every pattern, and back",
        usual: 110,
        case: attention::case,
    },
    Group {
        name: "norms",
        about: "norms of residual sums, and back",
        usual: 42,
        case: rows::norm_case,
    },
    Group {
        name: "linear_ce",
        about: "output layers with cross entropy, and back",
        usual: 24,
        case: rows::loss_case,
    },
    Group { name: "rows", about: "embeddings, and back", usual: 24, case: rows::embedding_case },
    Group { name: "update", about: "AdamW with clipping", usual: 16, case: rows::update_case },
    Group {
        name: "decode",
        about: "one token of small models",
        usual: 12,
        case: models::decode_case,
    },
    Group { name: "models", about: "three steps of small models", usual: 8, case: models::case },
    Group {
        name: "exact",
        about: "recomputation and the like, which change no bit",
        usual: exact::COMBINATIONS,
        case: exact::case,
    },
    Group {
        name: "parity",
        about: "ten steps of small models beside PyTorch's",
        usual: parity::CASES,
        case: parity::case,
    },
];

/// One case that has run.
#[derive(Debug)]
pub struct Done {
    /// Its group.
    pub group: &'static str,
    /// Its number within the group, from 0.
    pub number: usize,
    /// What sets it apart.
    pub name: String,
    /// The largest error in parts of its bound: 1 or less.
    pub result: Result<f64, Failure>,
    /// Wall time.
    pub seconds: f64,
}

/// Whether all cases were run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All of them.
    Whole,
    /// Not those after one that broke the device.
    Lost,
}

/// Names of the groups and what they are, in their order.
pub fn groups() -> impl Iterator<Item = (&'static str, &'static str)> {
    GROUPS.iter().map(|g| (g.name, g.about))
}

/// Runs all cases that are asked for and tells of each. One that fails does not stop the others,
/// unless the device is lost.
///
/// # Errors
/// The device is not there, or there is no such group.
pub fn selftest(ask: &SelfTest, tell: &mut dyn FnMut(Done)) -> Result<Ended, TrainError> {
    let is_meant = |g: &&Group| ask.only.as_deref().is_none_or(|name| name == g.name);
    if !GROUPS.iter().any(|g| is_meant(&g)) {
        let names: Vec<&str> = GROUPS.iter().map(|g| g.name).collect();
        return Err(TrainError::Contradiction {
            what: format!("there is no group `{}`", ask.only.as_deref().unwrap_or_default()),
            advice: format!("choose one of {}", names.join(", ")),
        });
    }
    let all: Vec<(&Group, usize)> = GROUPS
        .iter()
        .filter(is_meant)
        .flat_map(|g| (0..ask.cases.unwrap_or(g.usual)).map(move |number| (g, number)))
        .collect();
    // Most of a GPU's time goes to compiling, which cases do side by side.
    let workers = match ask.backend {
        Backend::Cpu => 1,
        Backend::Cuda => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let benches: Vec<Bench> =
        (0..workers).map(|_| Bench::new(ask.backend)).collect::<Result<_, _>>()?;
    Ok(run_all(ask.seed, &all, benches, tell))
}

/// Runs cases on as many threads as there are benches, and tells of them in order.
fn run_all(
    seed: u64,
    all: &[(&Group, usize)],
    benches: Vec<Bench>,
    tell: &mut dyn FnMut(Done),
) -> Ended {
    let next = AtomicUsize::new(0);
    let (send, receive) = mpsc::channel();
    let work = |bench: Bench, send: mpsc::Sender<(usize, Done)>| {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(&(group, number)) = all.get(at) else { return };
            // The receiver may have heard of a lost device.
            if send.send((at, run_one(seed, group, number, &bench))).is_err() {
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for bench in benches {
            let (work, send) = (&work, send.clone());
            scope.spawn(move || work(bench, send));
        }
        drop(send);
        let (mut waiting, mut told) = (BTreeMap::new(), 0);
        for (at, done) in receive {
            waiting.insert(at, done);
            while let Some(done) = waiting.remove(&told) {
                told += 1;
                let is_lost = done.result.as_ref().is_err_and(Failure::is_lost);
                tell(done);
                if is_lost {
                    next.store(all.len(), Ordering::Relaxed);
                    return Ended::Lost;
                }
            }
        }
        Ended::Whole
    })
}

fn run_one(seed: u64, group: &Group, number: usize, bench: &Bench) -> Done {
    let started = Instant::now();
    let case = (group.case)(seed, number);
    let (name, run) = (case.name, case.run);
    let result = catch_unwind(AssertUnwindSafe(|| run(bench)));
    let result = result.unwrap_or_else(|panic| Err(Failure::panicked(panic.as_ref())));
    Done { group: group.name, number, name, result, seconds: started.elapsed().as_secs_f64() }
}
