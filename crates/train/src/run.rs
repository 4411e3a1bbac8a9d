//! A training run: the story from a recipe to its report.

use crate::checkpoint::{self, Stamp};
use crate::error::{Exit, TrainError};
use crate::evaluate::evaluate;
use crate::events::{Event, Sink, resident_bytes};
use crate::feed::Feed;
use crate::fit::fits;
use crate::plan::RunPlan;
use crate::recall::recall;
use crate::report::{self, Page};
use crate::sample::{Sampling, sample};
use crate::session::{Session, Ties};
use crate::setup::{self, Workspace, prepare_data, run_hash};
use crate::step::Stepper;
use aerogel_data::{Dataset, ImageShape, Progress, Sampler, image_grid_png};
use aerogel_models::shifts_inside;
use aerogel_passes::schedule::{Kind, Schedule};
use aerogel_recipe::{Recipe, ScheduleKind};
use aerogel_store::{
    Fs, MetricsWriter, RealFs, Resume, RunDir, RunLock, RunRecord, RunStatus, Start, cut_back,
    resolve, write_atomic,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How to run.
pub struct Options {
    /// Where runs and prepared data lie.
    pub workspace: Workspace,
    /// Whether to continue an earlier run.
    pub resume: Resume,
    /// Set from outside to end the run after the step at hand, with a checkpoint.
    pub stop: Arc<AtomicBool>,
    /// How ranks wait for each other; `None` follows the recipe.
    pub ties: Option<Ties>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Done, or stopped and resumable.
    pub exit: Exit,
    /// The run folder.
    pub folder: PathBuf,
    /// Updates that were applied in all.
    pub step: u64,
}

/// Trains a recipe to its last step, or until it is stopped.
///
/// # Errors
/// See [`TrainError`]; whatever was committed before stays good.
pub fn train(
    recipe: &Recipe,
    options: &Options,
    progress: &mut dyn Progress,
    sink: &mut dyn Sink,
) -> Result<Outcome, TrainError> {
    // What is wrong with the model is told before work on its data.
    let early = RunPlan::of(recipe, &options.workspace)?;
    early.backend.check(early.mesh.ranks())?;
    fits(&early, recipe)?;
    let (_, data) = prepare_data(recipe, &options.workspace, progress)?;
    let vocab = data.index().tokenizer.vocabulary as usize;
    let plan = if early.model.vocab == vocab { early } else { RunPlan::new(recipe, vocab)? };
    fits(&plan, recipe)?;
    let hash = run_hash(recipe, &data);
    let (folder, lock, start) = open_folder(recipe, options, &hash, &plan)?;
    let timeout = Duration::from_secs_f64(recipe.parallel.timeout_seconds);
    let ties = options.ties.clone().unwrap_or_else(|| Ties::new(timeout));
    let mut run = Run::load(recipe, &data, folder, hash, plan, ties, sink)?;
    let outcome = match run.begin(start).and_then(|()| run.steps(&options.stop)) {
        Ok(outcome) => outcome,
        Err(error) => return Err(run.failed(error)),
    };
    run.record(if outcome == Exit::Done { RunStatus::Done } else { RunStatus::Stopped }, &lock)?;
    Ok(Outcome { exit: outcome, folder: run.folder.path().to_owned(), step: run.step })
}

/// Finds the run folder, locks it, and writes the resolved recipe.
fn open_folder(
    recipe: &Recipe,
    options: &Options,
    hash: &str,
    plan: &RunPlan,
) -> Result<(RunDir, RunLock, Start), TrainError> {
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    let name = setup::name(recipe);
    let runs = &options.workspace.runs;
    // A run that another process finishes between finding and locking is found again.
    loop {
        let found = resolve(&fs, runs, &name, hash, options.resume)?;
        let folder = RunDir::new(fs.clone(), &found.path);
        let lock = folder.lock()?;
        if resolve(&fs, runs, &name, hash, options.resume)? != found {
            continue;
        }
        let mut record = RunRecord::begin(&name, hash, &plan.hash());
        if let Some(old) = folder.read_record()? {
            record.started_unix_seconds = old.started_unix_seconds;
        }
        folder.write_record(&record, &lock)?;
        write_atomic(fs.as_ref(), &folder.recipe(), recipe.to_toml().as_bytes())?;
        return Ok((folder, lock, found.start));
    }
}

/// A run at work.
struct Run<'a> {
    recipe: &'a Recipe,
    data: &'a Dataset,
    folder: RunDir,
    hash: String,
    session: Session,
    metrics: Option<MetricsWriter>,
    sink: &'a mut dyn Sink,
    step: u64,
    started: Instant,
    last_loss_bits: f64,
    last_eval_bits: Option<f64>,
}

impl<'a> Run<'a> {
    fn load(
        recipe: &'a Recipe,
        data: &'a Dataset,
        folder: RunDir,
        hash: String,
        plan: RunPlan,
        ties: Ties,
        sink: &'a mut dyn Sink,
    ) -> Result<Run<'a>, TrainError> {
        let session = Session::load(plan, ties)?;
        Ok(Run {
            recipe,
            data,
            folder,
            hash,
            session,
            metrics: None,
            sink,
            step: 0,
            started: Instant::now(),
            last_loss_bits: f64::NAN,
            last_eval_bits: None,
        })
    }

    /// Initial weights, or those of a checkpoint; then the first events.
    fn begin(&mut self, start: Start) -> Result<(), TrainError> {
        let checkpoints = self.folder.checkpoints();
        let (mut skipped, mut aside) = (vec![], vec![]);
        let found = match start {
            Start::New => None,
            Start::Step(step) => {
                let checkpoint = checkpoints.open(step)?;
                checkpoint.verify()?;
                aside = checkpoints.set_aside_after(step)?;
                Some(checkpoint)
            }
            Start::Latest => {
                let latest = checkpoints.latest()?;
                skipped = latest.skipped;
                latest.checkpoint
            }
        };
        match &found {
            Some(checkpoint) => {
                checkpoint::load(&mut self.session, checkpoint)?;
                self.step = checkpoint.step();
            }
            None => self.session.initialise(self.recipe.train.seed)?,
        }
        let path = self.folder.metrics();
        if path.exists() && found.is_some() {
            cut_back(&RealFs, &path, self.step)?;
            let recalled = recall(&std::fs::read_to_string(&path)?);
            self.last_loss_bits = recalled.loss_bits.unwrap_or(f64::NAN);
            self.last_eval_bits = recalled.eval_bits;
        } else if path.exists() {
            // Killed before its first checkpoint: the run begins anew, and its log with it.
            std::fs::remove_file(&path)?;
        }
        self.metrics = Some(MetricsWriter::open(&RealFs, &path)?);
        self.tell_start(found.is_some())?;
        for s in skipped {
            let message = format!("checkpoint {} is damaged and was skipped: {}", s.step, s.reason);
            self.tell(&Event::Warning { step: self.step, message })?;
        }
        if let (Some(first), Some(last)) = (aside.first(), aside.last()) {
            let message = format!(
                "the run goes on from step {}; checkpoints {first} to {last} were set aside",
                self.step
            );
            self.tell(&Event::Warning { step: self.step, message })?;
        }
        if found.is_none() {
            self.evaluate(self.first_sequences())?;
        }
        Ok(())
    }

    fn tell_start(&mut self, resumed: bool) -> Result<(), TrainError> {
        let plan = &self.session.plan;
        let start = Event::Start {
            step: self.step,
            run: self.folder.path().display().to_string(),
            resumed,
            steps: self.recipe.train.steps,
            parameters: plan.counts.parameters,
            tokens_per_step: plan.tokens_per_step,
            flops_per_step: plan.flops_per_step(),
            planned_bytes: plan.total_bytes(),
            allocated_bytes: self.session.allocated_bytes(),
            library_bytes: self.session.library_bytes(),
            device: plan.backend.name().to_owned(),
            ranks: plan.mesh.ranks(),
            threads: plan.threads,
            run_hash: self.hash.clone(),
            plan_hash: plan.hash(),
        };
        self.tell(&start)
    }

    fn tell(&mut self, event: &Event) -> Result<(), TrainError> {
        if let Some(metrics) = &mut self.metrics {
            let value = serde_json::to_value(event.line()).expect("events have text keys");
            metrics.push(&value)?;
        }
        self.sink.event(event)
    }

    /// The steps that are left, with evaluation, samples and checkpoints between them.
    fn steps(&mut self, stop: &AtomicBool) -> Result<Exit, TrainError> {
        let (train, steps) = (&self.recipe.train, self.recipe.train.steps);
        let data = self.data;
        let split = data.split("train")?;
        let model = &self.session.plan.model;
        let shifts = shifts_inside(model.family);
        let mut steppers = (0..self.session.ranks.len())
            .map(|rank| {
                let sampler = Sampler::shuffled(split, model.context, train.seed)?;
                let feed = Feed::new(split, sampler, train.micro_batch, model.context, shifts);
                let plan = &self.session.plan;
                Ok(Stepper::new(plan, rank, feed, train.micro_batch, train.seed))
            })
            .collect::<Result<Vec<_>, TrainError>>()?;
        let schedule = schedule(self.recipe);
        if self.step == steps {
            // Killed after its last step: this clears what a checkpoint or its pruning left behind.
            self.save()?;
        }
        while self.step < steps {
            if stop.load(Ordering::Relaxed) {
                self.save()?;
                self.tell(&Event::Stopped { step: self.step })?;
                return Ok(Exit::Resumable);
            }
            self.one_step(&mut steppers, &schedule)?;
            self.after_step()?;
        }
        self.finish()?;
        Ok(Exit::Done)
    }

    fn one_step(
        &mut self,
        steppers: &mut [Stepper<'_>],
        schedule: &Schedule,
    ) -> Result<(), TrainError> {
        let started = Instant::now();
        let rate = schedule.rate(self.step);
        let index = self.step;
        let all = self
            .session
            .each_with(steppers, |_, _, device, stepper| stepper.step(device, index, rate))?;
        let updated = all[0];
        self.step += 1;
        if let Some(what) = updated.broken() {
            return Err(TrainError::NonFinite { step: self.step, what });
        }
        let seconds = started.elapsed().as_secs_f64();
        self.last_loss_bits = f64::from(updated.loss) / std::f64::consts::LN_2;
        let tokens = self.session.plan.tokens_per_step;
        let left = (self.recipe.train.steps - self.step) as f64;
        let event = Event::Step {
            step: self.step,
            loss_bits: self.last_loss_bits,
            learning_rate: rate,
            grad_norm: f64::from(updated.grad_norm),
            tokens: self.step * tokens,
            seconds,
            tokens_per_second: tokens as f64 / seconds,
            resident_bytes: resident_bytes(),
            eta_seconds: left * seconds,
            loss_scale: updated.scale.map(|(scale, _)| f64::from(scale)),
            skipped: updated.scale.map(|(_, skipped)| skipped),
        };
        self.tell(&event)?;
        match updated.skipped() {
            Some(message) => self.tell(&Event::Warning { step: self.step, message }),
            None => Ok(()),
        }
    }

    fn after_step(&mut self) -> Result<(), TrainError> {
        let due = |every: u64| every > 0 && self.step.is_multiple_of(every);
        let last = self.step == self.recipe.train.steps;
        let (eval, draw) = (due(self.recipe.eval.every), due(self.recipe.sample.every));
        let save = due(self.recipe.checkpoint.every);
        if eval || last {
            self.evaluate(self.recipe.eval.sequences)?;
        }
        if draw || last {
            self.sample()?;
        }
        if save || last {
            self.save()?;
        }
        Ok(())
    }

    /// How many sequences are scored before the first step: one batch. Of weights that have learned
    /// nothing more would say no more, and the first step would wait for it.
    fn first_sequences(&self) -> u64 {
        let batch = self.recipe.train.batch as u64;
        match self.recipe.eval.sequences {
            0 => batch,
            asked => asked.min(batch),
        }
    }

    fn evaluate(&mut self, sequences: u64) -> Result<(), TrainError> {
        if !self.data.index().splits.contains_key("validation") {
            return Ok(());
        }
        let e = evaluate(&mut self.session, self.data, "validation", sequences)?;
        self.last_eval_bits = Some(e.bits);
        self.tell(&Event::Eval {
            step: self.step,
            split: e.split,
            bits: e.bits,
            unit: e.unit,
            bits_per_token: e.bits_per_token,
            perplexity: e.perplexity,
            tokens: e.tokens,
            seconds: e.seconds,
        })
    }

    fn sample(&mut self) -> Result<(), TrainError> {
        let ask = &self.recipe.sample;
        if ask.count == 0 {
            return Ok(());
        }
        if !self.session.plan.layout.is_data_parallel() {
            let message =
                "no rank has all of the model, so no samples are drawn; `aerogel sample` \
                           draws them from a checkpoint"
                    .to_owned();
            return self.tell(&Event::Warning { step: self.step, message });
        }
        let tokenizer = self.data.tokenizer()?;
        let prompt = match (&ask.prompt, &tokenizer) {
            (Some(text), Some(t)) => t.encode(text.as_bytes())?,
            _ => vec![],
        };
        let drawn = sample(
            &mut self.session,
            &Sampling {
                prefixes: vec![prompt; ask.count],
                tokens: ask.tokens,
                temperature: ask.temperature,
                top_k: ask.top_k,
                seed: ask.seed,
            },
        )?;
        let name = format!("step-{:08}", self.step);
        let (mut file, mut text) = (None, vec![]);
        if let Some(shape) = self.data.index().image {
            let png = grid(&drawn.tokens, shape)?;
            file = Some(self.write_sample(&format!("{name}.png"), &png)?);
        } else if let Some(t) = &tokenizer {
            for tokens in &drawn.tokens {
                text.push(String::from_utf8_lossy(&t.decode(tokens)?).into_owned());
            }
            let all = text.join("\n\n----\n\n");
            file = Some(self.write_sample(&format!("{name}.txt"), all.as_bytes())?);
        }
        self.tell(&Event::Sample { step: self.step, file, text, seconds: drawn.seconds })
    }

    fn write_sample(&self, name: &str, bytes: &[u8]) -> Result<String, TrainError> {
        let path = self.folder.samples().join(name);
        std::fs::create_dir_all(self.folder.samples())?;
        write_atomic(&RealFs, &path, bytes)?;
        Ok(format!("samples/{name}"))
    }

    fn save(&mut self) -> Result<(), TrainError> {
        let started = Instant::now();
        if let Some(metrics) = &mut self.metrics {
            metrics.sync()?;
        }
        let stamp = Stamp {
            step: self.step,
            run_hash: &self.hash,
            sequences: self.step * self.recipe.train.batch as u64,
        };
        let checkpoints = self.folder.checkpoints();
        let checkpoint_bytes = checkpoint::save(&self.session, &checkpoints, &stamp)?;
        checkpoints.prune(self.recipe.checkpoint.keep as usize)?;
        let seconds = started.elapsed().as_secs_f64();
        self.tell(&Event::Checkpoint { step: self.step, checkpoint_bytes, seconds })
    }

    fn finish(&mut self) -> Result<(), TrainError> {
        let page = Page {
            name: setup::name(self.recipe),
            recipe: self.recipe.to_toml(),
            metrics: std::fs::read_to_string(self.folder.metrics())?,
            plan: &self.session.plan.rank_plan(0)?,
            samples: self.folder.samples(),
        };
        write_atomic(&RealFs, &self.folder.report(), report::html(&page).as_bytes())?;
        let event = Event::Done {
            step: self.step,
            loss_bits: self.last_loss_bits,
            eval_bits: self.last_eval_bits,
            parameters_hash: self.session.parameters_hash()?,
            seconds: self.started.elapsed().as_secs_f64(),
            report: Some("report.html".to_owned()),
        };
        self.tell(&event)
    }

    /// Tells how the run failed, as far as that still works.
    fn failed(&mut self, error: TrainError) -> TrainError {
        let message = error.to_string();
        let event = Event::Failed { step: self.step, message, exit_code: error.exit() as u8 };
        match self.tell(&event) {
            // The first error is the one to report.
            Ok(()) | Err(_) => error,
        }
    }

    fn record(&self, status: RunStatus, lock: &RunLock) -> Result<(), TrainError> {
        let Some(mut record) = self.folder.read_record()? else { return Ok(()) };
        record.status = status;
        Ok(self.folder.write_record(&record, lock)?)
    }
}

/// A PNG of images whose tokens are bytes, as square a grid as can be.
///
/// # Errors
/// No image, or one of another shape.
pub fn grid(tokens: &[Vec<u32>], shape: ImageShape) -> Result<Vec<u8>, TrainError> {
    let images: Vec<Vec<u8>> =
        tokens.iter().map(|t| t.iter().map(|&x| x.min(255) as u8).collect()).collect();
    let columns = (images.len() as f64).sqrt().ceil() as usize;
    Ok(image_grid_png(&images, shape, columns.max(1))?)
}

fn schedule(recipe: &Recipe) -> Schedule {
    Schedule {
        kind: match recipe.schedule.kind {
            ScheduleKind::Cosine => Kind::Cosine,
            ScheduleKind::Linear => Kind::Linear,
            ScheduleKind::Constant => Kind::Constant,
        },
        peak: recipe.peak_learning_rate(),
        warmup: recipe.schedule.warmup,
        steps: recipe.train.steps,
        final_ratio: recipe.schedule.final_ratio,
    }
}
