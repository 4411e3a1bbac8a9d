//! fit: the fastest plan that stays under a limit of memory, found by planning.
//!
//! What is tried leaves the numbers of a run as they are, up to the order of sums where the recipe
//! allows that: ZeRO stages over the ranks that share a batch, chunks of the sequence, as much
//! recomputation as is needed, and, under `determinism = "fast"`, smaller micro-batches.
//! Nothing is estimated: every answer was planned, and says what the plan needs and takes.

use crate::error::TrainError;
use crate::plan::RunPlan;
use aerogel_recipe::{Determinism, Recipe, RecomputePolicy};

/// A plan under the limit, or as near as it comes.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// What is set, as keys of the recipe; empty for the recipe as it is.
    pub changes: Vec<String>,
    /// Bytes of the rank that needs most.
    pub bytes: u64,
    /// Predicted time of a step.
    pub seconds: f64,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// The limit, bytes of one rank.
    pub budget_bytes: u64,
    /// The recipe as it is.
    pub recipe: Choice,
    /// Plans under the limit, fastest first; none where nothing fits.
    pub fitting: Vec<Choice>,
    /// Where nothing fits: the smallest change of the run itself that would.
    pub smallest: Option<Choice>,
    /// Plans that were made.
    pub planned: usize,
}

/// Searches for the fastest plan under the recipe's budget (`memory.budget`, or this machine's
/// memory).
///
/// # Errors
/// The recipe cannot be planned as it is.
pub fn fit(recipe: &Recipe, vocab: usize) -> Result<Fit, TrainError> {
    let plan = RunPlan::new(recipe, vocab)?;
    let own = choice(recipe, recipe, &plan);
    let mut search = Search { base: recipe, vocab, budget: plan.budget_bytes, planned: 1 };
    let mut fitting = vec![];
    if own.bytes <= search.budget {
        fitting.push(own.clone());
    }
    for samples in search.samples() {
        let mut r = recipe.clone();
        r.sample.count = samples;
        fitting.extend(search.all(&r));
        // Fewer samples are drawn only where nothing else helps.
        if !fitting.is_empty() {
            break;
        }
    }
    // One of several plans that take as long: the one that needs least.
    let key = |c: &Choice| (c.seconds, c.bytes);
    fitting.sort_by(|a, b| {
        let ((s, m), (t, n)) = (key(a), key(b));
        s.total_cmp(&t).then(m.cmp(&n)).then(a.changes.len().cmp(&b.changes.len()))
    });
    fitting.dedup_by(|a, b| a.changes == b.changes);
    let smallest = if fitting.is_empty() { search.smallest() } else { None };
    let (budget_bytes, planned) = (search.budget, search.planned);
    Ok(Fit { budget_bytes, recipe: own, fitting, smallest, planned })
}

/// Whether a plan stays under its budget.
///
/// # Errors
/// [`DoesNotFit`](aerogel_plan::PlanError::DoesNotFit), with what takes the memory and with a
/// change that was planned and fits.
pub fn fits(plan: &RunPlan, recipe: &Recipe) -> Result<(), TrainError> {
    plan.fits_or(|| {
        let (vocab, budget) = (plan.model.vocab, plan.budget_bytes);
        let mut search = Search { base: recipe, vocab, budget, planned: 0 };
        let found = search.simplest().or_else(|| search.smallest());
        let advice = |c: Choice| {
            let changes = c.changes.join(" ");
            format!(
                "{changes} fits, with {} bytes; plan --fit finds the fastest that does",
                c.bytes
            )
        };
        found.map_or(LOWER.to_owned(), advice)
    })
}

const LOWER: &str = "not even one layer and one sequence at a time fit: lower model.context or \
                     model.embed";

/// Plans on the way to an answer.
struct Search<'a> {
    base: &'a Recipe,
    vocab: usize,
    budget: u64,
    planned: usize,
}

impl Search<'_> {
    /// Sequences of a micro-batch: the recipe's, for they define the numbers; where the order of
    /// sums is free, smaller ones too.
    fn micro_batches(&self) -> Vec<usize> {
        let train = &self.base.train;
        let own = train.micro_batch;
        match train.determinism {
            Determinism::Bitwise => vec![own],
            Determinism::Fast => {
                let halves = std::iter::successors(Some(own), |m| Some(m / 2).filter(|m| *m > 0));
                halves.filter(|m| train.batch.is_multiple_of(*m)).collect()
            }
        }
    }

    /// Samples drawn side by side, which have caches of their own.
    fn samples(&self) -> Vec<usize> {
        let mut counts = vec![self.base.sample.count];
        counts.extend([1, 0].into_iter().filter(|n| *n < self.base.sample.count));
        counts
    }

    /// Everything that may be combined with a recipe, each with the least recomputation.
    fn all(&mut self, base: &Recipe) -> Vec<Choice> {
        let mut fitting = vec![];
        for sequences in self.micro_batches() {
            for zero in self.zero_stages() {
                for chunks in self.chunks() {
                    let mut r = base.clone();
                    r.train.micro_batch = sequences;
                    set_zero(&mut r, zero);
                    (r.memory.mlp_chunks, r.memory.loss_chunks) = (chunks, chunks);
                    fitting.extend(self.recomputed(&r));
                }
            }
        }
        fitting
    }

    fn zero_stages(&self) -> Vec<u8> {
        if self.base.parallel.data_ranks() > 1 { vec![0, 1, 2, 3] } else { vec![0] }
    }

    fn chunks(&self) -> Vec<usize> {
        let context = self.base.model.context;
        [1, 4].into_iter().filter(|c| context.is_multiple_of(*c)).collect()
    }

    /// A plan of a changed recipe; `None` where the change contradicts what the recipe says.
    fn plan(&mut self, r: &Recipe) -> Option<Choice> {
        self.plan_and_activations(r).map(|p| p.0)
    }

    /// The same, with the bytes of activations at its peak.
    fn plan_and_activations(&mut self, r: &Recipe) -> Option<(Choice, u64)> {
        let text = r.to_toml();
        let name = format!("{}.toml", r.name);
        let checked = Recipe::parse(&text, &name, &r.dir, &[], r.tiny).ok()?;
        self.planned += 1;
        let plan = RunPlan::new(&checked, self.vocab).ok()?;
        let activations = plan.stages.iter().map(|s| s.report.kinds.activations_bytes).max();
        Some((choice(self.base, &checked, &plan), activations.unwrap_or(0)))
    }

    /// The least recomputation that fits: none, maps and norms, as many activations as there is
    /// room for, all blocks.
    fn recomputed(&mut self, r: &Recipe) -> Option<Choice> {
        let with = |policy| {
            let mut r = r.clone();
            r.memory.recompute = policy;
            r
        };
        let (none, activations) = self.plan_and_activations(&with(RecomputePolicy::None))?;
        if none.bytes <= self.budget {
            return Some(none);
        }
        let blocks = self.plan(&with(RecomputePolicy::Blocks { every: 1 }))?;
        if blocks.bytes > self.budget {
            return None;
        }
        let cheap = self.plan(&with(RecomputePolicy::Cheap)).filter(|c| c.bytes <= self.budget);
        // Activations that may stay: all, but for what is too much.
        let mut keep = activations.saturating_sub(none.bytes - self.budget);
        let mut best = cheap.unwrap_or(blocks);
        for _ in 0..3 {
            let Some(c) = self.plan(&with(RecomputePolicy::Budget { bytes: keep.max(1) })) else {
                break;
            };
            if c.bytes <= self.budget {
                if c.seconds < best.seconds {
                    best = c;
                }
                break;
            }
            keep = keep.saturating_sub((c.bytes - self.budget) * 21 / 20);
        }
        Some(best)
    }

    /// The first single change, and then the first pair, that fits.
    fn simplest(&mut self) -> Option<Choice> {
        let blocks = RecomputePolicy::Blocks { every: 1 };
        let most = *self.zero_stages().last()?;
        let policies =
            [(0, RecomputePolicy::Cheap), (0, blocks), (most, self.base.memory.recompute)];
        let policies = policies.into_iter().chain([(most, blocks)]);
        let samples = self.samples().into_iter();
        for (samples, (zero, policy)) in samples.flat_map(|n| policies.clone().map(move |p| (n, p)))
        {
            let mut r = self.base.clone();
            r.sample.count = samples;
            r.memory.recompute = policy;
            if zero > 0 {
                set_zero(&mut r, zero);
            }
            if let Some(c) = self.plan(&r).filter(|c| c.bytes <= self.budget) {
                return Some(c);
            }
        }
        None
    }

    /// The smallest change of the run that fits with everything saved that can be: fewer sequences
    /// at a time, else fewer layers.
    fn smallest(&mut self) -> Option<Choice> {
        let mut r = self.base.clone();
        set_zero(&mut r, *self.zero_stages().last()?);
        r.memory.recompute = RecomputePolicy::Blocks { every: 1 };
        r.sample.count = *self.samples().last()?;
        let chunks = *self.chunks().last()?;
        (r.memory.mlp_chunks, r.memory.loss_chunks) = (chunks, chunks);
        let mut sequences = r.train.micro_batch;
        while sequences > 1 {
            sequences = (1..sequences).rev().find(|m| r.train.batch.is_multiple_of(*m))?;
            let mut less = r.clone();
            less.train.micro_batch = sequences;
            if let Some(c) = self.plan(&less).filter(|c| c.bytes <= self.budget) {
                return Some(c);
            }
        }
        r.train.micro_batch = 1;
        let (mut low, mut high) = (0, r.model.layers);
        let mut found = None;
        while high - low > 1 {
            let layers = (low + high) / 2;
            let mut less = r.clone();
            less.model.layers = layers;
            match self.plan(&less).filter(|c| c.bytes <= self.budget) {
                Some(c) => {
                    found = Some(c);
                    low = layers;
                }
                None => high = layers,
            }
        }
        found
    }
}

/// Deals buckets out over all ranks that share a batch, as far as a ZeRO stage does.
fn set_zero(r: &mut Recipe, stage: u8) {
    let batch = r.parallel.shard.batch.clone();
    let shard = &mut r.parallel.shard;
    let over = |from: u8| if stage >= from { batch.clone() } else { vec![] };
    (shard.optimizer, shard.gradients, shard.parameters) = (over(1), over(2), over(3));
}

/// What a plan needs, and what sets it apart from the recipe.
fn choice(base: &Recipe, r: &Recipe, plan: &RunPlan) -> Choice {
    let mut changes = vec![];
    let mut set = |differs: bool, text: String| {
        if differs {
            changes.push(text);
        }
    };
    let (a, b) = (&base.memory, &r.memory);
    set(
        base.train.micro_batch != r.train.micro_batch,
        format!("train.micro_batch={}", r.train.micro_batch),
    );
    set(base.sample.count != r.sample.count, format!("sample.count={}", r.sample.count));
    set(base.model.layers != r.model.layers, format!("model.layers={}", r.model.layers));
    let recompute = match b.recompute {
        RecomputePolicy::None => "memory.recompute=none".to_owned(),
        RecomputePolicy::Cheap => "memory.recompute=cheap".to_owned(),
        RecomputePolicy::Blocks { every: 1 } => "memory.recompute=block".to_owned(),
        RecomputePolicy::Blocks { every } => {
            format!("memory.recompute=block memory.recompute_every={every}")
        }
        RecomputePolicy::Budget { bytes } => {
            format!("memory.recompute=budget memory.activations={bytes}B")
        }
    };
    set(a.recompute != b.recompute, recompute);
    set(a.mlp_chunks != b.mlp_chunks, format!("memory.mlp_chunks={}", b.mlp_chunks));
    set(a.loss_chunks != b.loss_chunks, format!("memory.loss_chunks={}", b.loss_chunks));
    let (old, new) = (&base.parallel.shard, &r.parallel.shard);
    let same = old.optimizer == new.optimizer
        && old.gradients == new.gradients
        && old.parameters == new.parameters;
    let stage = [&new.optimizer, &new.gradients, &new.parameters];
    let stage = stage.iter().filter(|list| !list.is_empty()).count();
    let preset = if stage == 0 { "ddp".to_owned() } else { format!("zero{stage}") };
    set(!same, format!("parallel.preset={preset}"));
    Choice { changes, bytes: plan.largest_bytes(), seconds: plan.seconds() }
}
