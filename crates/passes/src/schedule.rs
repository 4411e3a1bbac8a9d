//! The learning rate as a function of the step: linear warm-up, then one of three decays.
//!
//! A step's rate is a pure function of its number, so that a resumed run has the same rates.

/// The shape after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Half a cosine (Loshchilov and Hutter, SGDR, 2017).
    Cosine,
    /// A straight line.
    Linear,
    /// The peak throughout.
    Constant,
}

/// A learning-rate schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The shape after warm-up.
    pub kind: Kind,
    /// The highest rate.
    pub peak: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Rate at the end, as a fraction of the peak.
    pub final_ratio: f64,
}

impl Schedule {
    /// The rate of step `step`, counted from 0.
    ///
    /// Warm-up gives the first step `peak / warmup` and reaches the peak at its last one: a rate
    /// of 0 would waste a step. The decay starts from the peak at `step = warmup`, is at
    /// `final_ratio * peak` at `step = steps`, and stays there.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let last = self.peak * self.final_ratio;
        let share = match self.kind {
            Kind::Constant => 1.0,
            _ if step >= self.steps => 0.0,
            Kind::Linear => 1.0 - self.progress(step),
            Kind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * self.progress(step)).cos()),
        };
        last + (self.peak - last) * share
    }

    /// How much of the decay is behind, for a step before the end.
    fn progress(&self, step: u64) -> f64 {
        (step - self.warmup) as f64 / (self.steps - self.warmup) as f64
    }
}

/// The rate for a batch, from the rate that suits another: they grow together (Goyal et al.,
/// Accurate, Large Minibatch SGD, 2017).
pub fn linear_scaling(rate: f64, batch: u64, base_batch: u64) -> f64 {
    rate * batch as f64 / base_batch as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: Kind) -> Schedule {
        Schedule { kind, peak: 0.1, warmup: 10, steps: 110, final_ratio: 0.2 }
    }

    fn near(got: f64, wanted: f64) {
        assert!((got - wanted).abs() <= 1e-15, "{got} against {wanted}");
    }

    #[test]
    fn closed_forms() {
        for (kind, quarter, half) in [
            (Kind::Cosine, 0.06 + 0.04 * std::f64::consts::FRAC_1_SQRT_2, 0.06),
            (Kind::Linear, 0.08, 0.06),
            (Kind::Constant, 0.1, 0.1),
        ] {
            let s = schedule(kind);
            near(s.rate(0), 0.01);
            near(s.rate(4), 0.05);
            near(s.rate(9), 0.1);
            near(s.rate(10), 0.1);
            near(s.rate(35), quarter);
            near(s.rate(60), half);
            let end = if kind == Kind::Constant { 0.1 } else { 0.02 };
            near(s.rate(110), end);
            near(s.rate(100_000), end);
        }
    }

    #[test]
    fn it_never_jumps_and_degenerate_lengths_are_finite() {
        let s = schedule(Kind::Cosine);
        assert!((1..=120).all(|t| (s.rate(t) - s.rate(t - 1)).abs() <= 0.010_000_000_001));
        assert!((11..=110).all(|t| s.rate(t) < s.rate(t - 1)));
        for (warmup, steps) in [(0, 0), (0, 1), (5, 5), (9, 3)] {
            let s = Schedule { warmup, steps, ..s };
            assert!((0..12).all(|t| s.rate(t).is_finite() && s.rate(t) > 0.0), "{warmup} {steps}");
        }
    }

    #[test]
    fn large_batches() {
        near(linear_scaling(0.1, 8192, 256), 3.2);
        near(linear_scaling(0.1, 128, 256), 0.05);
    }
}
