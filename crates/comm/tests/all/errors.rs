//! Ranks that are out of step, and ranks that end: named at once, and everybody stops.

use super::common::*;
use aerogel_graph::DType;
use aerogel_machine::{Call, Collectives, CommError, Merge, Pattern};
use std::time::{Duration, Instant};

/// Long enough that no test of this file waits for it.
const NEVER_MS: u64 = 60_000;

fn soon(start: Instant) {
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

/// Errors of four ranks, one of which comes to another call, this long after the others.
fn odd_one_out(odd: usize, delay_ms: i64, usual: &Call, other: &Call) -> Vec<CommError> {
    run(ties(&[4], NEVER_MS), |tie| {
        let is_odd = tie.rank() == odd;
        if (delay_ms > 0) == is_odd {
            std::thread::sleep(Duration::from_millis(delay_ms.unsigned_abs()));
        }
        exchange(&tie, if is_odd { other } else { usual }).unwrap_err()
    })
}

#[test]
fn every_difference_is_found_and_the_minority_named() {
    let start = Instant::now();
    let usual = sum(&[0], 12, "layer 1");
    let others = [
        Call { pattern: Pattern::AllReduce(Merge::Max), ..usual.clone() },
        Call { pattern: Pattern::AllGather, ..usual.clone() },
        Call { dtype: DType::Bf16, ..usual.clone() },
        Call { elements: 16, ..usual.clone() },
        Call { rows: 3, ..usual.clone() },
        Call { site: "layer 2".into(), ..usual.clone() },
    ];
    for (i, other) in others.iter().enumerate() {
        let odd = i % 4;
        for delay_ms in [-10, 10] {
            for error in odd_one_out(odd, delay_ms, &usual, other) {
                let CommError::Mismatch { rank, got, other: fellow, wanted } = &error else {
                    panic!("{error}")
                };
                assert_eq!(*rank, odd, "{error}");
                assert_ne!(*fellow, odd, "{error}");
                assert_eq!(wanted, "all_reduce (sum) of 12 f32 over [data] at layer 1");
                assert_ne!(got, wanted);
            }
        }
    }
    soon(start);
}

#[test]
fn of_two_both_are_named() {
    let calls = [
        call(Pattern::Broadcast { root: 0 }, &[0], 3, "here"),
        Call { rows: 2, ..call(Pattern::AllGather, &[0], 8, "there") },
    ];
    let errors = run(ties(&[2], NEVER_MS), |tie| exchange(&tie, &calls[tie.rank()]).unwrap_err());
    assert_eq!(errors[0], errors[1]);
    assert_eq!(
        errors[0].to_string(),
        "rank 1 came to all_gather of 8 f32 in 2 rows over [data] at there, while rank 0 came to \
         broadcast (from member 0) of 3 f32 over [data] at here: every rank of a group must run \
         the same collectives in the same order"
    );
}

#[test]
fn a_rank_that_ends_is_told_to_those_who_wait_and_who_come_later() {
    for late in [false, true] {
        for how in ["it finished", "it panicked", "the disk is full"] {
            let start = Instant::now();
            let mut ties = ties(&[3], NEVER_MS);
            let two = ties.pop().unwrap();
            let leave = move || match how {
                "it finished" => drop(two),
                "it panicked" => {
                    let rank = std::thread::spawn(move || {
                        let _tie = two;
                        panic!("on purpose");
                    });
                    assert!(rank.join().is_err());
                }
                reason => two.leave(reason),
            };
            let (before, after) = if late { (Some(leave), None) } else { (None, Some(leave)) };
            before.into_iter().for_each(|leave| leave());
            let after = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(10));
                after.into_iter().for_each(|leave| leave());
            });
            let errors = run(ties, |tie| exchange(&tie, &sum(&[0], 2, "norm")).unwrap_err());
            after.join().unwrap();
            let gone = |e: &&CommError| matches!(e, CommError::Gone { rank: 2, .. });
            assert!(errors.iter().any(|e| gone(&e)), "{errors:?}");
            for (rank, error) in errors.iter().enumerate() {
                let text = error.to_string();
                assert!(text.contains(&format!("rank 2 is gone ({how})")), "{text}");
                assert!(text.contains("all_reduce (sum) of 2 f32 over [data] at norm"), "{text}");
                if let CommError::Gone { waiting, .. } = error {
                    assert_eq!(*waiting, rank);
                }
            }
            soon(start);
        }
    }
}

#[test]
fn everybody_stops_wherever_they_are() {
    let start = Instant::now();
    let errors = run(ties(&[3, 2], NEVER_MS), |tie| {
        std::thread::sleep(Duration::from_millis(5 * tie.rank() as u64));
        let error = match tie.rank() {
            // Groups over the last axis are {0, 1}, {2, 3}, {4, 5}.
            0 => exchange(&tie, &sum(&[1], 5, "waits")).unwrap_err(),
            1 => tie.receive(4, 0, "waits too", &mut [0; 4]).unwrap_err(),
            2 => exchange(&tie, &sum(&[1], 5, "one")).unwrap_err(),
            3 => exchange(&tie, &sum(&[1], 5, "another")).unwrap_err(),
            4 => {
                std::thread::sleep(Duration::from_millis(60));
                exchange(&tie, &sum(&[], 5, "alone")).unwrap_err()
            }
            _ => {
                std::thread::sleep(Duration::from_millis(60));
                tie.send(0, 0, "late", &[1]).unwrap_err()
            }
        };
        // And it stays so.
        let later = exchange(&tie, &sum(&[1], 5, "later")).unwrap_err();
        assert!(matches!(later, CommError::Stopped { .. }), "{later}");
        error
    });
    for (rank, error) in errors.iter().enumerate() {
        match error {
            CommError::Mismatch { rank: 3, other: 2, .. } => assert!(rank == 2 || rank == 3),
            CommError::Stopped { rank: teller, cause } => {
                assert_eq!(teller, &rank);
                assert_eq!(*cause, errors[2].to_string());
            }
            other => panic!("{other}"),
        }
    }
    soon(start);
}

#[test]
fn buffers_and_calls_that_do_not_fit_are_refused() {
    let usual = sum(&[0], 4, "here");
    let bad = |call: Call, input: usize, output: usize, wanted: &str| {
        let tie = ties(&[2], NEVER_MS).remove(0);
        let error = tie.exchange(&call, &vec![0; input], &mut vec![0; output]).unwrap_err();
        assert!(matches!(error, CommError::Size { .. }), "{error}");
        assert!(error.to_string().ends_with(wanted), "{error}");
        assert!(tie.send(0, 0, "", &[]).is_err());
    };
    bad(usual.clone(), 15, 16, "here: wanted 16 bytes of input, got 15");
    bad(usual.clone(), 16, 17, "here: wanted 16 bytes of output, got 17");
    let gather = Call { pattern: Pattern::AllGather, rows: 2, ..usual.clone() };
    bad(gather.clone(), 16, 16, "here: wanted 32 bytes of output, got 16");
    let pieces = "bytes of input in equal rows and pieces, got";
    bad(Call { rows: 3, ..gather.clone() }, 16, 32, &format!("24 {pieces} 16"));
    bad(Call { rows: 0, ..gather }, 16, 32, &format!("0 {pieces} 16"));
    let scatter = Call { pattern: Pattern::ReduceScatter, elements: 5, ..usual.clone() };
    bad(scatter, 20, 8, &format!("24 {pieces} 20"));
    let tokens = Call { dtype: DType::U32, ..usual.clone() };
    bad(tokens, 16, 16, "0 bytes of u32 (floats alone can be merged), got 16");
    let root = Call { pattern: Pattern::Broadcast { root: 2 }, ..usual.clone() };
    bad(root, 16, 16, "0 bytes of a root that the group does not have, got 16");
    for over in [vec![1], vec![0, 0]] {
        let what = "a group along axes that the mesh does not have, or has once";
        bad(Call { over, ..usual.clone() }, 16, 16, &format!("0 bytes of {what}, got 16"));
    }
    bad(Call { elements: usize::MAX, ..usual }, 16, 16, "got 16");
}
