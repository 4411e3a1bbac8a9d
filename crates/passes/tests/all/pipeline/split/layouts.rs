//! Sections of models whose layers are shared by ranks: buckets in pieces (ZeRO), tensor
//! parallelism, both, with recomputation, in f32 and bf16.

use super::super::super::support::noise;
use super::{
    LAYERS, MICROS, Ranks, assert_same, config, execute, sections, sent_as_received, split_for,
    whole,
};
use aerogel_graph::{Build, DType, Env, Graph, Mesh, Tensor as Numbers, verify::verify};
use aerogel_models::{AttentionKind, Family, train_graph};
use aerogel_passes::pipeline::{Kind, Pass, Split, schedule};
use aerogel_passes::recompute::{Policy, recompute};
use aerogel_passes::{
    Buckets, Compute, Partials, Shards, Tensor, backward, cut, partition, precision,
};

/// How many ranks share the batch, and how many a layer.
struct Layout {
    data: usize,
    tensor: usize,
}

const LAYOUTS: [Layout; 3] =
    [Layout { data: 2, tensor: 1 }, Layout { data: 1, tensor: 2 }, Layout { data: 2, tensor: 2 }];

/// One micro-batch of a rank, after all passes that come before.
fn micro(family: Family, layout: &Layout, compute: Compute, policy: Policy) -> Graph {
    let attention = match family {
        Family::Gpt2 => AttentionKind::Dense,
        Family::SparseTransformer => AttentionKind::Strided,
    };
    let forward = train_graph(&config(family, attention), MICROS * layout.data).unwrap();
    let step = backward(&precision(&forward, compute).unwrap()).unwrap();
    let step = recompute(&step, &policy, &|g, v| g.ty(v).bytes(g.axes())).unwrap().graph;
    let axis = |name: &str, size| (name.to_owned(), size);
    let mesh = Mesh(vec![axis("data", layout.data), axis("tensor", layout.tensor)]);
    let cuts = layout.tensor > 1;
    let (heads, mlp, vocab, seq) = (cuts, cuts, cuts, cuts);
    let shared = Tensor { mesh: mesh.clone(), over: 1, heads, mlp, vocab, seq };
    let shared = partition(&step, &shared).unwrap();
    let partials = Partials { axis: cuts.then_some(1), parameters: shared.partial };
    let data = vec![0];
    let (batch, optimizer, gradients) = (data.clone(), data.clone(), data.clone());
    let shards = Shards { mesh, batch, optimizer, gradients, parameters: data };
    let buckets = Buckets::of(&shared.graph, &shards, &partials);
    cut(&buckets.apply(&shared.graph).unwrap(), &shards, MICROS).unwrap()
}

/// Numbers for each micro-batch and rank; whatever they are, both graphs make the same of them.
fn given(g: &Graph) -> Vec<Ranks> {
    let env = |micro: usize, rank: usize| {
        let mut env = Env::new();
        let mut put = |name: &str, v, key: String| {
            let ty = g.ty(v);
            let number = |i| match ty.dtype {
                DType::U32 => ((noise(&key, i) + 1.0) * 3.0).floor(),
                _ => noise(&key, i),
            };
            let data = (0..g.axes().count(&ty.axes)).map(number).collect();
            env.insert(name.to_owned(), Numbers::from_vec(g.axes(), &ty.axes, data));
        };
        g.inputs().iter().for_each(|i| put(&i.name, i.value, format!("{} {micro}", i.name)));
        g.states().iter().for_each(|s| put(&s.name, s.value, format!("{} {rank}", s.name)));
        env
    };
    let ranks = g.axes().mesh.ranks();
    (0..MICROS).map(|j| (0..ranks).map(|rank| env(j, rank)).collect()).collect()
}

#[test]
fn sections_of_shared_layers_give_the_bits_of_the_graph() {
    for family in [Family::Gpt2, Family::SparseTransformer] {
        for layout in &LAYOUTS {
            for compute in [Compute::F32, Compute::Bf16] {
                for policy in [Policy::None, Policy::Blocks { every: 3 }] {
                    let name = format!(
                        "{family:?}, data {}, tensor {}, {compute:?}, {policy:?}",
                        layout.data, layout.tensor
                    );
                    let micro = micro(family, layout, compute, policy);
                    let dtype = if compute == Compute::F32 { DType::F32 } else { DType::Bf16 };
                    check(&name, family, layout, dtype, &micro);
                }
            }
        }
    }
}

fn check(name: &str, family: Family, layout: &Layout, dtype: DType, micro: &Graph) {
    let collectives = micro.nodes().iter().filter(|n| n.op.name() == "collective").count();
    assert!(collectives > LAYERS, "{name}: {collectives} collectives");
    let given = given(micro);
    let wanted = whole(micro, &given);
    assert!(wanted.iter().flatten().all(|env| env["loss"].data[0].is_finite()), "{name}");
    for stages in [2, 4] {
        let at = format!("{name}, {stages} stages");
        let schedule = schedule(Kind::OneFOneB, stages, MICROS).unwrap();
        let split = split_for(micro, &schedule);
        sections(&split).for_each(|(_, g)| verify(g).unwrap_or_else(|e| panic!("{at}: {e}")));
        split.messages.iter().for_each(|m| sent_as_received(&split, m));
        one_each_way(&split, family, layout, dtype, &at);
        assert_same(&wanted, &execute(&split, &schedule, &given), &at);
    }
}

/// A rank's piece of the stream each way between neighbours, the gradient of a tied table, and
/// nothing else.
fn one_each_way(split: &Split, family: Family, layout: &Layout, dtype: DType, at: &str) {
    let c = config(family, AttentionKind::Dense);
    let stream = (c.context * c.embed * dtype.bytes() / layout.tensor) as u64;
    let table = (c.vocab * c.embed * DType::F32.bytes() / layout.tensor) as u64;
    let stages = split.stages.len();
    let mut wanted = vec![];
    for s in 1..stages {
        wanted.push(((s - 1, Pass::Forward), (s, Pass::Forward), stream));
        wanted.push(((s, Pass::Backward), (s - 1, Pass::Backward), stream));
    }
    if family == Family::Gpt2 {
        wanted.push(((stages - 1, Pass::Forward), (0, Pass::Backward), table));
    }
    wanted.sort();
    let got: Vec<_> = split.messages.iter().map(|m| (m.from, m.to, m.bytes)).collect();
    assert_eq!(got, wanted, "{at}: {:#?}", split.messages);
    let replicas: Vec<_> = split.replicas.iter().map(|r| (r.owner, r.user)).collect();
    let tied = if family == Family::Gpt2 { vec![(0, stages - 1)] } else { vec![] };
    assert_eq!(replicas, tied, "{at}: {:#?}", split.replicas);
}
