//! What buckets cannot be made of, and shards that contradict themselves.

use super::*;
use aerogel_graph::{Build, DType, Init, ParamClass, Type};
use aerogel_models::eval_graph;
use aerogel_passes::PassError;

#[test]
fn a_parameter_that_is_read_in_another_dtype_is_refused() {
    for family in [Family::Gpt2, Family::SparseTransformer] {
        let train = whole(family, Compute::Bf16);
        let buckets = Buckets::of(&train, &Shards::default(), &Partials::default());
        let plain = eval_graph(&model(family), 4).unwrap();
        let error = buckets.apply(&plain).unwrap_err();
        let parameter = "embed.token.weight".to_owned();
        assert_eq!(error, PassError::Bucket { parameter });
        // A graph of the same dtypes that reads one master beside its copy.
        let mut beside = precision(&plain, Compute::Bf16).unwrap();
        let name = "h.0.attn.q.weight";
        let weight = beside.states()[beside.find_state(name).unwrap().index()].value;
        let axes = beside.ty(weight).axes.clone();
        let norm = beside.sum(weight, &axes).unwrap();
        beside.output("norm", norm);
        let error = buckets.apply(&beside).unwrap_err();
        assert_eq!(error, PassError::Bucket { parameter: name.to_owned() });
    }
}

#[test]
fn a_parameter_that_no_bucket_has_is_refused() {
    let g = whole(Family::Gpt2, Compute::F32);
    let buckets = Buckets::of(&g, &Shards::default(), &Partials::default());
    let mut more = g.clone();
    more.parameter("more", ParamClass::Bias, &[], Init::Constant(0.0)).unwrap();
    let error = buckets.apply(&more).unwrap_err();
    assert_eq!(error, PassError::Bucket { parameter: "more".to_owned() });
}

#[test]
fn gradients_of_a_part_of_a_bucket_are_refused() {
    let mut g = whole(Family::Gpt2, Compute::F32);
    let buckets = Buckets::of(&g, &Shards::default(), &Partials::default());
    let name = "grad.h.0.mlp.up.weight";
    g.outputs.retain(|(n, _)| n != name);
    let wanted = PassError::MissingOutput { pass: "bucket", name: name.to_owned() };
    assert_eq!(buckets.apply(&g).unwrap_err(), wanted);
    g.outputs.retain(|(n, _)| !n.starts_with("grad."));
    buckets.apply(&g).expect("no gradients at all: the graph does not train");
}

#[test]
fn only_the_update_changes_parameters() {
    let mut g = whole(Family::Gpt2, Compute::F32);
    let buckets = Buckets::of(&g, &Shards::default(), &Partials::default());
    let id = g.find_state("final_norm.gain").unwrap();
    let axes = g.ty(g.states()[id.index()].value).axes.clone();
    let one = g.constant(1.0, Type::new(DType::F32, axes)).unwrap();
    g.assign(id, one).unwrap();
    assert!(buckets.apply(&g).unwrap_err().to_string().contains("final_norm.gain"));
}

#[test]
fn shards_that_contradict_themselves_are_refused() {
    let g = whole(Family::Gpt2, Compute::F32);
    let good = nodes([2, 1, 1]);
    for (shards, message) in [
        (Shards { parameters: vec![0, 1], ..good.clone() }, "`parameters` is cut"),
        (Shards { parameters: vec![0], ..good.clone() }, "`parameters` is cut"),
        (Shards { optimizer: vec![1, 0], ..good.clone() }, "`optimizer` is cut"),
        (Shards { batch: vec![1], ..good.clone() }, "`optimizer` is cut"),
        (Shards { batch: vec![1, 1], ..good.clone() }, "cut twice"),
        (Shards { batch: vec![2], optimizer: vec![], ..good.clone() }, "no axis number 2"),
        (Shards { mesh: Mesh(vec![("m".to_owned(), 2); 5]), ..good.clone() }, "at most 4 axes"),
    ] {
        let buckets = Buckets::of(&g, &good, &Partials::default());
        let buckets = Buckets { shards: shards.clone(), ..buckets };
        let share = Share::whole(&buckets);
        for error in [
            shards.check().unwrap_err().to_string(),
            cut(&g, &shards, 2).unwrap_err().to_string(),
            buckets.apply(&g).unwrap_err().to_string(),
            update(&g, &share, &CONFIG).unwrap_err().to_string(),
            copies(&g, &share).unwrap_err().to_string(),
        ] {
            assert!(error.contains(message), "{error}");
        }
    }
    good.check().unwrap();
    let odd = cut(&g, &good, 3).unwrap_err().to_string();
    assert!(odd.contains("`batch` of 8 does not divide into 3"), "{odd}");
}
