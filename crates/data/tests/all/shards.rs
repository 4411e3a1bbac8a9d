//! Layout of the token files, on disk byte by byte and through every import.

use std::fs;

use aerogel_data::{
    BinLayout, Dataset, MadeKind, NoProgress, Request, ShardFormat, Source, SplitSpec, TokenType,
    Tokenizer, TokenizerSpec, header, made,
};
use tempfile::tempdir;

use crate::common::{all, all_bytes, bpe, put, request, run, text};

#[test]
fn byte_text_comes_back_byte_for_byte() {
    let dir = tempdir().unwrap();
    let one: Vec<u8> = (0..=255).chain([10]).collect();
    put(&dir.path().join("a.txt"), &one);
    put(&dir.path().join("b.txt"), "no newline at the end");
    let request = request(text("*.txt"), dir.path());
    let index = run(&request).index;
    let wanted = [one.as_slice(), b"no newline at the end\n"].concat();
    assert_eq!(all_bytes(&request.out, "train"), wanted);
    let train = &index.splits["train"];
    assert_eq!((train.documents, train.bytes), (2, Some(wanted.len() as u64)));
    assert_eq!(index.token_type, TokenType::U8);
    let file = fs::read(request.out.join("train-00000.bin")).unwrap();
    assert_eq!(file[..8], *b"AERO\x01\0\0\0");
    assert_eq!(file[8..12], (wanted.len() as u32).to_le_bytes());
    assert_eq!(file[1024..], wanted);
}

#[test]
fn documents_join_bare_without_a_separator() {
    let dir = tempdir().unwrap();
    put(&dir.path().join("a.txt"), "ab");
    put(&dir.path().join("b.txt"), "cd");
    let mut request = request(text("*.txt"), dir.path());
    request.tokenizer = TokenizerSpec::Bytes { separator: None };
    run(&request);
    assert_eq!(all_bytes(&request.out, "train"), b"abcd");
}

#[test]
fn u16_files_are_those_of_llm_c() {
    let dir = tempdir().unwrap();
    made::write(MadeKind::Text, dir.path(), 3).unwrap();
    let mut request = request(text("0.txt"), dir.path());
    request.tokenizer = bpe(300);
    let index = run(&request).index;
    let tokens = all(&request.out, "train");
    let mut wanted = Vec::new();
    for word in [20_240_520i32, 1, tokens.len() as i32] {
        wanted.extend(word.to_le_bytes());
    }
    wanted.resize(1024, 0);
    wanted.extend(tokens.iter().flat_map(|&t| (t as u16).to_le_bytes()));
    assert_eq!(fs::read(request.out.join("train-00000.bin")).unwrap(), wanted);
    assert_eq!(index.splits["train"].shards[0].blake3, blake3::hash(&wanted).to_hex().to_string());
}

#[test]
fn headers_of_other_widths() {
    assert_eq!(header(TokenType::U32, 5)[..12], [0xa1, 0xd9, 0x34, 1, 7, 0, 0, 0, 5, 0, 0, 0]);
    assert!(header(TokenType::U32, 5)[12..].iter().all(|&b| b == 0));
}

#[test]
fn nano_gpt_files_have_no_header_and_its_names() {
    let dir = tempdir().unwrap();
    made::write(MadeKind::Text, dir.path(), 3).unwrap();
    let mut request = request(text("*.txt"), dir.path());
    request.format = ShardFormat::NanoGpt;
    request.split = SplitSpec { validation: Some(0.1), test: None, seed: 0 };
    request.shard_tokens = 100;
    run(&request);
    let tokens = all(&request.out, "train");
    let wanted: Vec<u8> = tokens.iter().flat_map(|&t| (t as u16).to_le_bytes()).collect();
    assert_eq!(fs::read(request.out.join("train.bin")).unwrap(), wanted);
    assert!(request.out.join("val.bin").is_file());
}

#[test]
fn token_files_are_imported_with_and_without_header() {
    let dir = tempdir().unwrap();
    let tokens: Vec<u32> = (0..1000).map(|i| i * 37 % 70_000).collect();
    let narrow: Vec<u8> = tokens.iter().flat_map(|&t| (t as u16 % 500).to_le_bytes()).collect();
    let wide: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
    put(&dir.path().join("plain.bin"), &narrow);
    put(&dir.path().join("gpt2.bin"), [&header(TokenType::U16, 1000)[..], &narrow].concat());
    put(&dir.path().join("llama.bin"), [&header(TokenType::U32, 1000)[..], &wide].concat());
    for (name, vocabulary) in [("plain", 500), ("gpt2", 500), ("llama", 70_000)] {
        let train = vec![format!("{name}.bin")];
        let source = Source::Bin { train, validation: vec![], layout: BinLayout::Auto };
        let mut request = request(source, dir.path());
        request.out = dir.path().join(format!("{name}-out"));
        request.tokenizer = TokenizerSpec::None { vocabulary };
        request.shard_tokens = 300;
        let index = run(&request).index;
        let narrow = |t: &u32| if vocabulary == 500 { u32::from(*t as u16 % 500) } else { *t };
        assert_eq!(all(&request.out, "train"), tokens.iter().map(narrow).collect::<Vec<_>>());
        assert_eq!(index.splits["train"].shards.len(), 4);
        assert_eq!(index.splits["train"].bytes, None);
        assert!(Dataset::open(&request.out).unwrap().tokenizer().unwrap().is_none());
    }
}

#[test]
fn made_token_files_keep_their_validation() {
    let dir = tempdir().unwrap();
    let source = Source::Made { kind: MadeKind::Bin, seed: 5 };
    let mut request = Request::new(source, dir.path(), dir.path().join("out"));
    request.tokenizer = TokenizerSpec::None { vocabulary: made::BIN_VOCABULARY };
    let index = run(&request).index;
    assert_eq!(index.splits["train"].tokens, 20_000);
    assert_eq!(index.splits["validation"].tokens, 2000);
}

#[test]
fn bytes_of_imported_tokens_are_counted_with_a_tokenizer() {
    let dir = tempdir().unwrap();
    made::write(MadeKind::Text, dir.path(), 3).unwrap();
    let mut first = request(text("*.txt"), dir.path());
    first.tokenizer = bpe(300);
    first.format = ShardFormat::NanoGpt;
    let wanted = run(&first).index.splits["train"].clone();
    let train = vec!["out/train.bin".into()];
    let source = Source::Bin { train, validation: vec![], layout: BinLayout::NanoGpt };
    let mut second = request(source, dir.path());
    second.out = dir.path().join("again");
    second.tokenizer = TokenizerSpec::File { path: "out/tokenizer.json".into(), end_of_text: None };
    let got = run(&second).index.splits["train"].clone();
    assert_eq!((got.tokens, got.bytes), (wanted.tokens, wanted.bytes));
}

#[test]
fn reads_cross_shards() {
    let dir = tempdir().unwrap();
    let bytes: Vec<u8> = (0..1000).map(|i| (i * 7 % 251) as u8).collect();
    put(&dir.path().join("a.txt"), &bytes);
    let mut request = request(text("a.txt"), dir.path());
    request.tokenizer = TokenizerSpec::Bytes { separator: None };
    request.shard_tokens = 64;
    let index = run(&request).index;
    assert_eq!(index.splits["train"].shards.len(), 16);
    let dataset = Dataset::open(&request.out).unwrap();
    let train = dataset.split("train").unwrap();
    for (start, end) in [(0, 1000), (63, 65), (64, 128), (1, 999), (500, 500), (1000, 1000)] {
        let wanted: Vec<u32> = bytes[start..end].iter().map(|&b| b.into()).collect();
        assert_eq!(train.tokens(start as u64..end as u64).unwrap(), wanted);
    }
    assert!(train.tokens(0..1001).is_err());
    assert!(train.read(u64::MAX, &mut [0; 2]).is_err());
    dataset.verify(&mut NoProgress).unwrap();
    assert_eq!(dataset.tokenizer().unwrap().unwrap().decode(&[104, 105]).unwrap(), b"hi");
    assert_eq!(Tokenizer::bytes().vocabulary(), 256);
}

#[test]
fn long_lines_and_large_files_stream_unchanged() {
    let dir = tempdir().unwrap();
    // Longer than several pieces, without a line end, of characters of 1 to 4 bytes.
    let long: String = "aé€😀".chars().cycle().take(400_000).collect();
    put(&dir.path().join("a.txt"), &long);
    let mut request = request(text("a.txt"), dir.path());
    request.tokenizer = TokenizerSpec::Bytes { separator: None };
    run(&request);
    assert_eq!(all_bytes(&request.out, "train"), long.as_bytes());
    request.tokenizer = bpe(300);
    run(&request);
    let dataset = Dataset::open(&request.out).unwrap();
    let tokenizer = dataset.tokenizer().unwrap().unwrap();
    let mut tokens = all(&request.out, "train");
    assert_eq!(tokens.pop(), tokenizer.end_of_text());
    assert!(tokenizer.decode(&tokens).unwrap() == long.as_bytes());
}
