//! The global norm from pieces of gradients, by hand.

use super::super::support::{noise, states, tensor};
use super::*;
use aerogel_graph::{
    Build, Clock, Cutter, Env, Init, ParamClass, Place, Role, Rounding, interpret_mesh,
};

const SGD: UpdateConfig = UpdateConfig {
    kind: Optimizer::Sgd { momentum: 0.0 },
    weight_decay: 0.0,
    clip: 0.0,
    scale: None,
};

fn f32(x: f64) -> f64 {
    f64::from(x as f32)
}

/// States of a rank, with sums over the batch by bucket and element of the whole bucket.
fn given(g: &Graph, place: Place, draw: &dyn Fn(&str, usize) -> f64) -> Env {
    let mut env = states(g, place);
    for s in g.states().iter().filter(|s| s.role == Role::Accumulator) {
        let Some(bucket) = s.name.strip_prefix("sum.0.grad.") else { continue };
        let axis = &g.axes()[g.ty(s.value).axes[0]];
        let start = axis.piece(0, place) as usize * axis.size;
        let sums = env.get_mut(&s.name).unwrap().data.iter_mut().enumerate();
        sums.for_each(|(i, x)| *x = draw(bucket, start + i));
    }
    for name in ["rate", "sum.0.tokens", "sum.0.loss"] {
        env.insert(name.to_owned(), tensor(g.axes(), &[], &[1.0]));
    }
    env
}

/// The norm that all ranks have.
fn norm(g: &Graph, envs: &[Env]) -> f64 {
    let runs = interpret_mesh(g, envs, Clock::default(), Rounding::Declared).unwrap();
    let norms: Vec<f64> = runs.iter().map(|r| r.outputs["grad_norm"].data[0]).collect();
    assert!(norms.iter().all(|x| *x == norms[0]), "{norms:?}");
    norms[0]
}

/// Five chunks of eight: a piece out of place would put an empty one among them.
#[test]
fn chunks_of_pieces_come_in_order() {
    let mut g = Graph::new();
    let (long, wide) = (g.axis("long", 4 * 2048 + 5).unwrap(), g.axis("wide", 260).unwrap());
    let init = Init::Constant(0.0);
    g.parameter("a.weight", ParamClass::Weight, &[long], init).unwrap();
    g.parameter("a.bias", ParamClass::Bias, &[wide], init).unwrap();
    let count = |bucket: &str| if bucket.ends_with("vectors") { 260 } else { 4 * 2048 + 5 };
    // A chunk weighs twice as much as the one before it.
    let draw = |bucket: &str, at: usize| {
        let chunk = if bucket.ends_with("vectors") { at / 64 } else { at / 2048 };
        let inside = at < count(bucket);
        if inside { f32(noise(bucket, at) * f64::from(1 << chunk)) } else { 0.0 }
    };
    let all = ["bucket.a.matrices", "bucket.a.vectors"].map(|b| {
        let squares: Vec<f64> = (0..count(b)).map(|i| f32(draw(b, i).powi(2))).collect();
        let chunk = if count(b) == 260 { 64 } else { 2048 };
        f32(squares.chunks(chunk).map(|c| f32(c.iter().sum())).sum())
    });
    let wanted = f32(f32(all[0] + all[1]).sqrt());
    for cut in [[0, 0, 0], [1, 0, 0], [1, 1, 1], [2, 2, 0], [2, 2, 2]] {
        // Gradients that are not cut are whole on one rank, and zeros on the others.
        for shards in [nodes(cut), over(Mesh(vec![("data".to_owned(), 4)]), cut.map(|n| n.min(1)))]
        {
            let buckets = Buckets::of(&g, &shards, &Partials::default());
            assert_eq!(buckets.list.iter().map(|b| b.chunks).collect::<Vec<_>>(), [5, 5]);
            let update = update(&g, &Share::whole(&buckets), &SGD).unwrap();
            let envs: Vec<Env> = (0..4)
                .map(|rank| {
                    let place = shards.mesh.place(rank);
                    let above = shards.batch.len() - shards.gradients.len();
                    let first = place.0[..above].iter().all(|x| *x == 0);
                    let mut env =
                        given(&update, place, &|b, i| if first { draw(b, i) } else { 0.0 });
                    let one = if first { 1.0 } else { 0.0 };
                    env.get_mut("sum.0.tokens").unwrap().data[0] = one;
                    env
                })
                .collect();
            assert_eq!(norm(&update, &envs), wanted, "{shards:?}");
        }
    }
}

/// Ranks of tensor parallelism: what all have alike counts once, what is cut counts in pieces, and
/// what is still partial is summed first.
#[test]
fn tensor_parallel_ranks_count_each_gradient_once() {
    let mut g = Graph::new();
    g.set_mesh(Mesh(vec![("tensor".to_owned(), 2), ("data".to_owned(), 2)]));
    let (all, heads) = (g.axis("all", 6).unwrap(), g.axis("heads", 8).unwrap());
    g.cut_axis("heads", Cutter::Mesh(0), 2).unwrap();
    let init = Init::Constant(0.0);
    for (name, axis) in [("a.alike", all), ("a.cut", heads), ("a.partial", all)] {
        g.parameter(name, ParamClass::Bias, &[axis], init).unwrap();
    }
    let partials = Partials { axis: Some(0), parameters: vec!["a.partial".to_owned()] };
    for cut in [[0, 0, 0], [1, 0, 0], [1, 1, 1]] {
        let [optimizer, gradients, parameters] = cut.map(|n| vec![1][..n].to_vec());
        let mesh = g.axes().mesh.clone();
        let shards = Shards { mesh, batch: vec![1], optimizer, gradients, parameters };
        let buckets = Buckets::of(&g, &shards, &partials);
        let kinds: Vec<_> = buckets.list.iter().map(|b| (b.replicated, b.partial)).collect();
        assert_eq!(kinds, [(true, None), (false, None), (true, Some(0))]);
        let lengths = buckets.list.iter().map(|b| b.tensors[0].count).collect::<Vec<_>>();
        assert_eq!(lengths, [6, 4, 6]);
        let share = Share { tensor: Some(0), ..Share::whole(&buckets) };
        let update = update(&g, &share, &SGD).unwrap();
        let draw = |bucket: &str, tensor: u16, data: u16, at: usize| {
            let which = buckets.list.iter().position(|b| b.name == bucket).unwrap();
            let seen = if which == 0 { 0 } else { tensor };
            let inside = at < lengths[which];
            let number = f32(noise(bucket, 100 * usize::from(2 * seen + data) + at));
            if inside { number } else { 0.0 }
        };
        // A cut gradient is summed over data ranks already: the first one's will do.
        let summed = !shards.gradients.is_empty();
        let envs: Vec<Env> = (0..4)
            .map(|rank| {
                let place = shards.mesh.place(rank);
                let data = if summed { 0 } else { place.0[1] };
                given(&update, place, &|b, i| draw(b, place.0[0], data, i))
            })
            .collect();
        let tokens = if summed { 1.0 } else { 2.0 };
        let terms = |bucket: &str, tensor: u16, at: usize| -> f64 {
            (0..if summed { 1 } else { 2 }).map(|d| draw(bucket, tensor, d, at)).sum()
        };
        let mut squares = 0.0;
        for (b, n) in buckets.list.iter().zip(&lengths) {
            for at in 0..*n {
                let [x, y] = [0, 1].map(|t| terms(&b.name, t, at) / tokens);
                squares += match (b.replicated, b.partial) {
                    (_, Some(_)) => (x + y).powi(2),
                    (true, None) => x * x,
                    (false, None) => x * x + y * y,
                };
            }
        }
        let got = norm(&update, &envs);
        assert!((got / squares.sqrt() - 1.0).abs() <= 1e-6, "{got} against {}", squares.sqrt());
    }
}
