//! A run's plan, and the plan loaded with weights.

use crate::error::TrainError;
use crate::setup;
use aerogel_cpu::{CpuDevice, CpuTarget};
use aerogel_graph::{DType, Graph, Init, random};
use aerogel_machine::{Device, Machine, Program, StateSlot};
use aerogel_models::{self as models, ModelConfig, ParameterCounts, PositionInput};
use aerogel_passes::{self as passes, Compute, Optimizer, UpdateConfig};
use aerogel_plan::{Ask, PlanError, Report, plan};
use aerogel_recipe::{self as recipe, Recipe};
use std::sync::Arc;

/// What `plan` shows and `train` runs.
pub struct RunPlan {
    /// The model.
    pub model: ModelConfig,
    /// How many numbers are trained.
    pub counts: ParameterCounts,
    /// The program.
    pub program: Arc<Program>,
    /// What a user reads.
    pub report: Report,
    /// Tokens of one update.
    pub tokens_per_step: u64,
    /// Micro-batches of one update.
    pub micro_batches: usize,
    /// Worker threads.
    pub threads: usize,
    /// Memory that the run may take: the recipe's budget, or all that the machine has.
    pub budget_bytes: u64,
    pub(crate) positions: Vec<PositionInput>,
    pub(crate) samples: usize,
}

impl RunPlan {
    /// Builds the model's graphs, runs the passes and plans all sections.
    ///
    /// # Errors
    /// The model cannot be built. Whether the plan fits is asked of [`RunPlan::fits`], so that one
    /// that does not can be looked at.
    pub fn new(recipe: &Recipe, vocab: usize) -> Result<RunPlan, TrainError> {
        let model = setup::model(recipe, vocab);
        let micro_batches = recipe.micro_batches();
        let forward = models::train_graph(&model, recipe.train.batch)?;
        let counts = models::parameter_counts(&forward);
        let decode = models::decode_graph(&model, recipe.sample.count.max(1))?;
        let asks = sections(recipe, &model, &forward, decode.graph)?;
        let machine = machine(recipe.parallel.threads);
        let target = CpuTarget::new(machine.clone());
        let planned = plan(asks, &target, &machine)?;
        Ok(RunPlan {
            tokens_per_step: (recipe.train.batch * model.context) as u64,
            model,
            counts,
            program: Arc::new(planned.program),
            report: planned.report,
            micro_batches,
            threads: machine.threads,
            budget_bytes: recipe.memory.budget_bytes.unwrap_or(machine.memory_bytes),
            positions: decode.positions,
            samples: recipe.sample.count.max(1),
        })
    }

    /// Whether the run may have the memory that it needs.
    ///
    /// # Errors
    /// [`PlanError::DoesNotFit`], with the largest values at the peak, and the change that makes it
    /// fit, as planned.
    pub fn fits(&self, recipe: &Recipe) -> Result<(), TrainError> {
        if self.program.arena_bytes <= self.budget_bytes {
            return Ok(());
        }
        let list = self.report.peak_values.iter().take(5);
        let largest: Vec<_> =
            list.map(|s| format!("{} ({} bytes)", s.name.trim(), s.bytes)).collect();
        Err(PlanError::DoesNotFit {
            need_bytes: self.program.arena_bytes,
            have_bytes: self.budget_bytes,
            largest: largest.join(", "),
            advice: self.smaller(recipe)?,
        }
        .into())
    }

    /// The largest micro-batch that fits, found by planning it; or what else to shrink.
    fn smaller(&self, recipe: &Recipe) -> Result<String, TrainError> {
        let batch = recipe.train.batch;
        let mut sizes = (1..recipe.train.micro_batch).rev().filter(|m| batch.is_multiple_of(*m));
        let mut last = None;
        while let Some(micro_batch) = sizes.next() {
            let mut less = recipe.clone();
            less.train.micro_batch = micro_batch;
            let plan = RunPlan::new(&less, self.model.vocab)?;
            let bytes = plan.program.arena_bytes;
            if bytes <= self.budget_bytes {
                return Ok(format!("train.micro_batch = {micro_batch} fits, with {bytes} bytes"));
            }
            last = Some(bytes);
            // Halving is enough to find out; a plan of each divisor would take its time.
            while sizes.clone().next().is_some_and(|next| next * 2 > micro_batch) {
                sizes.next();
            }
        }
        let least = last.unwrap_or(self.program.arena_bytes);
        Ok(format!(
            "one sequence at a time still needs {least} bytes: lower model.context, model.layers \
             or model.embed"
        ))
    }

    /// The plan of a recipe whose data may not be prepared yet.
    ///
    /// # Errors
    /// As [`RunPlan::new`]; or the recipe's tokenizer cannot be read.
    pub fn of(recipe: &Recipe, workspace: &setup::Workspace) -> Result<RunPlan, TrainError> {
        RunPlan::new(recipe, setup::vocabulary(recipe, workspace)?)
    }
}

/// All sections of a run: micro-batches, update, evaluation, decoding.
fn sections(
    recipe: &Recipe,
    model: &ModelConfig,
    forward: &Graph,
    decode: Graph,
) -> Result<Vec<Ask>, TrainError> {
    let compute = match recipe.precision.compute {
        recipe::Compute::F32 => Compute::F32,
        recipe::Compute::Bf16 => Compute::Bf16,
    };
    let micro_batches = recipe.micro_batches();
    let whole = passes::backward(&passes::precision(forward, compute)?)?;
    let micros = passes::tile(&whole, micro_batches)?;
    let update = passes::update(&micros[0].1, &update_config(recipe))?;
    let eval = models::eval_graph(model, recipe.train.micro_batch)?;
    let calls = |name: &str| {
        let named = |j: &usize| passes::section_of(*j, micro_batches) == name;
        (0..micro_batches).filter(named).count() as u64
    };
    let mut asks: Vec<Ask> =
        micros.into_iter().map(|(name, graph)| Ask { calls: calls(&name), name, graph }).collect();
    let mut add = |name: &str, graph: Graph, calls: u64| {
        asks.push(Ask { name: name.to_owned(), graph, calls });
    };
    add("update", update, 1);
    add("eval", passes::precision(&eval, compute)?, 0);
    add("decode", passes::precision(&decode, compute)?, 0);
    Ok(asks)
}

fn update_config(recipe: &Recipe) -> UpdateConfig {
    let kind = match recipe.optimizer.rule {
        recipe::Rule::AdamW { beta1, beta2, epsilon } => Optimizer::AdamW { beta1, beta2, epsilon },
        recipe::Rule::Adam { beta1, beta2, epsilon } => Optimizer::Adam { beta1, beta2, epsilon },
        recipe::Rule::Sgd { momentum } => Optimizer::Sgd { momentum },
        recipe::Rule::RmsProp { alpha, epsilon, momentum } => {
            Optimizer::RmsProp { alpha, epsilon, momentum }
        }
    };
    let (weight_decay, clip) = (recipe.optimizer.weight_decay, recipe.optimizer.clip);
    UpdateConfig { kind, weight_decay, clip }
}

fn machine(threads: usize) -> Machine {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Machine::cpu(if threads == 0 { cores } else { threads }, memory_bytes())
}

/// Memory of this machine; all there can be where the system does not tell.
fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("MemTotal:"));
    let kib = line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.map_or(u64::MAX, |k| k * 1024)
}

/// A loaded program.
pub struct Session {
    /// The plan that it runs.
    pub plan: RunPlan,
    /// The device, with all states.
    pub device: CpuDevice,
}

/// Elements that are drawn or copied at a time.
const CHUNK: u64 = 1 << 18;

impl Session {
    /// Loads the program; states are zero.
    ///
    /// # Errors
    /// The device cannot have the memory.
    pub fn load(plan: RunPlan) -> Result<Session, TrainError> {
        let device = CpuDevice::load(plan.program.clone(), plan.threads)?;
        Ok(Session { plan, device })
    }

    /// The position of a section.
    ///
    /// # Panics
    /// The plan has no such section: a bug.
    pub(crate) fn section(&self, name: &str) -> usize {
        self.plan.program.section(name).expect("RunPlan::new plans all sections")
    }

    /// Draws the initial values, by (seed, name, element).
    ///
    /// # Errors
    /// The device failed.
    pub fn initialise(&mut self, seed: u64) -> Result<(), TrainError> {
        let program = self.plan.program.clone();
        let mut chunk: Vec<f32> = vec![];
        for (state, part) in program.states.iter().flat_map(|s| s.parts.iter().map(move |p| (s, p)))
        {
            let stream = random::stream_id(&part.name);
            for run in state.runs(part, aerogel_graph::Place::default()) {
                for start in (0..run.count).step_by(CHUNK as usize) {
                    let count = (run.count - start).min(CHUNK);
                    let first = run.global + start;
                    chunk.clear();
                    match part.init {
                        Init::Constant(c) => chunk.resize(count as usize, c as f32),
                        Init::Normal(std) => chunk.extend(
                            (first..first + count)
                                .map(|i| (std * random::normal(seed, stream, i)) as f32),
                        ),
                    }
                    let at = (run.local + start) * 4;
                    self.device.write_state(&state.name, at, bytemuck::cast_slice(&chunk))?;
                }
            }
        }
        Ok(())
    }

    /// The states that a checkpoint holds.
    pub(crate) fn lasting(&self) -> impl Iterator<Item = &StateSlot> {
        use aerogel_graph::Role;
        let lasts = |s: &&StateSlot| matches!(s.role, Role::Parameter | Role::Optimizer);
        self.plan.program.states.iter().filter(lasts)
    }

    /// BLAKE3 over names and bytes of all parameters.
    ///
    /// # Errors
    /// The device failed.
    pub fn parameters_hash(&self) -> Result<String, TrainError> {
        let mut hasher = blake3::Hasher::new();
        let mut chunk = vec![0u8; 4 * CHUNK as usize];
        for state in self.lasting().filter(|s| s.role == aerogel_graph::Role::Parameter) {
            debug_assert_eq!(state.dtype, DType::F32);
            hasher.update(state.name.as_bytes());
            for start in (0..state.bytes).step_by(chunk.len()) {
                let bytes = &mut chunk[..(state.bytes - start).min(4 * CHUNK) as usize];
                self.device.read_state(&state.name, start, bytes)?;
                hasher.update(bytes);
            }
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// A scalar output of the section that ran last.
    pub(crate) fn scalar(&self, section: usize, name: &str) -> Result<f32, TrainError> {
        let mut bytes = [0u8; 4];
        self.device.read_output(section, name, &mut bytes)?;
        Ok(f32::from_le_bytes(bytes))
    }
}
