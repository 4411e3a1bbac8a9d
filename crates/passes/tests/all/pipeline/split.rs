//! Sections of a pipeline against the graph that was split: the same bits, nothing computed twice,
//! nothing kept or sent that need not be.

use super::super::support::{environment, network, piece};
use aerogel_graph::ops::{Collective, Exchange, View};
use aerogel_graph::{
    Build, Clock, Cutter, DType, Def, Env, Graph, Init, Mesh, Node, Op, OpError, Part, Phase, Role,
    Rounding, StateId, Tensor, Type, ValueId, gradients, interpret, interpret_mesh, text,
    verify::verify,
};
use aerogel_models::{
    AttentionKind, Combine, Family, LayerKind, ModelConfig, WeightInit, train_graph,
};
use aerogel_passes::pipeline::{
    Kind, Message, Pass, Replica, Schedule, Split, check, layer_stages, schedule, split,
};
use aerogel_passes::{Compute, PassError, backward, precision};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

const MICROS: usize = 4;
const LAYERS: usize = 4;

fn config(family: Family, attention: AttentionKind) -> ModelConfig {
    ModelConfig {
        family,
        layers: LAYERS,
        heads: 2,
        embed: 8,
        mlp: 8,
        qk: 8,
        context: 16,
        vocab: 6,
        image: None,
        attention,
        combine: Combine::Interleaved,
        cycle: match attention {
            AttentionKind::Dense => vec![LayerKind::Dense],
            AttentionKind::Local => vec![LayerKind::Local],
            AttentionKind::Strided => vec![LayerKind::Strided, LayerKind::Local],
            AttentionKind::Fixed => vec![LayerKind::Block, LayerKind::Summary],
        },
        stride: 4,
        window: 4,
        columns: 1,
        dropout: 0.1,
        embed_dropout: 0.1,
        init: WeightInit::Code,
    }
}

struct Case {
    name: String,
    /// The step of the global batch, whose inputs a host would have.
    global: Graph,
    /// The step of one micro-batch.
    micro: Graph,
    tied: bool,
    compute: Compute,
}

fn cases() -> Vec<Case> {
    let mut list = vec![];
    for (family, attention) in [
        (Family::Gpt2, AttentionKind::Dense),
        (Family::SparseTransformer, AttentionKind::Strided),
        (Family::SparseTransformer, AttentionKind::Fixed),
    ] {
        for compute in [Compute::F32, Compute::Bf16] {
            for again in [false, true] {
                let forward = train_graph(&config(family, attention), MICROS).unwrap();
                let mut global = backward(&precision(&forward, compute).unwrap()).unwrap();
                if again {
                    global = recomputed(&global);
                }
                let mut micro = global.clone();
                micro.cut_axis("batch", Cutter::Time, MICROS).unwrap();
                let name = format!("{family:?} {attention:?} {compute:?}, recomputed: {again}");
                list.push(Case { name, global, micro, tied: family == Family::Gpt2, compute });
            }
        }
    }
    list
}

/// Every backward node reads a clone of what the forward of a block makes, down to the block's
/// input.
fn recomputed(g: &Graph) -> Graph {
    fn again(out: &mut Graph, v: ValueId, clones: &mut HashMap<ValueId, ValueId>) -> ValueId {
        let Def::Node(n, _) = out.value(v).def else { return v };
        let node = out.node(n).clone();
        let block = node.scope.starts_with("h.");
        let stream = node.scope.ends_with(".mlp") && node.ins.len() == 3;
        if node.phase == Phase::Backward || !block || stream {
            return v;
        }
        if let Some(clone) = clones.get(&v) {
            return *clone;
        }
        let ins: Vec<ValueId> = node.ins.iter().map(|v| again(out, *v, clones)).collect();
        out.at(&node.scope, Phase::Backward);
        let outs = out.emit(node.op, &ins).unwrap();
        clones.extend(node.outs.into_iter().zip(outs));
        clones[&v]
    }
    let mut clones = HashMap::new();
    let result = g.rewrite(|out, node, ins| {
        if node.phase == Phase::Forward {
            return Ok(None);
        }
        let ins: Vec<ValueId> = ins.iter().map(|v| again(out, *v, &mut clones)).collect();
        out.at(&node.scope, node.phase);
        out.emit(node.op.clone(), &ins).map(Some)
    });
    result.unwrap().pruned().unwrap()
}

/// Layers of the stages, as even as it goes.
fn ranges(stages: usize) -> Vec<Range<usize>> {
    (0..stages).map(|s| s * LAYERS / stages..(s + 1) * LAYERS / stages).collect()
}

fn slots(schedule: &Schedule) -> Vec<u32> {
    let of = |stage| {
        let (rank, chunk) = schedule.place(stage);
        schedule.slots(rank, chunk) as u32
    };
    (0..schedule.virtual_stages()).map(of).collect()
}

fn split_for(g: &Graph, schedule: &Schedule) -> Split {
    let stages = schedule.virtual_stages();
    split(g, &layer_stages(&ranges(stages)), stages, &slots(schedule)).unwrap()
}

fn clock(micro: usize) -> Clock {
    Clock { seed: 3, step: 1, micro: micro as u64, ..Clock::default() }
}

fn sections(split: &Split) -> impl Iterator<Item = ((usize, Pass), &Graph)> {
    split.stages.iter().enumerate().flat_map(|(s, stage)| {
        [((s, Pass::Forward), &stage.forward), ((s, Pass::Backward), &stage.backward)]
    })
}

/// Runs the sections in the order of the checker's witness; gives the outputs of each micro-batch.
fn execute(split: &Split, schedule: &Schedule, given: &[Env]) -> Vec<Env> {
    let mut outputs = vec![Env::new(); given.len()];
    let mut mail: HashMap<(String, (usize, Pass), usize), Tensor> = HashMap::new();
    let mut saved: HashMap<(usize, usize), Env> = HashMap::new();
    for (rank, action) in check(schedule).unwrap() {
        let (stage, micro) = (schedule.stage(rank, action.chunk), action.micro);
        let slot = (stage, micro % schedule.slots(rank, action.chunk));
        let at = (stage, action.pass);
        let mut env = given[micro].clone();
        let section = match action.pass {
            Pass::Forward => &split.stages[stage].forward,
            _ => &split.stages[stage].backward,
        };
        let poison = section.states().iter().filter(|s| s.role == Role::Saved);
        let poison = poison.map(|s| {
            let nan = Tensor::full(section.axes(), &section.ty(s.value).axes, f64::NAN);
            (s.name.clone(), nan)
        });
        env.extend(poison);
        if action.pass == Pass::Backward {
            env.extend(saved.remove(&slot).unwrap_or_default());
        }
        for m in split.messages.iter().filter(|m| m.to == at) {
            let tensor = mail.remove(&(m.name.clone(), at, micro)).expect("sent before");
            env.insert(format!("receive.{}", m.name), tensor);
        }
        let result = interpret(section, &env, clock(micro), Rounding::Declared).unwrap();
        for (name, tensor) in result.outputs {
            let Some(name) = name.strip_prefix("send.") else {
                assert!(outputs[micro].insert(name.clone(), tensor).is_none(), "{name} twice");
                continue;
            };
            for m in split.messages.iter().filter(|m| m.from == at && m.name == name) {
                mail.insert((name.to_owned(), m.to, micro), tensor.clone());
            }
        }
        if action.pass == Pass::Forward {
            assert!(saved.insert(slot, result.assigned).is_none(), "slot {slot:?} is taken");
        }
    }
    assert!(mail.is_empty(), "nobody reads {:?}", mail.keys());
    outputs
}

fn assert_same(wanted: &Env, got: &Env, at: &str) {
    let names = |env: &Env| env.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(wanted), names(got), "{at}");
    for (name, tensor) in wanted {
        let bits = |t: &Tensor| t.data.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(tensor.axes, got[name].axes, "{at}, {name}");
        assert_eq!(bits(tensor), bits(&got[name]), "{at}, {name}");
    }
}

const SCHEDULES: [(Kind, usize); 5] = [
    (Kind::OneFOneB, 1),
    (Kind::GPipe, 2),
    (Kind::OneFOneB, 4),
    (Kind::Interleaved { chunks: 2 }, 2),
    (Kind::Interleaved { chunks: 4 }, 1),
];

#[test]
fn sections_give_the_bits_of_the_graph() {
    for case in cases() {
        let data = environment(&case.global);
        let given: Vec<Env> = (0..MICROS).map(|j| piece(&case.global, &data, j, MICROS)).collect();
        let run = |(j, env)| interpret(&case.micro, env, clock(j), Rounding::Declared).unwrap();
        let wanted: Vec<Env> = given.iter().enumerate().map(run).map(|r| r.outputs).collect();
        assert_ne!(wanted[0]["loss"], wanted[1]["loss"], "{}", case.name);
        for (kind, ranks) in SCHEDULES {
            let at = format!("{}, {kind} on {ranks}", case.name);
            let schedule = schedule(kind, ranks, MICROS).unwrap();
            let split = split_for(&case.micro, &schedule);
            let got = execute(&split, &schedule, &given);
            wanted.iter().zip(&got).for_each(|(wanted, got)| assert_same(wanted, got, &at));
        }
    }
}

/// Views, casts and constants may be made in several sections.
fn is_work(node: &Node) -> bool {
    match &node.op {
        Op::View(View::Pad { .. } | View::Concat { .. }) => true,
        Op::View(_) | Op::Collective(_) => false,
        Op::Map(map) => map.cotangent.is_none() && !node.ins.is_empty(),
        _ => true,
    }
}

fn work<'g>(graphs: impl Iterator<Item = &'g Graph>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for node in graphs.flat_map(Graph::nodes).filter(|n| is_work(n)) {
        let key = format!("{} at {} in {:?}", node.op.name(), node.scope, node.phase);
        *counts.entry(key).or_default() += 1;
    }
    counts
}

#[test]
fn sections_are_sound_and_compute_everything_once() {
    for case in cases() {
        let wanted = work(std::iter::once(&case.micro.pruned().unwrap()));
        for (kind, ranks) in SCHEDULES {
            let at = format!("{}, {kind} on {ranks}", case.name);
            let schedule = schedule(kind, ranks, MICROS).unwrap();
            let split = split_for(&case.micro, &schedule);
            for ((stage, pass), g) in sections(&split) {
                verify(g).unwrap_or_else(|e| panic!("{at}: {e}"));
                let pruned = g.pruned().unwrap();
                assert_eq!(text::print(&pruned), text::print(g), "{at}, {pass:?} of {stage}");
                declares_what_it_reads(&case.micro, g, slots(&schedule)[stage]);
            }
            assert_eq!(work(sections(&split).map(|s| s.1)), wanted, "{at}");
        }
    }
}

fn declares_what_it_reads(whole: &Graph, g: &Graph, slots: u32) {
    let readers = g.readers();
    let out = |v: ValueId| g.outputs.iter().any(|o| o.1 == v);
    let read = |v: ValueId| !readers[v.index()].is_empty() || out(v);
    for input in g.inputs() {
        assert!(read(input.value), "input {}", input.name);
    }
    for (i, state) in g.states().iter().enumerate() {
        if state.role == Role::Saved {
            let assigned = g.assigns.iter().any(|a| a.0 == StateId(i as u32));
            assert!(assigned != read(state.value), "{} is written or read", state.name);
            assert_eq!(state.copies, slots, "{}", state.name);
            continue;
        }
        assert!(read(state.value), "state {}", state.name);
        let id = whole.find_state(&state.name).expect("a state of the graph");
        let original = &whole.states()[id.index()];
        let value = original.value;
        assert_eq!(g.ty(state.value), whole.ty(value), "{}", state.name);
        let as_original = aerogel_graph::State { value, ..state.clone() };
        assert_eq!(&as_original, original);
    }
}

/// Through splits, merges and renames to what they show.
fn shown(g: &Graph, mut v: ValueId) -> ValueId {
    while let Some(Op::View(View::Split { .. } | View::Merge { .. } | View::Rename { .. })) =
        g.op_of(v)
    {
        let Def::Node(n, _) = g.value(v).def else { break };
        v = g.node(n).ins[0];
    }
    v
}

/// The bytes that the backward of each stage reads and a forward makes.
fn kept_bytes(g: &Graph, stage_of: &dyn Fn(&str) -> usize, stages: usize) -> Vec<u64> {
    let mut weights = vec![true; g.values().len()];
    let mut read = vec![[BTreeSet::new(), BTreeSet::new()]; stages];
    let mut maker = HashMap::new();
    for node in g.nodes() {
        if is_work(node) || !node.ins.iter().all(|v| weights[v.index()]) {
            node.outs.iter().for_each(|v| weights[v.index()] = false);
        }
        if node.phase == Phase::Forward {
            maker.extend(node.outs.iter().map(|v| (*v, stage_of(&node.scope))));
        }
        let view = matches!(node.op, Op::View(_)) && !is_work(node);
        if !view || matches!(node.op, Op::View(View::Slice { .. })) {
            let pass = usize::from(node.phase == Phase::Backward);
            let ins = node.ins.iter().filter(|v| !weights[v.index()]).map(|v| shown(g, *v));
            read[stage_of(&node.scope)][pass].extend(ins);
        }
    }
    // The output layer makes its gradient in the forward, and that is the only one.
    for (_, v) in g.outputs.iter().filter(|o| maker.contains_key(&o.1)) {
        read[stages - 1][1].insert(*v);
    }
    let bytes = |stage: usize| {
        let [forward, backward] = &read[stage];
        let here = |v: &&ValueId| {
            maker.get(*v).is_some_and(|maker| *maker == stage || forward.contains(*v))
        };
        backward.iter().filter(here).map(|v| g.ty(*v).bytes(g.axes())).sum()
    };
    (0..stages).map(bytes).collect()
}

#[test]
fn a_stage_saves_what_its_backward_reads() {
    for case in cases() {
        let micro = case.micro.pruned().unwrap();
        for stages in [1, 2, 4] {
            let schedule = schedule(Kind::OneFOneB, stages, MICROS).unwrap();
            let split = split_for(&case.micro, &schedule);
            let saved = split.stages.iter().map(|s| {
                let bytes = |g: &Graph| -> u64 {
                    let saved = g.states().iter().filter(|s| s.role == Role::Saved);
                    saved.map(|s| g.ty(s.value).bytes(g.axes())).sum()
                };
                assert_eq!(bytes(&s.forward), bytes(&s.backward), "{}", case.name);
                bytes(&s.forward)
            });
            let wanted = kept_bytes(&micro, &layer_stages(&ranges(stages)), stages);
            assert_eq!(saved.collect::<Vec<_>>(), wanted, "{} on {stages}", case.name);
        }
    }
}

#[test]
fn neighbours_send_one_activation_and_one_gradient() {
    for case in cases() {
        let c = config(Family::Gpt2, AttentionKind::Dense);
        let dtype = if case.compute == Compute::F32 { DType::F32 } else { DType::Bf16 };
        let stream = (c.context * c.embed * dtype.bytes()) as u64;
        let table = (c.vocab * c.embed * DType::F32.bytes()) as u64;
        for stages in [1, 2, 4] {
            let schedule = schedule(Kind::OneFOneB, stages, MICROS).unwrap();
            let split = split_for(&case.micro, &schedule);
            let mut wanted = vec![];
            for s in 1..stages {
                wanted.push(((s - 1, Pass::Forward), (s, Pass::Forward), stream));
                wanted.push(((s, Pass::Backward), (s - 1, Pass::Backward), stream));
            }
            let mut replicas = vec![];
            if case.tied && stages > 1 {
                let last = stages - 1;
                wanted.push(((last, Pass::Forward), (0, Pass::Backward), table));
                let state = "embed.token.weight".to_owned();
                replicas.push(Replica { state, owner: 0, user: last });
            }
            wanted.sort();
            let got: Vec<_> = split.messages.iter().map(|m| (m.from, m.to, m.bytes)).collect();
            assert_eq!(got, wanted, "{} on {stages}", case.name);
            assert_eq!(split.replicas, replicas, "{} on {stages}", case.name);
            split.messages.iter().for_each(|m| sent_as_received(&split, m));
        }
    }
}

fn sent_as_received(split: &Split, m: &Message) {
    let find = |at| sections(split).find(|s| s.0 == at).unwrap().1;
    let (from, to) = (find(m.from), find(m.to));
    let sent = from.ty(from.find_output(&format!("send.{}", m.name)).unwrap());
    let received = to.ty(to.find_input(&format!("receive.{}", m.name)).unwrap().value);
    assert_eq!(sent, received);
    assert_eq!(sent.bytes(from.axes()), m.bytes);
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
fn dump() {
    let g = bucketed().unwrap();
    println!("{}", text::print(&g));
    let split = split(&g, &layer_stages(&[0..1, 1..2]), 2, &[2, 1]).unwrap();
    for (at, g) in sections(&split) {
        println!("# {at:?}\n{}", text::print(g));
    }
    println!("{:#?}", split.messages);
    println!("{:#?}", split.replicas);
}
