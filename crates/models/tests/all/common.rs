//! Small models, their environments, and the weights of the fixtures.

use aerogel_graph::{Build, Clock, Graph, Init, Role, Rounding, Tensor, interpret::Env};
use aerogel_models::{AttentionKind, Combine, Family, LayerKind, ModelConfig, WeightInit};

/// A Sparse Transformer of two layers on 4 x 4 x 3 images, dense.
pub fn sparse() -> ModelConfig {
    ModelConfig {
        family: Family::SparseTransformer,
        layers: 2,
        heads: 2,
        embed: 8,
        mlp: 16,
        qk: 4,
        context: 48,
        vocab: 11,
        image: Some([4, 4, 3]),
        attention: AttentionKind::Dense,
        combine: Combine::Interleaved,
        cycle: vec![LayerKind::Dense],
        stride: 1,
        window: 1,
        columns: 1,
        dropout: 0.0,
        embed_dropout: 0.0,
        init: WeightInit::Paper,
    }
}

/// A GPT-2 of two layers.
pub fn gpt2() -> ModelConfig {
    ModelConfig { family: Family::Gpt2, context: 12, image: None, mlp: 32, qk: 8, ..sparse() }
}

/// The model with another attention, in text where `image` does not fit the pattern.
pub fn with(
    base: ModelConfig,
    attention: AttentionKind,
    combine: Combine,
    cycle: &[LayerKind],
) -> ModelConfig {
    let stride = base.context / 4;
    let columns = stride / 3;
    ModelConfig {
        attention,
        combine,
        cycle: cycle.to_vec(),
        stride,
        window: stride,
        columns,
        ..base
    }
}

/// Every kind of attention on a base, with its name.
pub fn every_attention(base: &ModelConfig) -> Vec<(&'static str, ModelConfig)> {
    use AttentionKind::{Dense, Fixed, Local, Strided};
    use Combine::{Heads, Interleaved, Merged};
    use LayerKind as L;
    let with = |kind, combine, cycle: &[LayerKind]| with(base.clone(), kind, combine, cycle);
    vec![
        ("dense", with(Dense, Interleaved, &[L::Dense])),
        ("local", with(Local, Interleaved, &[L::Local])),
        ("strided", with(Strided, Interleaved, &[L::Local, L::Strided])),
        ("fixed", with(Fixed, Interleaved, &[L::Block, L::Summary])),
        ("merged_strided", with(Strided, Merged, &[])),
        ("merged_fixed", with(Fixed, Merged, &[])),
        ("heads_strided", with(Strided, Heads, &[])),
        ("heads_fixed", with(Fixed, Heads, &[])),
    ]
}

/// Deterministic numbers in [-1, 1] by name and element: see `fixtures/README.md`.
pub fn formula(name: &str, element: usize) -> f64 {
    let sum: u64 = (1..).zip(name.bytes()).map(|(i, b)| i * u64::from(b)).sum();
    let frequency = 1.0 + (sum % 1009) as f64 / 1009.0;
    (frequency * (element + 1) as f64).sin()
}

/// The weight of the fixtures: norms near 1, biases small, the rest of size 0.2, in f32.
pub fn weight(name: &str, element: usize) -> f64 {
    let x = formula(name, element);
    let value = match name {
        n if n.ends_with("norm.gain") => 1.0 + 0.1 * x,
        n if n.ends_with("bias") => 0.1 * x,
        _ => 0.2 * x,
    };
    f64::from(value as f32)
}

/// States by the formula of the fixtures (caches and the like by their initial constant).
pub fn weights(g: &Graph) -> Env {
    states(g, &|name, init, i| match init {
        _ if g.states().iter().any(|s| s.name == name && s.role != Role::Parameter) => 0.0,
        _ => weight(name, i),
    })
}

/// States as a run starts with them.
pub fn initial(g: &Graph, seed: u64) -> Env {
    states(g, &|name, init, i| match init {
        Init::Constant(c) => c,
        Init::Normal(std) => {
            let stream = aerogel_graph::random::stream_id(name);
            std * aerogel_graph::random::normal(seed, stream, i as u64)
        }
    })
}

fn states(g: &Graph, value: &dyn Fn(&str, Init, usize) -> f64) -> Env {
    let one = |s: &aerogel_graph::State| {
        let axes = g.value(s.value).ty.axes.clone();
        let data = (0..g.axes().count(&axes)).map(|i| value(&s.name, s.init, i)).collect();
        (s.name.clone(), Tensor::from_vec(g.axes(), &axes, data))
    };
    g.states().iter().map(one).collect()
}

/// Sets an input.
pub fn set(g: &Graph, env: &mut Env, name: &str, data: Vec<f64>) {
    let input = g.find_input(name).unwrap_or_else(|| panic!("no input {name}"));
    let axes = &g.value(input.value).ty.axes;
    env.insert(name.to_owned(), Tensor::from_vec(g.axes(), axes, data));
}

/// Token `t` of sequence `b` of the fixtures.
pub fn token(vocab: usize, b: usize, t: usize) -> usize {
    (5 * b + 3 * t + t * t) % vocab
}

/// Tokens, targets and unit weights of the fixtures.
pub fn data(g: &Graph, env: &mut Env, config: &ModelConfig, batch: usize) {
    let shift = usize::from(!aerogel_models::shifts_inside(config.family));
    let tokens = |shift: usize| -> Vec<f64> {
        let all = (0..batch).flat_map(|b| (0..config.context).map(move |t| (b, t + shift)));
        all.map(|(b, t)| token(config.vocab, b, t) as f64).collect()
    };
    set(g, env, "tokens", tokens(0));
    set(g, env, "targets", tokens(shift));
    set(g, env, "weights", vec![1.0; batch * config.context]);
}

/// Runs in exact mode at step 0.
pub fn run(g: &Graph, env: &Env) -> aerogel_graph::interpret::Run {
    aerogel_graph::interpret(g, env, Clock::default(), Rounding::Exact).unwrap()
}
