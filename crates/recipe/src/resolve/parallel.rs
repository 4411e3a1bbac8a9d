//! `[parallel]`: the mesh of ranks, the pipeline, and what they ask of the model.

use crate::choices::PipelineSchedule;
use crate::divisors::divisor_up_to;
use crate::error::RecipeError;
use crate::fields::Fields;
use crate::layout::{Parallel, mesh_text};
use crate::recipe::{Model, Tokenizer};
use crate::resolve::shard;

/// Above this, no batch has a sequence for each rank.
const MAX_RANKS: u128 = 1 << 20;

pub(crate) fn resolve(
    fields: &mut Fields,
    model: &Model,
    tokenizer: &Tokenizer,
) -> Result<Parallel, RecipeError> {
    let mesh = mesh(fields)?;
    let shard = shard::resolve(fields, &mesh)?;
    let mut parallel = Parallel {
        device: fields.choice("parallel.device"),
        threads: fields.get("parallel.threads"),
        mesh,
        shard,
        schedule: fields.choice("parallel.schedule"),
        chunks: 1,
        timeout_seconds: fields.get("parallel.timeout_seconds"),
    };
    tensor(fields, &parallel, model, tokenizer)?;
    parallel.chunks = chunks(fields, &parallel)?;
    layers(fields, &parallel, model)?;
    Ok(parallel)
}

fn mesh(fields: &mut Fields) -> Result<Vec<(String, usize)>, RecipeError> {
    let one = vec![("data".to_string(), 1)];
    let shown = mesh_text(&one);
    let mesh = fields.derive("parallel.mesh", one, &shown, "one rank, as nothing asks for more");
    let ranks: u128 = mesh.iter().map(|(_, size)| *size as u128).product();
    match ranks <= MAX_RANKS {
        true => Ok(mesh),
        false => Err(fields.clash(
            &["parallel.mesh"],
            format!("parallel.mesh = {}", mesh_text(&mesh)),
            &format!("the sizes multiply to {ranks} ranks, and {MAX_RANKS} is the most there are"),
            "make an axis smaller".into(),
        )),
    }
}

/// Whatever a tensor axis cuts has to fall into equal parts.
fn tensor(
    fields: &Fields,
    parallel: &Parallel,
    model: &Model,
    tokenizer: &Tokenizer,
) -> Result<(), RecipeError> {
    let Some(axis) = parallel.shard.tensor_axis() else { return Ok(()) };
    let ranks = parallel.tensor_ranks();
    let shard = &parallel.shard;
    let cut = [
        ("heads", &shard.heads, "model.heads", Some(model.heads)),
        ("mlp", &shard.mlp, "model.mlp_ratio", Some(model.mlp_width())),
        ("vocab", &shard.vocab, "tokenizer.vocab", tokenizer.vocab),
        ("seq", &shard.seq, "model.context", Some(model.context)),
    ];
    for (name, _, key, size) in cut.into_iter().filter(|(_, axes, ..)| !axes.is_empty()) {
        // A vocabulary that only a tokenizer file knows is not known here.
        let Some(size) = size.filter(|size| !size.is_multiple_of(ranks)) else { continue };
        let what = match name {
            "mlp" => "the feed-forward's width",
            "vocab" => "the vocabulary",
            _ => key,
        };
        let whole = format!("set {name} = [] in parallel.shard");
        let advice = match divisor_up_to(size, ranks) {
            1 => whole,
            fewer => format!("set {axis} = {fewer} in parallel.mesh, or {whole}"),
        };
        return Err(fields.clash(
            &["parallel.mesh", "parallel.shard", key, "model.embed"],
            format!("{what} = {size} over the {ranks} ranks of the mesh axis \"{axis}\""),
            "every rank takes an equal part",
            advice,
        ));
    }
    Ok(())
}

/// Chunks of a pipeline rank; refuses what only a pipeline reads where there is none.
fn chunks(fields: &Fields, parallel: &Parallel) -> Result<usize, RecipeError> {
    if parallel.pipeline_ranks() == 1 {
        let because = "without a pipeline: no mesh axis of several ranks cuts the layers";
        let advice = "remove it, or add an axis to parallel.mesh, as in pipe = 2";
        fields.refuse(&["parallel.schedule", "parallel.chunks"], because, advice)?;
        return Ok(1);
    }
    if parallel.schedule != PipelineSchedule::Interleaved {
        let because = format!("with parallel.schedule = \"{}\"", parallel.schedule.name());
        if fields.get::<usize>("parallel.chunks") > 1 {
            let advice = "remove it, or set parallel.schedule = \"interleaved\"";
            fields.refuse(&["parallel.chunks"], &because, advice)?;
        }
        return Ok(1);
    }
    let why = "an interleaved pipeline gives every rank several chunks of layers";
    let chunks = fields.require("parallel.chunks", why, "chunks = 2")?;
    match chunks {
        2.. => Ok(chunks),
        _ => Err(fields.clash(
            &["parallel.chunks", "parallel.schedule"],
            format!("parallel.chunks = {chunks} with parallel.schedule = \"interleaved\""),
            "with one chunk on each rank there is nothing to interleave",
            "set parallel.chunks = 2, or parallel.schedule = \"1f1b\"".into(),
        )),
    }
}

fn layers(fields: &Fields, parallel: &Parallel, model: &Model) -> Result<(), RecipeError> {
    let (ranks, chunks) = (parallel.pipeline_ranks(), parallel.chunks);
    let stages = ranks * chunks;
    if model.layers >= stages {
        return Ok(());
    }
    let each = if chunks > 1 { format!(" of {chunks} chunks each") } else { String::new() };
    Err(fields.clash(
        &["parallel.mesh", "parallel.chunks", "model.layers"],
        format!("model.layers = {} over {ranks} pipeline ranks{each}", model.layers),
        &format!("every one of the {stages} stages needs a layer"),
        format!("set model.layers = {stages} or more, or make the pipeline shorter"),
    ))
}
