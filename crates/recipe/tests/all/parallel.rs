//! Ranks: meshes, what their axes cut, presets, and the shares of a batch.

use std::path::Path;

use aerogel_recipe::{
    Determinism, Parallel, PipelineSchedule, Recipe, RecomputePolicy, Shard, schema,
};

use crate::support::{MESH, TEXT, parse, with, with_ranks};

fn names(axes: &[&str]) -> Vec<String> {
    axes.iter().map(|axis| axis.to_string()).collect()
}

fn mesh(axes: &[(&str, usize)]) -> Vec<(String, usize)> {
    axes.iter().map(|(axis, size)| (axis.to_string(), *size)).collect()
}

fn parallel(overrides: &[&str]) -> Parallel {
    with(MESH, overrides).unwrap_or_else(|error| panic!("{error}")).parallel
}

#[test]
fn without_a_word_there_is_one_rank() {
    let recipe = parse(TEXT).unwrap();
    assert_eq!((recipe.ranks(), recipe.micro_batches_per_rank()), (1, 1));
    assert_eq!(recipe.parallel.mesh, mesh(&[("data", 1)]));
    let shard = Shard { batch: names(&["data"]), ..Shard::default() };
    assert_eq!(recipe.parallel.shard, shard);
    assert_eq!(recipe.train.determinism, Determinism::Bitwise);
    assert_eq!(recipe.memory.recompute, RecomputePolicy::None);
    assert_eq!(recipe.parallel.timeout_seconds, 60.0);
}

#[test]
fn ranks_of_the_command_line_are_data_ranks_or_match_the_mesh() {
    let recipe = with_ranks(TEXT, &["train.micro_batch=1"], 8).unwrap();
    assert_eq!(recipe.parallel.mesh, mesh(&[("data", 8)]));
    assert_eq!((recipe.ranks(), recipe.micro_batches_per_rank()), (8, 1));
    assert_eq!(with_ranks(MESH, &[], 8).unwrap(), parse(MESH).unwrap());
    assert_eq!(with_ranks(TEXT, &[], 1).unwrap(), parse(TEXT).unwrap());
    let dropped = with_ranks(MESH, &["parallel.mesh="], 2).unwrap();
    assert_eq!(dropped.parallel.mesh, mesh(&[("data", 2)]));
}

#[test]
fn names_of_axes_say_what_they_cut_and_given_lists_win() {
    let recipe = parse(MESH).unwrap();
    let tensor = || names(&["tensor"]);
    let wanted = Shard {
        batch: names(&["data"]),
        heads: tensor(),
        mlp: tensor(),
        vocab: tensor(),
        seq: tensor(),
        layers: names(&["pipe"]),
        ..Shard::default()
    };
    assert_eq!(recipe.parallel.shard, wanted);
    assert_eq!(recipe.parallel.data_ranks(), 2);
    assert_eq!((recipe.parallel.tensor_ranks(), recipe.parallel.pipeline_ranks()), (2, 2));
    assert_eq!(recipe.micro_batches_per_rank(), 4);

    let own = parallel(&[
        "parallel.mesh={rows=2,t=2}",
        "parallel.shard={heads=[\"t\"],mlp=[\"t\"],seq=[\"t\"]}",
    ]);
    let t = || names(&["t"]);
    let wanted =
        Shard { batch: names(&["rows"]), heads: t(), mlp: t(), seq: t(), ..Shard::default() };
    assert_eq!(own.shard, wanted);

    let all = parallel(&["parallel.shard={batch=[\"data\",\"tensor\",\"pipe\"]}"]);
    let wanted = Shard { batch: names(&["data", "tensor", "pipe"]), ..Shard::default() };
    assert_eq!(all.shard, wanted);

    let heads = parallel(&["parallel.shard={mlp=[],vocab=[]}"]).shard;
    assert_eq!((heads.heads, heads.mlp, heads.seq), (tensor(), names(&[]), tensor()));
}

#[test]
fn the_order_of_a_mesh_is_that_of_the_text() {
    let axes = parallel(&["parallel.mesh={zeta=2,data=4,alpha=1}", "train.micro_batch=1"]);
    assert_eq!(axes.mesh, mesh(&[("zeta", 2), ("data", 4), ("alpha", 1)]));
    assert_eq!(axes.shard.batch, names(&["zeta", "data", "alpha"]));
    let table = MESH.replace(
        "mesh = { data = 2, tensor = 2, pipe = 2 }",
        "[parallel.mesh]\ntensor = 2\ndata = 4 # outermost last",
    );
    assert_eq!(parse(&table).unwrap().parallel.mesh, mesh(&[("tensor", 2), ("data", 4)]));
}

#[test]
fn presets_cut_the_state() {
    let groups = "parallel.mesh={node=2,local=4,tensor=2}";
    let state = |preset: &str| {
        let shard = parallel(&[groups, preset, "train.micro_batch=1"]).shard;
        [shard.optimizer, shard.gradients, shard.parameters]
    };
    let (none, all, last) = (names(&[]), names(&["node", "local"]), names(&["local"]));
    for (preset, wanted) in [
        ("parallel.preset=", [&none, &none, &none]),
        ("parallel.preset=ddp", [&none, &none, &none]),
        ("parallel.preset=megatron", [&none, &none, &none]),
        ("parallel.preset=zero1", [&all, &none, &none]),
        ("parallel.preset=zero2", [&all, &all, &none]),
        ("parallel.preset=zero3", [&all, &all, &all]),
        ("parallel.preset=hybrid", [&last, &last, &last]),
    ] {
        assert_eq!(state(preset).each_ref(), wanted, "{preset}");
    }
    let mixed = ["parallel.preset=zero3", "parallel.shard={parameters=[\"local\"]}"];
    let shard = parallel(&[&[groups, "train.micro_batch=1"][..], &mixed].concat()).shard;
    assert_eq!((shard.gradients, shard.parameters), (all.clone(), last));
    // Lists are sets: the order is that of the batch.
    let turned = "parallel.shard={optimizer=[\"local\",\"node\"]}";
    assert_eq!(parallel(&[groups, turned, "train.micro_batch=1"]).shard.optimizer, all);
}

#[test]
fn a_pipeline_has_a_schedule_and_chunks() {
    let plain = parallel(&[]);
    assert_eq!((plain.schedule, plain.chunks), (PipelineSchedule::OneForwardOneBackward, 1));
    assert_eq!(parallel(&["parallel.schedule=gpipe"]).schedule, PipelineSchedule::GPipe);
    let chunks = parallel(&["parallel.schedule=interleaved", "parallel.chunks=4"]);
    assert_eq!((chunks.schedule, chunks.chunks), (PipelineSchedule::Interleaved, 4));
}

#[test]
fn micro_batches_fall_evenly_on_ranks_and_on_the_tree_of_sums() {
    let micro = |ranks: usize, batch: usize, extra: &[&str]| {
        let batch = format!("train.batch={batch}");
        let one = [&["train.micro_batch=1", batch.as_str()], extra].concat();
        with_ranks(TEXT, &one, ranks).map(|recipe| recipe.micro_batches_per_rank()).ok()
    };
    let (fast, zero) = ("train.determinism=fast", "parallel.preset=zero2");
    assert_eq!(micro(2, 8, &[]), Some(4));
    assert_eq!(micro(3, 12, &[]), Some(4));
    assert_eq!(micro(2, 6, &[]), None);
    assert_eq!(micro(2, 6, &[fast]), Some(3));
    assert_eq!(micro(2, 6, &[zero]), Some(3));
    assert_eq!(micro(3, 12, &[zero]), None);
    assert_eq!(micro(3, 3, &[zero]), Some(1));
    assert_eq!(micro(3, 12, &[zero, fast]), Some(4));
    assert_eq!(micro(3, 12, &["parallel.preset=zero1"]), Some(4));
    assert_eq!(micro(2, 7, &[fast]), None);
    // One rank sums in its own order.
    assert_eq!(micro(1, 6, &[]), Some(6));
}

#[test]
fn advice_for_a_batch_resolves() {
    let (mut followed, mut raised) = (0, 0);
    for (batch, micro_batch) in [(24, 24), (24, 8), (24, 1), (6, 2), (6, 1), (48, 3)] {
        for ranks in 2..=8 {
            for preset in ["", "zero1", "zero2", "zero3"] {
                let given = [
                    format!("train.batch={batch}"),
                    format!("train.micro_batch={micro_batch}"),
                    format!("parallel.preset={preset}"),
                ];
                let given: Vec<&str> = given.iter().map(String::as_str).collect();
                let Err(error) = with_ranks(TEXT, &given, ranks) else { continue };
                let error = error.to_string();
                let (_, advice) = error.rsplit_once("; ").unwrap();
                let Some((_, rest)) = advice.split_once("train.micro_batch ") else {
                    assert!(advice.contains("lower the data ranks to"), "{error}");
                    assert!(batch % ranks > 0, "{error}");
                    continue;
                };
                let size: String = rest.chars().filter(char::is_ascii_digit).collect();
                let size = format!("train.micro_batch={size}");
                let again = with_ranks(TEXT, &[&given[..], &[&size]].concat(), ranks);
                assert!(again.is_ok(), "{error}: {:?}", again.err());
                followed += 1;
                raised += usize::from(advice.starts_with("raise"));
            }
        }
    }
    assert!(followed > 20 && raised > 0, "{followed} followed, {raised} raised");
}

#[test]
fn a_tiny_form_takes_its_share_of_the_batch_and_a_whole_one_does_not() {
    let tiny = |ranks| {
        let dir = Path::new("");
        Recipe::parse_with_ranks(TEXT, "recipe.toml", dir, &[], true, ranks)
    };
    assert_eq!(tiny(None).unwrap().train.micro_batch, 8);
    for ranks in [2, 4, 8] {
        let recipe = tiny(Some(ranks)).unwrap();
        assert_eq!((recipe.train.micro_batch, recipe.ranks()), (8 / ranks, ranks));
        assert!(recipe.derived().iter().any(|derived| derived.key == "train.micro_batch"));
    }
    assert!(with_ranks(TEXT, &[], 2).is_err(), "the ranks must not choose the numbers");
    let own = format!("{MESH}\n[tiny]\nparallel = {{ mesh = {{ pipe = 2 }}, preset = \"ddp\" }}\n");
    let recipe =
        Recipe::parse_with_ranks(&own, "recipe.toml", Path::new(""), &[], true, Some(2)).unwrap();
    assert_eq!(recipe.parallel.mesh, mesh(&[("pipe", 2)]));
}

#[test]
fn memory_has_a_policy() {
    let policy = |overrides: &[&str]| with(TEXT, overrides).unwrap().memory.recompute;
    assert_eq!(policy(&["memory.recompute=cheap"]), RecomputePolicy::Cheap);
    assert_eq!(policy(&["memory.recompute=block"]), RecomputePolicy::Blocks { every: 1 });
    let third = ["memory.recompute=block", "memory.recompute_every=3"];
    assert_eq!(policy(&third), RecomputePolicy::Blocks { every: 3 });
    let limit = ["memory.recompute=budget", "memory.activations=1MiB"];
    assert_eq!(policy(&limit), RecomputePolicy::Budget { bytes: 1 << 20 });
    let early = with(TEXT, &["memory.update_in_backward=true", "optimizer.clip=0"]).unwrap();
    assert!(early.memory.update_in_backward);
}

#[test]
fn derived_lists_are_noted_where_there_are_ranks() {
    let shown = |recipe: &Recipe| {
        let shard = recipe.derived().iter().find(|derived| derived.key == "parallel.shard");
        shard.map(|derived| (derived.value.clone(), derived.reason.clone()))
    };
    assert_eq!(shown(&parse(TEXT).unwrap()), None);
    let (value, reason) = shown(&with(MESH, &["parallel.preset=zero1"]).unwrap()).unwrap();
    assert!(value.contains("optimizer = [\"data\"], gradients = []"), "{value}");
    assert!(reason.contains("zero1"), "{reason}");
}

#[test]
fn words_of_other_tools_lead_to_the_keys() {
    for (word, key) in [
        ("memory.activation_checkpointing=true", "recompute"),
        ("parallel.zero_stage=3", "preset"),
        ("train.gradient_accumulation_steps=4", "micro_batch"),
    ] {
        let error = with(TEXT, &[word]).unwrap_err().to_string();
        assert!(error.contains(&format!("did you mean `{key}`?")), "{error}");
        assert!(schema().iter().any(|known| known.name == key));
    }
}
