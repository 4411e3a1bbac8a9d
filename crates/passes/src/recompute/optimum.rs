//! The schedule of a chain with the fewest recomputed FLOPs under a budget of bytes.
//!
//! A dynamic program over ranges of segments and bytes, as Beaumont et al., "Optimal checkpointing
//! for heterogeneous chains" (2019), have it; with equal segments that are never kept whole it is
//! the binomial schedule of Griewank and Walther, "Revolve" (2000). For the segments s..=t, whose
//! input is there, one of these is done first: s runs and is kept whole or lean; or s..k run, only
//! the last of their outputs is kept, k..=t is done, and then s..k is done with all of the bytes.
//! The optimum is over schedules that hold what they keep, and its input, until its backward: the
//! memory-persistent ones of Beaumont et al. In the first sweep running forward is free, for it is
//! done once in any case.

use super::chain::{Action, Keep, Schedule, Segment};

/// Additions that the table may cost; they bound the units into which a budget is cut.
const WORK: u64 = 100_000_000;
/// Units that a long chain gets even so, and units that a short one has no use for.
const UNITS: [u64; 2] = [512, 1 << 16];
/// The part of the units by which rounding may make a schedule seem larger than it is.
const SLACK: u64 = 16;
/// A cost of no schedule; three of them can be added.
const NEVER: u64 = u64::MAX / 4;

/// No schedule of the chain has so small a peak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a budget of {budget_bytes} bytes for activations is too small: give at least {least_bytes}"
)]
pub struct TooSmall {
    /// What was given.
    pub budget_bytes: u64,
    /// What would do.
    pub least_bytes: u64,
}

/// The schedule with the fewest recomputed FLOPs whose peak is within the budget.
///
/// Exact where the greatest common divisor of all sizes cuts the budget into few enough units (at
/// least 512; 2,288 for 64 segments, 65,536 for up to 20). Else sizes are rounded to a unit of
/// about that part of the budget, and the best schedule by rounded sizes is taken whose exact peak
/// is within the budget: it fits, but one of fewer FLOPs may fit as well.
///
/// # Errors
/// The budget is below [`least_bytes`].
pub fn optimal(chain: &[Segment], budget_bytes: u64) -> Result<Schedule, TooSmall> {
    let sizes = Sizes::exact(chain);
    if chain.is_empty() || sizes.whole(0, chain.len() - 1) <= budget_bytes {
        return Ok(super::chain::keep_all(chain));
    }
    let least = Least::new(chain, &sizes);
    let least_bytes = least.bytes();
    if least_bytes > budget_bytes {
        return Err(TooSmall { budget_bytes, least_bytes });
    }
    let (unit, most) = sizes.unit(budget_bytes);
    let sizes = sizes.in_units(unit);
    let table = Table::new(chain, &sizes, most);
    let mut size = most;
    while table.row(Range::whole(chain.len()))[size as usize] < NEVER {
        let schedule = schedule(chain, &|range, size| table.best(range, size), size);
        let Some(excess) = schedule.peak_bytes.checked_sub(budget_bytes + 1) else {
            return Ok(schedule);
        };
        size = size.saturating_sub(excess / (2 * unit) + 1);
    }
    // No schedule by rounded sizes is small enough: the smallest one is, as it was measured.
    Ok(schedule(chain, &|range, _| least.best(range), 0))
}

fn schedule(chain: &[Segment], best: &dyn Fn(Range, u64) -> Choice, size: u64) -> Schedule {
    let mut actions = vec![];
    trace(best, Range::whole(chain.len()), size, &mut actions);
    Schedule::counted(chain, actions)
}

/// The smallest peak that a schedule of the chain can have, in bytes.
pub fn least_bytes(chain: &[Segment]) -> u64 {
    if chain.is_empty() { 0 } else { Least::new(chain, &Sizes::exact(chain)).bytes() }
}

/// Segments s..=t, in the first sweep (then t is the last of the chain) or again (then it is not).
#[derive(Clone, Copy)]
struct Range {
    first: bool,
    s: usize,
    t: usize,
}

impl Range {
    fn whole(n: usize) -> Self {
        Range { first: true, s: 0, t: n - 1 }
    }

    fn position(self, n: usize) -> usize {
        self.s * n + self.t
    }

    /// What comes after the choice.
    fn after(self, choice: &Choice) -> Self {
        Range { s: choice.next, ..self }
    }

    /// What a split leaves to run again.
    fn before(self, choice: &Choice) -> Self {
        Range { first: false, s: self.s, t: choice.next - 1 }
    }
}

/// All ranges of n segments, each after those that it is made of. By last segment, so that the
/// rows that are read often are read soon again.
fn ranges(n: usize) -> impl Iterator<Item = Range> {
    let to = move |t: usize| (0..=t).rev().map(move |s| Range { first: t + 1 == n, s, t });
    (0..n).flat_map(to)
}

/// What is done first in a range of two segments or more.
#[derive(Clone, Copy)]
struct Choice {
    /// `Boundary`: s..next run and the last output is kept. Else s is kept, and `next` is s + 1.
    keep: Keep,
    next: usize,
    /// The size below which the choice does not fit.
    need: u64,
    /// The size that it takes from the range `next..=t`.
    charge: u64,
    /// FLOPs of the choice itself.
    flops: u64,
}

/// Sizes of the chain's parts, in bytes or in units.
struct Sizes {
    boundary: Vec<u64>,
    all: Vec<u64>,
    lean: Vec<Option<u64>>,
    backward: Vec<u64>,
}

impl Sizes {
    fn exact(chain: &[Segment]) -> Self {
        Sizes {
            boundary: chain.iter().map(|s| s.boundary_bytes).collect(),
            all: chain.iter().map(|s| s.all.bytes).collect(),
            lean: chain.iter().map(|s| s.lean.map(|v| v.bytes)).collect(),
            backward: chain.iter().map(Segment::backward_bytes).collect(),
        }
    }

    /// The unit that cuts the budget, and the most units that a schedule within it can seem to
    /// have: the greatest common divisor where that makes few enough.
    fn unit(&self, budget: u64) -> (u64, u64) {
        let parts = self.boundary.iter().chain(&self.all).chain(self.lean.iter().flatten());
        let gcd = parts.fold(0, |a, &b| gcd(a, b)).max(1);
        let n = self.boundary.len() as u64;
        let units = (6 * WORK / (n * n * n)).clamp(UNITS[0], UNITS[1]);
        match budget / gcd {
            exact if exact <= units => (gcd, exact),
            _ => (budget.div_ceil(units), units + units / SLACK),
        }
    }

    /// Rounded to the nearest unit, so that errors of many sizes cancel.
    fn in_units(&self, unit: u64) -> Self {
        let near = |x: &u64| (x + unit / 2) / unit;
        let (boundary, all) = (self.boundary.iter().map(near), self.all.iter().map(near));
        let (boundary, all): (Vec<u64>, Vec<u64>) = (boundary.collect(), all.collect());
        let lean = self.lean.iter().map(|x| x.as_ref().map(near)).collect();
        let whole = |i: usize| self.backward[i] > self.all[i];
        let both = |i: usize| all[i] + if whole(i) { boundary[i] } else { 0 };
        let backward = (0..all.len()).map(both).collect();
        Sizes { boundary, all, lean, backward }
    }

    /// More than any schedule of the range can hold at once.
    fn whole(&self, s: usize, t: usize) -> u64 {
        (s..=t).map(|i| self.all[i] + self.boundary[i]).sum()
    }

    /// What a single segment takes.
    fn single(&self, first: bool, s: usize) -> u64 {
        if first { self.all[s] + self.boundary[s] } else { self.backward[s] }
    }

    fn choices(&self, chain: &[Segment], Range { first, s, t }: Range) -> Vec<Choice> {
        let again = |flops: u64| if first { 0 } else { flops };
        let (need, next) = (self.backward[s], s + 1);
        let kept = |keep, size, flops| {
            let charge = size + self.boundary[s];
            Choice { keep, next, need: need.max(charge), charge, flops }
        };
        let mut list = vec![kept(Keep::All, self.all[s], again(chain[s].all.again_flops))];
        if let (Some(size), Some(v)) = (self.lean[s], chain[s].lean) {
            list.push(kept(Keep::Lean, size, again(v.again_flops) + v.extra_flops));
        }
        let (mut need, mut flops) = (0, 0);
        // The input of the range is not its own.
        let mut input = 0;
        for (k, segment) in chain.iter().enumerate().take(t).skip(s) {
            let charge = self.boundary[k];
            need = need.max(input + charge);
            input = charge;
            flops += again(segment.forward_flops);
            list.push(Choice { keep: Keep::Boundary, next: k + 1, need, charge, flops });
        }
        list
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The fewest FLOPs of every range for every size up to the budget.
struct Table<'a> {
    chain: &'a [Segment],
    sizes: &'a Sizes,
    /// By range, then by size.
    rows: Vec<Vec<u64>>,
    /// The last cost of every stretch of every row: what a look at a row costs least with.
    ends: Vec<u64>,
    /// Stretches of a row.
    stretches: usize,
}

/// Sizes that are compared together.
const STRETCH: usize = 32;

impl<'a> Table<'a> {
    fn new(chain: &'a [Segment], sizes: &'a Sizes, budget: u64) -> Self {
        let n = chain.len();
        let stretches = budget as usize / STRETCH + 1;
        let (rows, ends) = (vec![vec![]; n * n], vec![NEVER; n * n * stretches]);
        let mut table = Table { chain, sizes, rows, ends, stretches };
        for range in ranges(n) {
            let row = table.filled(range, budget);
            let at = range.position(n);
            let ends = table.ends[at * stretches..].iter_mut();
            row.chunks(STRETCH).zip(ends).for_each(|(part, end)| *end = part[part.len() - 1]);
            table.rows[at] = row;
        }
        table
    }

    fn row(&self, range: Range) -> &[u64] {
        &self.rows[range.position(self.chain.len())]
    }

    fn ends(&self, range: Range) -> &[u64] {
        &self.ends[range.position(self.chain.len()) * self.stretches..][..self.stretches]
    }

    fn filled(&self, range: Range, budget: u64) -> Vec<u64> {
        let Range { first, s, t } = range;
        let mut row = vec![NEVER; budget as usize + 1];
        // From here on a larger size changes nothing.
        let enough = self.sizes.whole(s, t).min(budget) as usize;
        if s == t {
            let flops = if first { 0 } else { self.chain[s].replay_flops };
            row.iter_mut().skip(self.sizes.single(first, s) as usize).for_each(|c| *c = flops);
            return row;
        }
        for choice in self.sizes.choices(self.chain, range) {
            let (from, charge) = (choice.need as usize, choice.charge as usize);
            if from > enough {
                continue;
            }
            if choice.keep == Keep::Boundary {
                self.split(range, &choice, &mut row[..=enough]);
                continue;
            }
            let right = &self.row(range.after(&choice))[from - charge..];
            let here = row[from..=enough].iter_mut().zip(right);
            here.for_each(|(c, r)| *c = (*c).min(choice.flops.wrapping_add(*r)));
        }
        let last = row[enough];
        row[enough..].fill(last);
        row
    }

    /// Lowers the costs of a range to those of a split, where they are less. All costs fall with
    /// the size, so that the ends of stretches say whether anything in one can be lower.
    fn split(&self, range: Range, choice: &Choice, costs: &mut [u64]) {
        let (from, charge) = (choice.need as usize, choice.charge as usize);
        let (after, before) = (range.after(choice), range.before(choice));
        let (right, left) = (self.row(after), self.row(before));
        let (right_ends, left_ends) = (self.ends(after), self.ends(before));
        let stretches = costs.len().div_ceil(STRETCH);
        for (i, left_end) in left_ends.iter().enumerate().take(stretches).skip(from / STRETCH) {
            let (a, b) = ((i * STRETCH).max(from), ((i + 1) * STRETCH).min(costs.len()));
            let right_end = right_ends[(b - 1 - charge) / STRETCH];
            if choice.flops.wrapping_add(right_end).wrapping_add(*left_end) >= costs[a] {
                continue;
            }
            let parts = right[a - charge..b - charge].iter().zip(&left[a..b]);
            for (c, (r, l)) in costs[a..b].iter_mut().zip(parts) {
                *c = (*c).min(choice.flops.wrapping_add(*r).wrapping_add(*l));
            }
        }
    }

    /// The choice whose FLOPs the table holds.
    fn best(&self, range: Range, size: u64) -> Choice {
        let total = |c: &Choice| {
            if c.need > size {
                return NEVER;
            }
            let right = self.row(range.after(c))[(size - c.charge) as usize];
            let split = c.keep == Keep::Boundary;
            let left = if split { self.row(range.before(c))[size as usize] } else { 0 };
            c.flops + right + left
        };
        least_of(self.sizes.choices(self.chain, range), total)
    }
}

/// The smallest peak of every range and the FLOPs of a schedule that has it.
struct Least<'a> {
    chain: &'a [Segment],
    sizes: &'a Sizes,
    costs: Vec<(u64, u64)>,
}

impl<'a> Least<'a> {
    fn new(chain: &'a [Segment], sizes: &'a Sizes) -> Self {
        let n = chain.len();
        let mut least = Least { chain, sizes, costs: vec![(0, 0); n * n] };
        for range in ranges(n) {
            least.costs[range.position(n)] = least.filled(range);
        }
        least
    }

    fn of(&self, range: Range) -> (u64, u64) {
        self.costs[range.position(self.chain.len())]
    }

    /// The smallest peak of the whole chain.
    fn bytes(&self) -> u64 {
        self.of(Range::whole(self.chain.len())).0
    }

    fn filled(&self, range: Range) -> (u64, u64) {
        if range.s == range.t {
            let flops = if range.first { 0 } else { self.chain[range.s].replay_flops };
            return (self.sizes.single(range.first, range.s), flops);
        }
        self.total(range, &self.best(range))
    }

    fn total(&self, range: Range, c: &Choice) -> (u64, u64) {
        let right = self.of(range.after(c));
        let left = if c.keep == Keep::Boundary { self.of(range.before(c)) } else { (0, 0) };
        (c.need.max(c.charge + right.0).max(left.0), c.flops + right.1 + left.1)
    }

    fn best(&self, range: Range) -> Choice {
        least_of(self.sizes.choices(self.chain, range), |c| self.total(range, c))
    }
}

/// The first choice of the smallest cost.
fn least_of<T: Ord>(choices: Vec<Choice>, cost: impl Fn(&Choice) -> T) -> Choice {
    choices.into_iter().min_by_key(cost).expect("a segment can always be kept whole")
}

/// The actions of a range, as `best` chooses them for a size.
fn trace(best: &dyn Fn(Range, u64) -> Choice, range: Range, size: u64, actions: &mut Vec<Action>) {
    let Range { first, s, t } = range;
    if s == t {
        actions.push(match first {
            true => Action::Forward { segment: s, keep: Keep::All },
            false => Action::Replay { segment: s },
        });
        actions.push(Action::Backward { segment: s });
        return;
    }
    let choice = best(range, size);
    for segment in s..choice.next {
        let last = segment + 1 == choice.next;
        let keep = if last { choice.keep } else { Keep::Nothing };
        actions.push(Action::Forward { segment, keep });
    }
    trace(best, range.after(&choice), size.saturating_sub(choice.charge), actions);
    if choice.keep == Keep::Boundary {
        return trace(best, range.before(&choice), size, actions);
    }
    if choice.keep == Keep::Lean {
        actions.push(Action::Replay { segment: s });
    }
    actions.push(Action::Backward { segment: s });
}
