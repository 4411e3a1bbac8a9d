//! The planner over whole recipes: how long it takes, how tight the arena is, what it says of it.

use crate::harness::{alone, planned};
use aerogel_graph::{
    Build, DType, Def, Graph, Init, NodeId, Op, ParamClass, Phase, Role, Type, ValueId,
};
use aerogel_machine::{Account, Program, Section, Step, Uses};
use aerogel_recipe::Recipe;
use aerogel_train::RunPlan;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

fn full(name: &str, overrides: &[&str]) -> Recipe {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes").join(name);
    let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
    Recipe::load(&path, &overrides, false).unwrap()
}

/// The plan, however much memory this machine has.
fn plan(name: &str, vocab: usize, overrides: &[&str]) -> RunPlan {
    let mut recipe = full(name, overrides);
    recipe.memory.budget_bytes = Some(u64::MAX);
    RunPlan::new(&recipe, vocab).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Seconds that planning may take, on a machine that does nothing else.
const MOST_SECONDS: f64 = 3.0;

/// One that does other things as well has three tries.
fn in_time(name: &str, of: impl Fn() -> RunPlan) -> RunPlan {
    let mut plans = (0..3).map(|_| of());
    let seconds = |plan: &RunPlan| plan.report().planning_seconds;
    let fast = plans.find(|plan| {
        println!("{name}: planned in {:.2} s", seconds(plan));
        seconds(plan) < MOST_SECONDS
    });
    fast.unwrap_or_else(|| panic!("{name}: three plannings took {MOST_SECONDS} s and more"))
}

fn is_tight_and_adds_up(name: &str, plan: &RunPlan) {
    let report = plan.report();
    assert_eq!(report.total_bytes, plan.program(0).arena_bytes, "{name}");
    assert_eq!(report.kinds.total(), report.total_bytes, "{name}: {:?}", report.kinds);
    for s in &report.sections {
        let (placed, live) = (s.transient_bytes as f64, s.largest_live_bytes as f64);
        println!("{name} {}: {placed} placed, {live} alive, {:.3}", s.name, placed / live);
        assert!(placed <= 1.1 * live, "{name} {}: {placed} for {live}", s.name);
        assert!(placed >= live, "{name} {}: {placed} for {live}", s.name);
    }
}

#[test]
fn of_128_layers() {
    let name = "cifar10-strided";
    is_tight_and_adds_up(name, &in_time(name, || plan("cifar10-strided.toml", 256, &[])));
}

#[test]
fn of_gpt2_124m() {
    let name = "gpt2-124m";
    is_tight_and_adds_up(name, &in_time(name, || plan("gpt2-124m.toml", 50257, &[])));
}

/// Bytes of the section that runs a micro-batch.
fn micro_bytes(plan: &RunPlan) -> f64 {
    let micro = plan.report().sections.iter().find(|s| s.name == "micro.last").unwrap();
    micro.transient_bytes as f64
}

/// What a micro-batch keeps grows with layers and with sequences, and its states with neither.
#[test]
fn a_micro_batch_grows_as_its_activations_do() {
    let of = |layers: usize, micro: usize| {
        let layers = format!("model.layers={layers}");
        let (batch, micro) = ("train.batch=8", format!("train.micro_batch={micro}"));
        plan("gpt2-124m.toml", 512, &[&layers, batch, &micro])
    };
    let (four, eight, wide) = (of(4, 1), of(8, 1), of(4, 2));
    let (a, b, c) = (micro_bytes(&four), micro_bytes(&eight), micro_bytes(&wide));
    assert!(b / a > 1.3 && b / a < 2.05, "twice the layers: {a} to {b}");
    assert!(c / a > 1.5 && c / a < 2.05, "twice the sequences: {a} to {c}");
    let (one, two) = (four.report().state_bytes, wide.report().state_bytes);
    assert!(one >= two, "states of fewer micro-batches: {one} to {two}");
}

/// Kernels of the backward pass in the blocks, with how often the section has them.
fn backward_of_blocks(section: &Section) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    let of_blocks = |a: &Account| a.phase == Phase::Backward && a.scope.starts_with("h.");
    for account in section.accounts().iter().filter(|a| of_blocks(a)) {
        *counts.entry(account.kernel).or_default() += 1;
    }
    counts
}

/// Where a norm's gradient joins the residual stream, its kernel adds it, though the sums of
/// gradients over micro-batches take the gradients of gain and bias before that.
#[test]
fn residual_sums_of_gradients_have_no_kernel_of_their_own() {
    let micro = ["train.batch=8", "train.micro_batch=2", "model.layers=4"];
    for (name, also) in [
        ("gpt2-124m.toml", "precision.compute=bf16"),
        ("gpt2-124m.toml", "memory.recompute=block"),
        ("cifar10-strided.toml", "precision.compute=f32"),
    ] {
        let plan = plan(name, 256, &[&micro[..], &[also]].concat());
        for section in plan.program(0).sections.iter().filter(|s| s.name.starts_with("micro")) {
            let counts = backward_of_blocks(section);
            let count = |kernel: &str| counts.get(kernel).copied().unwrap_or(0);
            let norms = (count("norm_grad"), count("norm_grad+map"));
            assert_eq!(norms, (0, 8), "{name} {also} {}: {counts:?}", section.name);
            // What is left adds up buckets: vectors and matrices of each block.
            let sums = if section.name == "micro.0" { 0 } else { 8 };
            assert_eq!(count("map"), sums, "{name} {also} {}: {counts:?}", section.name);
        }
    }
}

/// Two plannings give one program.
#[test]
fn the_plan_of_a_recipe_is_one() {
    let of = || plan("cifar10-strided.toml", 256, &["model.layers=8"]).hash();
    let first = of();
    assert!((0..3).all(|_| of() == first));
}

/// Embedding, norm, product with an epilogue, loss-like sum, and a state updated in place.
fn small() -> Graph {
    let build = |g: &mut Graph| -> Result<(), aerogel_graph::OpError> {
        let (batch, seq) = (g.axis("batch", 2)?, g.axis("seq", 4)?);
        let (embed, mlp, vocab) = (g.axis("embed", 8)?, g.axis("mlp", 16)?, g.axis("vocab", 5)?);
        let tokens = g.input("tokens", DType::U32, &[batch, seq])?;
        let init = Init::Normal(0.1);
        let table = g.parameter("table", ParamClass::Embedding, &[vocab, embed], init)?;
        let gain = g.parameter("gain", ParamClass::Norm, &[embed], init)?;
        let up = g.parameter("up", ParamClass::Weight, &[mlp, embed], init)?;
        let bias = g.parameter("bias", ParamClass::Bias, &[mlp], init)?;
        let mean = Type::new(DType::F32, [mlp]);
        let mean = g.state("mean", mean, Role::Optimizer, None, Init::Constant(0.0))?;
        let x = g.scope("embed", |g| g.gather(table, vocab, tokens))?;
        let y = g.scope("h.norm", |g| g.norm(x, embed, true, 1e-5, Some(gain), None))?;
        let z = g.scope("h.up", |g| {
            let z = g.einsum(&[y, up], &[batch, seq, mlp])?;
            let z = g.map(&[z, bias], &|v| &v[0] + &v[1])?;
            g.map(&[z], &|v| v[0].tanh())
        })?;
        let sum = g.scope("mean", |g| {
            let square = g.map(&[z], &|v| &v[0] * &v[0])?;
            g.sum(square, &[batch, seq])
        })?;
        let new = g.scope("mean", |g| g.map(&[mean, sum], &|v| 0.9 * &v[0] + 0.1 * &v[1]))?;
        let half = g.axis("half", 8)?;
        let part = g.scope("out", |g| g.slice(z, mlp, 8, half))?;
        g.output("part", part);
        g.assign(g.find_state("mean").expect("declared"), new)
    };
    let mut g = Graph::new();
    build(&mut g).unwrap();
    g
}

/// Kernels with their scopes, and where each value lies, without offsets.
fn show(program: &Program) -> String {
    let mut text = String::new();
    for section in &program.sections {
        writeln!(text, "section {}", section.name).unwrap();
        let uses = Uses::new(&section.graph);
        for step in &section.steps {
            writeln!(text, "  {}", show_step(section, &uses, step)).unwrap();
        }
    }
    text
}

fn show_step(s: &Section, uses: &Uses, step: &Step) -> String {
    let g = &s.graph;
    let name = |v: &ValueId| match g.value(*v).def {
        Def::Input(i) => g.inputs()[i as usize].name.clone(),
        Def::State(s) => g.states()[s.index()].name.clone(),
        Def::Node(..) => format!("%{}", v.0),
    };
    let names = |list: &[ValueId]| list.iter().map(name).collect::<Vec<_>>().join(" ");
    let Step::Kernel { claim, .. } = step else {
        let Step::Assign { from, to } = step else { unreachable!() };
        return format!("copy {} to state {}", name(from), g.states()[to.index()].name);
    };
    let (reads, writes) = (uses.imports(g, &claim.nodes), uses.exports(g, &claim.nodes));
    let mut line = format!(
        "{} @{}: {} -> {}",
        claim.kernel,
        g.node(claim.nodes[0]).scope,
        names(&reads),
        names(&writes)
    );
    for w in &writes {
        if let Some(r) = reads.iter().find(|r| s.slot(**r) == s.slot(*w)) {
            write!(line, ", {} over {}", name(w), name(r)).unwrap();
        }
    }
    line
}

/// What selection does with a small section, for people to read.
#[test]
fn a_small_plan_reads_as_expected() {
    let program = planned(alone(&small()), 2).unwrap().program;
    let text = show(&program);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/small-plan.txt");
    if std::env::var_os("AEROGEL_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, golden, "set AEROGEL_BLESS=1 to write the new text");
}

/// Attention's three linear layers read one value, and so do the gradients of their weights; its
/// own gradient is the sum of three products: on a GPU each three are one kernel, also when they
/// run again.
#[test]
fn linear_layers_of_one_value_share_a_kernel_on_a_gpu() {
    for (recompute, again) in [("none", 0), ("block", 4)] {
        let recompute = format!("memory.recompute={recompute}");
        let keys = ["parallel.device=cuda", "train.micro_batch=16", "model.layers=4", &recompute];
        let plan = plan("cifar10-strided.toml", 256, &keys);
        let sections = &plan.program(0).sections;
        let micro = sections.iter().find(|s| s.name == "micro.last").unwrap();
        let accounts = micro.accounts();
        let count = |kernel: &str, phase: Phase| {
            accounts.iter().filter(|a| a.kernel == kernel && a.phase == phase).count()
        };
        assert_eq!(count("einsums+map", Phase::Forward), 4);
        assert_eq!(count("einsums+map", Phase::Backward), again, "{recompute}");
        assert_eq!(count("einsums+sum", Phase::Backward), 4);
        assert_eq!(count("einsums+add", Phase::Backward), 4);
        let members = |step: &Step| match step {
            Step::Kernel { claim, .. } if claim.kernel.starts_with("einsums") => {
                let product = |n: &&NodeId| matches!(micro.graph.node(**n).op, Op::Einsum(_));
                Some(claim.nodes.iter().filter(product).count())
            }
            _ => None,
        };
        assert!(micro.steps.iter().filter_map(members).all(|members| members == 3));
    }
}
