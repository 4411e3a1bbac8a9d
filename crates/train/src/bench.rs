//! Timed training steps, on random tokens that are made in memory: what `bench` shows.

use crate::error::TrainError;
use crate::feed::Feed;
use crate::fit::fits;
use crate::plan::RunPlan;
use crate::session::{Session, Ties};
use crate::setup::{Workspace, vocabulary};
use crate::step::Stepper;
use aerogel_graph::{Cost, Phase};
use aerogel_machine::{Account, Kind, Span, Timing};
use aerogel_models::shifts_inside;
use aerogel_recipe::Recipe;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long some steps of a recipe took, and where the time of rank 0 went.
pub struct StepTimes {
    /// What was run.
    pub plan: RunPlan,
    /// Bytes of all arenas.
    pub allocated_bytes: u64,
    /// Bytes beside them: what libraries took, and messages between ranks.
    pub library_bytes: u64,
    /// What came before the steps.
    pub startup: Startup,
    /// Time of each step.
    pub seconds: Vec<f64>,
    /// Time of each of some more steps, whose regions were timed.
    pub profiled_seconds: Vec<f64>,
    /// Loss of a token at the last step, nats. Tokens are random: it says nothing of learning.
    pub loss: f64,
    /// What rank 0 did in the profiled steps, by section and order.
    pub regions: Vec<RegionTime>,
    /// What rank 0 did in the last one, in the order of time.
    pub last_step: Vec<RegionSpan>,
}

/// The way from a recipe to the end of its first step, without data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Startup {
    /// Making the plan.
    pub planning_seconds: f64,
    /// Kernels that are compiled or found on disk, memory, and what is prepared once.
    pub loading_seconds: f64,
    /// The initial values of all weights.
    pub initial_seconds: f64,
    /// The first step.
    pub first_step_seconds: f64,
}

impl Startup {
    /// All of it.
    pub fn seconds(&self) -> f64 {
        let prepared = self.planning_seconds + self.loading_seconds;
        prepared + self.initial_seconds + self.first_step_seconds
    }
}

/// One region of one section, over all timed steps.
#[derive(Clone, Debug, PartialEq)]
pub struct RegionTime {
    /// `micro.0`, `update`, ...
    pub section: String,
    /// Name of the kernel.
    pub kernel: &'static str,
    /// What it is for.
    pub kind: Kind,
    /// Part of the step.
    pub phase: Phase,
    /// Where in the model it stands.
    pub scope: Arc<str>,
    /// Runs in all steps.
    pub calls: u64,
    /// Time of all runs.
    pub seconds: f64,
    /// FLOPs and bytes of one run.
    pub cost: Cost,
}

/// One run of one region.
#[derive(Clone, Debug, PartialEq)]
pub struct RegionSpan {
    /// `micro.0`, `update`, ...
    pub section: String,
    /// What it does.
    pub account: Account,
    /// Nanoseconds from the first of the profiled steps on.
    pub start_nanoseconds: u64,
    /// How long it took.
    pub nanoseconds: u64,
}

/// Steps whose regions are timed, after those that are timed as a whole: a device may have to look
/// at the clock between kernels that it would start together.
const PROFILED: usize = 5;

/// Runs `steps` steps of a recipe after `warmup` that are not counted, at its peak learning rate
/// divided by a thousand: random tokens are not to be learnt.
///
/// # Errors
/// The model cannot be built, does not fit, or a device failed.
pub fn time_steps(
    recipe: &Recipe,
    workspace: &Workspace,
    warmup: usize,
    steps: usize,
) -> Result<StepTimes, TrainError> {
    let began = Instant::now();
    let plan = RunPlan::new(recipe, vocabulary(recipe, workspace)?)?;
    fits(&plan, recipe)?;
    let planned = Instant::now();
    let ties = Ties::new(Duration::from_secs_f64(recipe.parallel.timeout_seconds));
    let mut session = Session::load(plan, ties)?;
    let loaded = Instant::now();
    let train = &recipe.train;
    session.initialise(train.seed)?;
    let mut startup = Startup {
        planning_seconds: (planned - began).as_secs_f64(),
        loading_seconds: (loaded - planned).as_secs_f64(),
        initial_seconds: loaded.elapsed().as_secs_f64(),
        first_step_seconds: 0.0,
    };
    let shifts = shifts_inside(session.plan.model.family);
    let mut steppers: Vec<Stepper<'_>> = (0..session.ranks.len())
        .map(|rank| {
            let (context, vocab) = (session.plan.model.context, session.plan.model.vocab);
            let feed = Feed::random(vocab as u32, train.micro_batch, context, shifts);
            Stepper::new(&session.plan, rank, feed, train.micro_batch, train.seed)
        })
        .collect();
    let rate = 1e-3 * recipe.peak_learning_rate();
    let (mut all, mut loss, mut before_last) = (vec![], f64::NAN, 0);
    let profiled = steps.min(PROFILED);
    for step in 0..warmup + steps + profiled {
        if step == warmup + steps {
            session.ranks[0].profile(true);
        }
        before_last = session.ranks[0].spans().len();
        let started = Instant::now();
        let updated = session.each_with(&mut steppers, |_, _, device, stepper| {
            stepper.step(device, step as u64, rate)
        })?;
        all.push(started.elapsed().as_secs_f64());
        loss = f64::from(updated[0].loss);
        if let Some(what) = updated[0].broken() {
            return Err(TrainError::NonFinite { step: step as u64 + 1, what });
        }
    }
    startup.first_step_seconds = all.first().copied().unwrap_or(0.0);
    let seconds = all[warmup..warmup + steps].to_vec();
    let profiled_seconds = all[warmup + steps..].to_vec();
    let (regions, last_step) = regions(&session, before_last);
    Ok(StepTimes {
        allocated_bytes: session.allocated_bytes(),
        library_bytes: session.library_bytes(),
        plan: session.plan,
        startup,
        seconds,
        profiled_seconds,
        loss,
        regions,
        last_step,
    })
}

/// What rank 0 did in all profiled steps, and in the last one, which begins at a span.
fn regions(session: &Session, before_last: usize) -> (Vec<RegionTime>, Vec<RegionSpan>) {
    let sections = &session.plan.program(0).sections;
    let accounts: Vec<_> = sections.iter().map(|s| s.accounts()).collect();
    let spans = session.ranks[0].spans();
    let region = |t: &Timing| {
        let account = &accounts[t.section][t.step];
        RegionTime {
            section: sections[t.section].name.clone(),
            kernel: account.kernel,
            kind: account.kind,
            phase: account.phase,
            scope: account.scope.clone(),
            calls: t.calls,
            seconds: 1e-9 * t.nanoseconds as f64,
            cost: account.cost,
        }
    };
    let span = |s: &Span| RegionSpan {
        section: sections[s.section].name.clone(),
        account: accounts[s.section][s.step].clone(),
        start_nanoseconds: s.start_nanoseconds,
        nanoseconds: s.nanoseconds,
    };
    let all = Timing::of(spans).iter().map(region).collect();
    (all, spans[before_last..].iter().map(span).collect())
}
