//! Faults of the command line, of recipes and of data: one message, and the exit code.

use super::bin::{Place, SMALL, recipe};
use std::time::Duration;

/// Runs a command that has to fail, with these parts in its one message.
fn fails(place: &Place, args: &[&str], code: i32, parts: &[&str]) {
    let ended = place.run(args);
    assert_eq!(ended.code, code, "{args:?}: {}{}", ended.out, ended.err);
    assert_eq!(ended.err.matches("error: ").count(), 1, "{}", ended.err);
    assert!(!ended.err.contains("panicked"), "{}", ended.err);
    for part in parts {
        assert!(ended.err.contains(part), "{args:?}: `{part}` is not in: {}", ended.err);
    }
}

/// The same for what has to be found before any work: within a second, leaving nothing.
fn refused(place: &Place, args: &[&str], parts: &[&str]) {
    fails(place, args, 20, parts);
    let ended = place.run(args);
    assert_eq!(ended.out, "", "{args:?}");
    assert!(ended.took < Duration::from_secs(1), "{args:?} took {:?}", ended.took);
    assert!(!place.path("data").exists() && !place.path("runs").exists(), "{args:?} left traces");
}

#[test]
fn the_command_line() {
    let place = Place::small();
    let small = "small.toml";
    refused(&place, &["trian"], &["unrecognized subcommand 'trian'", "train"]);
    refused(&place, &["train"], &["required", "<RECIPE>"]);
    refused(&place, &["train", small, "--jsno"], &["unexpected argument '--jsno'", "--json"]);
    refused(&place, &["train", small, "--resume", "last"], &["auto, never, or the number"]);
    refused(&place, &["eval", "x", "--split", "tset"], &["tset", "validation", "test"]);
    refused(&place, &["sample", "x", "--count", "many"], &["invalid value 'many'", "--count"]);
    refused(&place, &["sample", "x", "--count", "0"], &["have to be 1 at least"]);
    refused(&place, &["sample", "x", "--temperature=-1"], &["--temperature", "0 or more"]);
    refused(&place, &["eval", "nope"], &["there is no run `nope`", "train first"]);
    refused(&place, &["inspect", "nope"], &["there is no run `nope`", "train first"]);
    refused(&place, &["eval", "nope", "--tiny"], &["--tiny goes with a recipe"]);
    refused(&place, &["eval", small], &["there is no run `small`", "train first"]);
}

#[test]
fn overrides() {
    let place = Place::small();
    for command in ["prepare", "plan", "train"] {
        let try_it = |text: &str, parts: &[&str]| {
            refused(&place, &[command, "small.toml", text], parts);
        };
        try_it("layers", &["override `layers`", "write section.key=value"]);
        try_it("layers=4", &["override `layers=4`", "write section.key=value"]);
        try_it("modle.layers=4", &["no section [modle]", "model"]);
        try_it("model.layer=4", &["no key `layer`", "layers"]);
        try_it("model.layers=four", &["`model.layers`", "wanted", "got"]);
        try_it("model.layers=0", &["`model.layers = 0`", "out of range"]);
        try_it("model.heads=3", &["model.embed", "model.heads"]);
        try_it("train.micro_batch=3", &["train.micro_batch", "train.batch"]);
        try_it("model.stride=7", &["`model.stride` has no effect"]);
    }
}

#[test]
fn recipes() {
    let place = Place::small();
    refused(&place, &["plan", "absent.toml"], &["absent.toml", "cannot be read", ".toml file"]);
    place.write("folder.toml/x", "");
    refused(&place, &["plan", "folder.toml"], &["folder.toml", "cannot be read"]);
    let broken = |name: &str, from: &str, to: &str, parts: &[&str]| {
        assert!(SMALL.contains(from));
        place.write(name, &SMALL.replace(from, to));
        refused(&place, &["train", name], &[&[name], parts].concat());
    };
    broken("syntax.toml", "layers = 1", "layers = = 1", &["syntax.toml:4", "not valid TOML"]);
    broken("family.toml", "gpt2", "gpt3", &["family.toml:3", "gpt2"]);
    broken("missing.toml", "layers = 1\n", "", &["`model.layers` is missing"]);
    broken("section.toml", "[train]", "[trian]", &["section.toml:", "[trian]", "`train`"]);
    broken("kind.toml", "adamw", "adamm", &["kind.toml:", "adamw"]);
    std::fs::write(place.path("bytes.toml"), b"[model]\nfamily = \"\xff\"\n").unwrap();
    refused(&place, &["plan", "bytes.toml"], &["bytes.toml", "cannot be read"]);
}

#[test]
fn absent_data_says_how_to_get_it() {
    for name in ["shakespeare", "enwik8-fixed", "arxiv-bpe", "cifar10-strided", "gpt2-124m"] {
        let place = Place::new();
        let text = std::fs::read_to_string(recipe(name)).unwrap();
        place.write(&format!("{name}.toml"), &text);
        fails(
            &place,
            &["prepare", &format!("{name}.toml")],
            22,
            &["To get the data: ", "recipes/"],
        );
    }
}

#[test]
fn data() {
    let place = Place::small();
    let small = ["train", "small.toml"];
    let train = |more: &[&'static str], code: i32, parts: &[&str]| {
        fails(&place, &[&small[..], more].concat(), code, parts);
    };
    train(&["data.paths=[\"none/*.txt\"]"], 20, &["no file matches", "none/*.txt"]);
    train(&["data.paths=[\"text/[.txt\"]"], 20, &["text/[.txt", "not a glob"]);
    train(&["model.context=3000"], 22, &["tokens", "context", "shorter"]);
    place.write("text/empty/0.txt", "");
    train(&["data.paths=[\"text/empty/*.txt\"]"], 22, &["holds no text"]);
    train(&["data.blake3=\"00\""], 20, &["blake3"]);
    place.write("bad/0.jsonl", "{\"text\": \"good\"}\n{\"text\": \n");
    place.write("jsonl.toml", &SMALL.replace("\"text\"", "\"jsonl\"\nfield = \"text\""));
    let jsonl = |paths: &str, parts: &[&str]| {
        let paths = format!("data.paths=[\"{paths}\"]");
        fails(&place, &["prepare", "jsonl.toml", &paths], 22, parts);
    };
    jsonl("bad/0.jsonl", &["bad/0.jsonl:2"]);
    place.write("bad/1.jsonl", "{\"txet\": \"good\"}\n");
    jsonl("bad/1.jsonl", &["bad/1.jsonl:1", "text"]);
    std::fs::write(place.path("bad/2.txt"), b"half \xff\xfe").unwrap();
    let args = ["tokenizer.kind=bpe", "tokenizer.vocab=300", "data.paths=[\"bad/2.txt\"]"];
    fails(&place, &[&["prepare", "small.toml"][..], &args].concat(), 22, &["not UTF-8 at byte 5"]);
}

#[test]
fn images() {
    let place = Place::new();
    let text = SMALL
        .replace("gpt2", "sparse_transformer")
        .replace("\"text\"", "\"images\"\nimage = [4, 4, 3]")
        .replace("paths = [\"text/*.txt\"]", "train = \"pictures\"")
        .replace("context = 32\n", "");
    place.write("images.toml", &text);
    let prepare = ["prepare", "images.toml"];
    fails(&place, &prepare, 22, &["pictures"]);
    let shape = aerogel_data::ImageShape { height: 5, width: 4, channels: 3 };
    let path = place.path("pictures/a/0.png");
    aerogel_data::made::write_image(&path, &[0; 60], shape).unwrap();
    fails(&place, &prepare, 22, &["0.png", "5x4x3", "4x4x3"]);
    place.write("pictures/a/0.png", "no image");
    fails(&place, &prepare, 22, &["0.png", "cannot be decoded", "replace or remove"]);
}

#[test]
fn prepared_data_that_is_damaged_or_gone() {
    let place = Place::small();
    place.good(&["train", "small.toml"]);
    let shard = std::fs::read_dir(place.path("data/small"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.to_str().unwrap().contains("train"))
        .unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&shard).unwrap();
    file.set_len(1500).unwrap();
    fails(&place, &["eval", "small"], 22, &["train", "tokens"]);
    let again = place.good(&["prepare", "small.toml"]).out;
    assert!(again.contains("rebuilt"), "{again}");
    place.good(&["eval", "small"]);
    super::bin::damage(&place.path("data/small/index.json"));
    fails(&place, &["eval", "small"], 22, &["index.json", "prepare the data again"]);
    std::fs::remove_dir_all(place.path("data")).unwrap();
    fails(&place, &["sample", "small"], 22, &["data/small", "--data"]);
}

#[test]
fn run_folders() {
    let place = Place::small();
    place.write("taken", "a file");
    fails(&place, &["train", "small.toml", "--runs", "taken"], 23, &["taken", "Not a directory"]);
    fails(&place, &["prepare", "small.toml", "--data", "taken"], 23, &["taken"]);
    place.write("runs/small/notes.txt", "mine");
    fails(&place, &["train", "small.toml"], 20, &["has files but no run.json"]);
    std::fs::remove_dir_all(place.path("runs")).unwrap();
    place.good(&["train", "small.toml"]);
    fails(&place, &["eval", "small", "--step", "9"], 20, &["no checkpoint of step 9", "4"]);
    fails(&place, &["eval", "small", "--split", "test"], 20, &["no split \"test\"", "validation"]);
    let long = ["sample", "small", "--tokens", "1000"];
    fails(&place, &long, 20, &["1000 tokens", "context 32", "fewer"]);
    let png = ["sample", "small", "--complete", "x.png"];
    fails(&place, &png, 20, &["--complete and --out are for images"]);
    std::fs::remove_file(place.path("runs/small/recipe.toml")).unwrap();
    fails(&place, &["eval", "small"], 20, &["recipe.toml", "restore"]);
    std::fs::remove_dir_all(place.path("runs/small/checkpoints")).unwrap();
    fails(&place, &["eval", "small"], 20, &["recipe"]);
}

#[test]
fn what_cannot_run() {
    let place = Place::small();
    let budget = ["train", "small.toml", "memory.budget=10000"];
    fails(&place, &budget, 21, &["needs", "10000", "largest"]);
    assert!(!place.path("data").exists(), "before work on data");
    let rate = ["train", "small.toml", "optimizer.learning_rate=1e38", "train.steps=20"];
    fails(&place, &rate, 30, &["is not finite", "optimizer.learning_rate"]);
}
