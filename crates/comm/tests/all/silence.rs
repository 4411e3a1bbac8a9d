//! Ranks that do not come: those without a sign of life are named, others are waited for.

use super::common::*;
use aerogel_machine::{Collectives, CommError};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const TIMEOUT_MS: u64 = 800;

/// Runs all ranks; those that return without an error stay silently where they are until all
/// others have ended. Gives the errors, by rank.
fn run_with_silent(
    sizes: &[usize],
    rank: impl Fn(&dyn Collectives) -> Option<CommError> + Sync,
) -> Vec<(usize, CommError)> {
    let start = Instant::now();
    let (tell, told) = mpsc::channel();
    let mut errors = std::thread::scope(|s| {
        let (free, held) = mpsc::channel::<()>();
        let held = Arc::new(std::sync::Mutex::new(held));
        for tie in ties(sizes, TIMEOUT_MS) {
            let (tell, held, rank) = (tell.clone(), held.clone(), &rank);
            s.spawn(move || match rank(&tie) {
                Some(error) => drop(tell.send((tie.rank(), error))),
                None => {
                    drop(tell);
                    // Until the sender is dropped.
                    let _ = held.lock().unwrap().recv();
                }
            });
        }
        drop(tell);
        let errors: Vec<_> = told.iter().collect();
        drop(free);
        errors
    });
    assert!(start.elapsed() < Duration::from_millis(2 * TIMEOUT_MS), "{:?}", start.elapsed());
    errors.sort_by_key(|e| e.0);
    errors
}

#[test]
fn a_silent_rank_is_named_with_where_it_was_last_seen() {
    let errors = run_with_silent(&[3], |tie| {
        if tie.rank() == 1 {
            tie.progress(&"section micro.0 node 17 h0.mlp".into());
            return None;
        }
        Some(exchange(tie, &sum(&[0], 9, "h0.norm")).unwrap_err())
    });
    assert_eq!(errors.iter().map(|e| e.0).collect::<Vec<_>>(), [0, 2]);
    for (who, error) in errors {
        let CommError::Missing { missing: 1, rank, call, last, seconds } = error else {
            panic!("{error}")
        };
        assert_eq!((rank, &call[..]), (who, "all_reduce (sum) of 9 f32 over [data] at h0.norm"));
        assert!(last.starts_with("at section micro.0 node 17 h0.mlp, "), "{last}");
        assert!(seconds >= 0.8, "{seconds}");
    }
}

#[test]
fn who_is_behind_it_is_named_not_who_waits_himself() {
    // 0 waits for 1, which waits for a message of 2, which waits for 3, which never comes.
    let errors = run_with_silent(&[4], |tie| match tie.rank() {
        0 => Some(exchange(tie, &sum(&[0], 1, "loss")).unwrap_err()),
        1 => Some(tie.receive(2, 5, "stage 1", &mut [0; 4]).unwrap_err()),
        2 => Some(tie.receive(3, 6, "stage 2", &mut [0; 8]).unwrap_err()),
        _ => None,
    });
    assert_eq!(errors.len(), 3);
    for (_, error) in errors {
        let text = error.to_string();
        // Ranks 0 and 2 wait for it themselves, so either of the two may tell.
        assert!(text.contains("rank 3 did not come to "), "{text}");
        assert!(text.contains("it was last seen never, and the start was"), "{text}");
    }
}

#[test]
fn a_rank_that_makes_progress_is_waited_for() {
    run(ties(&[2], 500), |tie| {
        let site = Arc::from("node");
        if tie.rank() == 0 {
            for _ in 0..30 {
                std::thread::sleep(Duration::from_millis(50));
                tie.progress(&site);
            }
            tie.send(1, 0, "done", &[1]).unwrap();
        } else {
            tie.receive(0, 0, "waits", &mut [0]).unwrap();
        }
        exchange(&tie, &sum(&[0], 1, "loss")).unwrap();
    });
}

#[test]
fn groups_in_different_order_are_a_circle() {
    // Groups over the first axis: {0, 2}, {1, 3}; over the second: {0, 1}, {2, 3}.
    let errors = run_with_silent(&[2, 2], |tie| {
        let orders: [&[u8]; 2] =
            if [0, 3].contains(&tie.rank()) { [&[0], &[1]] } else { [&[1], &[0]] };
        let both = orders.iter().try_for_each(|over| exchange(tie, &sum(over, 2, "layer")));
        Some(both.unwrap_err())
    });
    assert_eq!(errors.len(), 4);
    for (_, error) in errors {
        let CommError::Mismatch { rank: 0, other: 2, got, wanted } = error else {
            panic!("{error}")
        };
        assert_eq!(got, "all_reduce (sum) of 2 f32 over [data] at layer");
        assert_eq!(wanted, "all_reduce (sum) of 2 f32 over [tensor] at layer");
    }
}

/// Rank 3 leaves out a call, so that rank 1 waits there for it, which then waits for rank 1.
#[test]
fn who_closes_the_circle_is_named() {
    let errors = run_with_silent(&[2, 2], |tie| {
        let calls = [sum(&[1], 2, "a"), sum(&[0], 2, "b"), sum(&[0, 1], 2, "c")];
        let mine = calls.iter().filter(|c| tie.rank() != 3 || *c.site != *"b");
        Some(mine.map(|call| exchange(tie, call)).find_map(Result::err).unwrap())
    });
    assert_eq!(errors.len(), 4);
    for (_, error) in errors {
        let CommError::Mismatch { rank: 1, other: 3, got, wanted } = error else {
            panic!("{error}")
        };
        assert!(got.ends_with("over [data] at b"), "{got}");
        assert!(wanted.ends_with("over [data tensor] at c"), "{wanted}");
    }
}

#[test]
fn messages_in_a_circle_are_found() {
    let errors = run_with_silent(&[3], |tie| {
        Some(tie.receive((tie.rank() + 1) % 3, 0, "first", &mut [0; 2]).unwrap_err())
    });
    assert_eq!(errors.len(), 3);
    for (_, error) in errors {
        assert!(matches!(error, CommError::Mismatch { rank: 0, other: 1, .. }), "{error}");
    }
}

#[test]
fn a_difference_is_judged_before_all_have_come() {
    let errors = run_with_silent(&[5], |tie| {
        let site = match tie.rank() {
            0 | 2 => "usual",
            1 => "odd",
            _ => return None,
        };
        Some(exchange(tie, &sum(&[0], 2, site)).unwrap_err())
    });
    assert_eq!(errors.len(), 3);
    for (_, error) in errors {
        assert!(matches!(error, CommError::Mismatch { rank: 1, other: 0, .. }), "{error}");
    }
}
