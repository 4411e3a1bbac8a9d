//! The loss scale: gradients keep their bits or come back from below f16's range, steps that
//! overflow change nothing but the scale, and are counted.

use super::support::{environment, network, run, tensor, tile};
use aerogel_graph::{Build, DType, Env, Graph, Rounding};
use aerogel_passes::{
    Buckets, Compute, LossScale, Optimizer, Order, Partials, PassError, Shards, Share,
    UpdateConfig, backward, precision, scale, update,
};

const SCALE: LossScale = LossScale { initial: 1024.0, interval: 3 };

fn differentiated(compute: Compute, scaled: Option<&LossScale>) -> Graph {
    let g = precision(&network(4, true), compute).unwrap();
    backward(&scaled.map_or(Ok(g.clone()), |s| scale(&g, s)).unwrap()).unwrap()
}

fn outputs(g: &Graph) -> Env {
    run(g, &mut environment(g), 0, Rounding::Declared)
}

#[test]
fn a_power_of_two_changes_no_bit_of_a_gradient() {
    for compute in [Compute::F32, Compute::Bf16] {
        let plain = outputs(&differentiated(compute, None));
        let scaled = outputs(&differentiated(compute, Some(&SCALE)));
        assert_eq!(plain["loss"].data, scaled["loss"].data);
        assert_eq!(plain.len(), scaled.len(), "no output is left of the scaled loss");
        for (name, of) in plain.iter().filter(|(name, _)| name.starts_with("grad.")) {
            let wanted: Vec<f64> = of.data.iter().map(|x| x * SCALE.initial).collect();
            assert_eq!(wanted, scaled[name].data, "{name} in {compute:?}");
        }
    }
}

/// A contraction behind a factor that makes its gradient 2^-26: below half of the least f16.
fn faint() -> Graph {
    let mut g = Graph::new();
    let (row, col) = (g.axis("row", 2).unwrap(), g.axis("col", 2).unwrap());
    let x = g.input("x", DType::F32, &[row, col]).unwrap();
    let class = aerogel_graph::ParamClass::Weight;
    let init = aerogel_graph::Init::Constant(1.0);
    let w = g.parameter("w", class, &[col], init).unwrap();
    let y = g.einsum(&[x, w], &[row]).unwrap();
    let y = g.map(&[y], &|v| &v[0] * 2f64.powi(-26)).unwrap();
    // A second product, so that the first one's cotangent is an activation.
    let u = g.parameter("u", class, &[row], init).unwrap();
    let loss = g.einsum(&[y, u], &[]).unwrap();
    let one = g.constant(1.0, aerogel_graph::Type::new(DType::F32, [])).unwrap();
    g.output("loss", loss);
    g.output("tokens", one);
    g
}

#[test]
fn a_gradient_that_f16_loses_is_kept_by_the_scale() {
    let gradient = |compute, scaled: Option<&LossScale>| {
        let g = precision(&faint(), compute).unwrap();
        let g = scaled.map_or(Ok(g.clone()), |s| scale(&g, s)).unwrap();
        outputs(&backward(&g).unwrap())["grad.w"].data.clone()
    };
    let wanted = gradient(Compute::F32, None);
    assert!(wanted.iter().all(|x| *x != 0.0));
    assert!(gradient(Compute::F16, None).iter().all(|x| *x == 0.0), "f16 holds nothing so small");
    let kept = gradient(Compute::F16, Some(&SCALE));
    for (kept, wanted) in kept.iter().zip(&wanted) {
        let error = (kept / SCALE.initial - wanted).abs() / wanted.abs();
        assert!(error < 2e-3, "{kept} is not {wanted} times the scale");
    }
}

/// A step over one micro-batch: its sections, and what they hold at the start.
fn step(config: &UpdateConfig) -> (Graph, Graph, Env) {
    let whole = differentiated(Compute::F32, config.scale.as_ref());
    let buckets = Buckets::of(&whole, &Shards::default(), &Partials::default());
    let applied = buckets.apply(&whole).unwrap();
    let (_, micro) = tile(&applied, 1, Order::Tree).unwrap().pop().unwrap();
    let update = update(&micro, &Share::whole(&buckets), config).unwrap();
    let mut env = environment(&micro);
    env.extend(environment(&update));
    env.insert("rate".to_owned(), tensor(update.axes(), &[], &[3e-3]));
    (micro, update, env)
}

fn adam(scale: Option<LossScale>) -> UpdateConfig {
    let kind = Optimizer::AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-8 };
    UpdateConfig { kind, weight_decay: 0.1, clip: 0.5, scale }
}

#[test]
fn updates_have_the_bits_of_those_without() {
    let (micro, plain, mut a) = step(&adam(None));
    let (scaled_micro, scaled, mut b) = step(&adam(Some(SCALE)));
    for number in 0..5 {
        run(&micro, &mut a, 0, Rounding::Declared);
        run(&scaled_micro, &mut b, 0, Rounding::Declared);
        let wanted = run(&plain, &mut a, 0, Rounding::Declared);
        let got = run(&scaled, &mut b, 0, Rounding::Declared);
        for name in ["loss", "grad_norm", "tokens", "finite"] {
            assert_eq!(wanted[name].data, got[name].data, "{name} at step {number}");
        }
        // 1,024 for three steps, then twice that.
        let factor = if number < 3 { 1024.0 } else { 2048.0 };
        assert_eq!((got["loss_scale"].data[0], got["skipped"].data[0]), (factor, 0.0));
    }
    for s in plain.states().iter().filter(|s| !s.name.starts_with("sum.")) {
        assert_eq!(a[&s.name].data, b[&s.name].data, "{}", s.name);
    }
}

#[test]
fn an_overflow_halves_the_scale_and_changes_nothing_else() {
    let (_, update, mut env) = step(&adam(Some(LossScale { initial: 4.0, interval: 2 })));
    let gradients: Vec<String> =
        env.keys().filter(|name| name.starts_with("sum.0.grad.")).cloned().collect();
    env.get_mut("sum.0.tokens").unwrap().data.fill(8.0);
    let is_other =
        |name: &str| name.starts_with("optimizer.loss_scale") || name.starts_with("sum.");
    let rest = |env: &Env| -> Vec<(String, Vec<f64>)> {
        let states = update.states().iter().filter(|s| !is_other(&s.name));
        states.map(|s| (s.name.clone(), env[&s.name].data.clone())).collect()
    };
    let mut told = vec![];
    let mut step = |env: &mut Env, bad: Option<f64>| {
        gradients.iter().for_each(|name| env.get_mut(name).unwrap().data.fill(0.25));
        env.get_mut(&gradients[0]).unwrap().data[1] = bad.unwrap_or(0.5);
        let before = rest(env);
        let out = run(&update, env, 0, Rounding::Declared);
        assert_eq!(out["finite"].data[0] == 0.0, bad.is_some());
        assert_eq!(rest(env) == before, bad.is_some(), "a step is skipped whole, or taken");
        told.push((out["loss_scale"].data[0], out["skipped"].data[0]));
    };
    step(&mut env, None);
    step(&mut env, Some(f64::INFINITY));
    // The streak of good steps begins again.
    step(&mut env, None);
    step(&mut env, Some(f64::NAN));
    step(&mut env, Some(f64::NEG_INFINITY));
    step(&mut env, None);
    step(&mut env, None);
    step(&mut env, None);
    // 4 halves to 2 and to 1, which is the least; two good steps double it.
    let wanted = [
        (4.0, 0.0),
        (4.0, 1.0),
        (2.0, 1.0),
        (2.0, 2.0),
        (1.0, 3.0),
        (1.0, 3.0),
        (1.0, 3.0),
        (2.0, 3.0),
    ];
    assert_eq!(told, wanted);
    assert_eq!(env["optimizer.applied"].data[0], 5.0);
}

#[test]
fn a_fixed_scale_stays_and_counts() {
    let (_, update, mut env) = step(&adam(Some(LossScale { initial: 8.0, interval: 0 })));
    let name = env.keys().find(|name| name.starts_with("sum.0.grad.")).unwrap().clone();
    env.get_mut("sum.0.tokens").unwrap().data.fill(8.0);
    for skipped in 1..3 {
        env.get_mut(&name).unwrap().data[0] = f64::NAN;
        let out = run(&update, &mut env, 0, Rounding::Declared);
        let told = (out["loss_scale"].data[0], out["skipped"].data[0]);
        assert_eq!(told, (8.0, f64::from(skipped)));
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    for initial in [0.5, f64::NAN, f64::INFINITY] {
        let error = scale(&network(4, true), &LossScale { initial, interval: 1 }).unwrap_err();
        assert!(matches!(error, PassError::OutOfRange { what: "loss scale", .. }), "{error}");
    }
    assert!(matches!(scale(&Graph::new(), &SCALE), Err(PassError::MissingOutput { .. })));
}
