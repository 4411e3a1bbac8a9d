//! `[precision]`, and the sections that watch a run.

use crate::choices::{Compute, TokenizerKind};
use crate::error::RecipeError;
use crate::fields::Fields;
use crate::recipe::{Data, Model, Tokenizer, Train};
use crate::running::{Checkpoint, Eval, LossScale, Precision, Sample};

pub(crate) fn precision(fields: &mut Fields) -> Result<Precision, RecipeError> {
    let compute = fields.choice("precision.compute");
    let initial = match compute {
        Compute::F16 => {
            let reason = "gradients in f16 vanish below 6e-8";
            fields.derive("precision.loss_scale", 65_536.0, "65536.0", reason)
        }
        Compute::F32 | Compute::Bf16 => fields.given("precision.loss_scale").unwrap_or(0.0),
    };
    if initial > 0.0 && initial < 1.0 {
        return Err(fields.clash(
            &["precision.loss_scale"],
            format!("precision.loss_scale = {initial}"),
            "a factor below 1 lets more gradients vanish, not fewer",
            "set precision.loss_scale = 65536.0, or 0.0 for none".into(),
        ));
    }
    if initial == 0.0 {
        let because = "with precision.loss_scale = 0, which scales nothing";
        let advice = "remove it, or set precision.loss_scale = 65536.0";
        fields.refuse(&["precision.loss_scale_interval"], because, advice)?;
        return Ok(Precision { compute, loss_scale: None });
    }
    let interval = fields.get("precision.loss_scale_interval");
    Ok(Precision { compute, loss_scale: Some(LossScale { initial, interval }) })
}

pub(crate) fn eval(fields: &mut Fields, data: &Data, train: &Train) -> Result<Eval, RecipeError> {
    let held_out = data.has_held_out();
    if !held_out {
        let because = "without held-out data: data.validation and data.test_fraction are 0";
        let advice = "remove it, or hold something out, as in data.validation = 0.05";
        let every = fields.given("eval.every").unwrap_or(0u64);
        let keys: &[&str] =
            if every > 0 { &["eval.every", "eval.sequences"] } else { &["eval.sequences"] };
        fields.refuse(keys, because, advice)?;
        return Ok(Eval { every: 0, sequences: 0 });
    }
    Ok(Eval { every: tenth(fields, "eval.every", train), sequences: fields.get("eval.sequences") })
}

/// A tenth of all steps: ten points make a curve.
fn tenth(fields: &mut Fields, key: &str, train: &Train) -> u64 {
    let tenth = (train.steps / 10).max(1);
    fields.derive(key, tenth, &tenth.to_string(), &format!("a tenth of {} steps", train.steps))
}

pub(crate) fn sample(
    fields: &mut Fields,
    data: &Data,
    tokenizer: &Tokenizer,
    model: &Model,
    train: &Train,
) -> Result<Sample, RecipeError> {
    let count = fields.get("sample.count");
    if count == 0 {
        let keys = ["tokens", "temperature", "top_k", "prompt", "seed", "every"];
        for key in keys.map(|key| format!("sample.{key}")) {
            fields.refuse(&[&key], "with sample.count = 0", "remove it, or draw some samples")?;
        }
    }
    if data.image().is_some() {
        let because = format!("with data.kind = \"{}\"", data.kind().name());
        let advice = "remove it: a sample is a whole image";
        fields.refuse(&["sample.tokens", "sample.prompt"], &because, advice)?;
    }
    let temperature = fields.get("sample.temperature");
    let top_k = fields.get("sample.top_k");
    if temperature == 0.0 {
        let because = "with sample.temperature = 0, which draws nothing at random";
        fields.refuse(&["sample.top_k", "sample.seed"], because, "remove one of the two")?;
    }
    if let Some(vocab) = tokenizer.vocab.filter(|vocab| top_k > *vocab) {
        return Err(fields.clash(
            &["sample.top_k", "tokenizer.vocab"],
            format!("sample.top_k = {top_k} with a vocabulary of {vocab}"),
            "there are no more tokens than that",
            format!("set sample.top_k below {vocab}, or 0 to draw out of all"),
        ));
    }
    let tokens = sample_tokens(fields, data, model, count)?;
    let prompt: Option<String> = fields.given("sample.prompt");
    let prompt_bytes = prompt.as_ref().map_or(0, String::len);
    // Only here is a byte a token; a BPE is not known yet.
    if tokenizer.kind == TokenizerKind::Bytes && prompt_bytes >= tokens {
        return Err(fields.clash(
            &["sample.prompt", "sample.tokens"],
            format!("sample.prompt has {prompt_bytes} bytes and sample.tokens = {tokens}"),
            "the prompt is part of the sample, and nothing would be left to draw",
            "shorten the prompt, or raise sample.tokens up to model.context".into(),
        ));
    }
    let draws = count > 0 && temperature > 0.0;
    let seed = match draws {
        true => fields.derive("sample.seed", train.seed, &train.seed.to_string(), "train.seed"),
        false => train.seed,
    };
    Ok(Sample {
        count,
        tokens,
        temperature,
        top_k,
        prompt,
        seed,
        every: fields.get("sample.every"),
    })
}

fn sample_tokens(
    fields: &mut Fields,
    data: &Data,
    model: &Model,
    count: usize,
) -> Result<usize, RecipeError> {
    let context = model.context;
    if data.image().is_some() || count == 0 {
        return Ok(context);
    }
    let reason = "all that fits into model.context";
    let tokens = fields.derive("sample.tokens", context, &context.to_string(), reason);
    match tokens <= context {
        true => Ok(tokens),
        false => Err(fields.clash(
            &["sample.tokens", "model.context"],
            format!("sample.tokens = {tokens} is longer than model.context = {context}"),
            "the model has no positions beyond its context",
            format!("set sample.tokens = {context} or less"),
        )),
    }
}

pub(crate) fn checkpoint(fields: &mut Fields, train: &Train) -> Checkpoint {
    Checkpoint {
        every: tenth(fields, "checkpoint.every", train),
        keep: fields.get("checkpoint.keep"),
    }
}
