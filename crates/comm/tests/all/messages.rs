//! Messages between two ranks: order, sizes, buffers.

use super::common::*;
use aerogel_machine::{Collectives, CommError};
use std::time::Duration;

#[test]
fn order_holds_under_one_tag_and_tags_overtake() {
    run(ties(&[2], 20_000), |tie| {
        if tie.rank() == 0 {
            for (tag, byte) in [(7, 1), (9, 2), (7, 3), (9, 4)] {
                tie.send(1, tag, "forward", &[byte; 3]).unwrap();
            }
            return;
        }
        let mut got = vec![];
        for tag in [9, 7, 7, 9] {
            let mut bytes = [0; 3];
            tie.receive(0, tag, "forward", &mut bytes).unwrap();
            got.push(bytes[0]);
        }
        assert_eq!(got, [2, 1, 3, 4]);
    });
}

#[test]
fn messages_pass_while_the_other_rank_is_in_an_exchange() {
    run(ties(&[2], 20_000), |tie| {
        let other = 1 - tie.rank();
        if tie.rank() == 0 {
            tie.send(other, 0, "early", b"first").unwrap();
            exchange(&tie, &sum(&[0], 300, "both")).unwrap();
        } else {
            exchange(&tie, &sum(&[0], 300, "both")).unwrap();
            let mut bytes = [0; 5];
            tie.receive(other, 0, "late", &mut bytes).unwrap();
            assert_eq!(&bytes, b"first");
        }
    });
}

#[test]
fn what_a_rank_sent_outlives_it() {
    let mut both = ties(&[2], 20_000);
    let (one, zero) = (both.pop().unwrap(), both.pop().unwrap());
    zero.send(1, 5, "last words", &[42]).unwrap();
    drop(zero);
    let mut byte = [0];
    one.receive(0, 5, "heir", &mut byte).unwrap();
    assert_eq!(byte, [42]);
    let error = one.receive(0, 5, "heir", &mut byte).unwrap_err();
    assert!(matches!(error, CommError::Gone { rank: 0, waiting: 1, .. }), "{error}");
}

#[test]
fn buffers_are_used_again() {
    let ring = 5;
    let held = run(ties(&[ring], 20_000), |tie| {
        let (to, from) = ((tie.rank() + 1) % ring, (tie.rank() + ring - 1) % ring);
        for i in 0..50u8 {
            // Two sizes, at most two of the larger one under way.
            for (tag, size) in [(1, 1000), (2, 1000), (3, 10)] {
                tie.send(to, tag, "ring", &vec![i + tie.rank() as u8; size]).unwrap();
            }
            for (tag, size) in [(3, 10), (2, 1000), (1, 1000)] {
                let mut bytes = vec![0; size];
                tie.receive(from, tag, "ring", &mut bytes).unwrap();
                assert!(bytes.iter().all(|&b| b == i + from as u8), "{bytes:?}");
            }
            exchange(&tie, &sum(&[0], 1, "step")).unwrap();
        }
        tie.held_bytes()
    });
    assert_eq!(held, vec![2010; ring]);
}

#[test]
fn a_rank_may_send_to_itself() {
    let tie = ties(&[], 100).pop().unwrap();
    tie.send(0, 3, "here", &[1, 2]).unwrap();
    let mut bytes = [0; 2];
    tie.receive(0, 3, "here", &mut bytes).unwrap();
    assert_eq!(bytes, [1, 2]);
}

#[test]
fn another_size_than_was_sent_is_told_with_both_sites() {
    let errors = run(ties(&[2], 20_000), |tie| {
        if tie.rank() == 0 {
            tie.send(1, 0, "stage 0", &[0; 8]).unwrap();
            return exchange(&tie, &sum(&[0], 1, "end")).unwrap_err();
        }
        // After the other one blocks, so that it hears of it.
        std::thread::sleep(Duration::from_millis(20));
        tie.receive(0, 0, "stage 1", &mut [0; 4]).unwrap_err()
    });
    let CommError::Mismatch { rank: 0, got, other: 1, wanted } = &errors[1] else {
        panic!("{}", errors[1])
    };
    assert_eq!(got, "send of 8 bytes to rank 1 (tag 0) at stage 0");
    assert_eq!(wanted, "receive of 4 bytes from rank 0 (tag 0) at stage 1");
    let CommError::Stopped { rank: 0, cause } = &errors[0] else { panic!("{}", errors[0]) };
    assert_eq!(*cause, errors[1].to_string());
}

#[test]
fn ranks_that_are_not_there_are_told() {
    for send in [true, false] {
        let tie = ties(&[2], 100).remove(0);
        let error = match send {
            true => tie.send(2, 0, "far", &[]).unwrap_err(),
            false => tie.receive(2, 0, "far", &mut []).unwrap_err(),
        };
        assert!(matches!(&error, CommError::Gone { rank: 2, waiting: 0, .. }), "{error}");
        assert!(error.to_string().contains("there are 2 ranks"), "{error}");
    }
}

#[test]
fn nobody_sends_to_a_rank_that_left() {
    let mut both = ties(&[2], 100);
    both.pop().unwrap().leave("its data ended");
    let error = both[0].send(1, 0, "late", &[1]).unwrap_err();
    assert!(error.to_string().contains("rank 1 is gone (its data ended)"), "{error}");
}
