//! The sampler: each sequence once an epoch, whatever is asked in whatever order.

use std::path::Path;

use aerogel_data::{DataError, Dataset, MadeKind, Request, Sampler, Source};
use proptest::prelude::*;
use tempfile::tempdir;

use crate::common::{put, request, run, text};

/// A split of `tokens` tokens, token `i` being `i % 251`.
fn dataset(dir: &Path, tokens: usize) -> Dataset {
    let bytes: Vec<u8> = (0..tokens).map(|i| (i % 251) as u8).collect();
    put(&dir.join("a.txt"), &bytes);
    let mut request = request(text("a.txt"), dir);
    request.tokenizer = aerogel_data::TokenizerSpec::Bytes { separator: None };
    run(&request);
    Dataset::open(&request.out).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None, cases: 24, ..ProptestConfig::default()
    })]

    #[test]
    fn every_sequence_once_an_epoch(tokens in 2usize..3000, context in 1usize..40, seed: u64) {
        prop_assume!(tokens > context);
        let dir = tempdir().unwrap();
        let data = dataset(dir.path(), tokens);
        let train = data.split("train").unwrap();
        let sampler = Sampler::shuffled(train, context, seed).unwrap();
        let n = sampler.sequences();
        prop_assert_eq!(n, (tokens as u64 - 1) / context as u64);
        prop_assert_eq!(sampler.dropped_tokens(), (tokens as u64 - 1) % context as u64);
        for epoch in 0..3 {
            let mut seen = vec![0; n as usize];
            // Backwards: order and history of the calls must not matter.
            for position in (epoch * n..(epoch + 1) * n).rev() {
                let place = sampler.place(position);
                prop_assert_eq!(place.epoch, epoch);
                seen[place.sequence as usize] += 1;
            }
            prop_assert!(seen.iter().all(|&s| s == 1));
        }
    }
}

#[test]
fn resume_at_every_position_reads_the_same() {
    let dir = tempdir().unwrap();
    let data = dataset(dir.path(), 1000);
    let train = data.split("train").unwrap();
    let whole = Sampler::shuffled(train, 9, 5).unwrap();
    let mut buffer = vec![0; whole.sequence_tokens()];
    let mut run = Vec::new();
    for position in 0..300 {
        whole.read(train, position, &mut buffer).unwrap();
        run.push(buffer.clone());
    }
    for start in (0..300).rev() {
        // A new process, a new mapping, another rank: only the position is carried over.
        let again = Sampler::shuffled(train, 9, 5).unwrap();
        again.read(train, start, &mut buffer).unwrap();
        assert_eq!(buffer, run[start as usize]);
    }
}

#[test]
fn epochs_and_seeds_differ() {
    let dir = tempdir().unwrap();
    let data = dataset(dir.path(), 1000);
    let train = data.split("train").unwrap();
    let order = |seed, epoch: u64| {
        let sampler = Sampler::shuffled(train, 9, seed).unwrap();
        let n = sampler.sequences();
        (0..n).map(|i| sampler.place(epoch * n + i).sequence).collect::<Vec<_>>()
    };
    assert_ne!(order(1, 0), order(1, 1));
    assert_ne!(order(1, 0), order(2, 0));
    assert_ne!(order(1, 0), (0..order(1, 0).len() as u64).collect::<Vec<_>>());
}

#[test]
fn sequences_overlap_by_one_token_and_cover_the_stream() {
    let dir = tempdir().unwrap();
    let data = dataset(dir.path(), 48);
    let train = data.split("train").unwrap();
    let sampler = Sampler::in_order(train, 10).unwrap();
    assert_eq!((sampler.sequences(), sampler.dropped_tokens()), (4, 7));
    let mut buffer = [0; 11];
    for position in 0..8 {
        let place = sampler.read(train, position, &mut buffer).unwrap();
        assert_eq!((place.epoch, place.sequence), (position / 4, position % 4));
        let first = 10 * (position % 4) as u32;
        assert_eq!(buffer.to_vec(), (first..first + 11).collect::<Vec<_>>());
    }
    assert!(sampler.read(train, 0, &mut buffer[..10]).is_err());
}

#[test]
fn an_image_is_a_sequence() {
    let dir = tempdir().unwrap();
    let source = Source::Made { kind: MadeKind::CopyRowAbove, seed: 4 };
    let out = dir.path().join("out");
    run(&Request::new(source, dir.path(), &out));
    let data = Dataset::open(&out).unwrap();
    let test = data.split("test").unwrap();
    let sampler = Sampler::shuffled(test, 256, 0).unwrap();
    assert_eq!(
        (sampler.sequences(), sampler.sequence_tokens(), sampler.dropped_tokens()),
        (64, 256, 0)
    );
    let mut image = vec![0; 256];
    for position in 0..64 {
        sampler.read(test, position, &mut image).unwrap();
        assert!((16..256).all(|t| image[t] == image[t - 16]));
        assert!((1..16).any(|t| image[t] != image[0]));
    }
    let error = Sampler::shuffled(test, 255, 0).unwrap_err();
    assert!(matches!(error, DataError::BadOption { option: "context", .. }), "{error}");
}

#[test]
fn a_split_shorter_than_a_sequence_says_so() {
    let dir = tempdir().unwrap();
    let data = dataset(dir.path(), 64);
    let train = data.split("train").unwrap();
    assert_eq!(Sampler::in_order(train, 63).unwrap().sequences(), 1);
    let error = Sampler::in_order(train, 64).unwrap_err();
    assert!(matches!(error, DataError::TooShort { tokens: 64, needed: 65, .. }), "{error}");
    assert_eq!(error.exit_code(), 22);
    assert_eq!(Sampler::in_order(train, 0).unwrap_err().exit_code(), 20);
}
