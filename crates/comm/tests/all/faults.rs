//! A hundred faults: each ends on all ranks in time, with the rank named, and no thread is left.

use super::common::*;
use aerogel_comm::Tie;
use aerogel_comm::faults::{Fault, Faulty, Hold};
use aerogel_machine::{Call, Collectives, CommError, Merge, Pattern};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_millis(1000);

/// How long a fault may take to be known everywhere.
const LIMIT: Duration = Duration::from_millis(2000);

/// The same calls on all ranks.
struct Case {
    sizes: Vec<usize>,
    calls: Vec<Call>,
    /// Who fails, at which call.
    rank: usize,
    at: usize,
    kind: &'static str,
}

fn draw(seed: usize) -> Case {
    let mut draws = Draws(seed as u64 * 7919);
    let sizes = draws.pick(&[vec![2], vec![5], vec![2, 2], vec![3, 2], vec![2, 2, 2], vec![4, 2]]);
    let mesh = mesh(&sizes);
    let sums = Pattern::AllReduce(Merge::Sum);
    let patterns = [sums, Pattern::AllGather, Pattern::ReduceScatter, Pattern::Barrier];
    let calls: Vec<Call> = (0..24)
        .map(|i| {
            let elements = 8 * mesh.ranks() * draws.pick(&[1, 40]);
            let pattern = draws.pick(&patterns);
            let elements = if pattern == Pattern::Barrier { 0 } else { elements };
            let over = draws.over(&mesh);
            let over = if i == 10 { vec![0] } else { over };
            call(pattern, &over, elements, &format!("call {i}"))
        })
        .collect();
    let rank = draws.below(mesh.ranks());
    // A call that concerns others; number 10 does.
    let at = draws.below(11);
    let at = (at..).find(|&at| !calls[at].over.is_empty()).unwrap();
    let kind = ["stop", "die", "panic", "skip", "duplicate"][seed % 5];
    Case { sizes, calls, rank, at, kind }
}

/// The errors of all ranks that did not panic, and how long those took that were not held.
fn play(case: &Case, name: &str) -> (Vec<(usize, CommError)>, Duration) {
    let start = Instant::now();
    let hold = Hold::new();
    let (tell, told) = mpsc::channel();
    let ranks = case.sizes.iter().product::<usize>();
    let mut threads = vec![];
    for tie in ties(&case.sizes, TIMEOUT.as_millis() as u64) {
        let (tell, calls) = (tell.clone(), case.calls.clone());
        let fault = match case.kind {
            "stop" => Fault::Stop(hold.clone()),
            "die" => Fault::Die,
            "panic" => Fault::Panic,
            "skip" => Fault::Skip,
            _ => Fault::Duplicate,
        };
        let at = if tie.rank() == case.rank { case.at } else { usize::MAX };
        let thread = std::thread::Builder::new().name(format!("{name}-{}", tie.rank()));
        let work = move || {
            let tie: Faulty<Tie> = Faulty::new(tie, at as u64, fault);
            let result = calls.iter().try_for_each(|call| exchange(&tie, call));
            // A rank that thinks that all is well has nothing to say.
            let _ = tell.send((tie.rank(), result.err()));
        };
        threads.push(thread.spawn(work).unwrap());
    }
    drop(tell);
    let held = usize::from(case.kind == "stop" || case.kind == "panic");
    let mut ends: Vec<_> = told.iter().take(ranks - held).collect();
    let time = start.elapsed();
    hold.release();
    ends.extend(told.iter());
    let panics = threads.into_iter().filter_map(|t| t.join().err()).count();
    assert_eq!(panics, usize::from(case.kind == "panic"));
    let mut errors: Vec<_> = ends.into_iter().filter_map(|(r, e)| Some((r, e?))).collect();
    errors.sort_by_key(|e| e.0);
    (errors, time)
}

/// Whether an error puts the blame where it belongs.
fn blames(case: &Case, error: &CommError) -> bool {
    let faulty = case.rank;
    match error {
        CommError::Missing { missing, .. } => case.kind == "stop" && *missing == faulty,
        CommError::Gone { rank, reason, .. } if case.kind == "die" && *rank == faulty => {
            reason == "it finished" || reason == "an injected fault"
        }
        CommError::Gone { rank, reason, .. } if case.kind == "panic" => {
            *rank == faulty && reason == "it panicked"
        }
        // It waits for others at the end of its calls, or others wait for it at the end of theirs.
        CommError::Gone { rank, waiting, .. } => match case.kind {
            "skip" => *rank == faulty,
            "duplicate" => *waiting == faulty,
            _ => false,
        },
        CommError::Mismatch { rank, other, .. } => {
            ["skip", "duplicate"].contains(&case.kind) && (*rank == faulty || *other == faulty)
        }
        _ => false,
    }
}

fn check(seed: usize, name: &str) {
    let case = draw(seed);
    let (errors, time) = play(&case, name);
    let (rank, at, kind) = (case.rank, case.at, case.kind);
    let context = format!("case {seed}: {:?} rank {rank} {kind} at {at}: {errors:#?}", case.sizes);
    assert!(time < LIMIT, "{time:?} {context}");
    let mut found = vec![];
    for (_, error) in &errors {
        match error {
            CommError::Stopped { cause, .. } => found.push(cause.clone()),
            error => {
                assert!(blames(&case, error), "{context}");
            }
        }
    }
    let own =
        |e: &CommError| matches!(e, CommError::Gone { reason, .. } if reason.contains("fault"));
    let first = errors.iter().filter(|e| !matches!(e.1, CommError::Stopped { .. }));
    assert!(first.clone().any(|e| !own(&e.1)), "nobody found it: {context}");
    // All that were stopped tell the same cause, and it names the rank.
    found.dedup();
    assert!(found.len() <= 1, "{context}");
    assert!(found.iter().all(|c| c.contains(&format!("rank {rank} "))), "{context}");
}

#[test]
fn a_hundred_faults() {
    let lanes = 20;
    std::thread::scope(|s| {
        let lane = |lane: usize| {
            move || (lane..100).step_by(lanes).for_each(|seed| check(seed, &format!("fault{lane}")))
        };
        for n in 0..lanes {
            s.spawn(lane(n));
        }
    });
    // Threads of the kernel carry names of 15 bytes.
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return };
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
    let left: Vec<_> = tasks
        .filter_map(|task| name(task.ok()?))
        .filter(|name| name.starts_with("fault") && name.contains('-'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn without_a_fault_the_wrapper_does_nothing() {
    let calls = draw(0).calls;
    let sizes = draw(0).sizes;
    run(ties(&sizes, 5000), |tie| {
        let tie = Faulty::new(tie, 1_000_000, Fault::Die);
        calls.iter().for_each(|call| exchange(&tie, call).unwrap());
        assert!(!tie.happened());
        assert_eq!(tie.traffic().iter().map(|t| t.calls).sum::<u64>(), calls.len() as u64);
    });
}
