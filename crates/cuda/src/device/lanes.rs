//! Which steps of a section run side by side.
//!
//! A short kernel leaves most of the GPU idle while it starts, waits for its first bytes and ends.
//! Steps whose bytes do not meet are therefore dealt to a few lanes, each to the one where it can
//! begin first, by rough estimates. A step runs after what stands before it in its lane, and after
//! the steps of other lanes that its [`Turn`] names: between them they order every pair of steps of
//! which one writes what the other touches. Nothing here asks a driver, or has an effect on bits.

use super::reach::Work;

#[cfg(test)]
mod tests;

/// Lanes of a section; with 1, steps run one after another. With four, the starts and ends of
/// kernels of 13 MB, which take 2 of their 6 µs, are hidden behind the bytes of others.
pub(super) const LANES: usize = 4;
/// Start and end of a kernel, beside its work.
const STEP_NANOSECONDS: u64 = 2000;
/// What waiting for another lane costs more than following in one's own.
const CROSSING_NANOSECONDS: u64 = 1000;
/// Steps that a step is held against. It comes after all of them if there are so many, so that
/// dealing takes time in proportion to the steps.
const WINDOW: usize = 1024;

/// When a step runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Turn {
    /// The stream: 0 is the section's own.
    pub lane: usize,
    /// Steps of other lanes that it comes after.
    pub after: Vec<usize>,
}

/// A step that has its turn, as later ones see it.
struct Dealt {
    step: usize,
    lane: usize,
    /// Whether all that follow come after it.
    is_alone: bool,
    /// When it is thought to end.
    end_nanoseconds: u64,
    /// How many steps of each lane are over when it is, itself included.
    over: [usize; LANES],
}

impl Dealt {
    /// Whether it is among the steps that are over.
    fn is_over(&self, over: &[usize; LANES]) -> bool {
        self.over[self.lane] <= over[self.lane]
    }
}

/// The end of a lane.
#[derive(Clone, Copy, Default)]
struct Lane {
    end_nanoseconds: u64,
    /// How many steps of each lane are over when its last one is.
    over: [usize; LANES],
}

/// Gives each step its turn.
pub(super) fn deal(list: &[Work]) -> Vec<Turn> {
    let mut lanes = [Lane::default(); LANES];
    // Whatever was dealt before these is over when the first of them is.
    let mut window: Vec<Dealt> = vec![];
    let mut turns = vec![];
    for (step, work) in list.iter().enumerate() {
        let is_alone = work.is_long() || window.len() >= WINDOW;
        // The last step of each lane that this one has to come after.
        let mut needs: [Option<&Dealt>; LANES] = [None; LANES];
        for dealt in &window {
            if is_alone || dealt.is_alone || work.meets(&list[dealt.step]) {
                needs[dealt.lane] = Some(dealt);
            }
        }
        let (lane, start) = earliest(&lanes, &needs);
        let mut needs: Vec<&Dealt> = needs.into_iter().flatten().collect();
        // The latest first: others may be over when it is.
        needs.sort_by_key(|dealt| std::cmp::Reverse(dealt.end_nanoseconds));
        let mut over = lanes[lane].over;
        let mut after = vec![];
        for dealt in needs {
            if !dealt.is_over(&over) {
                after.push(dealt.step);
                over = std::array::from_fn(|k| over[k].max(dealt.over[k]));
            }
        }
        over[lane] += 1;
        let end_nanoseconds = start + STEP_NANOSECONDS + work.nanoseconds();
        lanes[lane] = Lane { end_nanoseconds, over };
        if is_alone {
            window.clear();
        }
        window.push(Dealt { step, lane, is_alone, end_nanoseconds, over });
        turns.push(Turn { lane, after });
    }
    turns
}

/// The lane where a step can begin first, the lowest of equals, and when.
fn earliest(lanes: &[Lane; LANES], needs: &[Option<&Dealt>; LANES]) -> (usize, u64) {
    let ready = needs.iter().flatten().map(|dealt| dealt.end_nanoseconds).max().unwrap_or(0);
    let starts = lanes.iter().enumerate().map(|(i, lane)| {
        let crosses = needs.iter().flatten().any(|dealt| !dealt.is_over(&lane.over));
        let crossing = if crosses { CROSSING_NANOSECONDS } else { 0 };
        (lane.end_nanoseconds.max(ready) + crossing, i)
    });
    starts.min().map_or((0, 0), |(start, i)| (i, start))
}
