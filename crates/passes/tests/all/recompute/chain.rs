//! Schedules of chains against a simulator, an independent program, a closed form and a search of
//! all orders of actions.

use aerogel_passes::recompute::chain::{Action, Keep, Schedule, Segment, keep_all};
use aerogel_passes::recompute::{TooSmall, least_bytes, optimal};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Carries a schedule out: all is there when it is read, and FLOPs and peak are as claimed.
fn simulate(chain: &[Segment], schedule: &Schedule) {
    let n = chain.len();
    let (mut ran, mut held, mut output) = (vec![false; n], vec![false; n], vec![false; n]);
    let mut saved = vec![Keep::Nothing; n];
    let (mut flops, mut peak, mut left) = (0, 0, n);
    for action in &schedule.actions {
        let (Action::Forward { segment: i, .. }
        | Action::Replay { segment: i }
        | Action::Backward { segment: i }) = *action;
        assert!(i == 0 || output[i - 1], "{action:?}: the input is not there");
        match *action {
            Action::Forward { keep, .. } => {
                flops += match keep {
                    _ if !ran[i] => 0,
                    Keep::Lean => chain[i].lean.unwrap().again_flops,
                    Keep::All => chain[i].all.again_flops,
                    _ => chain[i].forward_flops,
                };
                (ran[i], held[i], output[i], saved[i]) = (true, keep != Keep::Nothing, true, keep);
            }
            Action::Replay { .. } => {
                flops += match saved[i] {
                    Keep::Lean => chain[i].lean.unwrap().extra_flops,
                    _ => chain[i].replay_flops,
                };
                // Unless the segment was kept, its output belongs to nobody but its own backward.
                saved[i] = Keep::All;
                output[i] |= chain[i].reads_output;
            }
            Action::Backward { .. } => {
                assert_eq!(i + 1, left, "the backward goes from the last segment to the first");
                assert_eq!(saved[i], Keep::All, "{action:?}: not all that it reads is there");
                assert!(output[i] || !chain[i].reads_output, "{action:?}: its output is gone");
                left = i;
            }
        }
        peak = peak.max(held_bytes(chain, &output, &saved));
        match *action {
            Action::Forward { .. } if i > 0 => output[i - 1] &= held[i - 1],
            Action::Backward { .. } => {
                (saved[i], output[i]) = (Keep::Nothing, false);
                if i > 0 {
                    let kept = matches!(saved[i - 1], Keep::Lean | Keep::All);
                    output[i - 1] &= kept && chain[i - 1].reads_output;
                }
            }
            _ => {}
        }
    }
    assert_eq!(left, 0, "every backward has run");
    assert_eq!((flops, peak), (schedule.recomputed_flops, schedule.peak_bytes));
}

fn held_bytes(chain: &[Segment], output: &[bool], saved: &[Keep]) -> u64 {
    let of = |(i, s): (usize, &Segment)| {
        let inner = match saved[i] {
            Keep::Lean => s.lean.unwrap().bytes,
            Keep::All => s.all.bytes,
            _ => 0,
        };
        inner + if output[i] { s.boundary_bytes } else { 0 }
    };
    chain.iter().enumerate().map(of).sum()
}

type Memo = HashMap<(bool, usize, usize, u64), Option<u64>>;

/// The fewest FLOPs for segments s..=t with `m` bytes, from the definition of the three choices.
fn fewest(
    chain: &[Segment],
    (first, s, t): (bool, usize, usize),
    m: u64,
    memo: &mut Memo,
) -> Option<u64> {
    if let Some(known) = memo.get(&(first, s, t, m)) {
        return *known;
    }
    let a = chain[s];
    let own = a.all.bytes + if a.reads_output { a.boundary_bytes } else { 0 };
    let mut best: Option<u64> = None;
    let mut offer = |cost: Option<u64>| best = best.into_iter().chain(cost).min();
    if s == t {
        let need = if first { a.all.bytes + a.boundary_bytes } else { own };
        offer((need <= m).then_some(if first { 0 } else { a.replay_flops }));
    } else if own <= m {
        for kept in [Some(a.all), a.lean].into_iter().flatten() {
            if let Some(rest) = m.checked_sub(kept.bytes + a.boundary_bytes) {
                let own = kept.extra_flops + if first { 0 } else { kept.again_flops };
                offer(fewest(chain, (first, s + 1, t), rest, memo).map(|c| c + own));
            }
        }
    }
    for k in s + 1..=t {
        let moving = |i: usize| {
            chain[i].boundary_bytes + if i > s { chain[i - 1].boundary_bytes } else { 0 }
        };
        if (s..k).any(|i| moving(i) > m) {
            break;
        }
        let run: u64 = if first { 0 } else { chain[s..k].iter().map(|s| s.forward_flops).sum() };
        let right = fewest(chain, (first, k, t), m - chain[k - 1].boundary_bytes, memo);
        let left = right.and_then(|_| fewest(chain, (false, s, k - 1), m, memo));
        offer(right.zip(left).map(|(r, l)| run + r + l));
    }
    memo.insert((first, s, t, m), best);
    best
}

/// Numbers below a bound, the same on every run.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }

    fn chain(&mut self, length: usize, largest: u64) -> Vec<Segment> {
        let segment = |_| {
            let saved = 1 + self.below(largest);
            let forward = 1 + self.below(9);
            let mut s = Segment::new(forward, 1 + self.below(largest / 2 + 1), saved);
            if self.below(2) == 0 {
                s = s.with_lean(self.below(saved), self.below(forward + 1));
            }
            s.reads_output = self.below(4) == 0;
            if !s.reads_output {
                s.replay_flops = forward - self.below(forward);
            }
            s
        };
        (0..length).map(segment).collect()
    }
}

#[test]
fn schedules_of_any_chain_and_budget_are_valid_and_have_the_fewest_flops() {
    let mut draws = Draws(1);
    for length in [1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 24, 32, 64] {
        let chain = draws.chain(length, if length > 12 { 3 } else { 8 });
        let (least, whole) = (least_bytes(&chain), keep_all(&chain).peak_bytes);
        let error = TooSmall { budget_bytes: least - 1, least_bytes: least };
        assert_eq!(optimal(&chain, least - 1), Err(error));
        assert_eq!(fewest(&chain, (true, 0, length - 1), least - 1, &mut Memo::new()), None);
        let mut memo = Memo::new();
        let mut before = u64::MAX;
        for budget in least..=whole + 1 {
            let schedule = optimal(&chain, budget).unwrap();
            simulate(&chain, &schedule);
            assert!(schedule.peak_bytes <= budget, "{length}, {budget}");
            assert!(schedule.recomputed_flops <= before, "{length}, {budget}");
            before = schedule.recomputed_flops;
            if length <= 16 || budget % 9 == 0 {
                let wanted = fewest(&chain, (true, 0, length - 1), budget, &mut memo);
                assert_eq!(Some(before), wanted, "{length} segments, {budget} bytes");
            }
        }
        assert_eq!(before, 0, "with room for all, nothing runs again");
    }
}

fn binomial(n: u64, k: u64) -> u64 {
    (1..=k).fold(1, |c, i| c * (n - k + i) / i)
}

/// Griewank and Walther (2000), proposition 1: forward steps beside those of the backward itself,
/// with `slots` states kept, the first among them.
fn revolve(length: u64, slots: u64) -> u64 {
    let repeat = (0..).find(|r| length <= binomial(slots + r, slots)).unwrap();
    repeat * length - if repeat == 0 { 0 } else { binomial(slots + repeat, slots + 1) }
}

#[test]
fn equal_segments_that_are_too_large_to_keep_have_the_binomial_schedule() {
    for length in 2..=64 {
        let mut chain = vec![Segment::new(1, 1, 40); length];
        chain[length - 1].boundary_bytes = 0;
        for slots in 1..=12 {
            // The state at hand takes a slot as well; the input of the chain takes none.
            let schedule = optimal(&chain, 40 + slots).unwrap();
            simulate(&chain, &schedule);
            assert_eq!(
                schedule.recomputed_flops,
                revolve(length as u64, slots),
                "{length} {slots}"
            );
        }
    }
}

#[test]
fn sizes_that_are_no_units_are_rounded_to_the_safe_side() {
    let mut draws = Draws(3);
    for length in [8, 64, 129] {
        let plain = draws.chain(length, 6);
        let mut odd = plain.clone();
        let mut grown = |bytes: &mut u64| *bytes = *bytes * 1000 + draws.below(8);
        for s in &mut odd {
            grown(&mut s.boundary_bytes);
            grown(&mut s.all.bytes);
            s.lean.iter_mut().for_each(|v| grown(&mut v.bytes));
        }
        let least = least_bytes(&odd);
        assert!(optimal(&odd, least - 1).is_err());
        let most = keep_all(&odd).peak_bytes;
        for part in [0, 1, 10, 40, 99] {
            let budget = least + (most - least) * part / 100;
            let found = optimal(&odd, budget).unwrap();
            simulate(&odd, &found);
            assert!(found.peak_bytes <= budget, "{length} segments, {part} %");
            // At the very least, hardly any rounded schedule fits, and the smallest one is taken.
            if part > 0 {
                let exact = optimal(&plain, budget / 1000).unwrap().recomputed_flops;
                let wanted = exact..=exact + exact / 50;
                assert!(wanted.contains(&found.recomputed_flops), "{length}, {part} %: {exact}");
            }
        }
    }
}

/// Where a schedule is: how many segments ran, how many backwards are left, and of each segment
/// whether its output is there and is held, and what is saved.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    ran: usize,
    left: usize,
    output: Vec<bool>,
    held: Vec<bool>,
    saved: Vec<u8>,
}

const KEEPS: [Keep; 3] = [Keep::Boundary, Keep::Lean, Keep::All];

/// What one action leads to: its FLOPs, the bytes while it runs, and the state that follows.
fn steps(chain: &[Segment], state: &State) -> Vec<(u64, u64, State)> {
    let mut list = vec![];
    let bytes = |state: &State| {
        let saved: Vec<Keep> = state.saved.iter().map(|&k| KEEPS[k as usize]).collect();
        held_bytes(chain, &state.output, &saved)
    };
    for (i, s) in chain.iter().enumerate().take(state.left) {
        if i > 0 && !state.output[i - 1] {
            continue;
        }
        let fresh = state.saved[i] == 0 && !state.held[i];
        // What is kept is held together with its input until its backward is done.
        let may_keep = i == 0 || state.held[i - 1];
        let lean = s.lean.map(|v| (1, true, v.again_flops));
        let plain = [(0, false, s.forward_flops), (0, true, s.forward_flops)].map(Some);
        let ways = plain.into_iter().chain([Some((2, true, s.all.again_flops)), lean]).flatten();
        for (saved, held, again) in ways.filter(|w| fresh && (may_keep || w.0 == 0)) {
            let mut next = state.clone();
            (next.output[i], next.held[i], next.saved[i]) = (true, held, saved);
            next.ran = state.ran.max(i + 1);
            let now = bytes(&next);
            if i > 0 {
                next.output[i - 1] = next.held[i - 1];
            }
            list.push((if i < state.ran { again } else { 0 }, now, next));
        }
        let mut next = state.clone();
        next.saved[i] = 2;
        next.output[i] |= s.reads_output;
        let lean = s.lean.filter(|_| state.saved[i] == 1);
        list.push((lean.map_or(s.replay_flops, |v| v.extra_flops), bytes(&next), next));
        let ready = state.saved[i] == 2 && (state.output[i] || !s.reads_output);
        if state.ran == chain.len() && state.left == i + 1 && ready {
            let mut next = state.clone();
            next.left = i;
            (next.output[i], next.held[i], next.saved[i]) = (false, false, 0);
            if i > 0 && (state.saved[i - 1] == 0 || !chain[i - 1].reads_output) {
                (next.output[i - 1], next.held[i - 1]) = (false, false);
            }
            list.push((0, bytes(state), next));
        }
    }
    list
}

/// The fewest FLOPs of all orders of actions, by Dijkstra's search.
fn search(chain: &[Segment], budget: u64) -> Option<u64> {
    let n = chain.len();
    let none = vec![false; n];
    let start = State { ran: 0, left: n, output: none.clone(), held: none, saved: vec![0; n] };
    let mut open = BTreeSet::from([(0, start.clone())]);
    let mut known = BTreeMap::from([(start, 0)]);
    while let Some((cost, state)) = open.pop_first() {
        if state.left == 0 {
            return Some(cost);
        }
        for (flops, now, next) in steps(chain, &state) {
            let cost = cost + flops;
            if now <= budget && known.get(&next).is_none_or(|&c| cost < c) {
                if let Some(old) = known.insert(next.clone(), cost) {
                    open.remove(&(old, next.clone()));
                }
                open.insert((cost, next));
            }
        }
    }
    None
}

#[test]
fn no_order_of_actions_is_better() {
    let mut draws = Draws(7);
    for length in [1, 2, 3, 3, 4, 4, 4] {
        let chain = draws.chain(length, 5);
        for budget in 0..=keep_all(&chain).peak_bytes {
            let found = optimal(&chain, budget).ok().map(|s| s.recomputed_flops);
            assert_eq!(found, search(&chain, budget), "{chain:?}, {budget} bytes");
        }
    }
}
