//! Sections of a pipeline against the graph that was split: the same bits, nothing computed twice,
//! nothing kept or sent that need not be.

#[path = "split/layouts.rs"]
mod layouts;
#[path = "split/small.rs"]
mod small;

use super::super::support::{environment, piece};
use aerogel_graph::interpret::Run;
use aerogel_graph::ops::View;
use aerogel_graph::{
    Build, Clock, Cutter, DType, Def, Env, Graph, Node, Op, Phase, Role, Rounding, StateId, Tensor,
    ValueId, interpret_mesh, text, verify::verify,
};
use aerogel_models::{
    AttentionKind, Combine, Family, LayerKind, ModelConfig, WeightInit, eval_graph, train_graph,
};
use aerogel_passes::pipeline::{
    Kind, Message, Pass, Replica, Schedule, Split, check, layer_stages, schedule, split,
};
use aerogel_passes::recompute::{Policy, recompute};
use aerogel_passes::{Compute, backward, precision};
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
    config: ModelConfig,
    /// The step of the global batch, whose inputs a host would have.
    global: Graph,
    /// The step of one micro-batch.
    micro: Graph,
    tied: bool,
    compute: Compute,
    policy: Policy,
}

impl Case {
    /// Whether blocks of several stages are recomputed together.
    fn crosses(&self, stages: usize) -> bool {
        self.policy == ACROSS && stages > 1
    }
}

const ACROSS: Policy = Policy::Blocks { every: 3 };

fn cases() -> Vec<Case> {
    let mut list = vec![];
    for (family, attention) in [
        (Family::Gpt2, AttentionKind::Dense),
        (Family::SparseTransformer, AttentionKind::Strided),
        (Family::SparseTransformer, AttentionKind::Fixed),
    ] {
        for compute in [Compute::F32, Compute::Bf16] {
            for policy in [Policy::None, Policy::Cheap, Policy::Blocks { every: 1 }, ACROSS] {
                let config = config(family, attention);
                let forward = train_graph(&config, MICROS).unwrap();
                let global = backward(&precision(&forward, compute).unwrap()).unwrap();
                let bytes = |g: &Graph, v| g.ty(v).bytes(g.axes());
                let global = recompute(&global, &policy, &bytes).unwrap().graph;
                let mut micro = global.clone();
                micro.cut_axis("batch", Cutter::Time, MICROS).unwrap();
                let name = format!("{family:?} {attention:?} {compute:?}, recompute {policy:?}");
                let tied = family == Family::Gpt2;
                list.push(Case { name, config, global, micro, tied, compute, policy });
            }
        }
    }
    list
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

fn sections(split: &Split) -> impl Iterator<Item = ((usize, Pass), &Graph)> {
    split.stages.iter().enumerate().flat_map(|(s, stage)| {
        [((s, Pass::Forward), &stage.forward), ((s, Pass::Backward), &stage.backward)]
    })
}

/// The environment of each rank of a mesh; of one where there is none.
type Ranks = Vec<Env>;

fn run(g: &Graph, envs: &[Env], micro: usize) -> Vec<Run> {
    let clock = Clock { seed: 3, step: 1, micro: micro as u64, ..Clock::default() };
    interpret_mesh(g, envs, clock, Rounding::Declared).unwrap()
}

/// Runs the sections in the order of the checker's witness; gives the outputs of each micro-batch.
fn execute(split: &Split, schedule: &Schedule, given: &[Ranks]) -> Vec<Ranks> {
    let mut outputs = vec![vec![Env::new(); given[0].len()]; given.len()];
    let mut mail: HashMap<(String, (usize, Pass), usize, usize), Tensor> = HashMap::new();
    let mut saved: HashMap<(usize, usize, usize), Env> = HashMap::new();
    for (rank, action) in check(schedule).unwrap() {
        let (stage, micro) = (schedule.stage(rank, action.chunk), action.micro);
        let slot = micro % schedule.slots(rank, action.chunk);
        let at = (stage, action.pass);
        let section = sections(split).find(|s| s.0 == at).unwrap().1;
        let mut envs = given[micro].clone();
        for (member, env) in envs.iter_mut().enumerate() {
            // What the forward does not read may be anything.
            for s in section.states().iter().filter(|s| s.role == Role::Saved) {
                let nan = Tensor::full(section.axes(), &section.ty(s.value).axes, f64::NAN);
                env.insert(s.name.clone(), nan);
            }
            if action.pass == Pass::Backward {
                env.extend(saved.remove(&(stage, slot, member)).unwrap());
            }
            for m in split.messages.iter().filter(|m| m.to == at) {
                let tensor = mail.remove(&(m.name.clone(), at, micro, member));
                env.insert(format!("receive.{}", m.name), tensor.expect("sent before"));
            }
        }
        for (member, result) in run(section, &envs, micro).into_iter().enumerate() {
            for (name, tensor) in result.outputs {
                let Some(name) = name.strip_prefix("send.") else {
                    let old = outputs[micro][member].insert(name.clone(), tensor);
                    assert!(old.is_none(), "{name} twice");
                    continue;
                };
                for m in split.messages.iter().filter(|m| m.from == at && m.name == name) {
                    mail.insert((name.to_owned(), m.to, micro, member), tensor.clone());
                }
            }
            if action.pass == Pass::Forward {
                let old = saved.insert((stage, slot, member), result.assigned);
                assert!(old.is_none(), "slot {slot} of stage {stage} is taken");
            }
        }
    }
    assert!(mail.is_empty(), "nobody reads {:?}", mail.keys());
    outputs
}

/// Outputs of the graph that was split, for each micro-batch.
fn whole(g: &Graph, given: &[Ranks]) -> Vec<Ranks> {
    let of = |(j, envs): (usize, &Ranks)| run(g, envs, j).into_iter().map(|r| r.outputs).collect();
    given.iter().enumerate().map(of).collect()
}

/// The same outputs, to the bit.
fn assert_same(wanted: &[Ranks], got: &[Ranks], at: &str) {
    for (wanted, got) in wanted.iter().flatten().zip(got.iter().flatten()) {
        let names = |env: &Env| env.keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(names(wanted), names(got), "{at}");
        for (name, tensor) in wanted {
            let bits = |t: &Tensor| t.data.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(tensor.axes, got[name].axes, "{at}, {name}");
            assert_eq!(bits(tensor), bits(&got[name]), "{at}, {name}");
        }
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
        let given: Vec<Ranks> =
            (0..MICROS).map(|j| vec![piece(&case.global, &data, j, MICROS)]).collect();
        let wanted = whole(&case.micro, &given);
        assert_ne!(wanted[0][0]["loss"], wanted[1][0]["loss"], "{}", case.name);
        for (kind, ranks) in SCHEDULES {
            let at = format!("{}, {kind} on {ranks}", case.name);
            let schedule = schedule(kind, ranks, MICROS).unwrap();
            let split = split_for(&case.micro, &schedule);
            assert_same(&wanted, &execute(&split, &schedule, &given), &at);
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
            let mut got = work(sections(&split).map(|s| s.1));
            if case.crosses(split.stages.len()) {
                // What the next stage starts from need not be made again for it.
                got.retain(|key, count| wanted[key] != *count);
                let fewer = got.iter().all(|(key, count)| *count < wanted[key]);
                assert!(fewer && !got.is_empty(), "{at}: {got:?}");
                continue;
            }
            assert_eq!(got, wanted, "{at}");
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
        for stages in [1, 2, 4].into_iter().filter(|s| !case.crosses(*s)) {
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
        let c = &case.config;
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

/// So a host can carry both by the same list.
#[test]
fn evaluation_sends_what_the_forwards_of_training_send() {
    for case in cases() {
        let forward = eval_graph(&case.config, 1).unwrap();
        let eval = precision(&forward, case.compute).unwrap();
        let schedule = schedule(Kind::OneFOneB, LAYERS, MICROS).unwrap();
        let ends = |g| {
            let messages = split_for(g, &schedule).messages.into_iter();
            let forward = messages.filter(|m| m.to.1 == Pass::Forward);
            forward.map(|m| (m.name, m.from, m.to)).collect::<Vec<_>>()
        };
        let wanted = ends(&case.micro);
        assert_eq!((ends(&eval), wanted.len()), (wanted, LAYERS - 1), "{}", case.name);
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
