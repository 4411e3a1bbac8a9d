//! `[train]`, `[optimizer]` and `[schedule]`.

use crate::choices::{OptimizerKind, ScheduleKind};
use crate::divisors::divisor_up_to;
use crate::error::RecipeError;
use crate::fields::Fields;
use crate::layout::Parallel;
use crate::recipe::{Optimizer, Rule, Schedule, Train};
use crate::resolve::batch;

pub(crate) fn train(
    fields: &mut Fields,
    parallel: &Parallel,
    tiny: bool,
) -> Result<Train, RecipeError> {
    let why = "training ends after so many updates";
    let steps = fields.require("train.steps", why, "steps = 1000")?;
    let why = "an update takes so many sequences";
    let batch: usize = fields.require("train.batch", why, "batch = 8")?;
    let parts = batch::least_micro_batches(parallel);
    // A tiny form shows that a run works, on any ranks. Elsewhere the number of ranks must not
    // choose the micro-batch, which defines the numbers.
    let (size, reason) = match tiny && parts > 1 && batch.is_multiple_of(parts) {
        true => (batch / parts, "a data rank's share of the tiny batch"),
        false => (batch, "the whole batch at once"),
    };
    let micro_batch = fields.derive("train.micro_batch", size, &size.to_string(), reason);
    if !batch.is_multiple_of(micro_batch) {
        let down = divisor_up_to(batch, micro_batch);
        return Err(fields.clash(
            &["train.micro_batch", "train.batch"],
            format!("train.micro_batch = {micro_batch} does not divide train.batch = {batch}"),
            "a batch is computed in equal micro-batches",
            format!("set train.micro_batch = {down}"),
        ));
    }
    let train = Train {
        steps,
        batch,
        micro_batch,
        seed: fields.get("train.seed"),
        log_every: fields.get("train.log_every"),
        determinism: fields.choice("train.determinism"),
    };
    batch::check(fields, &train, parallel)?;
    Ok(train)
}

/// Keys of `[optimizer]` that a rule does not read.
fn idle_keys(kind: OptimizerKind) -> &'static [&'static str] {
    match kind {
        OptimizerKind::AdamW => &["optimizer.momentum", "optimizer.alpha"],
        OptimizerKind::Adam => &["optimizer.momentum", "optimizer.alpha", "optimizer.weight_decay"],
        OptimizerKind::Sgd => {
            &["optimizer.beta1", "optimizer.beta2", "optimizer.epsilon", "optimizer.alpha"]
        }
        OptimizerKind::RmsProp => &["optimizer.beta1", "optimizer.beta2"],
    }
}

pub(crate) fn optimizer(fields: &mut Fields) -> Result<Optimizer, RecipeError> {
    let kind: OptimizerKind = fields.choice("optimizer.kind");
    for key in idle_keys(kind) {
        let advice = match (*key, kind) {
            ("optimizer.weight_decay", _) => "set optimizer.kind = \"adamw\", or remove it",
            ("optimizer.momentum", OptimizerKind::AdamW | OptimizerKind::Adam) => {
                "set optimizer.beta1, or remove it"
            }
            _ => "remove it, or choose another optimizer.kind",
        };
        fields.refuse(&[key], &format!("with optimizer.kind = \"{}\"", kind.name()), advice)?;
    }
    let rule = match kind {
        OptimizerKind::AdamW => Rule::AdamW {
            beta1: fields.get("optimizer.beta1"),
            beta2: fields.get("optimizer.beta2"),
            epsilon: fields.get("optimizer.epsilon"),
        },
        OptimizerKind::Adam => Rule::Adam {
            beta1: fields.get("optimizer.beta1"),
            beta2: fields.get("optimizer.beta2"),
            epsilon: fields.get("optimizer.epsilon"),
        },
        OptimizerKind::Sgd => Rule::Sgd { momentum: fields.get("optimizer.momentum") },
        OptimizerKind::RmsProp => Rule::RmsProp {
            alpha: fields.get("optimizer.alpha"),
            epsilon: fields.get("optimizer.epsilon"),
            momentum: fields.get("optimizer.momentum"),
        },
    };
    let why = "no value suits every model";
    let learning_rate = fields.require("optimizer.learning_rate", why, "learning_rate = 3e-4")?;
    let weight_decay = match kind {
        OptimizerKind::Adam => 0.0,
        OptimizerKind::AdamW => {
            let reason = "the decay of Child et al.";
            fields.derive("optimizer.weight_decay", 0.01, "0.01", reason)
        }
        _ => {
            let reason = format!("{} decays nothing unless asked", kind.name());
            fields.derive("optimizer.weight_decay", 0.0, "0.0", &reason)
        }
    };
    Ok(Optimizer { rule, learning_rate, weight_decay, clip: fields.get("optimizer.clip") })
}

pub(crate) fn schedule(fields: &mut Fields, train: &Train) -> Result<Schedule, RecipeError> {
    let kind: ScheduleKind = fields.choice("schedule.kind");
    let final_ratio = match kind {
        ScheduleKind::Constant => {
            let because = "with schedule.kind = \"constant\"";
            let advice = "remove it, or set schedule.kind = \"linear\"";
            fields.refuse(&["schedule.final_ratio"], because, advice)?;
            1.0
        }
        _ => fields.get("schedule.final_ratio"),
    };
    let twentieth = train.steps / 20;
    let reason = format!("a twentieth of {} steps", train.steps);
    let warmup = fields.derive("schedule.warmup", twentieth, &twentieth.to_string(), &reason);
    if warmup >= train.steps {
        return Err(fields.clash(
            &["schedule.warmup", "train.steps"],
            format!("schedule.warmup = {warmup} with train.steps = {}", train.steps),
            "training would end before the learning rate reaches its peak",
            format!("set schedule.warmup below train.steps, as in {twentieth}"),
        ));
    }
    Ok(Schedule { kind, warmup, final_ratio, base_batch: fields.given("schedule.base_batch") })
}
