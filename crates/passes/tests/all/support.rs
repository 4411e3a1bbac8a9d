//! A small network by hand, and running sections one after another.

use aerogel_graph::{
    Axes, Build, Clock, DType, Env, Expr, Graph, Init, ParamClass, Role, Rounding, Tensor,
    interpret,
};
use aerogel_passes::{section_of, tile};

/// Embedding, two residual layers with norm, dropout and bias, tied or own output table.
pub fn network(batch: usize, tied: bool) -> Graph {
    let mut g = Graph::new();
    build(&mut g, batch, tied).unwrap();
    g
}

fn build(g: &mut Graph, batch: usize, tied: bool) -> Result<(), aerogel_graph::OpError> {
    let (batch, seq) = (g.axis("batch", batch)?, g.axis("seq", 3)?);
    let (embed, mlp, vocab) = (g.axis("embed", 4)?, g.axis("mlp", 6)?, g.axis("vocab", 5)?);
    let tokens = g.input("tokens", DType::U32, &[batch, seq])?;
    let targets = g.input("targets", DType::U32, &[batch, seq])?;
    let weights = g.input("weights", DType::F32, &[batch, seq])?;
    let init = Init::Normal(0.3);
    let table = g.parameter("embed.token", ParamClass::Embedding, &[vocab, embed], init)?;
    let places = g.parameter("embed.position", ParamClass::Embedding, &[seq, embed], init)?;
    let mut x = g.scope("embed", |g| {
        let x = g.gather(table, vocab, tokens)?;
        g.add(x, places)
    })?;
    for layer in 0..2 {
        x = g.scope(&format!("h.{layer}"), |g| {
            let (gain, up) = (g.path("norm.gain"), g.path("up.weight"));
            let (bias, down) = (g.path("up.bias"), g.path("down.weight"));
            let gain = g.parameter(&gain, ParamClass::Norm, &[embed], Init::Constant(1.0))?;
            let up = g.parameter(&up, ParamClass::Weight, &[mlp, embed], init)?;
            let bias = g.parameter(&bias, ParamClass::Bias, &[mlp], Init::Constant(0.1))?;
            let down = g.parameter(&down, ParamClass::Weight, &[embed, mlp], init)?;
            let y = g.norm(x, embed, true, 1e-5, Some(gain), None)?;
            let y = g.einsum(&[y, up], &[batch, seq, mlp])?;
            let y = g.map(&[y, bias], &|v| {
                let z = &v[0] + &v[1];
                &z * (1.702 * &z).sigmoid()
            })?;
            let y = g.einsum(&[y, down], &[batch, seq, embed])?;
            let stream = g.path("drop");
            g.map(&[x, y], &|v| &v[0] + Expr::rand(&stream).lt(0.25).select(0.0, &v[1] / 0.75))
        })?;
    }
    let head = match tied {
        true => table,
        false => g.parameter("head.weight", ParamClass::Head, &[vocab, embed], init)?,
    };
    let loss = g.scope("head", |g| {
        let ce = g.linear_ce(x, head, targets, weights, embed, vocab)?;
        g.sum(ce, &[batch, seq])
    })?;
    let count = g.scope("head", |g| g.sum(weights, &[batch, seq]))?;
    g.output("loss", loss);
    g.output("tokens", count);
    Ok(())
}

/// A number in [-1, 1) that depends on the name and the position only.
pub fn noise(name: &str, i: usize) -> f64 {
    let stream = aerogel_graph::random::stream_id(name);
    2.0 * f64::from(aerogel_graph::random::uniform(5, 0, stream, i as u64)) - 1.0
}

/// Inputs and states of the network, the same numbers for every dtype; f32 values.
pub fn environment(g: &Graph) -> Env {
    let mut env = Env::new();
    let mut put = |name: &str, v, draw: &dyn Fn(usize) -> f64| {
        let axes = g.ty(v).axes.clone();
        let count = g.axes().count(&axes);
        let data = (0..count).map(|i| f64::from(draw(i) as f32)).collect();
        env.insert(name.to_owned(), Tensor::from_vec(g.axes(), &axes, data));
    };
    for i in g.inputs() {
        let name = i.name.as_str();
        match name {
            // One position in four is left out, so that token counts are ragged.
            "weights" => {
                put(name, i.value, &|p| if noise("left out", p) < -0.5 { 0.0 } else { 1.0 })
            }
            _ => put(name, i.value, &|p| ((noise(name, p) + 1.0) * 2.5).floor()),
        }
    }
    for s in g.states() {
        put(&s.name, s.value, &|p| match (s.init, s.class) {
            // An output layer of zeros would hide the gradients of all that is below it.
            (_, Some(ParamClass::Head)) => noise(&s.name, p) * 0.3,
            (Init::Constant(c), _) => c,
            (Init::Normal(std), _) => noise(&s.name, p) * std,
        });
    }
    env
}

/// Rows `j` of `pieces` of axis `batch`, in the inputs that have it.
pub fn piece(whole: &Graph, env: &Env, j: usize, pieces: usize) -> Env {
    let batch = whole.axes().find("batch").unwrap();
    let mut env = env.clone();
    for i in whole.inputs().iter().filter(|i| whole.ty(i.value).axes.first() == Some(&batch)) {
        let t = env.get_mut(&i.name).unwrap();
        let n = t.data.len() / pieces;
        t.data = t.data[j * n..(j + 1) * n].to_vec();
        t.sizes[0] /= pieces;
    }
    env
}

/// Runs a section, with its assignments made in the environment; gives the outputs.
pub fn run(g: &Graph, env: &mut Env, micro: u64, mode: Rounding) -> Env {
    let clock = Clock { seed: 3, step: 1, micro, ..Clock::default() };
    let result = interpret(g, env, clock, mode).unwrap();
    env.extend(result.assigned);
    result.outputs
}

/// Puts a number into every accumulator.
pub fn accumulators(g: &Graph, env: &mut Env, poison: f64) {
    for s in g.states().iter().filter(|s| s.role == Role::Accumulator) {
        env.insert(s.name.clone(), Tensor::full(g.axes(), &g.ty(s.value).axes, poison));
    }
}

/// Runs all micro-batches of a graph; gives the states at the end.
pub fn step(whole: &Graph, micro_batches: usize, mode: Rounding) -> Env {
    let sections = tile(whole, micro_batches).unwrap();
    let data = environment(whole);
    // What an accumulator held before must not matter.
    let mut states = Env::new();
    accumulators(&sections[0].1, &mut states, f64::NAN);
    for j in 0..micro_batches {
        let name = section_of(j, micro_batches);
        let section = &sections.iter().find(|(n, _)| *n == name).unwrap().1;
        let mut env = piece(whole, &data, j, micro_batches);
        env.extend(states);
        let outputs = run(section, &mut env, j as u64, mode);
        assert!(outputs.is_empty(), "sums are read after the update");
        env.retain(|name, _| name.starts_with("sum."));
        states = env;
    }
    states
}

/// A tensor from numbers.
pub fn tensor(axes: &Axes, names: &[&str], data: &[f64]) -> Tensor {
    let ids: Vec<_> = names.iter().map(|n| axes.find(n).unwrap()).collect();
    Tensor::from_vec(axes, &ids, data.to_vec())
}

/// The largest difference over the largest magnitude.
pub fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.axes, b.axes);
    let scale = b.data.iter().fold(f64::MIN_POSITIVE, |m, x| m.max(x.abs()));
    a.data.iter().zip(&b.data).fold(0.0, |m: f64, (x, y)| m.max((x - y).abs())) / scale
}
