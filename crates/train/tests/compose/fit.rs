//! The search for a plan under a limit: what it says was planned, and fits.

use crate::case::{Place, SPARSE};
use aerogel_recipe::Recipe;
use aerogel_train::{Choice, Exit, RunPlan, fit, fits};

const VOCAB: usize = 256;

fn recipe(place: &Place, keys: &[&str]) -> Recipe {
    let all = [&["model.context=512", "model.stride=16", "train.micro_batch=2"], keys].concat();
    place.recipe(SPARSE, &all).unwrap()
}

fn bytes(place: &Place, keys: &[&str]) -> u64 {
    RunPlan::new(&recipe(place, keys), VOCAB).unwrap().largest_bytes()
}

/// A choice applied as a user would: its keys on the command line.
fn applied(place: &Place, keys: &[&str], choice: &Choice) -> RunPlan {
    let changes = choice.changes.join(" ");
    let words: Vec<&str> = keys.iter().copied().chain(changes.split_whitespace()).collect();
    RunPlan::new(&recipe(place, &words), VOCAB).unwrap()
}

#[test]
fn what_fits_is_found_fastest_first_and_is_what_it_says() {
    let place = Place::new();
    for mesh in ["parallel.mesh={data=1}", "parallel.mesh={data=2}"] {
        let plain = bytes(&place, &[mesh]);
        let least = bytes(&place, &[mesh, "memory.recompute=block"]);
        assert!(least < plain);
        let budget = format!("memory.budget={}B", (2 * plain + least) / 3);
        let keys = [mesh, budget.as_str()];
        let r = recipe(&place, &keys);
        let found = fit(&r, VOCAB).unwrap();
        assert!(found.recipe.bytes == plain && plain > found.budget_bytes);
        let best = &found.fitting[0];
        assert!(found.fitting.iter().all(|c| c.seconds >= best.seconds));
        for c in &found.fitting {
            let plan = applied(&place, &keys, c);
            assert_eq!(plan.largest_bytes(), c.bytes, "{c:?}");
            assert!(c.bytes <= found.budget_bytes, "{c:?}");
            assert!((plan.seconds() / c.seconds - 1.0).abs() < 1e-9, "{c:?}");
            // Under bitwise sums no search may change what defines the numbers.
            assert!(c.changes.iter().all(|k| !k.contains("micro_batch")), "{c:?}");
        }
        assert!(found.smallest.is_none());
        // As much is kept as there is room for: all blocks again would take longer.
        let blocks = RunPlan::new(&recipe(&place, &[mesh, "memory.recompute=block"]), VOCAB);
        assert!(best.seconds < blocks.unwrap().seconds(), "{best:?}");
    }
}

#[test]
fn a_recipe_that_fits_is_left_as_it_is() {
    let place = Place::new();
    let found = fit(&recipe(&place, &["memory.budget=1GiB"]), VOCAB).unwrap();
    assert_eq!(found.fitting[0], found.recipe);
    assert!(found.recipe.changes.is_empty());
}

#[test]
fn where_nothing_fits_the_smallest_change_does() {
    let place = Place::new();
    let least = bytes(&place, &["memory.recompute=block", "train.micro_batch=1"]);
    let one = bytes(&place, &["memory.recompute=block", "train.micro_batch=1", "model.layers=2"]);
    for (budget, key) in
        [(least + least / 50, "train.micro_batch="), (one + one / 4, "model.layers=")]
    {
        let budget = format!("memory.budget={budget}B");
        let keys = [budget.as_str()];
        let r = recipe(&place, &keys);
        let found = fit(&r, VOCAB).unwrap();
        assert!(found.fitting.is_empty(), "{:?}", found.fitting);
        let smallest = found.smallest.unwrap();
        assert!(smallest.changes.iter().any(|c| c.starts_with(key)), "{key} {smallest:?}");
        let plan = applied(&place, &keys, &smallest);
        assert!(plan.largest_bytes() <= found.budget_bytes, "{smallest:?}");
        let refused = fits(&RunPlan::new(&r, VOCAB).unwrap(), &r).unwrap_err();
        assert_eq!(refused.exit(), Exit::WillNotFit);
        assert!(refused.to_string().contains(key), "{refused}");
    }
}
