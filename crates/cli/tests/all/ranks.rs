//! Several ranks: what a plan says of each, and that they train to the same weights.

use super::bin::{Place, recipe};
use serde_json::Value;

/// The tiny form of `quick` on a mesh; every micro-batch is one sequence.
fn plan(place: &Place, mesh: &str, more: &[&str]) -> Value {
    let file = recipe("quick");
    let mesh = format!("parallel.mesh={{ {mesh} }}");
    let args = ["plan", &file, "--tiny", "--json", &mesh, "train.micro_batch=1"];
    place.good(&[&args[..], more].concat()).object()
}

/// Calls and bytes of an exchange; nothing where there is none.
fn traffic(plan: &Value, kind: &str, over: &str) -> (u64, u64) {
    let list = plan["communication"].as_array().unwrap();
    let found = list.iter().find(|t| t["kind"] == kind && t["over"] == Value::from(vec![over]));
    let number = |name: &str| found.map_or(0, |t| t[name].as_u64().unwrap());
    (number("calls"), number("wire_bytes"))
}

#[test]
fn a_plan_of_one_rank_is_that_of_before() {
    let place = Place::new();
    let plan = plan(&place, "data = 1", &[]);
    assert_eq!(
        (&plan["ranks"], &plan["rank"], &plan["pipeline"]),
        (&1.into(), &0.into(), &Value::Null)
    );
    assert_eq!(plan["communication"], Value::Array(vec![]));
    let stages = plan["stages"].as_array().unwrap();
    assert_eq!(stages.len(), 1);
    assert_eq!(stages[0]["parameters"], plan["parameters"]);
    assert_eq!(stages[0]["memory"], plan["memory"]);
    assert_eq!(stages[0]["layers"], serde_json::json!([[0, 2]]));
    let text = place.good(&["plan", &recipe("quick"), "--tiny"]).out;
    assert!(!text.contains("ranks  ") && !text.contains("ZeRO"), "{text}");
}

#[test]
fn zero_deals_out_memory_and_is_paid_in_bytes() {
    let place = Place::new();
    // Wide enough that buckets are hardly filled up to be cut.
    let of = |preset: &str| {
        plan(&place, "data = 4", &["model.embed=128", &format!("parallel.preset={preset:?}")])
    };
    let [ddp, one, two, three] = ["ddp", "zero1", "zero2", "zero3"].map(of);
    let kind = |plan: &Value, name: &str| plan["memory"][name].as_u64().unwrap() as f64;
    for (stage, plan) in [&ddp, &one, &two, &three].into_iter().enumerate() {
        assert_eq!(plan["zero_stage"], stage);
        assert_eq!(plan["micro_batches"], 1);
        for (name, first) in [("optimizer_bytes", 1), ("parameters_bytes", 3)] {
            let wanted = if stage >= first { 4.0 } else { 1.0 };
            let share = kind(&ddp, name) / kind(plan, name);
            assert!((0.9 * wanted..=wanted).contains(&share), "{name} of ZeRO-{stage}: {share}");
        }
    }
    // A ring's all-reduce sends what reduce-scatter and all-gather send together.
    let sum = |plan: &Value, kind: &str| traffic(plan, kind, "data").1;
    let all = sum(&ddp, "all_reduce");
    assert!(all > 0);
    for plan in [&one, &two, &three] {
        let halves = (sum(plan, "reduce_scatter"), sum(plan, "all_gather"));
        assert!(halves.0 > 0 && halves.1 > 0, "{plan}");
    }
    // Parameters are gathered for the forward and for the backward, unless these are neighbours.
    let times = sum(&three, "all_gather") as f64 / sum(&two, "all_gather") as f64;
    assert!((1.6..=2.0).contains(&times), "{times}");
}

#[test]
fn a_pipeline_has_its_bubble_its_slots_and_its_messages() {
    let place = Place::new();
    let of = |more: &[&str]| {
        let more = [&["train.batch=8", "model.layers=4"], more].concat();
        plan(&place, "pipe = 2, data = 2", &more)
    };
    let (whole, last) = (of(&[]), of(&["--rank", "3"]));
    assert_eq!((&whole["rank"], &last["rank"]), (&0.into(), &3.into()));
    let axes: Vec<_> =
        last["mesh"].as_array().unwrap().iter().map(|a| (&a["axis"], &a["position"])).collect();
    assert_eq!(axes, [(&"pipe".into(), &1.into()), (&"data".into(), &1.into())]);
    assert_eq!(whole["mesh"][0]["cuts"], serde_json::json!(["layers"]));
    let stages = whole["stages"].as_array().unwrap();
    assert_eq!(stages.len(), 2);
    assert_eq!((&stages[0]["memory"], &stages[1]), (&whole["memory"], &last["stages"][0]));
    assert_eq!(last["memory"], stages[1]["memory"], "the rank's own");
    let layers = |s: &Value| (s["layers"][0][0].clone(), s["layers"][0][1].clone());
    assert_eq!(layers(&stages[0]).1, layers(&stages[1]).0, "one stage ends where the next begins");
    assert_eq!((&stages[0]["slots"], &stages[1]["slots"]), (&vec![2].into(), &vec![1].into()));
    let pipeline = &whole["pipeline"];
    assert_eq!((&pipeline["schedule"], &pipeline["stages"]), (&"1f1b".into(), &2.into()));
    // Two stages and four micro-batches: one in five, if the stages took the same time.
    let bubble = |plan: &Value| plan["pipeline"]["bubble"].as_f64().unwrap();
    assert!((0.15..0.5).contains(&bubble(&whole)), "{}", bubble(&whole));
    assert!((bubble(&last) - 0.2).abs() < 1e-9, "one stage stands for all");
    // What one stage sends, the other receives.
    let (sent, received) = (traffic(&whole, "send", "pipe"), traffic(&last, "receive", "pipe"));
    assert_eq!(sent, received);
    assert!(sent.0 >= 4 && sent.1 > 0, "{sent:?}");

    let folded = of(&["parallel.schedule=\"interleaved\"", "parallel.chunks=2"]);
    assert_eq!(folded["stages"][0]["layers"].as_array().unwrap().len(), 2);
    assert_eq!(folded["pipeline"]["slots"][0].as_array().unwrap().len(), 2);
}

#[test]
fn a_page_of_text_names_the_mesh() {
    let place = Place::new();
    let file = recipe("quick");
    let mesh = "parallel.mesh={ data = 2, tensor = 2, pipe = 2 }";
    let args = ["plan", &file, "--tiny", mesh, "train.micro_batch=1", "--rank", "5"];
    let text = place.good(&args).out;
    for part in [
        "8: data 2 × tensor 2 × pipe 2; shown is rank 5",
        "data      position 1, cuts batch",
        "pipe      position 1, cuts layers",
        "ZeRO        stage 0",
        "The pipeline: 1f1b over 2 stages",
        "if all stages take the time of this one",
        "all-reduce over tensor",
        "send over pipe",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn a_rank_outside_of_the_mesh_is_refused() {
    let place = Place::new();
    let file = recipe("quick");
    for (more, wanted) in [
        (&["--rank", "4", "--ranks", "4", "train.micro_batch=1"][..], "a rank from 0 to 3"),
        (&["--rank", "1"], "ask for rank 0, or for more ranks"),
    ] {
        let ended = place.run(&[&["plan", &file, "--tiny"], more].concat());
        assert_eq!(ended.code, 20, "{}", ended.err);
        assert!(
            ended.err.contains("there is no rank") && ended.err.contains(wanted),
            "{}",
            ended.err
        );
        assert_eq!(ended.out, "");
    }
    let not_a_number = place.run(&["plan", &file, "--tiny", "--rank", "-1"]);
    assert_eq!(not_a_number.code, 20);
    // A search shows no rank, and does not pass over one that is asked for.
    let search = place.run(&["plan", &file, "--tiny", "--rank", "0", "--fit"]);
    assert_eq!(search.code, 20);
    let other = place.run(&["plan", &file, "--ranks", "3", "parallel.mesh={ data = 2 }"]);
    assert_eq!(other.code, 20, "{}", other.err);
}

#[test]
fn the_page_has_its_pictures() {
    let place = Place::new();
    let file = recipe("quick");
    let mesh = "parallel.mesh={ data = 2, pipe = 2 }";
    let args = ["plan", &file, "--tiny", mesh, "train.micro_batch=1", "--html", "plan.html"];
    let ended = place.good(&args);
    assert!(ended.out.contains("pictures: plan.html"), "{}", ended.out);
    let page = std::fs::read_to_string(place.path("plan.html")).unwrap();
    for part in [
        "<h1>quick-tiny</h1>",
        "Memory of a training step",
        "peak-note",
        "The pipeline",
        "class=\"action forward\"",
        "class=\"action backward\"",
        "class=\"holes\"",
        "the bubble is <em>",
        "One rank of each stage",
        "Communication",
        "bar all-reduce",
        "<td>send</td>",
    ] {
        assert!(page.contains(part), "{part} is not in the page");
    }
    assert!(
        !page.contains("http:") && !page.contains("https:") && !page.contains("NaN"),
        "nothing is loaded from elsewhere"
    );
    let alone = ["plan", &file, "--tiny", "--json", "--html", "alone.html"];
    assert!(place.good(&alone).object()["memory"].is_object());
    let page = std::fs::read_to_string(place.path("alone.html")).unwrap();
    assert!(page.contains("Memory of a training step") && !page.contains("The pipeline"));
    let nowhere = place.run(&["plan", &file, "--tiny", "--html", "none/plan.html"]);
    assert_eq!(nowhere.code, 23);
    assert!(nowhere.err.contains("none/plan.html cannot be written"), "{}", nowhere.err);
}

#[test]
fn ranks_train_to_the_weights_of_one() {
    let place = Place::new();
    let file = recipe("quick");
    let train = |more: &[&str]| {
        let args = ["train", &file, "--tiny", "--json", "--resume=never", "train.micro_batch=1"];
        place.good(&[&args[..], more].concat())
    };
    let one = train(&[]);
    let four = train(&["--ranks", "4"]);
    let start = four.event("start");
    assert_eq!(start["ranks"], 4);
    assert_eq!(start["planned_bytes"], start["allocated_bytes"]);
    assert_eq!(start["run_hash"], one.event("start")["run_hash"]);
    assert_eq!(four.event("done")["parameters_hash"], one.event("done")["parameters_hash"]);
    let report = std::fs::read_to_string(place.path("runs/quick-tiny-2/report.html")).unwrap();
    assert!(report.contains("Communication") && report.contains("bar all-reduce"));

    let args = ["train", &file, "--tiny", "--ranks=4", "train.micro_batch=1", "--resume=never"];
    let shown = place.good(&args).err;
    assert!(shown.contains("4 ranks, "), "{shown}");
}

#[test]
fn a_silent_rank_ends_the_process_with_32() {
    let place = Place::new();
    // Nobody is there within a nanosecond.
    let patience = "parallel.timeout_seconds=1e-9";
    let args =
        ["train", &recipe("quick"), "--tiny", "--ranks", "4", "train.micro_batch=1", patience];
    let ended = place.run(&args);
    assert_eq!(ended.code, 32, "{}", ended.err);
    assert!(ended.err.contains("error: ") && ended.err.contains("rank "), "{}", ended.err);
}
