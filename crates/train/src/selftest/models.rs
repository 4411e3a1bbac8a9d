//! Whole small models: three training steps of each, as a run makes them, and decoding.

use super::failure::Failure;
use super::reference::{Bound, judge};
use super::rng::Rng;
use super::suite::{Bench, Case, Tight, rng_of, word};
use crate::backend::Backend;
use crate::error::TrainError;
use crate::feed::Feed;
use crate::plan::RunPlan;
use crate::session::{Session, Ties};
use crate::setup;
use crate::step::Stepper;
use aerogel_graph::{Build, DType, Env, OpError, Tensor};
use aerogel_models::{Decode, decode_graph, shifts_inside};
use aerogel_passes::{Compute, precision};
use aerogel_recipe::Recipe;
use std::path::Path;
use std::time::Duration;

const SPARSE: &str = r#"
[model]
family = "sparse_transformer"
layers = 2
heads = 4
embed = 96
mlp_ratio = 2
context = 60
attention = "strided"
stride = 12
dropout = 0.1
embed_dropout = 0.1
init = "code"
"#;

const GPT2: &str = r#"
[model]
family = "gpt2"
layers = 2
heads = 4
embed = 64
context = 72
dropout = 0.1
embed_dropout = 0.1
"#;

const REST: &str = r#"
[data]
kind = "text"
paths = ["*.txt"]
[train]
steps = 3
batch = 4
micro_batch = 2
[optimizer]
learning_rate = 1e-3
epsilon = 1e-3
[schedule]
warmup = 0
[sample]
count = 2
"#;

/// Tokens that the models know.
pub(super) const VOCABULARY: usize = 259;
const STEPS: u64 = 3;
const LEARNING_RATE: f64 = 1e-3;

/// What a device may do in another way than the CPU that it is compared with.
const WAYS: [&[&str]; 4] = [
    &["memory.recompute=none"],
    &["memory.recompute=block"],
    &["memory.mlp_chunks=3", "memory.loss_chunks=2", "memory.recompute=cheap"],
    &["model.attention=fixed", "model.stride=12", "model.columns=3", "model.combine=merged"],
];

/// What three steps come to.
pub(super) struct Trained {
    pub losses: Vec<f64>,
    pub norms: Vec<f64>,
    pub parameters: Vec<(String, Vec<f64>)>,
    pub hash: String,
}

/// The case of that number: families, dtypes and ways by turns.
pub fn case(seed: u64, number: usize) -> Case {
    let (family, dtype) = family_and_dtype(number);
    let way = WAYS[number / 6 % WAYS.len()];
    let name = format!("{family}, {}, {}", word(dtype), way.join(" "));
    Case::new(name, move |bench| {
        // What sets the model itself apart goes for both.
        let model: Vec<&str> = way.iter().copied().filter(|w| w.starts_with("model.")).collect();
        let own = recipe(family, dtype, bench.device.backend, way)?;
        let plain = recipe(family, DType::F32, Backend::Cpu, &model)?;
        let (got, again) = (trained(&own, seed)?, trained(&own, seed)?);
        if got.hash != again.hash {
            return Err(Failure::Bits { name: "parameters".to_owned() });
        }
        compared(&got, &trained(&plain, seed)?, dtype)
    })
}

/// One token after some that are in the caches.
pub fn decode_case(seed: u64, number: usize) -> Case {
    let mut rng = rng_of(seed, number);
    let (family, dtype) = family_and_dtype(number);
    let position = rng.below(60);
    let name = format!("{family}, {}, position {position}", word(dtype));
    Case::new(name, move |bench| decoded(bench, family, dtype, position, &mut rng))
}

fn family_and_dtype(number: usize) -> (&'static str, DType) {
    let family = if number.is_multiple_of(2) { "gpt2" } else { "sparse_transformer" };
    let dtype = [DType::F32, DType::Bf16, DType::F16][number / 2 % 3];
    (family, dtype)
}

/// A small model of a family, trained on four sequences a step.
pub(super) fn recipe(
    family: &str,
    dtype: DType,
    backend: Backend,
    changes: &[&str],
) -> Result<Recipe, TrainError> {
    let text = if family == "gpt2" { GPT2 } else { SPARSE };
    let mut overrides: Vec<String> = changes.iter().map(|c| (*c).to_owned()).collect();
    overrides.push(format!("precision.compute={}", word(dtype)));
    if dtype == DType::F16 {
        // The first steps of a run find a scale that fits; here none is to be skipped.
        overrides.push("precision.loss_scale=64.0".to_owned());
    }
    overrides.push(format!("parallel.device={}", backend.name()));
    overrides.push("parallel.threads=2".to_owned());
    let text = format!("{text}{REST}");
    Recipe::parse(&text, "selftest.toml", Path::new("."), &overrides, false).map_err(|e| {
        TrainError::Contradiction {
            what: format!("the recipe of a self-test is refused: {e}"),
            advice: "please report this".to_owned(),
        }
    })
}

/// Trains on random tokens.
pub(super) fn trained(recipe: &Recipe, seed: u64) -> Result<Trained, TrainError> {
    let plan = RunPlan::new(recipe, VOCABULARY)?;
    let mut session = Session::load(plan, Ties::new(Duration::from_secs(60)))?;
    session.initialise(seed)?;
    let shifts = shifts_inside(session.plan.model.family);
    let (context, sequences) = (session.plan.model.context, recipe.train.micro_batch);
    let feed = Feed::random(VOCABULARY as u32, sequences, context, shifts);
    let mut steppers = [Stepper::new(&session.plan, 0, feed, sequences, seed)];
    let (mut losses, mut norms) = (vec![], vec![]);
    for step in 0..STEPS {
        let updated = session.each_with(&mut steppers, |_, _, device, stepper| {
            stepper.step(device, step, LEARNING_RATE)
        })?;
        if !updated[0].finite {
            let what = updated[0].broken().unwrap_or("a scaled gradient");
            return Err(TrainError::NonFinite { step: step + 1, what });
        }
        losses.push(f64::from(updated[0].loss));
        norms.push(f64::from(updated[0].grad_norm));
    }
    let parameters = session.plan.parameters.clone().into_iter().map(|name| {
        let values = session.tensor(&name)?.into_iter().map(f64::from).collect();
        Ok((name, values))
    });
    let parameters = parameters.collect::<Result<_, TrainError>>()?;
    Ok(Trained { losses, norms, parameters, hash: session.parameters_hash()? })
}

/// Losses and norms agree to some digits, and parameters to a part of the way that they may have
/// gone. The recipe's epsilon is large, so that Adam makes no step of a gradient that is nothing
/// but rounding, as that of a key's bias.
fn compared(got: &Trained, wanted: &Trained, dtype: DType) -> Result<f64, Failure> {
    let (loss, norm, moved) = match dtype {
        DType::F32 => (1e-5, 1e-4, 0.001),
        _ => (1e-2, 5e-2, 0.05),
    };
    let within = |relative| Bound { relative, floor: 0.0 };
    let losses = judge("losses", "", &got.losses, &wanted.losses, within(loss))?;
    let norms = judge("gradient norms", "", &got.norms, &wanted.norms, within(norm))?;
    let mut worst = losses.max(norms);
    let steps = LEARNING_RATE * STEPS as f64;
    for ((name, a), (_, b)) in got.parameters.iter().zip(&wanted.parameters) {
        let squares: f64 = a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum();
        let error = (squares / a.len().max(1) as f64).sqrt();
        let bound = moved * steps;
        // Written so that NaN fails.
        if !(error <= bound && a.len() == b.len()) {
            let (name, shown) = (name.clone(), format!("of {} elements", b.len()));
            return Err(Failure::Mean { name, shown, got: error, bound });
        }
        worst = worst.max(error / bound);
    }
    Ok(worst)
}

fn decoded(
    bench: &Bench,
    family: &str,
    dtype: DType,
    position: usize,
    rng: &mut Rng,
) -> Result<f64, Failure> {
    let recipe = recipe(family, DType::F32, bench.device.backend, &[])?;
    let model = setup::model(&recipe, VOCABULARY);
    let Decode { graph, positions } =
        decode_graph(&model, recipe.sample.count).map_err(TrainError::from)?;
    let scalar = |n: usize| Tensor::from_vec(graph.axes(), &[], vec![n as f64]);
    let mut given = Env::from([("position".to_owned(), scalar(position))]);
    for p in &positions {
        given.insert(p.name.clone(), scalar(position / p.stride % p.size));
    }
    // Two layers, one after another.
    let tight = Tight { steps: 32.0, ..Tight::default() };
    bench.hold(dtype, tight, rng, VOCABULARY, given, &|dtype| {
        let compute = match dtype {
            DType::F16 => Compute::F16,
            DType::Bf16 => Compute::Bf16,
            DType::F32 | DType::U32 => Compute::F32,
        };
        precision(&graph, compute).map_err(|e| OpError::new("precision", e.to_string()))
    })
}
