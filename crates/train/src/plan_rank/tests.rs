//! What a plan says that ranks exchange, against what they count.

use crate::feed::Feed;
use crate::plan::RunPlan;
use crate::session::{Session, Ties};
use crate::setup::{Workspace, prepare_data};
use crate::step::Stepper;
use aerogel_data::{NoProgress, Sampler};
use aerogel_machine::Traffic;
use aerogel_models::shifts_inside;
use aerogel_recipe::Recipe;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Calls and bytes by kind and axes.
type Sums = BTreeMap<(String, Vec<String>), (u64, u64)>;

fn recipe(overrides: &[&str]) -> Recipe {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/quick.toml");
    let common = ["train.batch=8", "train.micro_batch=1", "model.layers=4"];
    let all: Vec<String> = common.iter().chain(overrides).map(|s| (*s).to_owned()).collect();
    Recipe::load(&path, &all, true).unwrap()
}

/// What every rank sent in the first step.
fn sent(recipe: &Recipe) -> Vec<Sums> {
    let folder = tempfile::tempdir().unwrap();
    let workspace = Workspace::under(folder.path());
    let (_, data) = prepare_data(recipe, &workspace, &mut NoProgress).unwrap();
    let plan = RunPlan::of(recipe, &workspace).unwrap();
    let mut session = Session::load(plan, Ties::new(Duration::from_secs(60))).unwrap();
    session.initialise(1).unwrap();
    let split = data.split("train").unwrap();
    let (model, size) = (&session.plan.model, recipe.train.micro_batch);
    let stepper = |rank| {
        let sampler = Sampler::shuffled(split, model.context, 1).unwrap();
        let feed = Feed::new(split, sampler, size, model.context, shifts_inside(model.family));
        Stepper::new(&session.plan, rank, feed, size, 1)
    };
    let mut steppers: Vec<_> = (0..session.ranks.len()).map(stepper).collect();
    let counters = |session: &Session| -> Vec<Vec<Traffic>> {
        session.ranks.iter().map(|d| d.ties().traffic()).collect()
    };
    let before = counters(&session);
    session.each_with(&mut steppers, |_, _, device, s| s.step(device, 0, 1e-3)).unwrap();
    let mesh = &session.plan.mesh;
    let ranks = before.iter().zip(counters(&session));
    ranks
        .map(|(before, after)| {
            let mut sums = Sums::new();
            for t in after {
                let old = before.iter().find(|b| (b.pattern, &b.over) == (t.pattern, &t.over));
                let (calls, bytes) = old.map_or((0, 0), |b| (b.calls, b.sent_bytes));
                let over = t.over.iter().map(|&m| mesh.0[usize::from(m)].0.clone()).collect();
                let sum = (t.calls - calls, t.sent_bytes - bytes);
                if sum.0 > 0 {
                    sums.insert((t.pattern.to_owned(), over), sum);
                }
            }
            sums
        })
        .collect()
}

#[test]
fn ranks_send_what_was_planned() {
    for overrides in [
        &["parallel.mesh={ data = 4 }"][..],
        &["parallel.mesh={ data = 4 }", "parallel.preset=\"zero1\""],
        &["parallel.mesh={ data = 2, pipe = 2 }", "parallel.preset=\"zero2\""],
        &["parallel.mesh={ data = 4 }", "parallel.preset=\"zero3\"", "precision.compute=\"bf16\""],
        &["parallel.mesh={ tensor = 2, data = 2 }"],
        &["parallel.mesh={ tensor = 2, pipe = 2 }", "memory.recompute=\"block\""],
        &[
            "parallel.mesh={ pipe = 2 }",
            "parallel.schedule=\"interleaved\"",
            "parallel.chunks=2",
            "model.family=\"gpt2\"",
            "model.init=",
        ],
    ] {
        let recipe = recipe(overrides);
        let plan = RunPlan::new(&recipe, 256).unwrap();
        for (rank, counted) in sent(&recipe).into_iter().enumerate() {
            let planned: Sums = plan
                .rank_plan(rank)
                .unwrap()
                .communication
                .into_iter()
                .filter(|t| t.kind != "receive")
                .map(|t| {
                    // Counters of messages know no axes.
                    let over = if t.kind == "send" { vec![] } else { t.over };
                    ((t.kind.to_owned(), over), (t.calls, t.wire_bytes))
                })
                .collect();
            assert!(!planned.is_empty());
            assert_eq!(planned, counted, "rank {rank} of {overrides:?}");
        }
    }
}
