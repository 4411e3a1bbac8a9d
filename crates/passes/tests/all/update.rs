//! update through the interpreter, against PyTorch's optimizers written out in f64.

use super::support::{noise, run, tensor};
use aerogel_graph::expr::Un;
use aerogel_graph::{
    Axes, Build, DType, Def, Env, Expr, Graph, Init, Op, ParamClass, Phase, Role, Rounding, Type,
};
use aerogel_passes::{Optimizer, PassError, UpdateConfig, tile, update};

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

fn put_gradients(axes: &Axes, env: &mut Env, step: usize) {
    for (name, _, list, _) in PARAMETERS {
        let sums: Vec<f64> = (0..count(list)).map(|i| gradient(name, step, i) * TOKENS).collect();
        env.insert(format!("sum.0.grad.{name}"), tensor(axes, list, &sums));
    }
    env.insert("sum.0.loss".to_owned(), tensor(axes, &[], &[TOKENS * 2.5]));
    env.insert("sum.0.tokens".to_owned(), tensor(axes, &[], &[TOKENS]));
}

/// Parameters drawn, everything else at its initial value.
fn start(g: &Graph) -> Env {
    let mut env = Env::new();
    for s in g.states() {
        let names: Vec<&str> =
            g.ty(s.value).axes.iter().map(|&a| g.axes()[a].name.as_str()).collect();
        let value = |i: usize| match s.init {
            Init::Normal(_) => noise(&s.name, i),
            Init::Constant(c) => c,
        };
        let data: Vec<f64> = (0..count(&names)).map(value).collect();
        env.insert(s.name.clone(), tensor(g.axes(), &names, &data));
    }
    env
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

fn compare(c: UpdateConfig) {
    let g = update(&parameters(), &c).unwrap();
    aerogel_graph::verify::verify(&g).unwrap();
    let mut env = start(&g);
    let mut torch: Vec<Torch> = PARAMETERS
        .iter()
        .map(|(name, _, axes, _)| Torch {
            p: env[*name].data.clone(),
            m: vec![0.0; count(axes)],
            v: vec![0.0; count(axes)],
            first: true,
        })
        .collect();
    let mut clipped = 0;
    for step in 0..100 {
        put_gradients(g.axes(), &mut env, step);
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
            for (got, wanted) in env[name].data.iter().zip(&torch.p) {
                close(*got, *wanted, &format!("{c:?} {name} at step {step}"));
            }
        }
        assert_eq!(env["optimizer.applied"].data[0], step as f64 + 1.0);
    }
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
            compare(UpdateConfig { kind, weight_decay, clip });
        }
    }
}

#[test]
fn only_what_is_needed_is_remembered() {
    let states = |kind| {
        let g = update(&parameters(), &UpdateConfig { kind, weight_decay: 0.0, clip: 0.0 });
        let g = g.unwrap();
        let has = |letter: &str| g.find_state(&format!("optimizer.{letter}.matrix")).is_some();
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
    let g = update(&parameters(), &UpdateConfig { kind: ADAMW, weight_decay: 0.1, clip: 1.0 });
    let g = g.unwrap();
    let mut env = start(&g);
    env.insert("rate".to_owned(), tensor(g.axes(), &[], &[0.01]));
    for step in 0..2 {
        put_gradients(g.axes(), &mut env, step);
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
        for name in ["sum.0.grad.gain", "sum.0.grad.table", "sum.0.loss"] {
            // 1e30 is a number, and its square is none in f32.
            if bad == 1e30 && name == "sum.0.loss" {
                continue;
            }
            put_gradients(g.axes(), &mut env, 2);
            env.get_mut(name).unwrap().data[0] = bad;
            let outputs = run(&g, &mut env, 0, Rounding::Declared);
            assert_eq!(outputs["finite"].data[0], 0.0, "{bad} in {name}");
            assert_eq!(kept(&env), before, "{bad} in {name}");
        }
    }
    put_gradients(g.axes(), &mut env, 2);
    env.get_mut("sum.0.tokens").unwrap().data[0] = 0.0;
    run(&g, &mut env, 0, Rounding::Declared);
    assert_eq!(kept(&env), before, "a batch without tokens");
    put_gradients(g.axes(), &mut env, 2);
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
    let g = update(&parameters(), &UpdateConfig { kind: ADAMW, weight_decay: 0.0, clip: 0.0 });
    let g = g.unwrap();
    let applied = g.states()[g.find_state("optimizer.applied").unwrap().index()].value;
    let root = g.nodes().iter().find(|n| n.ins == [applied]).unwrap();
    let Op::Map(root) = &root.op else { panic!("a scalar map") };
    for step in [1, 2, 3, 10, 100, 1000, 10_000, 1_000_000] {
        let wanted = 1.0 / (1.0 - 0.999f64.powi(step)).sqrt();
        let got = f64::from(in_f32(&root.expr, &[step as f32 - 1.0]));
        assert!((got / wanted - 1.0).abs() <= 5e-7, "step {step}: {got} against {wanted}");
    }
}

#[test]
fn the_norm_is_a_tree_of_pairs_in_the_order_of_the_parameters() {
    for n in [1, 2, 7, 8, 9, 20, 65] {
        let mut g = Graph::new();
        for i in 0..n {
            let name = format!("p{i}");
            g.parameter(&name, ParamClass::Bias, &[], Init::Constant(0.0)).unwrap();
        }
        let kind = Optimizer::Sgd { momentum: 0.0 };
        let g = update(&g, &UpdateConfig { kind, weight_decay: 0.0, clip: 0.0 }).unwrap();
        let root = g.find_output("grad_norm").unwrap();
        let Def::Node(root, _) = g.value(root).def else { panic!("the norm is a node") };
        let total = g.node(root).ins[0];
        let squares: Vec<_> = (0..n)
            .map(|i| {
                let sum =
                    g.states()[g.find_state(&format!("sum.0.grad.p{i}")).unwrap().index()].value;
                g.nodes().iter().find(|n| n.ins.first() == Some(&sum)).unwrap().outs[0]
            })
            .collect();
        assert_eq!(written(&g, total, &squares), pairs(0, n), "{n} parameters");
    }
}

/// The sum that defines a value, over numbered leaves.
fn written(g: &Graph, v: aerogel_graph::ValueId, leaves: &[aerogel_graph::ValueId]) -> String {
    if let Some(i) = leaves.iter().position(|&l| l == v) {
        return i.to_string();
    }
    let Def::Node(n, _) = g.value(v).def else { panic!("a sum of leaves") };
    let Op::Map(map) = &g.node(n).op else { panic!("sums are maps") };
    let ins: Vec<String> = g.node(n).ins.iter().map(|&v| written(g, v, leaves)).collect();
    let mut text = map.expr.show(g.axes());
    for (i, part) in ins.iter().enumerate().rev() {
        text = text.replace(&format!("${i}"), part);
    }
    text
}

/// Left half first: the largest power of two that leaves something.
fn pairs(from: usize, n: usize) -> String {
    if n == 1 {
        return from.to_string();
    }
    let left = n.next_power_of_two() / 2;
    format!("({} + {})", pairs(from, left), pairs(from + left, n - left))
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
    let g = aerogel_passes::backward(&g).unwrap();
    let config = UpdateConfig { kind: ADAMW, weight_decay: 0.1, clip: 1.0 };
    for (name, section) in tile(&g, 2).unwrap() {
        let update = update(&section, &config).unwrap();
        assert_eq!(update.axes(), section.axes(), "{name}");
        for s in update.states() {
            let Some(other) = section.find_state(&s.name) else { continue };
            let other = &section.states()[other.index()];
            assert_eq!((s.role, s.class, s.init), (other.role, other.class, other.init));
            assert_eq!(update.ty(s.value), section.ty(other.value), "{}", s.name);
        }
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    let base = UpdateConfig { kind: ADAMW, weight_decay: 0.0, clip: 0.0 };
    let (beta1, beta2, epsilon) = (0.9, 0.999, 1e-8);
    for (config, what) in [
        (UpdateConfig { weight_decay: -0.1, ..base }, "weight_decay"),
        (UpdateConfig { clip: f64::NAN, ..base }, "clip"),
        (UpdateConfig { kind: Optimizer::Sgd { momentum: 1.0 }, ..base }, "momentum"),
        (UpdateConfig { kind: Optimizer::Adam { beta1: 1.5, beta2, epsilon }, ..base }, "beta1"),
        (UpdateConfig { kind: Optimizer::AdamW { beta1, beta2: 1.0, epsilon }, ..base }, "beta2"),
        (UpdateConfig { kind: Optimizer::Adam { beta1, beta2, epsilon: 0.0 }, ..base }, "epsilon"),
    ] {
        let error = update(&parameters(), &config).unwrap_err();
        assert!(matches!(error, PassError::OutOfRange { what: w, .. } if w == what), "{error}");
    }
    assert_eq!(update(&Graph::new(), &base), Err(PassError::NoParameters));
}
