//! The same bits for any number of data ranks, ZeRO stage and depth of the pipeline.

use crate::case::{GPT2, Outcome, Place, SPARSE};

/// Three steps on a mesh.
fn run(place: &Place, model: &str, keys: &[String], name: &str) -> Outcome {
    let mut all = vec!["train.steps=3", "train.micro_batch=1", "eval.every=0"];
    all.extend(keys.iter().map(String::as_str));
    let recipe = place.recipe(model, &all).unwrap_or_else(|e| panic!("{name}: {e}"));
    let outcome = place.run(name, &recipe, None).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(outcome.bytes.0, outcome.bytes.1, "{name}: planned = allocated");
    outcome
}

fn same_on_all_meshes(model: &str) {
    let place = Place::new();
    let plain = run(&place, model, &[], "plain");
    assert!(plain.losses[0] > plain.losses[2], "{:?}", plain.losses);
    for data in [1, 2, 4, 8] {
        for zero in 0..4 {
            for pipe in [1, 2, 4] {
                if data * pipe == 1 || data == 1 && zero > 0 {
                    continue;
                }
                let name = format!("data{data}-zero{zero}-pipe{pipe}");
                let mut keys = vec![format!("parallel.mesh={{data={data},pipe={pipe}}}")];
                if zero > 0 {
                    keys.push(format!("parallel.preset=zero{zero}"));
                }
                let got = run(&place, model, &keys, &name);
                assert_eq!(got.losses, plain.losses, "{name}");
                assert_eq!(got.norms, plain.norms, "{name}");
                assert_eq!(got.evals, plain.evals, "{name}");
                assert_eq!(got.hash, plain.hash, "{name}");
            }
        }
    }
}

#[test]
fn the_sparse_transformer_ends_in_one_hash_on_all_meshes() {
    same_on_all_meshes(SPARSE);
}

#[test]
fn gpt2_with_its_tied_embedding_ends_in_one_hash_on_all_meshes() {
    same_on_all_meshes(GPT2);
}

#[test]
fn thirty_two_ranks_share_two_cores() {
    let place = Place::new();
    let keys = ["train.batch=32".to_owned()];
    let plain = run(&place, SPARSE, &keys, "plain");
    let keys =
        [keys[0].clone(), "parallel.mesh={data=32}".to_owned(), "parallel.preset=zero3".to_owned()];
    assert_eq!(run(&place, SPARSE, &keys, "many").hash, plain.hash);
}
