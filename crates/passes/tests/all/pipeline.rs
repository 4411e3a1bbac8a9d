//! Schedules against their published forms, the checker against a slow definition, the timeline
//! against the published bubbles, cuts against all cuts there are.

#[path = "pipeline/cut.rs"]
mod cut;
#[path = "pipeline/split.rs"]
mod split;
#[path = "pipeline/timeline.rs"]
mod timeline;

use std::collections::{BTreeMap, BTreeSet};

use aerogel_passes::pipeline::{
    Action, Defect, Kind, Pass, PipelineError, Schedule, check, schedule,
};

/// Lists in short form, one string a rank.
fn by_hand(chunks: usize, micros: usize, ranks: &[&str]) -> Schedule {
    let action = |word: &str| {
        let pass = match &word[..1] {
            "F" => Pass::Forward,
            "B" => Pass::Backward,
            _ => Pass::Weights,
        };
        let (micro, chunk) = word[1..].split_once('/').unwrap_or((&word[1..], "0"));
        Action { pass, chunk: chunk.parse().unwrap(), micro: micro.parse().unwrap() }
    };
    let lists = ranks.iter().map(|list| list.split_whitespace().map(action).collect()).collect();
    Schedule::new(chunks, micros, lists)
}

/// ZB-H1 in small: W fills what 1F1B leaves empty at the end.
fn zero_bubble() -> Schedule {
    by_hand(1, 3, &["F0 F1 B0 W0 F2 B1 W1 B2 W2", "F0 B0 F1 B1 W0 F2 B2 W1 W2"])
}

fn kinds() -> Vec<Kind> {
    let interleaved = (1..=4).map(|chunks| Kind::Interleaved { chunks });
    [Kind::GPipe, Kind::OneFOneB].into_iter().chain(interleaved).collect()
}

/// All published schedules up to 8 stages and 32 micro-batches.
fn published() -> Vec<(Kind, usize, usize, Schedule)> {
    let mut found = Vec::new();
    for kind in kinds() {
        for (stages, micros) in (1..=8).flat_map(|p| (1..=32).map(move |m| (p, m))) {
            let grouped = matches!(kind, Kind::Interleaved { .. });
            match schedule(kind, stages, micros) {
                Ok(s) => found.push((kind, stages, micros, s)),
                Err(e) => {
                    assert!(grouped && micros % stages != 0, "{kind} {stages} {micros}");
                    assert_eq!(e, PipelineError::Groups { stages, micros });
                }
            }
        }
    }
    found
}

#[test]
fn lists_are_those_of_the_papers() {
    for (kind, stages, micros, wanted) in [
        (Kind::GPipe, 2, 3, &["F0 F1 F2 B0 B1 B2"; 2][..]),
        (
            Kind::OneFOneB,
            4,
            5,
            &[
                "F0 F1 F2 F3 B0 F4 B1 B2 B3 B4",
                "F0 F1 F2 B0 F3 B1 F4 B2 B3 B4",
                "F0 F1 B0 F2 B1 F3 B2 F4 B3 B4",
                "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4",
            ],
        ),
        (
            Kind::Interleaved { chunks: 2 },
            2,
            4,
            &[
                "F0 F1 F0/1 F1/1 F2 B0/1 F3 B1/1 F2/1 B0 F3/1 B1 B2/1 B3/1 B2 B3",
                "F0 F1 F0/1 B0/1 F1/1 B1/1 F2 B0 F3 B1 F2/1 B2/1 F3/1 B3/1 B2 B3",
            ],
        ),
    ] {
        let got = schedule(kind, stages, micros).unwrap();
        assert_eq!(got, by_hand(kind.chunks(), micros, wanted), "{kind}");
        let words: Vec<String> = got.actions[0].iter().map(Action::to_string).collect();
        assert_eq!(words.join(" "), wanted[0], "{kind}");
    }
    let one_chunk = schedule(Kind::Interleaved { chunks: 1 }, 4, 8).unwrap();
    assert_eq!(one_chunk, schedule(Kind::OneFOneB, 4, 8).unwrap());
}

#[test]
fn published_schedules_can_be_run() {
    for (kind, stages, micros, s) in published() {
        let order = check(&s).unwrap_or_else(|e| panic!("{kind} {stages} {micros}: {e}"));
        assert_eq!(order.len(), 2 * micros * s.virtual_stages());
        if stages <= 4 && micros <= 12 {
            assert!(is_possible(&s), "{kind} {stages} {micros}");
        }
    }
    assert_eq!(check(&zero_bubble()).map(|order| order.len()), Ok(18));
    assert!(is_possible(&zero_bubble()));
}

#[test]
fn what_is_in_flight_is_as_published() {
    for (kind, p, m, s) in published() {
        for rank in 0..p {
            // Micro-batches in flight at once, over all chunks of a rank.
            let (mut now, mut most) = (BTreeSet::new(), 0);
            for a in &s.actions[rank] {
                let same_slot = |micro: usize| micro % s.slots(rank, a.chunk);
                if a.pass == Pass::Forward {
                    let mut others = now.iter().filter(|(chunk, _)| *chunk == a.chunk);
                    assert!(others.all(|(_, micro)| same_slot(*micro) != same_slot(a.micro)));
                    now.insert((a.chunk, a.micro));
                } else {
                    assert!(now.remove(&(a.chunk, a.micro)));
                }
                most = most.max(now.len());
            }
            let wanted = match kind {
                Kind::GPipe => m,
                Kind::OneFOneB | Kind::Interleaved { chunks: 1 } => m.min(p - rank),
                Kind::Interleaved { chunks: v } => {
                    (m * v).min(2 * (p - rank - 1) + (v - 1) * p + 1)
                }
            };
            assert_eq!(most, wanted, "{kind} {p} {m} rank {rank}");
            let slots: usize = (0..s.chunks).map(|chunk| s.slots(rank, chunk)).sum();
            assert!(slots >= most && (s.chunks > 1 || slots == most), "{kind} {p} {m} {rank}");
        }
    }
}

#[test]
fn messages_between_two_ranks_are_wanted_in_the_order_in_which_they_are_sent() {
    for (kind, p, m, s) in published() {
        // By sender and receiver, activations and gradients together.
        let (mut sent, mut wanted) = (BTreeMap::new(), BTreeMap::new());
        for rank in 0..p {
            for a in &s.actions[rank] {
                if let Some((to, b)) = s.target(rank, *a) {
                    assert_eq!(s.source(to, b), Some((rank, *a)));
                    sent.entry((rank, to)).or_insert(vec![]).push(b);
                }
                if let Some((from, _)) = s.source(rank, *a) {
                    wanted.entry((from, rank)).or_insert(vec![]).push(*a);
                }
            }
        }
        assert_eq!(sent, wanted, "{kind} {p} {m}");
    }
}

/// The rules of `check`, read off the positions in the lists, with deadlocks as circles in the
/// graph of who waits for whom.
fn is_possible(s: &Schedule) -> bool {
    let mut at = BTreeMap::new();
    for (rank, list) in s.actions.iter().enumerate() {
        for (i, a) in list.iter().enumerate() {
            if at.insert((rank, *a), i).is_some() || a.chunk >= s.chunks || a.micro >= s.micros {
                return false;
            }
        }
    }
    for (rank, chunk) in (0..s.stages()).flat_map(|r| (0..s.chunks).map(move |c| (r, c))) {
        let place = |pass, micro| at.get(&(rank, Action { pass, chunk, micro })).copied();
        let splits = (0..s.micros).any(|micro| place(Pass::Weights, micro).is_some());
        let passes: &[Pass] = match splits {
            true => &[Pass::Forward, Pass::Backward, Pass::Weights],
            false => &[Pass::Forward, Pass::Backward],
        };
        let places: Option<Vec<Vec<usize>>> =
            passes.iter().map(|pass| (0..s.micros).map(|m| place(*pass, m)).collect()).collect();
        let Some(places) = places else { return false };
        let ascends = places.iter().all(|of| of.is_sorted());
        let follows = places.windows(2).all(|two| two[0].iter().zip(&two[1]).all(|(a, b)| a < b));
        let slots = s.slots(rank, chunk);
        let ends = &places[passes.len() - 1];
        let shares = (0..s.micros)
            .any(|i| (i + 1..s.micros).any(|j| i % slots == j % slots && ends[i] > places[0][j]));
        if !ascends || !follows || shares {
            return false;
        }
    }
    // Nodes that are on the way and nodes that lead to no circle.
    fn is_free(
        s: &Schedule,
        node: (usize, usize),
        seen: &mut BTreeMap<(usize, usize), bool>,
    ) -> bool {
        if let Some(free) = seen.get(&node) {
            return *free;
        }
        seen.insert(node, false);
        let (rank, i) = node;
        let before = i.checked_sub(1).map(|i| (rank, i));
        let source = s
            .source(rank, s.actions[rank][i])
            .map(|(sender, a)| (sender, s.actions[sender].iter().position(|b| *b == a).unwrap()));
        let free = before.into_iter().chain(source).all(|node| is_free(s, node, seen));
        seen.insert(node, free);
        free
    }
    let mut seen = BTreeMap::new();
    (0..s.stages()).all(|rank| (0..s.actions[rank].len()).all(|i| is_free(s, (rank, i), &mut seen)))
}

/// Small schedules to damage.
fn victims() -> Vec<Schedule> {
    let mut victims = vec![zero_bubble()];
    for (kind, stages, micros) in [
        (Kind::GPipe, 2, 3),
        (Kind::OneFOneB, 3, 4),
        (Kind::OneFOneB, 1, 3),
        (Kind::Interleaved { chunks: 2 }, 2, 4),
        (Kind::Interleaved { chunks: 3 }, 1, 2),
    ] {
        victims.push(schedule(kind, stages, micros).unwrap());
    }
    victims
}

#[test]
fn lists_that_lack_or_repeat_an_action_are_refused() {
    for s in victims() {
        for (rank, i) in places(&s) {
            let mut lacks = s.clone();
            let action = lacks.actions[rank].remove(i);
            let invalid = |action, defect| Err(PipelineError::Invalid { rank, action, defect });
            // Without the only action of the weights, a stage would be one that has none.
            assert_eq!(check(&lacks), invalid(action, Defect::Missing));
            for to in 0..=s.actions[rank].len() {
                let mut repeats = s.clone();
                repeats.actions[rank].insert(to, action);
                assert_eq!(check(&repeats), invalid(action, Defect::Repeated { count: 2 }));
            }
            let mut other = s.clone();
            other.actions[rank][i].micro = s.micros;
            let (chunks, micros) = (s.chunks, s.micros);
            let unknown = Action { micro: s.micros, ..action };
            assert_eq!(check(&other), invalid(unknown, Defect::Unknown { chunks, micros }));
        }
    }
}

fn places(s: &Schedule) -> Vec<(usize, usize)> {
    (0..s.stages()).flat_map(|r| (0..s.actions[r].len()).map(move |i| (r, i))).collect()
}

#[test]
fn lists_in_another_order_are_refused_exactly_if_they_cannot_be_run() {
    let (mut refused, mut taken) = (0, 0);
    let mut compare = |s: &Schedule| {
        let got = check(s);
        assert_eq!(got.is_ok(), is_possible(s), "{:?}: {got:?}", s.actions);
        *if got.is_ok() { &mut taken } else { &mut refused } += 1;
        got.err()
    };
    for s in victims() {
        for ((rank, i), (other, j)) in
            places(&s).into_iter().flat_map(|a| places(&s).into_iter().map(move |b| (a, b)))
        {
            let (a, b) = (s.actions[rank][i], s.actions[other][j]);
            let mut swapped = s.clone();
            (swapped.actions[rank][i], swapped.actions[other][j]) = (b, a);
            let error = compare(&swapped);
            let related = (a.chunk == b.chunk && a.pass == b.pass) || a.micro == b.micro;
            if rank == other && a.chunk == b.chunk && a != b && related {
                assert!(error.is_some(), "{a} and {b} of rank {rank}");
            }
            if rank == other {
                let mut moved = s.clone();
                let action = moved.actions[rank].remove(i);
                moved.actions[rank].insert(j, action);
                compare(&moved);
                // As many slots as needed: what is left is the order of the chain.
                compare(&Schedule::new(s.chunks, s.micros, moved.actions));
            }
        }
    }
    // Several swaps of neighbours, drawn by a linear congruential generator.
    let mut state = 7_u64;
    let mut draw = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    for (kind, stages, micros) in
        [(Kind::OneFOneB, 4, 8), (Kind::GPipe, 4, 4), (Kind::Interleaved { chunks: 2 }, 4, 8)]
    {
        let s = schedule(kind, stages, micros).unwrap();
        for _ in 0..300 {
            let mut shaken = s.clone();
            for _ in 0..1 + draw(6) {
                let list = &mut shaken.actions[draw(stages)];
                let i = draw(list.len() - 1);
                list.swap(i, i + 1);
            }
            compare(&Schedule::new(s.chunks, s.micros, shaken.actions));
        }
    }
    assert!(refused > 4000 && taken > 800, "{refused} refused, {taken} taken");
}

#[test]
fn refusals_name_rank_action_and_reason() {
    for (lists, wanted) in [
        (
            ["F1 F0 B0 B1", "F0 F1 B0 B1"],
            "rank 0 cannot run F1: it is the turn of micro-batch 0; \
            each stage takes them in ascending order in each pass, so that gradients are summed \
            in one order",
        ),
        (
            ["F0 F1 B0 B1", "B0 F0 F1 B1"],
            "rank 1 cannot run B0: F0 of the same stage must come \
            first",
        ),
        (
            ["F0 W0 B0 F1 B1 W1", "F0 F1 B0 B1"],
            "rank 0 cannot run W0: B0 of the same stage must \
            come first",
        ),
        (["F0 F1 B0 B1 W1", "F0 F1 B0 B1"], "rank 0 cannot run W0: its list lacks it"),
        (["F0 F1 B0 B1", "F0 F1 B0 B1 F1"], "rank 1 cannot run F1: its list has it 2 times"),
        (
            ["F0 F1 B0 B1 B1/1", "F0 F1 B0 B1"],
            "rank 0 cannot run B1/1: the schedule has 1 chunks \
            and 2 micro-batches, each counted from 0",
        ),
        (
            ["F0 B0 F1 B1", "F0 F1 B0 B1"],
            "rank 0 cannot run B0: it waits for B0 of rank 1, whose \
            list has F1 before that, which waits as well: a deadlock",
        ),
    ] {
        let error = check(&by_hand(1, 2, &lists)).unwrap_err().to_string();
        assert_eq!(error, format!("pipeline: {wanted}"));
    }
    let mut s = by_hand(1, 2, &["F0 F1 B0 B1", "F0 B0 F1 B1"]);
    for (slots, holder) in [(1, 0), (0, 0)] {
        s.slots[0][0] = slots;
        let error = check(&s).unwrap_err().to_string();
        let wanted = format!("the chunk has {slots} slots, and micro-batch {holder} still holds");
        assert!(error.contains(&wanted), "{error}");
    }
    s.slots[0].pop();
    let wanted = PipelineError::Length { what: "slots by chunk", wanted: 1, got: 0 };
    assert_eq!(check(&s), Err(wanted));
    let empty = PipelineError::Zero { what: "stages" };
    assert_eq!(check(&by_hand(1, 2, &[])), Err(empty));
}

#[test]
fn counts_that_make_no_schedule_are_refused() {
    for (kind, stages, micros, wanted) in [
        (Kind::GPipe, 0, 4, "pipeline: the number of stages is 0; give at least 1"),
        (Kind::OneFOneB, 2, 0, "pipeline: the number of micro-batches is 0; give at least 1"),
        (
            Kind::Interleaved { chunks: 0 },
            2,
            4,
            "pipeline: the number of chunks is 0; give at least 1",
        ),
        (
            Kind::Interleaved { chunks: 2 },
            4,
            6,
            "pipeline: the interleaved schedule takes micro-batches in groups of 4, one for each \
             stage, and 6 are no multiple of that; change `batch` or `micro_batch`, or choose the \
             schedule 1f1b",
        ),
        (
            Kind::GPipe,
            1 << 40,
            1 << 40,
            "pipeline: 1099511627776 stages, 1 chunks and 1099511627776 micro-batches make more \
             than 16777216 actions; use fewer, larger micro-batches",
        ),
    ] {
        assert_eq!(schedule(kind, stages, micros).unwrap_err().to_string(), wanted);
    }
}
