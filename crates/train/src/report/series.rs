//! Long series for small charts: fewer points that keep the extremes, means, ranges, ticks.

/// A point of a chart.
pub(super) type Point = (f64, f64);

/// At most `2 * bins + 2` of the points: first, last, and the least and greatest of each of `bins`
/// runs. Short series stay as they are; points that are not finite are dropped from long ones.
pub(super) fn extremes(points: &[Point], bins: usize) -> Vec<Point> {
    if points.len() <= 2 * bins {
        return points.to_vec();
    }
    let finite: Vec<Point> = points.iter().copied().filter(|p| p.1.is_finite()).collect();
    let (Some(&first), Some(&last)) = (finite.first(), finite.last()) else { return vec![] };
    let mut kept = vec![first];
    for bin in finite.chunks(finite.len().div_ceil(bins)) {
        let by_value = |a: &&Point, b: &&Point| a.1.total_cmp(&b.1);
        let (Some(&low), Some(&high)) = (bin.iter().min_by(by_value), bin.iter().max_by(by_value))
        else {
            continue;
        };
        kept.extend(if low.0 <= high.0 { [low, high] } else { [high, low] });
    }
    kept.push(last);
    kept.dedup();
    kept
}

/// At most about `bins` runs of `0..values.len()`, each with the position of its greatest value:
/// `(start, position)`.
pub(super) fn maxima(values: &[u64], bins: usize) -> Vec<(usize, usize)> {
    let length = values.len().div_ceil(bins.max(1)).max(1);
    let starts = (0..values.len()).step_by(length);
    starts
        .map(|start| {
            let run = start..(start + length).min(values.len());
            (start, run.max_by_key(|&i| values[i]).unwrap_or(start))
        })
        .collect()
}

/// At most `most` positions of `0..length`, evenly, with both ends.
pub(super) fn evenly(length: usize, most: usize) -> Vec<usize> {
    if length <= most {
        return (0..length).collect();
    }
    (0..most).map(|i| i * (length - 1) / (most - 1).max(1)).collect()
}

/// The mean of each point and up to `reach` finite neighbours before and after it. At the start
/// the window is symmetric, for there the values fall fast.
pub(super) fn smooth(points: &[Point], reach: usize) -> Vec<Point> {
    let mut sums = vec![(0.0, 0u32)];
    for p in points {
        let (sum, n) = sums[sums.len() - 1];
        sums.push(if p.1.is_finite() { (sum + p.1, n + 1) } else { (sum, n) });
    }
    let mean = |i: usize| {
        let reach = reach.min(i);
        let (from, to) = (sums[i - reach], sums[(i + reach + 1).min(points.len())]);
        (points[i].0, (to.0 - from.0) / f64::from(to.1 - from.1))
    };
    (0..points.len()).map(mean).collect()
}

/// The middle value of the finite ones.
pub(super) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    quantile(values, 0.5)
}

/// The value that a share of the finite values does not exceed.
pub(super) fn quantile(values: impl Iterator<Item = f64>, share: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = values.filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
    sorted.get(at).copied()
}

/// A stretch of numbers on an axis. Not empty, and finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Range {
    pub lo: f64,
    pub hi: f64,
}

impl Range {
    /// From `lo` to `hi`, widened where that is nothing.
    pub fn new(lo: f64, hi: f64) -> Range {
        let lo = if lo.is_finite() { lo } else { 0.0 };
        let hi = if hi.is_finite() { hi } else { lo };
        if hi - lo > lo.abs().max(hi.abs()) * 1e-9 {
            Range { lo, hi }
        } else {
            let widen = lo.abs().max(f64::MIN_POSITIVE.sqrt()) * 0.1;
            Range { lo: lo - widen, hi: lo + widen }
        }
    }

    /// Where a value lies: 0 at `lo`, 1 at `hi`.
    pub fn part(&self, value: f64) -> f64 {
        (value - self.lo) / (self.hi - self.lo)
    }
}

/// Multiples of 1, 2 or 5 times a power of ten that lie in the range: `most` at most.
pub(super) fn ticks(range: Range, most: usize) -> Vec<f64> {
    let step = tick_step(range, most);
    let first = (range.lo / step - 1e-9).ceil();
    // `+ 0.0` makes the zero positive.
    let at = |i: usize| (first + i as f64) * step + 0.0;
    (0..=most).map(at).take_while(|v| *v <= range.hi + step * 1e-9).collect()
}

/// The distance of [`ticks`].
pub(super) fn tick_step(range: Range, most: usize) -> f64 {
    // n intervals have n + 1 ends.
    let rough = (range.hi - range.lo) / (most.max(2) - 1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let nice = [1.0, 2.0, 5.0, 10.0].into_iter().find(|m| m * power >= rough * (1.0 - 1e-9));
    nice.unwrap_or(10.0) * power
}

/// How many digits after the point tell neighbouring ticks apart.
pub(super) fn tick_digits(step: f64) -> usize {
    (-(step.log10() + 1e-9).floor()).clamp(0.0, 12.0) as usize
}
