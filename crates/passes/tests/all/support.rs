//! A small network by hand, and running sections one after another.

use aerogel_graph::{
    Axes, Build, Clock, DType, Env, Expr, Graph, Init, ParamClass, Part, Place, Role, Rounding,
    State, Tensor, interpret,
};
use aerogel_passes::{Order, PassError, Shards, accumulate, cut, section_of};

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

/// Inputs and states of a graph, the same numbers for every dtype; f32 values.
pub fn environment(g: &Graph) -> Env {
    let mut env = states(g, Place::default());
    env.extend(inputs(g, ""));
    env
}

/// Inputs of a graph; another `draw` gives others.
pub fn inputs(g: &Graph, draw: &str) -> Env {
    let mut env = Env::new();
    for i in g.inputs() {
        let axes = g.ty(i.value).axes.clone();
        let number = |p| match i.name.as_str() {
            // One position in four is left out, so that token counts are ragged.
            "weights" if noise(&format!("left out{draw}"), p) < -0.5 => 0.0,
            "weights" => 1.0,
            name => ((noise(&format!("{name}{draw}"), p) + 1.0) * 2.5).floor(),
        };
        let data = (0..g.axes().count(&axes)).map(number).collect();
        env.insert(i.name.clone(), Tensor::from_vec(g.axes(), &axes, data));
    }
    env
}

/// The states of a rank before the first step: every tensor by its name and element, wherever it
/// lies.
pub fn states(g: &Graph, place: Place) -> Env {
    let draw = |name: &str, class, init, p| match (init, class) {
        // An output layer of zeros would hide the gradients of all that is below it.
        (Init::Constant(0.0), Some(ParamClass::Head)) => noise(name, p) * 0.3,
        (Init::Constant(c), _) => c,
        (Init::Normal(std), _) => noise(name, p) * std,
    };
    states_of(g, place, |name, class, init, p| f64::from(draw(name, class, init, p) as f32))
}

/// The states of a rank, from a number for each element of each tensor.
pub fn states_of(
    g: &Graph,
    place: Place,
    draw: impl Fn(&str, Option<ParamClass>, Init, usize) -> f64,
) -> Env {
    let mut env = Env::new();
    for s in g.states() {
        let axes = &g.ty(s.value).axes;
        let mut tensor = Tensor::full(g.axes(), axes, 0.0);
        if s.parts.is_empty() {
            let numbers = tensor.data.iter_mut().enumerate();
            numbers.for_each(|(p, x)| *x = draw(&s.name, s.class, s.init, p));
        }
        for part in &s.parts {
            for (local, p) in elements(g, s, part, place) {
                tensor.data[local] = draw(&part.name, part.class, part.init, p);
            }
        }
        env.insert(s.name.clone(), tensor);
    }
    env
}

/// The elements of a tensor that a rank's piece of its bucket has: where in the piece, and which.
fn elements(g: &Graph, s: &State, part: &Part, place: Place) -> Vec<(usize, usize)> {
    let axis = &g.axes()[g.ty(s.value).axes[0]];
    let start = axis.piece(0, place) as usize * axis.size;
    (0..g.axes().count(&part.axes))
        .map(|p| (part.first + p, p))
        .filter(|(at, _)| (start..start + axis.size).contains(at))
        .map(|(at, p)| (at - start, p))
        .collect()
}

/// A tensor by name, from the pieces of all ranks, which agree where several have the same.
pub fn read(g: &Graph, ranks: &[Env], name: &str) -> Tensor {
    let found = g
        .states()
        .iter()
        .find_map(|s| s.parts.iter().find(|p| p.name == name).map(|part| (s, part)));
    let (state, part) = found.unwrap_or_else(|| panic!("no bucket has `{name}`"));
    let mut tensor = Tensor::full(g.axes(), &part.axes, f64::NAN);
    let mut known = vec![false; tensor.data.len()];
    for (rank, env) in ranks.iter().enumerate() {
        for (local, p) in elements(g, state, part, g.axes().mesh.place(rank)) {
            let x = env[&state.name].data[local];
            if std::mem::replace(&mut known[p], true) {
                let same = tensor.data[p].to_bits() == x.to_bits();
                assert!(same, "`{name}` {p}: {} and, on rank {rank}, {x}", tensor.data[p]);
            }
            tensor.data[p] = x;
        }
    }
    assert!(known.iter().all(|k| *k), "all of `{name}` is somewhere");
    tensor
}

/// One rank's micro-batches of a graph as sections.
pub fn tile(
    g: &Graph,
    micro_batches: usize,
    order: Order,
) -> Result<Vec<(String, Graph)>, PassError> {
    accumulate(&cut(g, &Shards::default(), micro_batches)?, micro_batches, order)
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
pub fn step(whole: &Graph, micro_batches: usize, order: Order, mode: Rounding) -> Env {
    let sections = tile(whole, micro_batches, order).unwrap();
    let data = environment(whole);
    // What an accumulator held before must not matter.
    let mut states = Env::new();
    accumulators(&sections[0].1, &mut states, f64::NAN);
    for j in 0..micro_batches {
        let name = section_of(j, micro_batches, order);
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
