//! What techniques of one rank claim of the numbers, on the device: those that say so leave every
//! bit of three training steps as it is, whatever the dtype and however many micro-batches there
//! are.

use super::failure::Failure;
use super::models::{Trained, VOCABULARY, recipe, trained};
use super::reference::{Bound, judge};
use super::suite::{Case, word};
use crate::backend::Backend;
use crate::error::TrainError;
use crate::plan::RunPlan;
use aerogel_graph::DType;
use aerogel_recipe::Recipe;

/// A change of how a step is computed that needs no other rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Technique {
    /// For people.
    pub name: &'static str,
    /// Techniques of one kind exclude each other.
    pub kind: &'static str,
    /// Keys of the recipe.
    pub keys: &'static [&'static str],
    /// Whether it leaves the bits as they are; else sums are taken in another order.
    pub is_exact: bool,
}

const fn exact(name: &'static str, kind: &'static str, keys: &'static [&'static str]) -> Technique {
    Technique { name, kind, keys, is_exact: true }
}

const fn near(name: &'static str, kind: &'static str, keys: &'static [&'static str]) -> Technique {
    Technique { name, kind, keys, is_exact: false }
}

/// All of them. Budgets need `memory.activations` as well, which depends on the model.
pub const TECHNIQUES: [Technique; 8] = [
    exact("recompute cheap", "recompute", &["memory.recompute=cheap"]),
    exact("recompute block", "recompute", &["memory.recompute=block"]),
    exact(
        "recompute 3 blocks",
        "recompute",
        &["memory.recompute=block", "memory.recompute_every=3"],
    ),
    exact("recompute budget", "recompute", &["memory.recompute=budget"]),
    exact("update in backward", "update", &["memory.update_in_backward=true"]),
    exact("loss scale", "scale", &["precision.loss_scale=65536.0"]),
    near("chunks", "chunks", &["memory.mlp_chunks=2", "memory.loss_chunks=2"]),
    near("fast", "fast", &["train.determinism=fast"]),
];

/// Sequences of a step.
const BATCH: usize = 4;

/// A technique, and the run that it changes.
#[derive(Clone, Copy)]
struct Combination {
    technique: Technique,
    family: &'static str,
    dtype: DType,
    micro_batch: usize,
}

/// Those that are not refused: four micro-batches before one, f32 before bf16.
fn combinations() -> Vec<Combination> {
    let mut all = vec![];
    for micro_batch in [1, BATCH] {
        for dtype in [DType::F32, DType::Bf16] {
            for family in ["sparse_transformer", "gpt2"] {
                let of = |technique| Combination { technique, family, dtype, micro_batch };
                all.extend(TECHNIQUES.map(of).into_iter().filter(|c| !c.is_refused()));
            }
        }
    }
    all
}

/// How many combinations there are.
pub const COMBINATIONS: usize = 58;

impl Combination {
    /// Weights are updated inside of backward where they have all of their gradient there: in a
    /// single micro-batch, and where no weight stands in two places.
    fn is_refused(&self) -> bool {
        self.technique.kind == "update" && (self.micro_batch < BATCH || self.family == "gpt2")
    }

    /// What the run is without the technique.
    fn plain(&self, backend: Backend) -> Result<Recipe, TrainError> {
        self.recipe(backend, &[])
    }

    /// What it is with the technique; a budget is half of what is saved without.
    fn changed(&self, backend: Backend, plain: &Recipe) -> Result<Recipe, TrainError> {
        let mut keys: Vec<String> = self.technique.keys.iter().map(|k| (*k).to_owned()).collect();
        if self.technique.name == "recompute budget" {
            let plan = RunPlan::new(plain, VOCABULARY)?;
            let saved: u64 = plan.stages.iter().map(|s| s.report.kinds.activations_bytes).sum();
            keys.push(format!("memory.activations={}B", saved / 2));
        }
        self.recipe(backend, &keys)
    }

    fn recipe(&self, backend: Backend, keys: &[String]) -> Result<Recipe, TrainError> {
        let micro_batch = format!("train.micro_batch={}", self.micro_batch);
        let mut all = vec!["model.layers=4", &micro_batch];
        if self.technique.kind == "update" {
            all.push("optimizer.clip=0");
        }
        all.extend(keys.iter().map(String::as_str));
        recipe(self.family, self.dtype, backend, &all)
    }
}

/// The case of that number.
pub fn case(seed: u64, number: usize) -> Case {
    let all = combinations();
    let c = all[number % all.len()];
    let micro_batches = BATCH / c.micro_batch;
    let name = format!(
        "{}, {}, {}, micro-batches: {micro_batches}",
        c.technique.name,
        c.family,
        word(c.dtype)
    );
    Case::new(name, move |bench| {
        let backend = bench.device.backend;
        let plain = c.plain(backend)?;
        let changed = c.changed(backend, &plain)?;
        held(c, &trained(&changed, seed)?, &trained(&plain, seed)?)
    })
}

/// Losses and weights have the same bits, or, where sums are taken in another order, losses agree
/// to some digits.
fn held(c: Combination, got: &Trained, plain: &Trained) -> Result<f64, Failure> {
    if !c.technique.is_exact {
        let relative = if c.dtype == DType::F32 { 1e-5 } else { 5e-3 };
        let bound = Bound { relative, floor: 0.0 };
        return judge("losses", "", &got.losses, &plain.losses, bound);
    }
    let differ =
        |name: &str| Err(Failure::Technique { technique: c.technique.name, name: name.to_owned() });
    if got.losses != plain.losses {
        return differ("the losses");
    }
    if got.hash != plain.hash {
        return differ("the parameters");
    }
    Ok(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained(losses: &[f64], hash: &str) -> Trained {
        let (losses, hash) = (losses.to_vec(), hash.to_owned());
        Trained { losses, norms: vec![], parameters: vec![], hash }
    }

    #[test]
    fn every_technique_has_its_combinations() {
        let all = combinations();
        assert_eq!(all.len(), COMBINATIONS);
        for technique in TECHNIQUES {
            let count = all.iter().filter(|c| c.technique == technique).count();
            assert_eq!(count, if technique.kind == "update" { 2 } else { 8 }, "{technique:?}");
        }
    }

    /// What is tried is computed in another way, as the plan has it.
    #[test]
    fn every_technique_changes_the_plan() {
        for c in combinations() {
            let plain = c.plain(Backend::Cpu).unwrap();
            let changed = c.changed(Backend::Cpu, &plain).unwrap();
            let hash = |recipe: &Recipe| {
                let plan = RunPlan::new(recipe, VOCABULARY).unwrap();
                plan.stages[0].program.hash.clone()
            };
            assert_ne!(hash(&plain), hash(&changed), "{}, {}", c.technique.name, c.family);
        }
    }

    #[test]
    fn other_bits_are_noticed_and_other_orders_are_not() {
        let c = combinations()[0];
        let plain = trained(&[3.0, 2.0], "a");
        assert_eq!(held(c, &plain, &plain).unwrap(), 0.0);
        let (loss, hash) = (trained(&[3.0, 2.0 + 1e-15], "a"), trained(&[3.0, 2.0], "b"));
        for (got, name) in [(loss, "the losses"), (hash, "the parameters")] {
            let failure = held(c, &got, &plain).unwrap_err();
            let wanted = format!("{name} have other bits with `recompute cheap` than without it");
            assert_eq!(failure.to_string(), wanted);
        }
        let near = combinations().into_iter().find(|c| c.technique.name == "chunks").unwrap();
        assert!(held(near, &trained(&[3.0, 2.0 + 1e-6], "b"), &plain).is_ok());
        assert!(held(near, &trained(&[3.0, 2.001], "b"), &plain).is_err());
    }
}
