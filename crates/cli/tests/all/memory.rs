//! What a process takes is what was planned, and little more.

use super::bin::{Place, recipe};

/// What the program, its libraries and its buffers may take beside the plan.
const BESIDE_BYTES: u64 = 200_000_000;

#[test]
fn resident_memory_is_the_plan_and_little_more() {
    let place = Place::new();
    for (name, overrides) in [
        ("quick", &[][..]),
        ("gpt2-124m", &[]),
        ("cifar10-strided", &[]),
        ("arxiv-bpe", &[]),
        // A plan of some hundred megabytes, of which a step touches most.
        ("quick", &["model.embed=256", "model.context=1024", "model.stride=32", "train.steps=2"]),
        // Ranks: their arenas together are the plan.
        ("quick", &["--ranks=4", "train.micro_batch=1", "parallel.preset=\"zero3\""]),
        ("quick", &["parallel.mesh={ data = 2, pipe = 2 }", "train.micro_batch=1"]),
        ("quick", &["parallel.mesh={ tensor = 2, pipe = 2 }", "train.micro_batch=2"]),
    ] {
        let file = recipe(name);
        let warmup = "schedule.warmup=1";
        let args = [&["train", &file, "--tiny", "--json", "--resume=never", warmup], overrides];
        let ended = place.good(&args.concat());
        let start = ended.event("start");
        let planned = start["planned_bytes"].as_u64().unwrap();
        assert_eq!(start["allocated_bytes"], planned, "{name}");
        let resident = ended.event("step")["resident_bytes"].as_u64().unwrap();
        println!("{name} {overrides:?}: planned {planned}, resident {resident}");
        assert!(resident > 0);
        assert!(resident < planned + BESIDE_BYTES, "{name}: {resident}, planned {planned}");
    }
}
