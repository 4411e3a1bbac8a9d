//! update through the interpreter, against PyTorch's optimizers written out in f64.

use super::support::{noise, read, run, states_of, tensor, tile};
use aerogel_graph::expr::Un;
use aerogel_graph::{
    Build, DType, Env, Expr, Graph, Init, Op, ParamClass, Phase, Place, Role, Rounding, Type,
};
use aerogel_passes::{
    Buckets, Optimizer, Order, Partials, PassError, Shards, Share, UpdateConfig, backward, update,
};
use std::slice::from_ref;

const TOKENS: f64 = 37.0;
/// Name, class, axes, whether it decays.
type Parameter = (&'static str, ParamClass, &'static [&'static str], bool);
const PARAMETERS: [Parameter; 5] = [
    ("matrix", ParamClass::Weight, &["p", "q"], true),
    ("bias", ParamClass::Bias, &["p", "q"], false),
    ("gain", ParamClass::Norm, &["q"], false),
    ("table", ParamClass::Embedding, &["q", "p"], true),
    ("head", ParamClass::Head, &["q"], true),
];
const ADAMW: Optimizer = Optimizer::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };

fn parameters() -> Graph {
    let mut g = Graph::new();
    for (name, size) in [("p", 3), ("q", 4)] {
        g.axis(name, size).unwrap();
    }
    for (name, class, axes, _) in PARAMETERS {
        let axes: Vec<_> = axes.iter().map(|n| g.axes().find(n).unwrap()).collect();
        g.parameter(name, class, &axes, Init::Normal(0.02)).unwrap();
    }
    g
}

fn count(axes: &[&str]) -> usize {
    axes.iter().map(|n| if *n == "p" { 3 } else { 4 }).product()
}

/// The mean gradient of a parameter at a step; it shrinks, so that clipping ends on the way.
fn gradient(name: &str, step: usize, i: usize) -> f64 {
    noise(name, 1000 * (step + 1) + i) * 3.0 / (1.0 + step as f64)
}

/// Sums over the batch, each gradient where its parameter is.
fn put_gradients(g: &Graph, env: &mut Env, step: usize) {
    for bucket in &buckets().list {
        let sums = env.get_mut(&format!("sum.0.grad.{}", bucket.name)).unwrap();
        sums.data.fill(0.0);
        for t in &bucket.tensors {
            for i in 0..t.count {
                sums.data[t.first + i] = gradient(&t.name, step, i) * TOKENS;
            }
        }
    }
    env.insert("sum.0.loss".to_owned(), tensor(g.axes(), &[], &[TOKENS * 2.5]));
    env.insert("sum.0.tokens".to_owned(), tensor(g.axes(), &[], &[TOKENS]));
}

/// Where in which sum the first gradient of a parameter is.
fn first_gradient<'a>(env: &'a mut Env, parameter: &str) -> &'a mut f64 {
    let buckets = buckets();
    let (bucket, t) = buckets
        .list
        .iter()
        .find_map(|b| b.tensors.iter().find(|t| t.name == parameter).map(|t| (b, t)))
        .unwrap();
    &mut env.get_mut(&format!("sum.0.grad.{}", bucket.name)).unwrap().data[t.first]
}

fn buckets() -> Buckets {
    Buckets::of(&parameters(), &Shards::default(), &Partials::default())
}

fn updated(config: &UpdateConfig) -> Result<Graph, PassError> {
    update(&parameters(), &Share::whole(&buckets()), config)
}

/// Parameters drawn, everything else at its initial value.
fn start(g: &Graph) -> Env {
    states_of(g, Place::default(), |name, _, init, i| match init {
        Init::Normal(_) => noise(name, i),
        Init::Constant(c) => c,
    })
}

fn rate(step: usize) -> f64 {
    0.01 * (1.0 + (step as f64 * 0.3).sin())
}

/// torch.optim, one tensor, float64.
struct Torch {
    p: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
    first: bool,
}

impl Torch {
    fn step(&mut self, c: &UpdateConfig, wd: f64, lr: f64, t: i32, grad: &[f64]) {
        for (i, g) in grad.iter().enumerate() {
            let (p, m, v) = (&mut self.p[i], &mut self.m[i], &mut self.v[i]);
            let mut g = *g;
            if !matches!(c.kind, Optimizer::AdamW { .. }) {
                g += wd * *p;
            }
            match c.kind {
                Optimizer::Sgd { momentum: 0.0 } => *p -= lr * g,
                Optimizer::Sgd { momentum } => {
                    *m = if self.first { g } else { momentum * *m + g };
                    *p -= lr * *m;
                }
                Optimizer::RmsProp { alpha, epsilon, momentum } => {
                    *v = alpha * *v + (1.0 - alpha) * g * g;
                    let average = v.sqrt() + epsilon;
                    if momentum > 0.0 {
                        *m = momentum * *m + g / average;
                        *p -= lr * *m;
                    } else {
                        *p -= lr * g / average;
                    }
                }
                Optimizer::Adam { beta1, beta2, epsilon }
                | Optimizer::AdamW { beta1, beta2, epsilon } => {
                    if matches!(c.kind, Optimizer::AdamW { .. }) {
                        *p *= 1.0 - lr * wd;
                    }
                    *m += (1.0 - beta1) * (g - *m);
                    *v = beta2 * *v + (1.0 - beta2) * g * g;
                    let (c1, c2) = (1.0 - beta1.powi(t), 1.0 - beta2.powi(t));
                    *p -= lr / c1 * *m / (v.sqrt() / c2.sqrt() + epsilon);
                }
            }
        }
        self.first = false;
    }
}

/// torch.nn.utils.clip_grad_norm_; gives the norm before.
fn clip_grad_norm(grads: &mut [Vec<f64>], max_norm: f64) -> f64 {
    let norm = grads.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
    let coefficient = (max_norm / (norm + 1e-6)).min(1.0);
    grads.iter_mut().flatten().for_each(|g| *g *= coefficient);
    norm
}

fn close(got: f64, wanted: f64, what: &str) {
    let error = (got - wanted).abs() / wanted.abs().max(1e-3);
    assert!(error <= 1e-10, "{what}: {got} against {wanted}");
}

/// What lies between the tensors of a bucket.
fn zeros_stay_zeros(g: &Graph, env: &Env) {
    for s in g.states().iter().filter(|s| !s.parts.is_empty()) {
        let mut data = env[&s.name].data.clone();
        assert!(data.len() > 24, "{} is padded", s.name);
        for p in &s.parts {
            data[p.first..p.first + g.axes().count(&p.axes)].fill(0.0);
        }
        assert!(data.iter().all(|x| *x == 0.0), "{}", s.name);
    }
}

fn compare(c: UpdateConfig) {
    let g = updated(&c).unwrap();
    aerogel_graph::verify::verify(&g).unwrap();
    let mut env = start(&g);
    let mut torch: Vec<Torch> = PARAMETERS
        .iter()
        .map(|(name, _, axes, _)| Torch {
            p: read(&g, from_ref(&env), name).data,
            m: vec![0.0; count(axes)],
            v: vec![0.0; count(axes)],
            first: true,
        })
        .collect();
    let mut clipped = 0;
    for step in 0..100 {
        put_gradients(&g, &mut env, step);
        env.insert("rate".to_owned(), tensor(g.axes(), &[], &[rate(step)]));
        let outputs = run(&g, &mut env, 0, Rounding::Exact);
        let mut grads: Vec<Vec<f64>> = PARAMETERS
            .iter()
            .map(|(name, _, axes, _)| (0..count(axes)).map(|i| gradient(name, step, i)).collect())
            .collect();
        let max_norm = if c.clip > 0.0 { c.clip } else { f64::INFINITY };
        let norm = clip_grad_norm(&mut grads, max_norm);
        clipped += usize::from(norm > max_norm);
        close(outputs["grad_norm"].data[0], norm, "norm");
        close(outputs["loss"].data[0], 2.5, "loss");
        assert_eq!((outputs["tokens"].data[0], outputs["finite"].data[0]), (TOKENS, 1.0));
        for ((torch, grad), (name, _, _, decays)) in torch.iter_mut().zip(&grads).zip(PARAMETERS) {
            let wd = if decays { c.weight_decay } else { 0.0 };
            torch.step(&c, wd, rate(step), step as i32 + 1, grad);
            for (got, wanted) in read(&g, from_ref(&env), name).data.iter().zip(&torch.p) {
                close(*got, *wanted, &format!("{c:?} {name} at step {step}"));
            }
        }
        assert_eq!(env["optimizer.applied"].data[0], step as f64 + 1.0);
    }
    zeros_stay_zeros(&g, &env);
    assert_eq!(clipped > 0, c.clip > 0.0, "clipping is tried");
    assert!(clipped < 100, "and so is not clipping");
}

#[test]
fn a_hundred_steps_of_each_optimizer_are_those_of_pytorch() {
    let (beta1, beta2, epsilon) = (0.9, 0.999, 1e-8);
    for kind in [
        Optimizer::Sgd { momentum: 0.0 },
        Optimizer::Sgd { momentum: 0.9 },
        Optimizer::RmsProp { alpha: 0.99, epsilon, momentum: 0.0 },
        Optimizer::RmsProp { alpha: 0.9, epsilon: 1e-3, momentum: 0.5 },
        Optimizer::Adam { beta1, beta2, epsilon },
        Optimizer::Adam { beta1: 0.0, beta2: 0.5, epsilon: 1e-4 },
        Optimizer::AdamW { beta1, beta2: 0.95, epsilon },
    ] {
        for (weight_decay, clip) in [(0.0, 0.0), (0.1, 0.0), (0.1, 1.0)] {
            compare(UpdateConfig { kind, weight_decay, clip, scale: None });
        }
    }
}

#[test]
fn only_what_is_needed_is_remembered() {
    let states = |kind| {
        let g = updated(&UpdateConfig { kind, weight_decay: 0.0, clip: 0.0, scale: None }).unwrap();
        let has = |letter: &str| {
            let name = format!("optimizer.{letter}.matrix");
            g.states().iter().any(|s| s.parts.iter().any(|p| p.name == name))
        };
        assert_eq!(
            g.assigns.len(),
            g.states().iter().filter(|s| s.role != Role::Accumulator).count()
        );
        assert!(g.nodes().iter().all(|n| n.phase == Phase::Update));
        (has("m"), has("v"))
    };
    assert_eq!(states(Optimizer::Sgd { momentum: 0.0 }), (false, false));
    assert_eq!(states(Optimizer::Sgd { momentum: 0.9 }), (true, false));
    let rms = |momentum| Optimizer::RmsProp { alpha: 0.9, epsilon: 1e-8, momentum };
    assert_eq!(states(rms(0.0)), (false, true));
    assert_eq!(states(rms(0.9)), (true, true));
    assert_eq!(states(ADAMW), (true, true));
}

#[test]
fn no_step_from_numbers_that_are_not_finite() {
    let g =
        updated(&UpdateConfig { kind: ADAMW, weight_decay: 0.1, clip: 1.0, scale: None }).unwrap();
    let mut env = start(&g);
    env.insert("rate".to_owned(), tensor(g.axes(), &[], &[0.01]));
    for step in 0..2 {
        put_gradients(&g, &mut env, step);
        run(&g, &mut env, 0, Rounding::Declared);
    }
    let kept = |env: &Env| -> Vec<(String, Vec<u64>)> {
        let states = g.states().iter().filter(|s| s.role != Role::Accumulator);
        states
            .map(|s| (s.name.clone(), env[&s.name].data.iter().map(|x| x.to_bits()).collect()))
            .collect()
    };
    let before = kept(&env);
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e30] {
        for name in ["gain", "table", "loss"] {
            // 1e30 is a number, and its square is none in f32.
            if bad == 1e30 && name == "loss" {
                continue;
            }
            put_gradients(&g, &mut env, 2);
            match name {
                "loss" => env.get_mut("sum.0.loss").unwrap().data[0] = bad,
                name => *first_gradient(&mut env, name) = bad,
            }
            let outputs = run(&g, &mut env, 0, Rounding::Declared);
            assert_eq!(outputs["finite"].data[0], 0.0, "{bad} in {name}");
            assert_eq!(kept(&env), before, "{bad} in {name}");
        }
    }
    put_gradients(&g, &mut env, 2);
    env.get_mut("sum.0.tokens").unwrap().data[0] = 0.0;
    run(&g, &mut env, 0, Rounding::Declared);
    assert_eq!(kept(&env), before, "a batch without tokens");
    put_gradients(&g, &mut env, 2);
    let outputs = run(&g, &mut env, 0, Rounding::Declared);
    assert_eq!(outputs["finite"].data[0], 1.0);
    assert_ne!(kept(&env), before);
    assert_eq!(env["optimizer.applied"].data[0], 3.0, "only applied steps count");
}

/// An expression with every operation in f32, as a kernel does it.
fn in_f32(e: &Expr, ins: &[f32]) -> f32 {
    match e {
        Expr::In(i) => ins[*i],
        Expr::Const(c) => *c as f32,
        Expr::Un(Un::Tanh, x) => in_f32(x, ins).tanh(),
        Expr::Un(f, x) => f.eval(f64::from(in_f32(x, ins))) as f32,
        Expr::Bin(f, a, b) => f.eval(f64::from(in_f32(a, ins)), f64::from(in_f32(b, ins))) as f32,
        _ => panic!("no part of a bias correction"),
    }
}

/// 1 minus a power of 0.999 in f32 is off by 3e-5 at the first step.
#[test]
fn bias_correction_keeps_its_digits_in_f32() {
    let g =
        updated(&UpdateConfig { kind: ADAMW, weight_decay: 0.0, clip: 0.0, scale: None }).unwrap();
    let applied = g.states()[g.find_state("optimizer.applied").unwrap().index()].value;
    let root = g.nodes().iter().find(|n| n.ins == [applied]).unwrap();
    let Op::Map(root) = &root.op else { panic!("a scalar map") };
    for step in [1, 2, 3, 10, 100, 1000, 10_000, 1_000_000] {
        let wanted = 1.0 / (1.0 - 0.999f64.powi(step)).sqrt();
        let got = f64::from(in_f32(&root.expr, &[step as f32 - 1.0]));
        assert!((got / wanted - 1.0).abs() <= 5e-7, "step {step}: {got} against {wanted}");
    }
}

/// Chunk by chunk, bucket by bucket, then the buckets, each sum rounded to f32.
#[test]
fn the_norm_is_summed_by_chunks_and_buckets() {
    let mut g = Graph::new();
    let (long, wide) = (g.axis("long", 5000).unwrap(), g.axis("wide", 150).unwrap());
    for (layer, class, axis) in [
        ("a", ParamClass::Weight, long),
        ("a", ParamClass::Bias, wide),
        ("b", ParamClass::Weight, long),
    ] {
        let name = format!("{layer}.{class:?}");
        g.parameter(&name, class, &[axis], Init::Constant(0.0)).unwrap();
    }
    let buckets = Buckets::of(&g, &Shards::default(), &Partials::default());
    let chunks: Vec<usize> = buckets.list.iter().map(|b| b.chunks).collect();
    assert_eq!(chunks, [3, 3, 3]);
    let kind = Optimizer::Sgd { momentum: 0.0 };
    let config = UpdateConfig { kind, weight_decay: 0.0, clip: 0.0, scale: None };
    let g = update(&g, &Share::whole(&buckets), &config).unwrap();
    let f32 = |x: f64| f64::from(x as f32);
    let mut plain = 0;
    for draw in 0..20 {
        let mut env = start(&g);
        for name in ["rate", "sum.0.tokens", "sum.0.loss"] {
            env.insert(name.to_owned(), tensor(g.axes(), &[], &[1.0]));
        }
        let (mut total, mut all) = (0.0, 0.0);
        for b in &buckets.list {
            let sums = env.get_mut(&format!("sum.0.grad.{}", b.name)).unwrap();
            for t in &b.tensors {
                for i in 0..t.count {
                    sums.data[t.first + i] = f32(noise(&t.name, 10_000 * draw + i));
                }
            }
            let squares: Vec<f64> = sums.data.iter().map(|x| f32(x * x)).collect();
            all += squares.iter().sum::<f64>();
            let chunks = squares.chunks(b.chunk).map(|c| f32(c.iter().sum()));
            total += f32(chunks.sum());
        }
        let norm = run(&g, &mut env, 0, Rounding::Declared)["grad_norm"].data[0];
        assert_eq!(norm, f32(f32(total).sqrt()));
        plain += usize::from(norm != f32(f32(all).sqrt()));
    }
    assert!(plain > 0, "the test can tell the order from another");
}

#[test]
fn the_update_fits_any_section_of_the_step() {
    let mut g = Graph::new();
    let batch = g.axis("batch", 4).unwrap();
    let d = g.axis("d", 2).unwrap();
    let x = g.input("x", DType::F32, &[batch, d]).unwrap();
    let w = g.parameter("w", ParamClass::Weight, &[d], Init::Constant(1.0)).unwrap();
    let y = g.map(&[x, w], &|v| &v[0] * &v[1]).unwrap();
    let loss = g.sum(y, &[batch, d]).unwrap();
    let ones = g.constant(1.0, Type::new(DType::F32, [batch])).unwrap();
    let tokens = g.sum(ones, &[batch]).unwrap();
    g.output("loss", loss);
    g.output("tokens", tokens);
    let g = backward(&g).unwrap();
    let buckets = Buckets::of(&g, &Shards::default(), &Partials::default());
    let g = buckets.apply(&g).unwrap();
    let config = UpdateConfig { kind: ADAMW, weight_decay: 0.1, clip: 1.0, scale: None };
    for (name, section) in tile(&g, 2, Order::Tree).unwrap() {
        let update = update(&section, &Share::whole(&buckets), &config).unwrap();
        let kept = update.axes().iter().zip(section.axes().iter()).all(|(a, b)| a == b);
        assert!(kept && update.axes().mesh == section.axes().mesh, "{name}");
        let mut shared = 0;
        for s in update.states() {
            let Some(other) = section.find_state(&s.name) else { continue };
            let other = &section.states()[other.index()];
            assert_eq!((s.role, s.class, s.init), (other.role, other.class, other.init));
            assert_eq!((&s.parts, s.copies), (&other.parts, other.copies));
            assert_eq!(update.ty(s.value), section.ty(other.value), "{}", s.name);
            shared += 1;
        }
        assert_eq!(shared, 4, "{name}: a parameter, its gradient, loss and tokens");
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    let base = UpdateConfig { kind: ADAMW, weight_decay: 0.0, clip: 0.0, scale: None };
    let (beta1, beta2, epsilon) = (0.9, 0.999, 1e-8);
    for (config, what) in [
        (UpdateConfig { weight_decay: -0.1, ..base }, "weight_decay"),
        (UpdateConfig { clip: f64::NAN, ..base }, "clip"),
        (UpdateConfig { kind: Optimizer::Sgd { momentum: 1.0 }, ..base }, "momentum"),
        (UpdateConfig { kind: Optimizer::Adam { beta1: 1.5, beta2, epsilon }, ..base }, "beta1"),
        (UpdateConfig { kind: Optimizer::AdamW { beta1, beta2: 1.0, epsilon }, ..base }, "beta2"),
        (UpdateConfig { kind: Optimizer::Adam { beta1, beta2, epsilon: 0.0 }, ..base }, "epsilon"),
    ] {
        let error = updated(&config).unwrap_err();
        assert!(matches!(error, PassError::OutOfRange { what: w, .. } if w == what), "{error}");
    }
    let none = Buckets::of(&Graph::new(), &Shards::default(), &Partials::default());
    let got = update(&Graph::new(), &Share::whole(&none), &base);
    assert_eq!(got, Err(PassError::NoParameters));
}
