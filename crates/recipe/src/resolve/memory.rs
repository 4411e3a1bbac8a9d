//! `[memory]`: what is kept, computed again, or computed in parts.

use crate::choices::{Family, RecomputeKind};
use crate::divisors::nearest_divisor;
use crate::error::RecipeError;
use crate::fields::Fields;
use crate::layout::{Memory, Parallel, RecomputePolicy};
use crate::recipe::{Model, Optimizer, Train};
use crate::running::Precision;

pub(crate) fn resolve(
    fields: &Fields,
    model: &Model,
    optimizer: &Optimizer,
    train: &Train,
    parallel: &Parallel,
    precision: &Precision,
) -> Result<Memory, RecipeError> {
    let update_in_backward = fields.get("memory.update_in_backward");
    if update_in_backward {
        allow_update_in_backward(fields, model, (optimizer, precision), train, parallel)?;
    }
    Ok(Memory {
        budget_bytes: fields.given("memory.budget"),
        recompute: recompute(fields)?,
        mlp_chunks: chunks(fields, "memory.mlp_chunks", model)?,
        loss_chunks: chunks(fields, "memory.loss_chunks", model)?,
        update_in_backward,
    })
}

fn recompute(fields: &Fields) -> Result<RecomputePolicy, RecipeError> {
    let kind: RecomputeKind = fields.choice("memory.recompute");
    let because = format!("with memory.recompute = \"{}\"", kind.name());
    if kind != RecomputeKind::Block {
        let advice = "remove it, or set memory.recompute = \"block\"";
        fields.refuse(&["memory.recompute_every"], &because, advice)?;
    }
    if kind != RecomputeKind::Budget {
        let advice = "remove it, or set memory.recompute = \"budget\"";
        fields.refuse(&["memory.activations"], &because, advice)?;
    }
    Ok(match kind {
        RecomputeKind::None => RecomputePolicy::None,
        RecomputeKind::Cheap => RecomputePolicy::Cheap,
        RecomputeKind::Block => {
            RecomputePolicy::Blocks { every: fields.get("memory.recompute_every") }
        }
        RecomputeKind::Budget => {
            let why = "memory.recompute = \"budget\" needs the limit to stay under";
            let example = "activations = \"2GiB\"";
            RecomputePolicy::Budget { bytes: fields.require("memory.activations", why, example)? }
        }
    })
}

fn chunks(fields: &Fields, key: &str, model: &Model) -> Result<usize, RecipeError> {
    let (chunks, context): (usize, usize) = (fields.get(key), model.context);
    match context.is_multiple_of(chunks) {
        true => Ok(chunks),
        false => Err(fields.clash(
            &[key, "model.context"],
            format!("{key} = {chunks} does not divide model.context = {context}"),
            "a sequence is cut into equal parts",
            format!("set {key} = {}", nearest_divisor(context, chunks)),
        )),
    }
}

/// Refuses an early update where the gradient at hand is not yet the whole one, or where the old
/// weight is still read.
fn allow_update_in_backward(
    fields: &Fields,
    model: &Model,
    (optimizer, precision): (&Optimizer, &Precision),
    train: &Train,
    parallel: &Parallel,
) -> Result<(), RecipeError> {
    let refused = |keys: &[&str], what: String, why: &str, advice: &str| {
        let keys = [&["memory.update_in_backward"], keys].concat();
        let what = format!("memory.update_in_backward with {what}");
        let advice = format!("{advice}, or memory.update_in_backward = false");
        Err(fields.clash(&keys, what, why, advice))
    };
    if let Some(scale) = &precision.loss_scale {
        return refused(
            &["precision.loss_scale", "precision.compute"],
            format!("precision.loss_scale = {}", scale.initial),
            "whether a step is skipped is known only when backward has ended",
            "set precision.loss_scale = 0.0",
        );
    }
    if optimizer.clip > 0.0 {
        return refused(
            &["optimizer.clip"],
            format!("optimizer.clip = {}", optimizer.clip),
            "clipping needs the norm of the whole gradient, known only when backward has ended",
            "set optimizer.clip = 0",
        );
    }
    let share = train.batch / parallel.data_ranks();
    let count = share / train.micro_batch;
    if count > 1 {
        return refused(
            &["train.micro_batch", "train.batch", "parallel.mesh"],
            format!("{count} micro-batches on a rank"),
            "a gradient is complete only after the last of them",
            &format!("set train.micro_batch = {share}"),
        );
    }
    if model.family == Family::Gpt2 {
        return refused(
            &["model.family"],
            "model.family = \"gpt2\"".into(),
            "its output layer is tied to the token embedding, whose gradient gets its last part at \
             the end of backward",
            "set model.family = \"sparse_transformer\"",
        );
    }
    let stages = parallel.pipeline_ranks();
    if stages > 1 {
        return refused(
            &["parallel.mesh", "parallel.shard"],
            format!("{stages} pipeline ranks"),
            "micro-batches in flight still read the weights of this step",
            "give shard.layers no axis",
        );
    }
    Ok(())
}
