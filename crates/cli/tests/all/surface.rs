//! What a user reads where all is well.

use super::bin::{Place, recipe};

#[test]
fn help_names_every_command_and_exit_code() {
    let place = Place::new();
    let help = place.good(&["--help"]).out;
    let words = [
        "prepare", "plan", "explain", "train", "eval", "sample", "inspect", "bench", "doctor",
        "selftest", "keys",
    ];
    for word in words {
        assert!(help.contains(&format!("\n  {word} ")), "{word}");
        let own = place.good(&[word, "--help"]).out;
        assert!(own.contains("Example"), "{word} has no example");
    }
    for code in [0, 10, 20, 21, 22, 23, 30, 31, 32, 40, 101, 130] {
        assert!(help.contains(&format!("\n{code:>5}  ")), "{code}");
    }
}

#[test]
fn the_plan_is_a_table_with_reasons() {
    let place = Place::new();
    let text = place.good(&["plan", &recipe("quick"), "--why"]).out;
    for part in ["parameters  864,128", "786,432", "activations", "total", "micro.last", "decode"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(text.contains("train.micro_batch = 1: the whole batch at once"), "{text}");
    assert!(!place.path("data").exists(), "planning leaves nothing");
}

#[test]
fn the_papers_models_have_their_sizes() {
    let place = Place::new();
    let sizes = [("cifar10-strided", 58_720_256), ("gpt2-124m", 84_934_656)];
    for (name, wanted) in sizes {
        // A budget that no model needs: the sizes do not depend on this machine.
        let ended = place.run(&["plan", &recipe(name), "--json", "memory.budget=\"1TB\""]);
        let plan = ended.object();
        assert_eq!(plan["parameters_without_embeddings"].as_u64(), Some(wanted), "{name}");
        assert_eq!((ended.code, &plan["fits"]), (0, &true.into()));
    }
}

#[test]
fn a_plan_that_does_not_fit_is_shown_and_ends_with_21() {
    let place = Place::new();
    let args = ["plan", &recipe("quick"), "--json", "memory.budget=1000000"];
    let ended = place.run(&args);
    assert_eq!(ended.code, 21);
    assert_eq!(ended.object()["fits"], false);
    assert!(ended.err.contains("needs") && ended.err.contains("1000000"), "{}", ended.err);
}

#[test]
fn training_tells_its_steps_on_stderr_and_its_results_on_stdout() {
    let place = Place::small();
    let ended = place.good(&["train", "small.toml"]);
    assert!(ended.err.contains("step 4/4  loss "), "{}", ended.err);
    assert!(ended.err.contains("tokens/s") && ended.err.contains("ETA"), "{}", ended.err);
    assert!(!ended.err.contains('\x1b'), "no terminal, no escapes");
    assert!(ended.out.contains("bits a byte, perplexity"), "{}", ended.out);
    assert!(ended.out.contains("report:  runs/small/report.html"), "{}", ended.out);
    assert!(!ended.out.contains("step 4/4"), "{}", ended.out);
    let quiet = place.good(&["train", "small.toml", "-q"]);
    assert_eq!(quiet.err, "");
    assert!(place.path("runs/small-2/run.json").exists(), "beside the finished one");
}

#[test]
fn events_are_the_metrics() {
    let place = Place::small();
    let ended = place.good(&["train", "small.toml", "--json"]);
    let metrics = std::fs::read_to_string(place.path("runs/small/metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> =
        metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let events = ended.events();
    assert!(events.iter().all(|e| e["v"] == 1 && e["step"].is_u64()));
    assert_eq!(lines, events);
}

#[test]
fn images_are_completed_below_their_upper_halves() {
    let place = Place::new();
    let file = recipe("imagenet64-strided");
    place.good(&["train", &file, "--tiny", "train.steps=1", "schedule.warmup=0"]);
    let draw = |out: &str, more: &[&str]| {
        let args = [&["sample", "imagenet64-strided-tiny", "--out", out], more].concat();
        assert!(place.good(&args).out.starts_with(out));
        std::fs::read(place.path(out)).unwrap()
    };
    let first = draw("a.png", &["--count", "1"]);
    assert_eq!(first, draw("b.png", &["--count", "1"]), "the same seed draws the same");
    assert_ne!(first, draw("c.png", &["--count", "1", "--seed", "9"]));
    draw("d.png", &["--complete", "a.png", "--seed", "9"]);
    let shape = aerogel_data::ImageShape { height: 8, width: 8, channels: 3 };
    let pixels = |name: &str| aerogel_data::read_image(&place.path(name), shape).unwrap();
    let (given, done) = (pixels("a.png"), pixels("d.png"));
    assert_eq!(given[..96], done[..96]);
    assert_ne!(given[96..], done[96..]);
}

#[test]
fn text_is_sampled_after_its_prompt() {
    let place = Place::small();
    place.good(&["train", "small.toml"]);
    let args = ["sample", "small", "--prompt", "3 plus", "--tokens", "20", "--temperature", "0"];
    let one = place.good(&args).out;
    assert!(one.starts_with("3 plus"), "{one}");
    assert_eq!(one, place.good(&args).out);
}

#[test]
fn inspect_lists_and_verifies() {
    let place = Place::small();
    place.good(&["train", "small.toml", "checkpoint.every=2"]);
    let text = place.good(&["inspect", "small"]).out;
    assert!(text.contains("step 2: good") && text.contains("step 4: good"), "{text}");
    assert!(text.contains("h.0.attn.q.weight") && text.contains("f32"), "{text}");
    let folder = "runs/small/checkpoints/step-00000002";
    super::bin::damage(&place.path(folder).join("tensors-00000.safetensors"));
    let ended = place.run(&["inspect", folder]);
    assert_eq!(ended.code, 23);
    assert!(ended.out.contains("is damaged"), "{}", ended.out);
}

#[test]
fn the_machine_and_the_keys_are_shown() {
    let place = Place::new();
    let machine = place.good(&["doctor", "--json"]).object();
    assert!(machine["cores"].as_u64() >= Some(1));
    assert_eq!(machine["gpus"].as_array().unwrap().is_empty(), machine["no_gpu"].is_string());
    assert_eq!(machine["nvrtc"].is_null(), machine["no_nvrtc"].is_string());
    assert!(place.good(&["keys"]).out.contains("learning_rate"));
}

/// Without a driver there is one sentence, plans are for an H100, and nothing is written.
#[test]
fn a_machine_without_a_gpu_says_so_and_plans_for_one() {
    let place = Place::small();
    let machine = place.good(&["doctor", "--json"]).object();
    let Some(reason) = machine["no_gpu"].as_str() else { return };
    let plan = place.good(&["plan", &recipe("quick"), "--device", "cuda", "--json"]).object();
    assert_eq!(plan["device"], "cuda");
    assert!(plan["machine"].as_str().unwrap().contains("H100"), "{plan}");
    assert_eq!(plan["budget_bytes"].as_u64(), Some(85_520_809_984 - (1 << 30)));
    let page = place.good(&["plan", &recipe("quick"), "parallel.device=cuda"]).out;
    assert!(page.contains("a step on NVIDIA H100"), "{page}");
    let ended = place.run(&["train", "small.toml", "--device", "cuda"]);
    assert_eq!((ended.code, ended.err.trim_end()), (20, format!("error: {reason}").as_str()));
    assert!(!place.path("data").exists() && !place.path("runs").exists());
    let ranks = place.run(&[
        "train",
        "small.toml",
        "--device",
        "cuda",
        "--ranks",
        "2",
        "train.micro_batch=1",
    ]);
    assert!(ranks.err.contains("one GPU runs one rank so far"), "{}", ranks.err);
    assert_eq!(ranks.code, 20);
    let doctor = place.good(&["doctor"]).out;
    assert!(doctor.contains(&format!("GPU           none: {reason}")), "{doctor}");
    place.good(&["train", "small.toml", "-q"]);
    let eval = place.run(&["eval", "small", "--device", "cuda"]);
    assert_eq!((eval.code, eval.err.trim_end()), (20, format!("error: {reason}").as_str()));
}

#[test]
fn the_machine_is_tested_and_one_that_is_not_there_is_refused() {
    let place = Place::new();
    let ended = place.good(&["selftest", "--cases", "2"]);
    assert!(ended.out.contains("All 26 cases hold on cpu"), "{}", ended.out);
    assert!(ended.err.contains("attention of every pattern"), "{}", ended.err);
    let args = ["selftest", "-q", "--json", "--only", "products", "--cases", "3", "--seed", "4"];
    let ended = place.good(&args);
    assert_eq!(ended.err, "");
    let object = ended.object();
    assert_eq!((object["whole"].as_bool(), object["seed"].as_u64()), (Some(true), Some(4)));
    assert_eq!(object["groups"].as_array().map(Vec::len), Some(1));
    assert_eq!(object["groups"][0]["cases"], 3);
    let unknown = place.run(&["selftest", "--only", "product"]);
    assert_eq!(unknown.code, 20);
    assert!(unknown.err.contains("choose one of ops, graphs, products"), "{}", unknown.err);
    let machine = place.good(&["doctor", "--json"]).object();
    let Some(reason) = machine["no_gpu"].as_str() else { return };
    let ended = place.run(&["selftest", "--device", "cuda"]);
    assert_eq!((ended.code, ended.err.trim_end()), (20, format!("error: {reason}").as_str()));
}
