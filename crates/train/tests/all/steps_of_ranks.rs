//! Whole training steps of small models on several ranks: every section on the devices, against the
//! interpreter running all ranks in lockstep.

use crate::harness::{Bytes, Reference, Rng, numbers_of, same_bits};
use crate::ranks::{run_all, tied};
use crate::sections::{copies_are_rounded, near};
use aerogel_graph::{
    Build, Clock, DType, Env, Graph, Init, Place, Role, Rounding, Tensor, interpret_mesh, random,
};
use aerogel_machine::StateSlot;
use aerogel_passes::{Order, section_of};
use aerogel_recipe::Recipe;
use aerogel_train::RunPlan;
use std::collections::BTreeMap;
use std::path::Path;

const VOCAB: usize = 12;

const SPARSE: &str = r#"
[model]
family = "sparse_transformer"
layers = 2
heads = 4
embed = 16
mlp_ratio = 2
context = 16
attention = "strided"
stride = 4
dropout = 0.1
embed_dropout = 0.1
init = "code"
"#;

const GPT2: &str = r#"
[model]
family = "gpt2"
layers = 2
heads = 4
embed = 16
mlp_ratio = 2
context = 16
dropout = 0.1
"#;

const REST: &str = r#"
[data]
kind = "text"
paths = ["*.txt"]
[train]
steps = 1
batch = 8
micro_batch = 1
[optimizer]
learning_rate = 0.01
[schedule]
warmup = 0
[sample]
count = 0
"#;

/// Meshes, what is cut over them, and what is computed again or in chunks.
const LAYOUTS: [&[&str]; 12] = [
    &["parallel.mesh={data=2}"],
    &["parallel.mesh={data=2}", "parallel.preset=zero1"],
    &["parallel.mesh={data=2}", "parallel.preset=zero2"],
    &["parallel.mesh={data=4}", "parallel.preset=zero3"],
    &[
        "parallel.mesh={node=2,local=2}",
        "parallel.preset=hybrid",
        "parallel.shard={batch=[\"node\",\"local\"]}",
    ],
    &["parallel.mesh={tensor=2}"],
    &["parallel.mesh={tensor=4}"],
    &[
        "parallel.mesh={tensor=2}",
        "parallel.shard={heads=[\"tensor\"],mlp=[\"tensor\"],vocab=[],seq=[]}",
    ],
    &["parallel.mesh={data=2,tensor=2}", "parallel.preset=zero3"],
    &["memory.recompute=block", "memory.mlp_chunks=4", "memory.loss_chunks=2"],
    &["parallel.mesh={tensor=2}", "memory.recompute=block", "memory.mlp_chunks=2"],
    &[
        "parallel.mesh={data=2}",
        "parallel.preset=zero3",
        "memory.recompute=cheap",
        "memory.loss_chunks=4",
    ],
];

fn plan(model: &str, keys: &[&str], threads: usize) -> RunPlan {
    let mut keys: Vec<String> = keys.iter().map(|k| (*k).to_owned()).collect();
    keys.push(format!("parallel.threads={threads}"));
    let recipe =
        Recipe::parse(&format!("{model}{REST}"), "ranks.toml", Path::new(""), &keys, false);
    let recipe = recipe.unwrap_or_else(|e| panic!("{keys:?}: {e}"));
    RunPlan::new(&recipe, VOCAB).unwrap_or_else(|e| panic!("{keys:?}: {e}"))
}

/// What a rank has of a state at the start: parameters that depend on the name and the element in
/// the whole tensor, and zeros.
fn start(slot: &StateSlot, place: Place) -> Vec<f64> {
    let mut data = vec![0.0; slot.axes.iter().map(|a| a.size).product()];
    for part in slot.parts.iter().filter(|_| slot.role == Role::Parameter) {
        let stream = random::stream_id(&part.name);
        for run in slot.runs(part, place) {
            for i in 0..run.count {
                let noise = random::normal(5, stream, run.global + i);
                data[(run.local + i) as usize] = f64::from(match part.init {
                    Init::Normal(std) => std.max(0.05) * noise,
                    Init::Constant(c) => c + 0.05 * noise,
                } as f32);
            }
        }
    }
    data
}

/// Numbers by the name of the state.
type Kept = BTreeMap<String, Vec<f64>>;

/// What a section sees on one rank. Sections do not share axes, but names and numbers.
fn environment(g: &Graph, kept: &Kept, clock: Clock) -> Env {
    let mut env = Env::new();
    for s in g.states() {
        let data = kept[&s.name].clone();
        env.insert(s.name.clone(), Tensor::from_vec(g.axes(), &g.ty(s.value).axes, data));
    }
    inputs(g, &mut env, clock);
    env
}

/// Data of a section: a sequence is what its number in the global batch says.
fn inputs(g: &Graph, env: &mut Env, clock: Clock) {
    for i in g.inputs() {
        let axes = &g.ty(i.value).axes;
        let batch = axes.first().map(|&a| &g.axes()[a]).filter(|a| a.name == "batch");
        let (rows, first) =
            batch.map_or((1, 0), |a| (a.size, a.piece(clock.micro, clock.place) * a.size as u64));
        let row = |row| {
            let mut rng = Rng(1000 * (first + row) + u64::from(i.name == "targets"));
            (0..g.axes().count(axes) / rows).map(move |_| match i.name.as_str() {
                "tokens" | "targets" => rng.below(VOCAB) as f64,
                // One token in eight does not count.
                "weights" => f64::from(!rng.one_in(8)),
                "rate" => 0.01,
                other => panic!("an input {other}"),
            })
        };
        let data = (0..rows as u64).flat_map(row).collect();
        env.insert(i.name.clone(), Tensor::from_vec(g.axes(), axes, data));
    }
}

/// The sections of a step and what follows it, with the clock's `micro`.
fn order(plan: &RunPlan) -> Vec<(usize, u64)> {
    let program = plan.program(0);
    let find = |name: &str| program.section(name).expect("the plan has all sections");
    let count = plan.micro_batches;
    let micro = (0..count).map(|j| (find(&section_of(j, count, Order::Tree)), j as u64));
    let weights = program.section("weights").map(|s| (s, 0));
    weights.into_iter().chain(micro).chain(["update", "eval"].map(|n| (find(n), 0))).collect()
}

/// Asserts that all sections do what the interpreter does; gives the mean loss of the step, the
/// norm of its gradient, and the mean loss of the evaluation after it.
fn step_agrees(what: &str, model: &str, keys: &[&str]) -> [f64; 3] {
    let mut first: Option<Vec<Vec<Bytes>>> = None;
    for threads in 1..=2 {
        let plan = plan(model, keys, threads);
        let program = plan.program(0).clone();
        let places: Vec<Place> = (0..plan.mesh.ranks()).map(|r| plan.mesh.place(r)).collect();
        let mut ranks = tied(&program, threads);
        let states = |place: &Place| {
            program.states.iter().map(|s| (s.name.clone(), start(s, *place))).collect()
        };
        let mut kept: Vec<Kept> = places.iter().map(states).collect();
        let mut all = vec![];
        for (section, micro) in order(&plan) {
            let g = &program.sections[section].graph;
            let clock = Clock { seed: 3, step: 1, micro, ..Clock::default() };
            let each = kept.iter().zip(&places);
            let envs: Vec<Env> =
                each.map(|(k, &place)| environment(g, k, Clock { place, ..clock })).collect();
            let got;
            (ranks, got) = run_all(ranks, section, &envs, clock);
            let what = format!("{what}, {} of piece {micro}", program.sections[section].name);
            if threads == 1 {
                all_near(&what, g, &envs, clock, &got);
            }
            // Each section is judged alone: both go on from what the devices have.
            kept.iter_mut().zip(&got).for_each(|(kept, got)| take_over(g, kept, got));
            all.push(got);
        }
        match &first {
            None => first = Some(all),
            Some(first) => {
                let pairs = all.iter().flatten().zip(first.iter().flatten());
                pairs.for_each(|(a, b)| same_bits(what, a, b));
            }
        }
    }
    let all = first.expect("it ran");
    let [update, eval] = &all[all.len() - 2..] else { panic!("two sections at least") };
    let number = |got: &Bytes, name: &str| numbers_of(DType::F32, &got[name])[0];
    for (name, of) in [("output loss", update), ("output grad_norm", update)] {
        assert!(of.iter().all(|got| got[name] == of[0][name]), "{what}: {name} of all ranks");
    }
    let update = ["output loss", "output grad_norm"].map(|name| number(&update[0], name));
    let [loss, tokens] = ["output loss", "output tokens"].map(|name| number(&eval[0], name));
    [update[0], update[1], loss / tokens]
}

fn all_near(what: &str, g: &Graph, envs: &[Env], clock: Clock, got: &[Bytes]) {
    let [declared, exact] = [Rounding::Declared, Rounding::Exact]
        .map(|mode| interpret_mesh(g, envs, clock, mode).unwrap_or_else(|e| panic!("{what}: {e}")));
    for (rank, (declared, exact)) in declared.into_iter().zip(exact).enumerate() {
        let reference = Reference::of(g, [declared.values, exact.values], 0.0);
        let what = format!("{what} on rank {rank}");
        let place = g.axes().mesh.place(rank);
        near(&what, &reference, place, &got[rank]);
        copies_are_rounded(&what, g, place, &got[rank]);
    }
}

fn take_over(g: &Graph, kept: &mut Kept, got: &Bytes) {
    for s in g.states() {
        let data = numbers_of(g.ty(s.value).dtype, &got[&format!("state {}", s.name)]);
        kept.insert(s.name.clone(), data);
    }
}

/// Every layout does what the interpreter says, and all of them do the step of one rank.
fn all_layouts(model: &str, compute: &str, tolerance: f64) {
    let compute = format!("precision.compute={compute}");
    let one = step_agrees("one rank", model, &[&compute]);
    for layout in LAYOUTS {
        let keys = [layout, &[compute.as_str()]].concat();
        let what = keys.join(" ");
        let got = step_agrees(&what, model, &keys);
        let differs = |(a, b): (&f64, &f64)| (a / b - 1.0).abs();
        let worst = got.iter().zip(&one).map(differs).fold(0.0, f64::max);
        println!("{what}: {worst:.1e} from one rank");
        assert!(worst <= tolerance, "{what}: {got:?}, and {one:?} on one rank");
    }
}

#[test]
fn a_sparse_transformer_in_f32() {
    all_layouts(SPARSE, "f32", 1e-5);
}

#[test]
fn a_sparse_transformer_in_bf16() {
    all_layouts(SPARSE, "bf16", 1e-2);
}

#[test]
fn gpt2_in_f32() {
    all_layouts(GPT2, "f32", 1e-5);
}

#[test]
fn gpt2_in_bf16() {
    all_layouts(GPT2, "bf16", 1e-2);
}
