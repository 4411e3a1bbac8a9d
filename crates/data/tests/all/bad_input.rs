//! Every way that input can be bad has one clear error, and leaves nothing behind.

use std::fs;
use std::path::Path;

use aerogel_data::{
    BinLayout, DataError, Dataset, MadeKind, NoProgress, Source, TokenType, TokenizerSpec, header,
};
use tempfile::tempdir;

use crate::common::{all, bpe, fails, jsonl, put, request, run, text};

#[test]
fn no_file_matches() {
    let dir = tempdir().unwrap();
    let error = fails(&request(text("*.md"), dir.path()));
    assert!(matches!(error, DataError::NoMatch { .. }));
    assert!(error.to_string().contains("*.md"), "{error}");
    assert_eq!(error.exit_code(), 20);
    let error = fails(&request(text("a/***/b"), dir.path()));
    assert!(matches!(error, DataError::BadPattern { .. }), "{error}");
    let cifar = Source::Cifar10Binary { dir: "nowhere".into() };
    assert!(matches!(fails(&request(cifar, dir.path())), DataError::NoMatch { .. }));
}

#[test]
fn empty_corpora() {
    let dir = tempdir().unwrap();
    put(&dir.path().join("a.txt"), "");
    put(&dir.path().join("a.jsonl"), "\n\n{\"text\": \"\"}\n");
    for source in [text("a.txt"), jsonl("a.jsonl")] {
        let mut request = request(source, dir.path());
        for tokenizer in [TokenizerSpec::bytes(), bpe(300)] {
            request.tokenizer = tokenizer;
            let error = fails(&request);
            assert!(matches!(error, DataError::Empty { what: "text", files: 1 }), "{error}");
            assert_eq!(error.exit_code(), 22);
        }
    }
}

#[test]
fn jsonl_lines_are_named_by_number() {
    let dir = tempdir().unwrap();
    let cases = [
        ("{\"text\": ", "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ("{\"title\": \"x\", \"id\": 3}", "no field \"text\"; the object has: id, title"),
        ("{\"text\": 3}", "is a number, wanted a string"),
        ("{\"text\": null}", "is null"),
        ("{\"text\": \"\\ud800\"}", "not JSON"),
    ];
    for (line, wanted) in cases {
        put(&dir.path().join("a.jsonl"), format!("{{\"text\": \"good\"}}\n\n{line}\n"));
        let error = fails(&request(jsonl("a.jsonl"), dir.path()));
        assert!(matches!(error, DataError::BadRecord { line: 3, .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("a.jsonl:3:") && message.contains(wanted), "{message}");
    }
    put(&dir.path().join("a.jsonl"), b"{\"text\": \"\xff\"}\n");
    assert!(fails(&request(jsonl("a.jsonl"), dir.path())).to_string().contains("a.jsonl:1:"));
}

#[test]
fn text_that_is_not_utf8_is_fine_for_bytes_and_named_for_bpe() {
    let dir = tempdir().unwrap();
    let mut bytes = "é\n".repeat(200_000).into_bytes();
    bytes[400_001] = 0xff;
    put(&dir.path().join("a.txt"), &bytes);
    let mut request = request(text("a.txt"), dir.path());
    request.tokenizer = bpe(300);
    let error = fails(&request);
    let DataError::NotUtf8 { offset, .. } = &error else { panic!("{error}") };
    assert!((400_000..=400_001).contains(offset), "{error}");
    request.tokenizer = TokenizerSpec::bytes();
    assert_eq!(run(&request).index.splits["train"].tokens, 600_000);
}

fn import(dir: &Path, bytes: &[u8], layout: BinLayout) -> DataError {
    put(&dir.join("t.bin"), bytes);
    let source = Source::Bin { train: vec!["t.bin".into()], validation: vec![], layout };
    let mut request = request(source, dir);
    request.tokenizer = TokenizerSpec::None { vocabulary: 100 };
    fails(&request)
}

#[test]
fn token_files_that_make_no_sense() {
    let dir = tempdir().unwrap();
    let good = [&header(TokenType::U16, 3)[..], &[1, 0, 2, 0, 3, 0]].concat();
    for cut in [good.len() - 1, good.len() - 2, 1024, 1000, 12, 4] {
        let error = import(dir.path(), &good[..cut], BinLayout::Auto);
        assert!(error.to_string().contains("cut off"), "{cut}: {error}");
        assert_eq!(error.exit_code(), 22);
    }
    let longer = [&good[..], &[0, 0]].concat();
    assert!(import(dir.path(), &longer, BinLayout::Auto).to_string().contains("has 1032"));
    let mut version = good.clone();
    version[4] = 9;
    let error = import(dir.path(), &version, BinLayout::Auto);
    assert!(error.to_string().contains("header version 9, wanted 1"), "{error}");
    let mut count = good.clone();
    count[8..12].copy_from_slice(&(-1i32).to_le_bytes());
    assert!(import(dir.path(), &count, BinLayout::Auto).to_string().contains("counts -1"));
    let mut magic = good.clone();
    magic[0] ^= 1;
    let error = import(dir.path(), &magic, BinLayout::Headers);
    assert!(error.to_string().contains("not a token file"), "{error}");
    assert!(import(dir.path(), &[1, 0, 2], BinLayout::NanoGpt).to_string().contains("cut off"));
    let error = import(dir.path(), &[1, 0, 100, 0], BinLayout::NanoGpt);
    assert!(matches!(error, DataError::TokenOutOfRange { position: 1, token: 100, .. }), "{error}");
    let error = import(dir.path(), b"", BinLayout::Auto);
    assert!(matches!(error, DataError::Empty { what: "token", .. }), "{error}");
}

#[test]
fn cifar_files_that_are_cut_off() {
    let dir = tempdir().unwrap();
    put(&dir.path().join("data_batch_1.bin"), [0; 3072]);
    let error = fails(&request(Source::Cifar10Binary { dir: ".".into() }, dir.path()));
    assert!(error.to_string().contains("data_batch_1.bin"), "{error}");
}

#[test]
fn combinations_without_meaning() {
    let dir = tempdir().unwrap();
    let made = |kind| Source::Made { kind, seed: 0 };
    let file = TokenizerSpec::File { path: "t.json".into(), end_of_text: None };
    let cases = [
        (made(MadeKind::Images), bpe(300)),
        (made(MadeKind::Images), file),
        (made(MadeKind::Bin), TokenizerSpec::bytes()),
        (made(MadeKind::Bin), TokenizerSpec::None { vocabulary: 0 }),
        (made(MadeKind::Text), TokenizerSpec::None { vocabulary: 9 }),
        (made(MadeKind::Text), bpe(256)),
    ];
    for (source, tokenizer) in cases {
        let mut request = request(source, dir.path());
        request.tokenizer = tokenizer;
        let error = fails(&request);
        assert!(matches!(error, DataError::BadOption { .. }), "{error}");
        assert_eq!(error.exit_code(), 20);
    }
    let mut request = request(made(MadeKind::Text), dir.path());
    request.shard_tokens = 0;
    assert_eq!(fails(&request).exit_code(), 20);
}

#[test]
#[cfg(not(feature = "parquet"))]
fn parquet_needs_its_feature() {
    let dir = tempdir().unwrap();
    put(&dir.path().join("a.parquet"), "");
    let source = Source::Parquet { globs: vec!["*.parquet".into()], column: "text".into() };
    let error = fails(&request(source, dir.path()));
    assert!(error.to_string().contains("--features parquet"), "{error}");
}

#[test]
fn an_output_folder_that_cannot_be_made() {
    let dir = tempdir().unwrap();
    put(&dir.path().join("a.txt"), "text\n");
    let mut request = request(text("a.txt"), dir.path());
    // A file where a folder has to be: refused for every user, root included.
    request.out = dir.path().join("a.txt/out");
    let error = aerogel_data::prepare(&request, &mut NoProgress).unwrap_err();
    assert!(matches!(error, DataError::Write { .. }), "{error}");
    assert_eq!(error.exit_code(), 23);
    request.out = dir.path().join("a.txt");
    let error = aerogel_data::prepare(&request, &mut NoProgress).unwrap_err();
    assert!(matches!(error, DataError::Write { .. }), "{error}");
    assert_eq!(fs::read(dir.path().join("a.txt")).unwrap(), b"text\n");
}

#[test]
fn damaged_folders() {
    let dir = tempdir().unwrap();
    put(&dir.path().join("a.txt"), "some text that is long enough\n".repeat(9));
    let mut request = request(text("a.txt"), dir.path());
    request.tokenizer = bpe(300);
    run(&request);
    let open = || Dataset::open(&request.out);
    let index = request.out.join("index.json");
    let good = fs::read(&index).unwrap();

    // Any one byte of the index, changed or cut off at: an error, never a panic or a wrong read.
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&index, &bad).unwrap();
        if let Ok(dataset) = open() {
            // Only white space may change unnoticed.
            assert!(good[at].is_ascii_whitespace(), "byte {at} unnoticed");
            drop(dataset);
        }
    }
    for cut in (0..good.len() - 1).step_by(97) {
        fs::write(&index, &good[..cut]).unwrap();
        assert!(matches!(open().unwrap_err(), DataError::BadIndex { .. }));
    }
    let newer =
        String::from_utf8(good.clone()).unwrap().replace("\"version\": 1", "\"version\": 2");
    fs::write(&index, newer).unwrap();
    assert!(open().unwrap_err().to_string().contains("its version is 2"));
    fs::remove_file(&index).unwrap();
    assert!(matches!(open().unwrap_err(), DataError::Read { .. }));
    fs::write(&index, &good).unwrap();

    let shard = request.out.join("train-00000.bin");
    let tokens = fs::read(&shard).unwrap();
    let mut flipped = tokens.clone();
    *flipped.last_mut().unwrap() ^= 0x80;
    fs::write(&shard, &flipped).unwrap();
    let dataset = open().unwrap();
    let error = dataset.verify(&mut NoProgress).unwrap_err();
    assert!(matches!(error, DataError::ChecksumMismatch { .. }), "{error}");
    assert!(error.to_string().contains("train-00000.bin"), "{error}");
    // A token beyond the vocabulary is never handed on, verified or not.
    let train = dataset.split("train").unwrap();
    let error = train.tokens(0..train.len()).unwrap_err();
    assert!(matches!(error, DataError::TokenOutOfRange { .. }), "{error}");
    drop(dataset);
    fs::write(&shard, &tokens[..tokens.len() - 2]).unwrap();
    assert!(open().unwrap_err().to_string().contains("cut off"));
    fs::remove_file(&shard).unwrap();
    assert!(open().unwrap_err().to_string().contains("train-00000.bin"));
    fs::write(&shard, &tokens).unwrap();

    let file = request.out.join("tokenizer.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen("[\"", "[ \"", 1)).unwrap();
    let error = open().unwrap().tokenizer().unwrap_err();
    assert!(matches!(error, DataError::ChecksumMismatch { .. }), "{error}");
    fs::write(&file, text).unwrap();
    assert!(!all(&request.out, "train").is_empty());
    let dataset = open().unwrap();
    let error = dataset.split("test").unwrap_err();
    assert!(error.to_string().contains("it has [\"train\"]"), "{error}");
}
