//! The graphs of a recipe, pass by pass.

use super::bin::{Place, recipe};

/// The cells of the line of a pass.
fn cells(text: &str, pass: &str) -> Vec<String> {
    let line = text.lines().find(|l| l.split_whitespace().next() == Some(pass));
    let line = line.unwrap_or_else(|| panic!("no {pass} in {text}"));
    line.split_whitespace().map(str::to_owned).collect()
}

fn number(cell: &str) -> u64 {
    cell.replace(',', "").parse().unwrap()
}

#[test]
fn every_pass_has_a_line() {
    let place = Place::new();
    let file = recipe("quick");
    let text = place.good(&["explain", &file, "--tiny"]).out;
    let passes: Vec<_> = text.lines().skip(1).filter_map(|l| l.split_whitespace().next()).collect();
    let wanted =
        ["forward", "precision", "backward", "buckets", "cut", "micro.last", "update", "eval"];
    assert!(passes.starts_with(&wanted), "{passes:?}");
    let (forward, backward) = (cells(&text, "forward"), cells(&text, "backward"));
    assert!(number(&backward[1]) > 2 * number(&forward[1]), "{text}");
    let plan = place.good(&["plan", &file, "--tiny", "--json"]).object();
    for pass in ["forward", "backward", "buckets", "micro.last"] {
        let line = cells(&text, pass);
        // Nodes, values, FLOP with its unit, parameters.
        let parameters = line.iter().find(|c| c.contains(',') && number(c) == plan["parameters"]);
        assert!(parameters.is_some(), "{pass}: {line:?}");
        assert_eq!(line.last().unwrap(), "0", "one rank exchanges nothing");
    }
    assert!(!place.path("data").exists(), "explaining leaves nothing");
}

#[test]
fn what_a_recipe_asks_for_adds_passes() {
    let place = Place::new();
    let file = recipe("quick");
    let mesh = "parallel.mesh={ tensor = 2, pipe = 2 }";
    let args =
        ["explain", &file, "--tiny", mesh, "memory.recompute=\"block\"", "train.micro_batch=2"];
    let text = place.good(&args).out;
    for pass in [
        "recompute",
        "partition",
        "buckets",
        "cut",
        "stage.0.forward.0",
        "stage.1.backward.0.micro.last",
        "stage.1.update",
    ] {
        cells(&text, pass);
    }
    // Clones cost nodes, and leave less to the backward.
    let nodes = |pass: &str| number(&cells(&text, pass)[1]);
    assert!(nodes("recompute") > nodes("backward"), "{text}");
    assert_ne!(cells(&text, "partition").last().unwrap(), "0", "tensor ranks exchange");
    assert_eq!(cells(&text, "recompute").last().unwrap(), "0");
}

#[test]
fn a_pass_is_shown_as_text() {
    let place = Place::new();
    let file = recipe("quick");
    let of = |more: &[&str]| place.good(&[&["explain", &file, "--tiny"], more].concat()).out;
    let whole = of(&["--pass", "backward"]);
    let text = whole.strip_prefix("# backward\n").unwrap();
    assert!(text.starts_with("graph v1\n"), "{text}");
    let graph = aerogel_graph::text::parse(text).unwrap();
    assert_eq!(aerogel_graph::text::print(&graph), text, "the text is that of a graph");
    let block = of(&["--pass", "backward", "--scope", "h.0"]);
    assert!(block.lines().skip(1).all(|l| l.contains(" @h.0.") || l.contains(" @h.0")), "{block}");
    assert!(block.contains("!backward") && !block.contains("@h.1"), "{block}");
    let two = of(&["--pass", "micro", "train.micro_batch=1"]);
    assert!(two.contains("# micro.0\n") && two.contains("# micro.last\n"));
}

#[test]
fn a_pass_that_there_is_not_is_refused() {
    let place = Place::new();
    let file = recipe("quick");
    let run = |more: &[&str]| place.run(&[&["explain", &file, "--tiny"], more].concat());
    let pass = run(&["--pass", "backwards"]);
    assert_eq!(pass.code, 20);
    assert!(pass.err.contains("choose one of forward, precision, backward"), "{}", pass.err);
    let scope = run(&["--pass", "forward", "--scope", "h.7"]);
    assert_eq!(scope.code, 20);
    assert!(scope.err.contains("no node in scope `h.7`"), "{}", scope.err);
    assert_eq!(run(&["--scope", "h.0"]).code, 20, "a scope is one of a pass");
}
