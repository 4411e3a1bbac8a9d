//! Atomic, repeatable, restartable.

use std::fs;
use std::sync::Mutex;

use aerogel_data::{
    DataError, Dataset, MadeKind, NoProgress, Outcome, Progress, Source, SplitSpec, Unit, made,
    prepare,
};
use tempfile::tempdir;

use crate::common::{all_bytes, bpe, fails, jsonl, put, request, run, text};

#[derive(Default)]
struct Recorder {
    stages: Vec<(String, u64, Unit, u64)>,
    messages: Vec<String>,
    stop_after: Option<u64>,
}

impl Progress for Recorder {
    fn start(&mut self, stage: &str, total: u64, unit: Unit) {
        self.stages.push((stage.into(), total, unit, 0));
    }
    fn tick(&mut self, done: u64) {
        self.stages.last_mut().unwrap().3 += done;
    }
    fn message(&mut self, text: &str) {
        self.messages.push(text.into());
    }
    fn stopped(&self) -> bool {
        let done: u64 = self.stages.iter().map(|s| s.3).sum();
        self.stop_after.is_some_and(|n| done >= n)
    }
}

#[test]
fn a_second_call_does_nothing_and_a_change_rebuilds() {
    let dir = tempdir().unwrap();
    put(&dir.path().join("a.txt"), "first\n");
    let mut request = request(text("*.txt"), dir.path());
    assert_eq!(run(&request).outcome, Outcome::Built);
    let before = fs::metadata(request.out.join("train-00000.bin")).unwrap().modified().unwrap();
    assert_eq!(run(&request).outcome, Outcome::UpToDate);
    let after = fs::metadata(request.out.join("train-00000.bin")).unwrap().modified().unwrap();
    assert_eq!(before, after);

    put(&dir.path().join("a.txt"), "changed!\n");
    assert_eq!(run(&request).outcome, Outcome::Rebuilt);
    assert_eq!(all_bytes(&request.out, "train"), b"changed!\n");
    put(&dir.path().join("b.txt"), "more\n");
    assert_eq!(run(&request).outcome, Outcome::Rebuilt);
    request.tokenizer = bpe(300);
    assert_eq!(run(&request).outcome, Outcome::Rebuilt);
    fs::remove_file(request.out.join("tokenizer.json")).unwrap();
    assert_eq!(run(&request).outcome, Outcome::Rebuilt);
    request.split.seed = 9;
    assert_eq!(run(&request).outcome, Outcome::Rebuilt);
    fs::write(request.out.join("train-00000.bin"), "cut").unwrap();
    assert_eq!(run(&request).outcome, Outcome::Rebuilt);
    assert_eq!(run(&request).outcome, Outcome::UpToDate);
    assert!(!request.out.with_file_name(".out.tmp-old").exists());
}

#[test]
fn equal_requests_write_equal_bytes() {
    let dir = tempdir().unwrap();
    made::write(MadeKind::Jsonl, dir.path(), 1).unwrap();
    let mut request = request(jsonl("*.jsonl"), dir.path());
    request.tokenizer = bpe(400);
    request.split = SplitSpec { validation: Some(0.2), test: Some(0.1), seed: 3 };
    let first = run(&request).index;
    request.out = dir.path().join("again");
    assert_eq!(run(&request).index, first);
    for name in ["index.json", "tokenizer.json", "train-00000.bin", "test-00000.bin"] {
        let read = |folder: &str| fs::read(dir.path().join(folder).join(name)).unwrap();
        assert!(read("out") == read("again"), "{name}");
    }
}

#[test]
fn progress_reaches_its_total() {
    let dir = tempdir().unwrap();
    made::write(MadeKind::Jsonl, dir.path(), 1).unwrap();
    put(&dir.path().join("empty.jsonl"), "\n{\"text\": \"\"}\n");
    let mut request = request(jsonl("*.jsonl"), dir.path());
    request.tokenizer = bpe(60_000);
    let mut recorder = Recorder::default();
    let index = prepare(&request, &mut recorder).unwrap().index;
    let names: Vec<_> = recorder.stages.iter().map(|s| s.0.as_str()).collect();
    assert_eq!(names, ["train tokenizer", "write shards"]);
    for (stage, total, unit, done) in &recorder.stages {
        // Blank lines carry no document and so no tick.
        assert_eq!((*unit, total - done), (Unit::Bytes, 1), "{stage}");
    }
    assert_eq!(index.skipped.empty_documents, 1);
    assert!(recorder.messages.iter().any(|m| m.contains("1 empty documents")));
    assert!(recorder.messages.iter().any(|m| m.contains("of the 60000 entries")));
    let dataset = Dataset::open(&request.out).unwrap();
    let mut recorder = Recorder::default();
    dataset.verify(&mut recorder).unwrap();
    assert_eq!(recorder.stages[0].1, recorder.stages[0].3);
}

#[test]
fn stopping_leaves_what_was_there() {
    let dir = tempdir().unwrap();
    made::write(MadeKind::Jsonl, dir.path(), 1).unwrap();
    let mut request = request(jsonl("*.jsonl"), dir.path());
    for bytes in [0, 1000, 20_000, 90_000] {
        for tokenizer in [aerogel_data::TokenizerSpec::bytes(), bpe(400)] {
            request.tokenizer = tokenizer;
            let mut stop = Recorder { stop_after: Some(bytes), ..Recorder::default() };
            if let Err(error) = prepare(&request, &mut stop) {
                assert!(matches!(error, DataError::Interrupted), "{error}");
                assert_eq!(error.exit_code(), 10);
                let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
                assert!(left.iter().all(|e| !e.file_name().to_string_lossy().contains(".tmp-")));
            }
        }
    }
    request.tokenizer = aerogel_data::TokenizerSpec::bytes();
    let built = run(&request).index;
    request.split.seed = 1;
    let mut stop = Recorder { stop_after: Some(5000), ..Recorder::default() };
    assert!(prepare(&request, &mut stop).is_err());
    assert_eq!(Dataset::open(&request.out).unwrap().index(), &built);
}

#[test]
fn leftovers_of_a_killed_process_are_removed() {
    let dir = tempdir().unwrap();
    put(&dir.path().join("a.txt"), "text\n");
    put(&dir.path().join(".out.tmp-4194305/train-00000.bin"), "half");
    put(&dir.path().join(".out.lock"), "");
    let request = request(text("a.txt"), dir.path());
    assert_eq!(run(&request).outcome, Outcome::Built);
    assert!(!dir.path().join(".out.tmp-4194305").exists());
}

#[test]
fn processes_at_once_build_once() {
    let dir = tempdir().unwrap();
    made::write(MadeKind::Jsonl, dir.path(), 1).unwrap();
    let mut request = request(jsonl("*.jsonl"), dir.path());
    request.tokenizer = bpe(400);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| outcomes.lock().unwrap().push(run(&request).outcome));
        }
    });
    let outcomes = outcomes.into_inner().unwrap();
    assert_eq!(outcomes.iter().filter(|o| **o == Outcome::Built).count(), 1, "{outcomes:?}");
    assert_eq!(outcomes.iter().filter(|o| **o == Outcome::UpToDate).count(), 3);
    Dataset::open(&request.out).unwrap().verify(&mut NoProgress).unwrap();
}

#[test]
fn a_folder_of_someone_else_is_never_replaced() {
    let dir = tempdir().unwrap();
    put(&dir.path().join("a.txt"), "text\n");
    put(&dir.path().join("out/thesis.tex"), "years of work");
    let request = request(text("a.txt"), dir.path());
    let error = fails(&request);
    assert!(error.to_string().contains("thesis.tex"), "{error}");
    assert_eq!(error.exit_code(), 20);
    assert_eq!(fs::read(dir.path().join("out/thesis.tex")).unwrap(), b"years of work");
}

#[test]
fn a_tokenizer_never_sees_held_out_documents() {
    let dir = tempdir().unwrap();
    let line = |i: usize, word: &str| format!("{{\"text\": \"{word} {i}\"}}\n");
    let train: String = (0..300).map(|i| line(i, "common")).collect();
    put(&dir.path().join("a.jsonl"), train);
    let mut request = request(jsonl("a.jsonl"), dir.path());
    request.split.validation = Some(0.5);
    request.tokenizer = bpe(290);
    run(&request);
    let first = fs::read(request.out.join("tokenizer.json")).unwrap();
    // Only documents of the validation split are added: the tokenizer stays what it was.
    let held = String::from_utf8(decoded(&request.out, "validation")).unwrap();
    let more: String = held
        .split("<|endoftext|>")
        .filter(|d| !d.is_empty())
        .map(|d| format!("{{\"text\": \"{d}\"}}\n").repeat(20))
        .collect();
    put(&dir.path().join("b.jsonl"), more);
    request.source = jsonl("*.jsonl");
    assert_eq!(run(&request).outcome, Outcome::Rebuilt);
    assert!(first == fs::read(request.out.join("tokenizer.json")).unwrap());
}

fn decoded(folder: &std::path::Path, split: &str) -> Vec<u8> {
    let dataset = Dataset::open(folder).unwrap();
    let tokens = dataset.split(split).unwrap();
    let tokens = tokens.tokens(0..tokens.len()).unwrap();
    dataset.tokenizer().unwrap().unwrap().decode(&tokens).unwrap()
}

#[test]
#[cfg(unix)]
fn a_linked_folder_stays_linked() {
    let dir = tempdir().unwrap();
    put(&dir.path().join("a.txt"), "text\n");
    let other = dir.path().join("disk/data");
    fs::create_dir_all(&other).unwrap();
    let mut request = request(text("a.txt"), dir.path());
    std::os::unix::fs::symlink(&other, &request.out).unwrap();
    for seed in 0..2 {
        request.split.seed = seed;
        run(&request);
        assert!(request.out.is_symlink() && other.join("index.json").is_file());
    }
}

#[test]
fn made_sources_need_no_files_and_stay_up_to_date() {
    let dir = tempdir().unwrap();
    let request = request(Source::Made { kind: MadeKind::Text, seed: 1 }, dir.path());
    assert_eq!(run(&request).outcome, Outcome::Built);
    assert_eq!(run(&request).outcome, Outcome::UpToDate);
    let names = fs::read_dir(&request.out).unwrap().flatten().map(|e| e.file_name());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["index.json", "train-00000.bin"]);
}
