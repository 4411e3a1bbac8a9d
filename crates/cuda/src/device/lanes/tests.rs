use super::*;
use std::collections::HashSet;

/// Reads and writes of 64 bytes each, at these places.
fn work(reads: &[u64], writes: &[u64]) -> Work {
    let ranges = |list: &[u64]| list.iter().map(|at| 64 * at..64 * at + 64).collect();
    Work { reads: ranges(reads), writes: ranges(writes), bytes: 6000, flops: 0 }
}

fn long(reads: &[u64], writes: &[u64]) -> Work {
    Work { bytes: 1 << 30, ..work(reads, writes) }
}

/// For each step those that are over before it begins, as streams and marks order them.
fn before(turns: &[Turn]) -> Vec<HashSet<usize>> {
    let mut list: Vec<HashSet<usize>> = vec![];
    for (i, turn) in turns.iter().enumerate() {
        let last = (0..i).rev().find(|&j| turns[j].lane == turn.lane);
        let mut own = HashSet::new();
        for j in last.into_iter().chain(turn.after.iter().copied()) {
            assert!(j < i, "step {i} follows {j}, which has not been enqueued");
            own.insert(j);
            own.extend(&list[j]);
        }
        list.push(own);
    }
    list
}

fn holds(list: &[Work]) -> Vec<Turn> {
    let turns = deal(list);
    assert_eq!(turns.len(), list.len());
    let before = before(&turns);
    for i in 0..list.len() {
        assert!(turns[i].lane < LANES);
        for j in 0..i {
            let ordered = list[i].meets(&list[j]) || list[i].is_long() || list[j].is_long();
            assert!(!ordered || before[i].contains(&j), "steps {j} and {i} run side by side");
        }
    }
    turns
}

fn lanes(turns: &[Turn]) -> Vec<usize> {
    turns.iter().map(|t| t.lane).collect()
}

#[test]
fn independent_steps_take_all_lanes_in_turn() {
    let list: Vec<Work> = (0..12).map(|i| work(&[], &[i])).collect();
    let wanted: Vec<usize> = (0..12).map(|i| i % LANES).collect();
    let turns = holds(&list);
    assert_eq!(lanes(&turns), wanted);
    assert!(turns.iter().all(|t| t.after.is_empty()));
}

#[test]
fn a_chain_stays_in_one_lane() {
    let list: Vec<Work> = (0..9).map(|i| work(&[i], &[i + 1])).collect();
    assert!(holds(&list).iter().all(|t| *t == Turn::default()));
}

#[test]
fn long_steps_stay_on_the_sections_own_stream() {
    let list: Vec<Work> = (0..9).map(|i| long(&[], &[i])).collect();
    assert!(holds(&list).iter().all(|t| *t == Turn::default()));
}

/// As in clipping: a sum of each bucket and of all, then an update of each that reads the norm.
#[test]
fn readers_of_one_result_spread_over_the_lanes() {
    let sums = (0..20).map(|i| work(&[i], &[100 + i]));
    let all: Vec<u64> = (100..120).collect();
    let norm = [work(&all, &[200])];
    let updates = (0..20).map(|i| work(&[i, 200], &[300 + i]));
    let turns = holds(&sums.chain(norm).chain(updates).collect::<Vec<_>>());
    assert_eq!(turns[20].after.len(), LANES - 1);
    for lane in 0..LANES {
        assert_eq!(turns[21..].iter().filter(|t| t.lane == lane).count(), 20 / LANES);
    }
    // Each lane waits for the norm once, and its own not at all.
    let waits: Vec<usize> = turns[21..].iter().flat_map(|t| t.after.clone()).collect();
    assert_eq!(waits, [20; LANES - 1]);
}

#[test]
fn what_one_reads_and_another_writes_over_is_ordered() {
    // A shared workspace, an operand that is written over, two that only read.
    let turns = holds(&[work(&[0], &[1, 9]), work(&[0], &[2, 9]), work(&[], &[0])]);
    assert_eq!(lanes(&turns)[..2], [0, 0]);
    let readers = holds(&[work(&[0], &[1]), work(&[0], &[2])]);
    assert_eq!(lanes(&readers), [0, 1]);
}

#[test]
fn any_steps_that_meet_are_ordered() {
    let mut state = 1u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    for round in 0..200 {
        // From steps that nearly all meet to steps that hardly do.
        let places = [4, 30, 200, 1000][round % 4];
        let list: Vec<Work> = (0..60)
            .map(|_| {
                let reads: Vec<u64> = (0..draw(4)).map(|_| draw(places)).collect();
                let writes: Vec<u64> = (0..1 + draw(2)).map(|_| draw(places)).collect();
                let own = work(&reads, &writes);
                match draw(12) {
                    0 => Work { bytes: 1 << 30, ..own },
                    _ => Work { bytes: draw(20 << 20), ..own },
                }
            })
            .collect();
        holds(&list);
    }
}

#[test]
fn a_full_window_begins_anew() {
    let list: Vec<Work> = (0..2 * WINDOW as u64 + 9).map(|i| work(&[], &[i % 2000])).collect();
    let turns = holds(&list);
    let fence = &turns[WINDOW];
    assert_eq!(fence.after.len(), LANES - 1);
}
