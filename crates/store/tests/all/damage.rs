//! A flipped, cut, missing or swapped file is refused, by name, and `latest` falls back.

use std::path::Path;

use aerogel_store::{Checkpoints, ErrorKind, StoreError};

use super::common::*;

/// Opens and verifies step 2, which must fail; the message names the file at fault.
fn assert_refused(checkpoints: &Checkpoints, file: &Path, what: &str) -> StoreError {
    let error = match checkpoints.open(2).and_then(|checkpoint| checkpoint.verify()) {
        Ok(()) => panic!("{what} in {} went unnoticed", file.display()),
        Err(error) => error,
    };
    assert_eq!(error.kind(), ErrorKind::Storage, "{what}: {error}");
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(error.to_string().contains(name), "{what} in {name}: {error}");
    error
}

fn assert_falls_back(checkpoints: &Checkpoints) {
    let latest = checkpoints.latest().unwrap();
    assert_eq!(latest.skipped.len(), 1);
    assert_eq!(latest.skipped[0].step, 2);
    assert_contents(&latest.checkpoint.unwrap());
}

fn two_steps(dir: &Path) -> Checkpoints {
    let checkpoints = real(dir);
    commit(&checkpoints, 1).unwrap();
    commit(&checkpoints, 2).unwrap();
    checkpoints
}

#[test]
fn every_random_flip_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = two_steps(dir.path());
    let files = files_of(dir.path(), 2);
    let mut numbers = Numbers(1);
    for round in 0..600 {
        let file = &files[numbers.below(files.len() as u64) as usize];
        let whole = std::fs::read(file).unwrap();
        let mut bytes = whole.clone();
        // One bit, or several in several bytes: most real corruptions are of the second kind.
        for _ in 0..if round % 2 == 0 { 1 } else { 1 + numbers.below(64) } {
            let at = numbers.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << numbers.below(8);
        }
        if bytes == whole {
            continue;
        }
        std::fs::write(file, &bytes).unwrap();
        let error = assert_refused(&checkpoints, file, &format!("flip {round}"));
        if round % 50 == 0 {
            assert_falls_back(&checkpoints);
        }
        let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        if !file.ends_with("manifest.json") && bytes[..header] == whole[..header] {
            assert!(matches!(error, StoreError::Damaged { tensor: Some(_), .. }), "{error}");
        }
        std::fs::write(file, &whole).unwrap();
    }
    assert_contents(&checkpoints.latest().unwrap().checkpoint.unwrap());
}

#[test]
fn every_byte_of_the_manifest_counts() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = two_steps(dir.path());
    let file = &files_of(dir.path(), 2)[0];
    let whole = std::fs::read(file).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x20;
        std::fs::write(file, &bytes).unwrap();
        assert_refused(&checkpoints, file, &format!("case change at {at}"));
    }
}

#[test]
fn truncated_and_missing_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = two_steps(dir.path());
    for file in files_of(dir.path(), 2) {
        let whole = std::fs::read(&file).unwrap();
        let tensors = !file.ends_with("manifest.json");
        let blocks = (0..whole.len()).step_by(4096);
        for length in blocks.chain([1, 7, 8, 9, whole.len() / 2, whole.len() - 1]) {
            std::fs::write(&file, &whole[..length]).unwrap();
            let error = assert_refused(&checkpoints, &file, &format!("cut to {length}"));
            let StoreError::Damaged { tensor, .. } = error else { panic!("{error}") };
            assert_eq!(tensor.is_some(), tensors);
        }
        std::fs::write(&file, [whole.as_slice(), b"\n"].concat()).unwrap();
        assert_refused(&checkpoints, &file, "a byte too many");
        std::fs::remove_file(&file).unwrap();
        let error = assert_refused(&checkpoints, &file, "removal");
        assert!(error.to_string().contains("missing"), "{error}");
        assert_falls_back(&checkpoints);
        std::fs::create_dir(&file).unwrap();
        assert_refused(&checkpoints, &file, "a folder in its place");
        std::fs::remove_dir(&file).unwrap();
        std::fs::write(&file, &whole).unwrap();
    }
}

#[test]
fn swapped_and_mixed_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = two_steps(dir.path());
    let (old, new) = (files_of(dir.path(), 1), files_of(dir.path(), 2));
    let read = |file| std::fs::read(file).unwrap();
    for i in 1..new.len() {
        let whole = read(&new[i]);
        std::fs::copy(&old[i], &new[i]).unwrap();
        assert_refused(&checkpoints, &new[i], "the file of another step");
        for j in (1..new.len()).filter(|j| *j != i) {
            let other = read(&new[j]);
            std::fs::write(&new[i], &other).unwrap();
            std::fs::write(&new[j], &whole).unwrap();
            assert_refused(&checkpoints, &new[i.min(j)], "swap");
            std::fs::write(&new[j], &other).unwrap();
        }
        std::fs::write(&new[i], &whole).unwrap();
    }
    std::fs::copy(&old[0], &new[0]).unwrap();
    let error = assert_refused(&checkpoints, &new[0], "the manifest of another step");
    assert!(error.to_string().contains("step 1 in the folder of step 2"), "{error}");
}

#[test]
fn damaged_bytes_are_not_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = two_steps(dir.path());
    let checkpoint = checkpoints.open(2).unwrap();
    let part = &checkpoint.manifest().tensors["h.0.mask"].parts[0];
    let file = checkpoint.path().join(&part.file);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[part.offset as usize + 3] ^= 4;
    std::fs::write(&file, bytes).unwrap();
    let mut out = vec![1; 777];
    let error = checkpoint.read("h.0.mask", &mut out).unwrap_err();
    assert!(matches!(&error, StoreError::Damaged { tensor: Some(t), .. } if t == "h.0.mask"));
    assert!(out.iter().all(|b| *b == 0));
    let mut gain = vec![0; 66];
    checkpoint.read("h.0.norm.gain", &mut gain).unwrap();
}

#[test]
fn all_damaged_is_an_error_and_not_a_new_run() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = two_steps(dir.path());
    for step in [1, 2] {
        std::fs::write(&files_of(dir.path(), step)[0], b"{}").unwrap();
    }
    let error = checkpoints.latest().unwrap_err();
    let StoreError::NoneVerifies { skipped, .. } = &error else { panic!("{error}") };
    assert_eq!(skipped.iter().map(|s| s.step).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(error.kind(), ErrorKind::Storage);
    assert!(checkpoints.prune(1).unwrap().is_empty());
    assert_eq!(checkpoints.list().unwrap(), [1, 2]);
}
