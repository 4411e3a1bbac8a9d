//! A run's plan: what `plan` shows and `train` executes, for every rank.

use crate::backend::Backend;
use crate::error::TrainError;
use crate::layout::Layout;
use crate::sections::{Sections, StageAsks};
use crate::setup;
use aerogel_graph::Mesh;
use aerogel_machine::Program;
use aerogel_models::{self as models, ModelConfig, ParameterCounts, PositionInput};
use aerogel_passes::pipeline::{Message, Replica, Schedule};
use aerogel_plan::{PlanError, Report, plan};
use aerogel_recipe::Recipe;
use std::sync::Arc;

/// What ranks of one pipeline stage run. Without a pipeline there is one stage.
pub struct Stage {
    /// The program, the same for all ranks of the stage.
    pub program: Arc<Program>,
    /// What a user reads, of one rank.
    pub report: Report,
}

/// What `plan` shows and `train` runs.
pub struct RunPlan {
    /// The model.
    pub model: ModelConfig,
    /// How many numbers are trained.
    pub counts: ParameterCounts,
    /// The ranks.
    pub mesh: Mesh,
    /// The stages of the pipeline.
    pub stages: Vec<Stage>,
    /// Who runs which stage when, where there is a pipeline.
    pub schedule: Option<Schedule>,
    /// Tokens of one update, of all ranks.
    pub tokens_per_step: u64,
    /// Micro-batches of one rank in one update.
    pub micro_batches: usize,
    /// What the ranks run on.
    pub backend: Backend,
    /// The machine that was planned for, for people.
    pub machine: String,
    /// Threads of the CPU that the ranks of this machine share.
    pub threads: usize,
    /// Memory that one rank may take: the recipe's budget, or its share of what the machine has.
    pub budget_bytes: u64,
    /// Names of the parameters in the order of the model.
    pub parameters: Vec<String>,
    pub(crate) layout: Layout,
    pub(crate) messages: Vec<Message>,
    pub(crate) eval_messages: Vec<Message>,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) eval_batch: usize,
    pub(crate) positions: Vec<PositionInput>,
    pub(crate) samples: usize,
}

impl RunPlan {
    /// Builds the model's graphs, runs the passes and plans all sections of all stages.
    ///
    /// # Errors
    /// The model cannot be built. Whether the plan fits is asked of [`fits`](crate::fits), so that
    /// one that does not can be looked at.
    pub fn new(recipe: &Recipe, vocab: usize) -> Result<RunPlan, TrainError> {
        RunPlan::of_stages(recipe, vocab, None)
    }

    /// The same with the program of one stage alone planned, the one that `rank` runs; it stands
    /// for all others, so that one rank of thousands can be looked at.
    ///
    /// # Errors
    /// As [`RunPlan::new`].
    pub fn of_rank(recipe: &Recipe, vocab: usize, rank: usize) -> Result<RunPlan, TrainError> {
        RunPlan::of_stages(recipe, vocab, Some(rank))
    }

    fn of_stages(
        recipe: &Recipe,
        vocab: usize,
        rank: Option<usize>,
    ) -> Result<RunPlan, TrainError> {
        let model = setup::model(recipe, vocab);
        let layout = Layout::of(recipe);
        let forward = models::train_graph(&model, recipe.train.batch)?;
        let counts = models::parameter_counts(&forward);
        let parameters = forward.states().iter().map(|s| s.name.clone()).collect();
        let mesh = layout.shards.mesh.clone();
        let only = rank.map(|r| layout.stage(r));
        let sections = Sections::new(recipe, &model, &layout, forward, only)?;
        let backend = Backend::of(recipe);
        let machine = backend.machine(recipe.parallel.threads);
        let target = backend.target(&machine);
        let mut stages = vec![];
        for StageAsks { asks } in sections.stages {
            let planned = plan(asks, target.as_ref(), &machine)?;
            stages.push(Stage { program: Arc::new(planned.program), report: planned.report });
        }
        let share = backend.share_bytes(&machine, mesh.ranks());
        Ok(RunPlan {
            tokens_per_step: (recipe.train.batch * model.context) as u64,
            model,
            counts,
            mesh,
            stages,
            schedule: sections.schedule,
            micro_batches: layout.micro_batches,
            backend,
            threads: machine.threads,
            machine: machine.name,
            budget_bytes: recipe.memory.budget_bytes.unwrap_or(share),
            parameters,
            layout,
            messages: sections.messages,
            eval_messages: sections.eval_messages,
            replicas: sections.replicas,
            eval_batch: recipe.train.micro_batch,
            positions: sections.positions,
            samples: recipe.sample.count.max(1),
        })
    }

    /// The stage that a rank runs.
    pub fn stage(&self, rank: usize) -> &Stage {
        // A plan of one rank has one stage, which is that rank's.
        &self.stages[self.layout.stage(rank).min(self.stages.len() - 1)]
    }

    /// The program that a rank runs.
    pub fn program(&self, rank: usize) -> &Arc<Program> {
        &self.stage(rank).program
    }

    /// What there is to say of rank 0.
    pub fn report(&self) -> &Report {
        &self.stage(0).report
    }

    /// Names all programs: equal hashes run the same instructions at the same places.
    pub fn hash(&self) -> String {
        if let [one] = self.stages.as_slice() {
            return one.program.hash.clone();
        }
        let mut hasher = blake3::Hasher::new();
        for s in &self.stages {
            hasher.update(s.program.hash.as_bytes());
        }
        hasher.finalize().to_hex()[..16].to_owned()
    }

    /// Bytes that all ranks allocate.
    pub fn total_bytes(&self) -> u64 {
        (0..self.mesh.ranks()).map(|r| self.program(r).arena_bytes).sum()
    }

    /// FLOPs of one update, of all ranks.
    pub fn flops_per_step(&self) -> u64 {
        (0..self.mesh.ranks()).map(|r| self.stage(r).report.flops_per_step).sum()
    }

    /// Predicted time of a step: of the rank that is busy longest, and with what it waits for in a
    /// pipeline.
    pub fn seconds(&self) -> f64 {
        let busy = self.stages.iter().map(|s| s.report.seconds).fold(0.0, f64::max);
        let bubble = self.rank_plan(0).ok().and_then(|p| p.pipeline).map(|p| p.timeline.bubble);
        busy / (1.0 - bubble.unwrap_or(0.0)).max(1e-3)
    }

    /// The bytes of the rank that needs most.
    pub fn largest_bytes(&self) -> u64 {
        self.stages.iter().map(|s| s.program.arena_bytes).max().unwrap_or(0)
    }

    /// Whether each rank may have the memory that it needs.
    ///
    /// # Errors
    /// [`PlanError::DoesNotFit`], with the largest values at the peak, and `advice`: what would
    /// make it fit.
    pub fn fits_or(&self, advice: impl FnOnce() -> String) -> Result<(), TrainError> {
        let need_bytes = self.largest_bytes();
        let largest = self.stages.iter().find(|s| s.program.arena_bytes == need_bytes);
        let Some(stage) = largest.filter(|_| need_bytes > self.budget_bytes) else { return Ok(()) };
        let advice = advice();
        let list = stage.report.peak_values.iter().take(5);
        let largest: Vec<_> =
            list.map(|s| format!("{} ({} bytes)", s.name.trim(), s.bytes)).collect();
        Err(PlanError::DoesNotFit {
            need_bytes,
            have_bytes: self.budget_bytes,
            largest: largest.join(", "),
            advice,
        }
        .into())
    }

    /// The plan of a recipe whose data may not be prepared yet.
    ///
    /// # Errors
    /// As [`RunPlan::new`]; or the recipe's tokenizer cannot be read.
    pub fn of(recipe: &Recipe, workspace: &setup::Workspace) -> Result<RunPlan, TrainError> {
        RunPlan::new(recipe, setup::vocabulary(recipe, workspace)?)
    }
}
