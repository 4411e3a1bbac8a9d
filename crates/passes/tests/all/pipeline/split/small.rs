//! Graphs by hand: what models do not do, what is refused, and the sections as text.

use super::super::super::support::{network, noise};
use super::{MICROS, Ranks, assert_same, execute, run, sections, whole};
use aerogel_graph::ops::{Collective, Exchange};
use aerogel_graph::{
    Build, Cutter, DType, Env, Graph, Init, Mesh, OpError, ParamClass, Part, Phase, Role, Tensor,
    Type, ValueId, gradients, text, verify::verify,
};
use aerogel_passes::pipeline::{Kind, Pass, Split, layer_stages, schedule, split};
use aerogel_passes::{PassError, backward};
use std::fmt::Write as _;

/// Numbers for all inputs and states, others for each micro-batch and rank where it matters.
fn given(g: &Graph) -> Vec<Ranks> {
    let env = |micro: usize, rank: usize| {
        let mut env = Env::new();
        let mut put = |name: &str, v: ValueId, key: &str| {
            let axes = &g.ty(v).axes;
            let data = (0..g.axes().count(axes)).map(|i| noise(key, i)).collect();
            env.insert(name.to_owned(), Tensor::from_vec(g.axes(), axes, data));
        };
        for i in g.inputs() {
            put(&i.name, i.value, &format!("{} {micro} {rank}", i.name));
        }
        for s in g.states() {
            put(&s.name, s.value, &format!("{} {rank}", s.name));
        }
        env
    };
    let ranks = g.axes().mesh.ranks();
    (0..MICROS).map(|j| (0..ranks).map(|rank| env(j, rank)).collect()).collect()
}

/// Splits a graph of layers `h.N` into as many stages as it has, runs both, and compares.
fn split_by_layers(g: &Graph, layers: usize) -> Split {
    let ranges: Vec<_> = (0..layers).map(|n| n..n + 1).collect();
    let schedule = schedule(Kind::OneFOneB, layers, MICROS).unwrap();
    let slots: Vec<u32> = (0..layers).map(|rank| schedule.slots(rank, 0) as u32).collect();
    let split = split(g, &layer_stages(&ranges), layers, &slots).unwrap();
    sections(&split).for_each(|(_, g)| verify(g).unwrap());
    let given = given(g);
    assert_same(&whole(g, &given), &execute(&split, &schedule, &given), "by layers");
    split
}

/// `F0 > F1 name bytes` for each message.
fn messages(split: &Split) -> Vec<String> {
    let at = |(stage, pass): (usize, Pass)| match pass {
        Pass::Forward => format!("F{stage}"),
        _ => format!("B{stage}"),
    };
    let line = |m: &aerogel_passes::pipeline::Message| {
        format!("{} > {} {} {}", at(m.from), at(m.to), m.name, m.bytes)
    };
    split.messages.iter().map(line).collect()
}

fn saved(split: &Split, stage: usize) -> Vec<String> {
    let states = split.stages[stage].forward.states().iter();
    states.filter(|s| s.role == Role::Saved).map(|s| s.name.clone()).collect()
}

/// A bucket in pieces on two ranks, gathered by each section that reads it; a slice of an
/// activation, all that the second stage reads of it; and gradients of buckets that span no layer.
fn bucketed() -> Result<Graph, OpError> {
    let mut g = Graph::new();
    g.set_mesh(Mesh(vec![("data".to_owned(), 2)]));
    let (batch, wide) = (g.axis("batch", 3)?, g.axis("wide", 8)?);
    let (narrow, inner) = (g.axis("narrow", 2)?, g.axis("inner", 2)?);
    let (flat, used) = (g.axis("flat", 24)?, g.axis("used", 16)?);
    let piece = g.piece_of(flat, "flat.piece", Cutter::Mesh(0), 2)?;
    let x = g.input("x", DType::F32, &[batch, wide])?;
    let mut weights = vec![];
    let mut gathered = vec![];
    for (layer, axes) in [(0, [wide, inner]), (1, [inner, wide])] {
        let bucket = format!("bucket.{layer}");
        let ty = Type::new(DType::F32, [piece]);
        let state = g.state(&bucket, ty, Role::Parameter, None, Init::Normal(0.5))?;
        let name = format!("h.{layer}.weight");
        let part = Part {
            name,
            class: None,
            init: Init::Normal(0.5),
            axes: axes.into_iter().collect(),
            first: 0,
        };
        g.set_parts(&bucket, vec![part])?;
        g.at(&bucket.as_str().into(), Phase::Forward);
        let op = Collective {
            exchange: Exchange::AllGather { axis: piece, into: flat },
            over: [0].into_iter().collect(),
        };
        let whole = g.emit(op.into(), &[state])?[0];
        gathered.push(whole);
        let cut = g.slice(whole, flat, 0, used)?;
        weights.push(g.split(cut, used, &axes)?);
    }
    g.at(&"h.0".into(), Phase::Forward);
    let y = g.einsum(&[x, weights[0]], &[batch, inner])?;
    let h = g.einsum(&[y, weights[0]], &[batch, wide])?;
    let h = g.map(&[h], &|v| v[0].tanh())?;
    let loss_of_0 = g.einsum(&[h, h], &[])?;
    g.at(&"h.1".into(), Phase::Forward);
    let some = g.slice(h, wide, 2, narrow)?;
    let row = g.rename(some, narrow, inner)?;
    let z = g.einsum(&[row, weights[1]], &[batch, wide])?;
    let z = g.map(&[z], &|v| v[0].exp())?;
    let loss_of_1 = g.sum(z, &[batch, wide])?;
    g.at(&"head".into(), Phase::Forward);
    let loss = g.add(loss_of_0, loss_of_1)?;
    g.output("loss", loss);
    let grads = gradients(&mut g, loss, &gathered)?;
    for (layer, grad) in grads.into_iter().enumerate() {
        g.at(&format!("bucket.{layer}").as_str().into(), Phase::Backward);
        let op = Collective {
            exchange: Exchange::ReduceScatter { axis: flat, into: piece },
            over: [0].into_iter().collect(),
        };
        let grad = g.emit(op.into(), &[grad.expect("the loss depends on it")])?[0];
        g.output(&format!("grad.bucket.{layer}"), grad);
    }
    Ok(g)
}

#[test]
fn weights_are_gathered_where_they_are_read() {
    let split = split_by_layers(&bucketed().unwrap(), 2);
    // The second stage reads two columns of eight, and the sum over the first.
    let wanted = ["F0 > F1 h.0.einsum.2 4", "F0 > F1 h.1.view 24", "B1 > B0 h.1.view.3 96"];
    assert_eq!(messages(&split), wanted);
    assert_eq!(saved(&split, 0), ["saved.0.h.0.einsum", "saved.0.h.0.einsum.1", "saved.0.h.0.map"]);
    assert_eq!(saved(&split, 1), ["saved.1.h.1.view", "saved.1.h.1.einsum", "saved.1.head.map"]);
    let gathers = |g: &Graph| g.nodes().iter().filter(|n| n.op.name() == "collective").count();
    let counts: Vec<usize> = sections(&split).map(|(_, g)| gathers(g)).collect();
    assert_eq!(counts, [1, 2, 1, 2], "in the backward, the gradient's sum besides");
    for (stage, s) in split.stages.iter().enumerate() {
        let bucket = format!("bucket.{stage}");
        let state = &s.backward.states()[0];
        assert_eq!((&state.name, state.parts.len()), (&bucket, 1));
        // The scope of a bucket is that of no layer; its gradient is where its layer is.
        assert!(s.backward.find_output(&format!("grad.{bucket}")).is_some());
    }
    assert_eq!(split.replicas, []);
}

/// Three layers, of which the last reads what the first makes, and all of them one weight.
fn skipping() -> Result<Graph, OpError> {
    let mut g = Graph::new();
    let (batch, x, y) = (g.axis("batch", 3)?, g.axis("x", 4)?, g.axis("y", 4)?);
    let weight = g.parameter("shared.weight", ParamClass::Weight, &[x, y], Init::Normal(0.3))?;
    let input = g.input("input", DType::F32, &[batch, x])?;
    let layer = |g: &mut Graph, layer: usize, v: ValueId| {
        g.at(&format!("h.{layer}").as_str().into(), Phase::Forward);
        let v = g.einsum(&[v, weight], &[batch, y])?;
        let v = g.rename(v, y, x)?;
        g.map(&[v], &|v| v[0].tanh())
    };
    let first = layer(&mut g, 0, input)?;
    let second = layer(&mut g, 1, first)?;
    let third = layer(&mut g, 2, second)?;
    let sum = g.add(first, third)?;
    let loss = g.einsum(&[sum, sum], &[])?;
    g.output("loss", loss);
    Ok(g)
}

#[test]
fn a_value_goes_to_whoever_reads_it() {
    let split = split_by_layers(&backward(&skipping().unwrap()).unwrap(), 3);
    let activations = ["F0 > F1 h.0.map 48", "F0 > F2 h.0.map 48", "F1 > F2 h.1.map 48"];
    assert_eq!(messages(&split)[..3], activations);
    let sent = |stage: usize| split.stages[stage].forward.outputs.len();
    assert_eq!([sent(0), sent(1), sent(2)], [1, 1, 0], "one output, whoever reads it");
    // Terms of the shared weight's gradient from where they are made, terms of the first layer's
    // cotangent summed on the way.
    let gradients = [
        "B1 > B0 h.1.einsum.2 64",
        "B1 > B0 h.0.map.1 48",
        "B2 > B0 h.2.einsum.5 64",
        "B2 > B1 h.2.map.2 48",
        "B2 > B1 h.2.einsum.4 48",
    ];
    assert_eq!(messages(&split)[3..], gradients);
    let users: Vec<_> = split.replicas.iter().map(|r| (r.owner, r.user)).collect();
    assert_eq!(users, [(0, 1), (0, 2)]);
}

#[test]
fn without_gradients_there_are_forwards_alone() {
    let g = skipping().unwrap();
    let split = split(&g, &layer_stages(&[0..1, 1..2, 2..3]), 3, &[1, 1, 1]).unwrap();
    assert_eq!(
        messages(&split),
        ["F0 > F1 h.0.map 48", "F0 > F2 h.0.map 48", "F1 > F2 h.1.map 48"]
    );
    let mut env = given(&g).remove(0);
    let wanted = run(&g, &env, 0).remove(0).outputs;
    for stage in &split.stages {
        assert_eq!((stage.backward.nodes(), stage.backward.outputs.as_slice()), (&[][..], &[][..]));
        assert!(stage.forward.states().iter().all(|s| s.role == Role::Parameter));
        let outputs = run(&stage.forward, &env, 0).remove(0).outputs;
        let received = |(name, t): (String, Tensor)| (name.replace("send.", "receive."), t);
        env[0].extend(outputs.into_iter().map(received));
    }
    assert_eq!(env[0]["loss"], wanted["loss"]);
}

#[test]
fn text_of_a_tiny_network() {
    let mut g = backward(&network(MICROS, true)).unwrap();
    g.cut_axis("batch", Cutter::Time, MICROS).unwrap();
    let split = split(&g, &layer_stages(&[0..1, 1..2]), 2, &[2, 1]).unwrap();
    let mut got = messages(&split).join("\n") + "\n";
    for r in &split.replicas {
        writeln!(got, "stage {} owns {}, stage {} reads it", r.owner, r.state, r.user).unwrap();
    }
    for ((stage, pass), g) in sections(&split) {
        write!(got, "\n# {pass:?} {stage}\n{}", text::print(g)).unwrap();
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/split.out.txt");
    if std::env::var_os("AEROGEL_BLESS").is_some() {
        std::fs::write(path, &got).unwrap();
    }
    let wanted = std::fs::read_to_string(path).unwrap();
    assert_eq!(got, wanted, "AEROGEL_BLESS=1 writes what it is now");
}

#[test]
fn scopes_go_to_the_stages_of_their_layers() {
    let stage_of = layer_stages(&[0..2, 2..3, 3..5]);
    for (scope, stage) in [
        ("embed", 0),
        ("embed.token.weight", 0),
        ("embedding", 0),
        ("h.0.attn.q", 0),
        ("h.1", 0),
        ("h.2.mlp", 1),
        ("h.4", 2),
        ("final_norm", 2),
        ("head", 2),
        ("", 2),
        ("h", 2),
        ("h.5.mlp", 3),
    ] {
        assert_eq!(stage_of(scope), stage, "`{scope}`");
    }
}

fn refused(g: &Graph, stage_of: &dyn Fn(&str) -> usize, slots: &[u32]) -> String {
    split(g, stage_of, 3, slots).unwrap_err().to_string()
}

#[test]
fn what_makes_no_pipeline_is_refused() {
    let g = backward(&skipping().unwrap()).unwrap();
    let slots = [3, 2, 1];
    let layers = |ranges: [std::ops::Range<usize>; 3]| layer_stages(&ranges);
    let fine = layers([0..1, 1..2, 2..3]);
    assert!(split(&g, &fine, 3, &slots).is_ok());
    assert_eq!(
        refused(&g, &fine, &[3, 0, 1]),
        "split: 3 stages need one positive number of slots each, got [3, 0, 1]"
    );
    assert_eq!(
        refused(&g, &fine, &[3, 2]),
        "split: 3 stages need one positive number of slots each, got [3, 2]"
    );
    assert_eq!(
        refused(&g, &layers([0..1, 1..2, 5..6]), &slots),
        "split: `h.2` is of stage 3, and the last of 3 stages is counted 2; give its layers to a \
         stage"
    );
    assert_eq!(
        refused(&g, &layers([0..1, 1..1, 1..3]), &slots),
        "split: the forward of stage 1 has no node; use fewer stages"
    );
    assert_eq!(
        refused(&g, &layers([1..2, 0..1, 2..3]), &slots),
        "split: `h.1`, in the forward of stage 0, reads what the forward of stage 1 makes, which \
         runs later; deal out the layers in the order in which they run"
    );
    let mut late = g.clone();
    let (gradient, input) =
        (late.find_output("grad.shared.weight").unwrap(), late.inputs()[0].value);
    late.at(&"h.1".into(), Phase::Forward);
    let v = late.add(gradient, input).unwrap();
    late.output("late", v);
    let error = refused(&late, &fine, &slots);
    assert!(error.starts_with("split: `h.1`, in the forward of stage 1, reads what"), "{error}");
    let mut update = g.clone();
    update.at(&"h.1".into(), Phase::Update);
    let v = update.add(gradient, gradient).unwrap();
    update.output("doubled", v);
    let wanted = "split: map at `h.1` is of the update; split the graph of one micro-batch, as \
                  `backward` gives it";
    assert_eq!(refused(&update, &fine, &slots), wanted);
    let mut assigns = g.clone();
    let state = assigns.find_state("shared.weight").unwrap();
    assigns.assign(state, gradient).unwrap();
    let what = "state `shared.weight` is assigned".to_owned();
    assert_eq!(split(&assigns, &fine, 3, &slots), Err(PassError::NotAMicroBatch { what }));
}
