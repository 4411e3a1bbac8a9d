//! Bytes and BPE: encoding and decoding are inverse, training is deterministic.

use std::fs;
use std::sync::LazyLock;

use aerogel_data::{Dataset, END_OF_TEXT, MadeKind, Tokenizer, TokenizerSpec, made};
use proptest::prelude::*;
use tempfile::tempdir;

use crate::common::{all, bpe, jsonl, request, run};

fn corpus() -> Vec<String> {
    let dir = tempdir().unwrap();
    made::write(MadeKind::Text, dir.path(), 1).unwrap();
    (0..8).map(|n| fs::read_to_string(dir.path().join(format!("{n}.txt"))).unwrap()).collect()
}

static BPE: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::train(corpus().into_iter(), 400).unwrap());

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bpe_decodes_what_it_encoded(text in "(\\PC|[ \n\t]|the|river|<\\|endoftext\\|>){0,60}") {
        let tokens = BPE.encode(text.as_bytes()).unwrap();
        prop_assert!(tokens.iter().all(|&t| t < BPE.vocabulary()));
        prop_assert!(!tokens.contains(&BPE.end_of_text().unwrap()));
        prop_assert_eq!(BPE.decode(&tokens).unwrap(), text.as_bytes());
    }

    #[test]
    fn streams_show_the_whole_text(text in "(\\PC|é|😀|[ \n]){0,40}") {
        for tokenizer in [&*BPE, &Tokenizer::bytes()] {
            let mut stream = tokenizer.stream();
            let mut shown = String::new();
            for token in tokenizer.encode(text.as_bytes()).unwrap() {
                shown += &stream.push(token).unwrap();
            }
            shown += &stream.finish().unwrap();
            prop_assert_eq!(&shown, &text);
        }
    }

    #[test]
    fn bytes_decode_what_they_encoded(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let tokenizer = Tokenizer::bytes();
        prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&bytes).unwrap()).unwrap(), bytes);
    }
}

#[test]
fn a_character_is_shown_when_its_last_byte_came() {
    let tokenizer = Tokenizer::bytes();
    let mut stream = tokenizer.stream();
    let shown: Vec<String> = "é😀".bytes().map(|b| stream.push(b.into()).unwrap()).collect();
    assert_eq!(shown, ["", "é", "", "", "", "😀"]);
    assert_eq!(stream.push(0xff).unwrap(), "\u{fffd}");
    assert_eq!(stream.push(0xe2).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
}

#[test]
fn training_ignores_order_and_repeats_exactly() {
    let dir = tempdir().unwrap();
    let save = |texts: Vec<String>, name: &str| {
        let path = dir.path().join(name);
        Tokenizer::train(texts.into_iter(), 400).unwrap().save(&path).unwrap();
        fs::read(path).unwrap()
    };
    let first = save(corpus(), "first");
    assert!(first == save(corpus(), "second"));
    assert!(first == save(corpus().into_iter().rev().collect(), "reversed"));
    assert_eq!(BPE.vocabulary(), 400);
    let text = corpus().concat();
    assert!(BPE.encode(text.as_bytes()).unwrap().len() * 2 < text.len(), "it hardly compresses");
}

#[test]
fn long_runs_of_one_character_survive() {
    for text in [" ".repeat(200_000), "a".repeat(200_000), "\n \n".repeat(50_000)] {
        let tokens = BPE.encode(text.as_bytes()).unwrap();
        assert!(BPE.decode(&tokens).unwrap() == text.as_bytes());
    }
}

#[test]
fn bpe_documents_end_with_the_end_of_text() {
    let dir = tempdir().unwrap();
    made::write(MadeKind::Jsonl, dir.path(), 1).unwrap();
    let mut first = request(jsonl("*.jsonl"), dir.path());
    first.tokenizer = bpe(350);
    let index = run(&first).index;
    let dataset = Dataset::open(&first.out).unwrap();
    let tokenizer = dataset.tokenizer().unwrap().unwrap();
    let tokens = all(&first.out, "train");
    let end = index.tokenizer.end_of_text.unwrap();
    let documents: Vec<Vec<u8>> = tokens
        .split_inclusive(|&t| t == end)
        .map(|d| tokenizer.decode(d.strip_suffix(&[end]).unwrap()).unwrap())
        .collect();
    let lines = fs::read_to_string(dir.path().join("documents.jsonl")).unwrap();
    let wanted: Vec<Vec<u8>> = lines
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
        .map(|v| v["text"].as_str().unwrap().into())
        .collect();
    assert_eq!(documents, wanted);
    let train = &index.splits["train"];
    assert_eq!(train.documents, 400);
    assert_eq!(train.bytes, Some(wanted.iter().map(|d| d.len() as u64).sum()));

    // The saved file serves another corpus.
    let mut second = first.clone();
    second.out = dir.path().join("again");
    let path = "out/tokenizer.json".into();
    second.tokenizer = TokenizerSpec::File { path, end_of_text: Some(END_OF_TEXT.into()) };
    run(&second);
    assert_eq!(all(&second.out, "train"), tokens);
}

#[test]
fn tokenizers_that_join_words_by_rules_stream_too() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("words.json");
    let vocabulary = serde_json::json!({"▁the": 0, "▁ri": 1, "ver": 2, "</s>": 3, "<unk>": 4});
    let metaspace = serde_json::json!(
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}
    );
    let file = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [], "pre_tokenizer": metaspace, "post_processor": null,
        "decoder": metaspace,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    });
    fs::write(&path, file.to_string()).unwrap();
    let tokenizer = Tokenizer::from_file(&path, None).unwrap();
    assert_eq!((tokenizer.vocabulary(), tokenizer.end_of_text()), (5, Some(3)));
    let tokens = [0, 1, 2, 0, 0, 1, 2];
    let whole = String::from_utf8(tokenizer.decode(&tokens).unwrap()).unwrap();
    assert_eq!(whole, "the river the the river");
    let mut stream = tokenizer.stream();
    let mut shown: String = tokens.iter().map(|&t| stream.push(t).unwrap()).collect();
    shown += &stream.finish().unwrap();
    assert_eq!(shown, whole);
}

#[test]
fn wrong_tokenizers_are_named() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("t.json");
    fs::write(&path, "{}").unwrap();
    let error = Tokenizer::from_file(&path, None).unwrap_err();
    assert!(error.to_string().contains("t.json: not a tokenizer.json"), "{error}");
    BPE.save(&path).unwrap();
    let wild = fs::read_to_string(&path).unwrap().replacen("\"!\":1,", "\"!\":4294967295,", 1);
    fs::write(&path, wild).unwrap();
    let error = Tokenizer::from_file(&path, None).unwrap_err().to_string();
    assert!(error.contains("has token 4294967295"), "{error}");
    BPE.save(&path).unwrap();
    let error = Tokenizer::from_file(&path, Some("<stop>")).unwrap_err().to_string();
    assert!(error.contains("<stop>") && error.contains("end_of_text"), "{error}");
    assert_eq!(Tokenizer::train(std::iter::empty(), 256).unwrap_err().exit_code(), 20);
    assert!(BPE.decode(&[BPE.vocabulary()]).is_err());
    assert!(BPE.encode(&[0xff]).is_err());
}
