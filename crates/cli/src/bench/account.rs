//! A training step's time by region, each against its floor.

use crate::bench::lab::median;
use crate::show;
use aerogel_graph::Phase;
use aerogel_machine::Kind;
use aerogel_train::{RegionTime, Startup, StepTimes};
use serde::Serialize;

/// Rates of this machine, from which floors are made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Of a product of 1024³ in the step's dtype.
    pub product_flops_per_second: f64,
    /// Of a copy that no cache holds, read and written bytes counted both.
    pub copy_bytes_per_second: f64,
}

impl Rates {
    /// The longer of the times that the work and the traffic need.
    pub fn floor(self, flops: u64, bytes: u64) -> f64 {
        let work = flops as f64 / self.product_flops_per_second;
        work.max(bytes as f64 / self.copy_bytes_per_second)
    }
}

/// Where a step's time went. Times and counts are a step's, averaged over all that were timed.
#[derive(Clone, Debug, Serialize)]
pub struct StepAccount {
    /// Name of the recipe.
    pub recipe: String,
    /// Compute dtype.
    pub dtype: &'static str,
    /// Worker threads.
    pub threads: usize,
    /// Steps that were timed as a whole.
    pub steps: usize,
    /// Steps after them whose regions were timed: the times below are theirs.
    pub profiled_steps: usize,
    /// Tokens of a step.
    pub tokens_per_step: u64,
    /// Of the median step.
    pub tokens_per_second: f64,
    /// Of a step.
    pub median_seconds: f64,
    /// Of a profiled step: what the times below add up to.
    pub mean_seconds: f64,
    /// Beside the kernels of rank 0: inputs, outputs, waiting.
    pub outside_seconds: f64,
    /// The sum of all floors.
    pub floor_seconds: f64,
    /// FLOPs of all regions.
    pub flops: u64,
    /// The memory that the plan allocates.
    pub allocated_bytes: u64,
    /// What the driver and libraries took beside it.
    pub library_bytes: u64,
    /// From the recipe to the end of the first step.
    pub startup: Start,
    /// Rates that the floors are made from.
    pub rates: Rates,
    /// By kind and phase, the slowest first.
    pub kinds: Vec<Row>,
    /// By kernel as well.
    pub kernels: Vec<Row>,
    /// By section and scope as well, in the order of the step.
    pub regions: Vec<Row>,
}

/// What came before the steps that were timed.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Start {
    /// All of the following.
    pub seconds: f64,
    /// Making the plan.
    pub planning_seconds: f64,
    /// Kernels, memory, and what else is prepared once.
    pub loading_seconds: f64,
    /// The initial weights.
    pub initial_seconds: f64,
    /// The first step.
    pub first_step_seconds: f64,
}

impl Start {
    fn of(s: Startup) -> Start {
        Start {
            seconds: s.seconds(),
            planning_seconds: s.planning_seconds,
            loading_seconds: s.loading_seconds,
            initial_seconds: s.initial_seconds,
            first_step_seconds: s.first_step_seconds,
        }
    }
}

/// Some regions of a step.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What they are for.
    pub kind: &'static str,
    /// Part of the step.
    pub phase: &'static str,
    /// The kernel, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<&'static str>,
    /// The section, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section: Option<String>,
    /// Where in the model, where it is one place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Runs a step.
    pub calls: f64,
    /// Time a step.
    pub seconds: f64,
    /// Of the step's mean time.
    pub share: f64,
    /// FLOPs a step.
    pub flops: u64,
    /// Bytes a step, read and written.
    pub bytes: u64,
    /// Each region's FLOPs at the product rate, or its bytes at the copy rate: the longer one.
    pub floor_seconds: f64,
}

impl StepAccount {
    /// Adds up what was timed.
    pub fn new(recipe: &str, dtype: &'static str, times: &StepTimes, rates: Rates) -> StepAccount {
        let steps = times.profiled_seconds.len();
        let mean = times.profiled_seconds.iter().sum::<f64>() / steps as f64;
        let median_seconds = median(&mut times.seconds.clone());
        let row = |r: &RegionTime| row(r, steps, mean, rates);
        let slowest_first = |mut rows: Vec<Row>| {
            rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
            rows
        };
        let regions = merged(times.regions.iter().map(row));
        let kernels =
            merged(regions.iter().map(|r| Row { section: None, scope: None, ..r.clone() }));
        let kinds = merged(kernels.iter().map(|r| Row { kernel: None, ..r.clone() }));
        StepAccount {
            recipe: recipe.to_owned(),
            dtype,
            threads: times.plan.threads,
            steps: times.seconds.len(),
            profiled_steps: steps,
            tokens_per_step: times.plan.tokens_per_step,
            tokens_per_second: times.plan.tokens_per_step as f64 / median_seconds,
            median_seconds,
            mean_seconds: mean,
            outside_seconds: mean - regions.iter().map(|r| r.seconds).sum::<f64>(),
            floor_seconds: regions.iter().map(|r| r.floor_seconds).sum(),
            flops: regions.iter().map(|r| r.flops).sum(),
            allocated_bytes: times.allocated_bytes,
            library_bytes: times.library_bytes,
            startup: Start::of(times.startup),
            rates,
            kinds: slowest_first(kinds),
            kernels: slowest_first(kernels),
            regions,
        }
    }

    /// The table that people read.
    pub fn page(&self) -> String {
        let head =
            ["region", "kernel", "calls", "ms", "share", "GFLOP/s", "GB/s", "floor ms", "ratio"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(self.kernels.iter().map(Row::cells));
        let share = |seconds: f64| format!("{:.1} %", 100.0 * seconds / self.mean_seconds);
        let ms = |seconds: f64| format!("{:.3}", 1e3 * seconds);
        let (outside, whole) = (self.outside_seconds, self.mean_seconds);
        let cells = |name: &str, seconds: f64| {
            let mut row = vec![name.to_owned(), String::new(), String::new()];
            row.extend([ms(seconds), share(seconds)]);
            row
        };
        rows.push(cells("outside of kernels", outside));
        let mut all = cells("a step", whole);
        all.extend([
            format!("{:.1}", 1e-9 * self.flops as f64 / whole),
            String::new(),
            ms(self.floor_seconds),
            format!("{:.2}", whole / self.floor_seconds),
        ]);
        rows.push(all);
        let start = self.startup;
        format!(
            "{}, {}, {}: {} tokens/s ({:.3} ms), {} allocated and {} taken by libraries; regions \
             are means of {}\n\
             started in {:.2} s: planning {:.2}, loading {:.2}, weights {:.2}, first step {:.2}\n\
             floors at {:.0} GFLOP/s in products and {:.1} GB/s in copies; less than a floor is a \
             region that stayed in cache\n{}",
            self.recipe,
            self.dtype,
            show::plural(self.threads as u64, "thread", "s"),
            show::count(self.tokens_per_second.round() as u64),
            1e3 * self.median_seconds,
            show::bytes(self.allocated_bytes),
            show::bytes(self.library_bytes),
            show::plural(self.profiled_steps as u64, "step", "s"),
            start.seconds,
            start.planning_seconds,
            start.loading_seconds,
            start.initial_seconds,
            start.first_step_seconds,
            1e-9 * self.rates.product_flops_per_second,
            1e-9 * self.rates.copy_bytes_per_second,
            show::table(&rows)
        )
    }
}

impl Row {
    /// What rows that belong together have in common.
    fn is_like(&self, other: &Row) -> bool {
        let names = |r: &Row| (r.kind, r.phase, r.kernel);
        names(self) == names(other) && self.section == other.section && self.scope == other.scope
    }

    fn cells(&self) -> Vec<String> {
        let name = match self.kind == Kind::Update.name() {
            true => self.kind.to_owned(),
            false => format!("{} {}", self.kind, self.phase),
        };
        vec![
            name,
            self.kernel.unwrap_or_default().to_owned(),
            format!("{:.0}", self.calls),
            format!("{:.3}", 1e3 * self.seconds),
            format!("{:.1} %", 100.0 * self.share),
            format!("{:.1}", 1e-9 * self.flops as f64 / self.seconds),
            format!("{:.1}", 1e-9 * self.bytes as f64 / self.seconds),
            format!("{:.3}", 1e3 * self.floor_seconds),
            format!("{:.2}", self.seconds / self.floor_seconds),
        ]
    }
}

fn row(r: &RegionTime, steps: usize, mean: f64, rates: Rates) -> Row {
    let calls = r.calls as f64 / steps as f64;
    let seconds = r.seconds / steps as f64;
    let a_step = |n: u64| (n as f64 * calls).round() as u64;
    Row {
        kind: r.kind.name(),
        phase: if r.kind == Kind::Update { Phase::Update.name() } else { r.phase.name() },
        kernel: Some(r.kernel),
        section: Some(r.section.clone()),
        scope: Some(r.scope.to_string()),
        calls,
        seconds,
        share: seconds / mean,
        flops: a_step(r.cost.flops),
        bytes: a_step(r.cost.bytes),
        floor_seconds: calls * rates.floor(r.cost.flops, r.cost.bytes),
    }
}

/// Rows that differ by nothing but numbers, added up.
fn merged(all: impl Iterator<Item = Row>) -> Vec<Row> {
    let mut rows: Vec<Row> = vec![];
    for one in all {
        match rows.iter_mut().find(|r| r.is_like(&one)) {
            None => rows.push(one),
            Some(row) => {
                row.calls += one.calls;
                row.seconds += one.seconds;
                row.share += one.share;
                row.flops += one.flops;
                row.bytes += one.bytes;
                row.floor_seconds += one.floor_seconds;
            }
        }
    }
    rows
}
