//! Manifests that were made to do harm: sealed correctly, and lying.

use std::path::Path;
use std::sync::Arc;

use aerogel_store::testing::CrashFs;
use aerogel_store::{ErrorKind, StoreError, write_atomic};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::common::*;

/// Writes a manifest with a correct checksum of itself.
fn seal(path: &Path, manifest: &Value) {
    let mut manifest = manifest.clone();
    manifest.as_object_mut().unwrap().remove("manifest_blake3");
    let mut text = serde_json::to_string_pretty(&manifest).unwrap();
    text.truncate(text.len() - 2);
    let hash = blake3::hash(text.as_bytes());
    std::fs::write(path, format!("{text},\n  \"manifest_blake3\": \"{hash}\"\n}}\n")).unwrap();
}

#[test]
fn lying_manifests_are_refused_with_the_tensor_named() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = real(dir.path());
    commit(&checkpoints, 1).unwrap();
    let path = &files_of(dir.path(), 1)[0];
    let good: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    seal(path, &good);
    checkpoints.open(1).unwrap().verify().unwrap();

    let q = "/tensors/h.0.attn.q.weight";
    let part = "/tensors/h.0.attn.q.weight/parts/0";
    let file = "/files/tensors-00000.safetensors";
    let huge = u64::MAX;
    let hash = "0".repeat(64);
    let name = "tensors-00000.safetensors";
    let whole = |n: u64| json!({ "file": name, "offset": 0, "start": 0, "length": n });
    let outside = json!({ "size_bytes": 8, "header_bytes": 8, "header_blake3": hash });
    let cases: Vec<(String, &str, Value)> = vec![
        (q.into(), "/shape", json!([huge, 300])),
        (q.into(), "/shape", json!([0, 300])),
        (q.into(), "/shape", json!([huge, huge])),
        (q.into(), "/shape", json!([huge / 4, 1])),
        (q.into(), "/shape", json!([5, -300])),
        (q.into(), "/shape", json!([1500])),
        (q.into(), "/axes", json!([])),
        (q.into(), "/dtype", json!("F64")),
        (q.into(), "/dtype", json!("I32")),
        (q.into(), "/dtype", json!("F4")),
        (q.into(), "/blake3", json!("xyz")),
        (q.into(), "/blake3", json!(hash)),
        (q.into(), "/parts", json!([])),
        (q.into(), "/parts", json!([whole(1500)])),
        (q.into(), "/parts", json!([whole(huge), whole(huge)])),
        (part.into(), "/offset", json!(huge)),
        (part.into(), "/offset", json!(0)),
        (part.into(), "/length", json!(huge)),
        (part.into(), "/length", json!(1499)),
        (part.into(), "/start", json!(1)),
        (part.into(), "/start", json!(huge)),
        (part.into(), "/file", json!("../../../etc/passwd")),
        (part.into(), "/file", json!("/etc/passwd")),
        (part.into(), "/file", json!("tensors-00009.safetensors")),
        ("".into(), "/files", json!({})),
        ("".into(), "/files", json!({ "../x": outside })),
        ("".into(), "/tensors", json!({})),
        ("".into(), "/tensors", json!([1, 2])),
        ("".into(), "/step", json!(2)),
        ("".into(), "/version", json!("one")),
        (file.into(), "/size_bytes", json!(huge)),
        (file.into(), "/size_bytes", json!(1u64 << 40)),
        (file.into(), "/header_bytes", json!(huge)),
        (file.into(), "/header_bytes", json!(0)),
        (file.into(), "/header_blake3", json!(hash)),
    ];
    for (at, key, value) in cases {
        let mut bad = good.clone();
        *bad.pointer_mut(&format!("{at}{key}")).unwrap() = value.clone();
        seal(path, &bad);
        let error = match checkpoints.open(1).and_then(|c| c.verify()) {
            Ok(()) => panic!("{at}{key} = {value} was accepted"),
            Err(error) => error,
        };
        let StoreError::Damaged { tensor, .. } = &error else { panic!("{at}{key}: {error}") };
        let parsed = key != "/dtype" || value != "F4";
        if at.starts_with("/tensors") && parsed && value != json!([5, -300]) {
            assert!(tensor.is_some(), "{at}{key} = {value}: {error}");
        }
    }
    let mut newer = good.clone();
    newer["version"] = json!(2);
    newer["tensors"] = json!("another form");
    seal(path, &newer);
    assert!(matches!(checkpoints.open(1), Err(StoreError::Version { got: 2, known: 1, .. })));
}

#[test]
fn overlapping_and_swapped_parts_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = real(dir.path());
    commit(&checkpoints, 1).unwrap();
    let path = &files_of(dir.path(), 1)[0];
    let good: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (q, k) = ("h.0.attn.q.weight", "h.0.attn.k.weight");
    let mut overlap = good.clone();
    overlap["tensors"][q]["parts"] = good["tensors"][k]["parts"].clone();
    let mut swapped = overlap.clone();
    swapped["tensors"][k]["parts"] = good["tensors"][q]["parts"].clone();
    let mut renamed = good.clone();
    let tensor = renamed["tensors"].as_object_mut().unwrap().remove(q).unwrap();
    renamed["tensors"]["h.7.attn.q.weight"] = tensor;
    for bad in [overlap, swapped, renamed] {
        seal(path, &bad);
        let error = checkpoints.open(1).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    }
}

#[test]
fn a_tensor_in_two_parts_reads_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = ([1u8, 2, 3, 4], [5u8, 6]);
    let folder = dir.path().join("checkpoints/step-00000001");
    std::fs::create_dir_all(&folder).unwrap();
    let mut files = serde_json::Map::new();
    let mut parts = Vec::new();
    let mut start = 0;
    for (index, bytes) in [&a[..], &b[..]].into_iter().enumerate() {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![bytes.len()], bytes);
        let text = safetensors::serialize([("w", view.unwrap())], None).unwrap();
        let name = format!("tensors-{index:05}.safetensors");
        let header = text.len() - bytes.len();
        let hash = blake3::hash(&text[..header]).to_string();
        files.insert(
            name.clone(),
            json!({ "size_bytes": text.len(), "header_bytes": header, "header_blake3": hash }),
        );
        parts
            .push(json!({ "file": name, "offset": header, "start": start, "length": bytes.len() }));
        start += bytes.len();
        std::fs::write(folder.join(&name), text).unwrap();
    }
    let hash = blake3::hash(&[1, 2, 3, 4, 5, 6]).to_string();
    let tensor = json!({
        "dtype": "U8", "axes": ["x", "y"], "shape": [2, 3], "parts": parts, "blake3": hash,
    });
    let manifest = json!({
        "version": 1, "step": 1, "run_hash": "r", "plan_hash": "p", "extra": null,
        "files": files, "tensors": { "w": tensor },
    });
    seal(&folder.join("manifest.json"), &manifest);
    let checkpoint = real(dir.path()).latest().unwrap().checkpoint.unwrap();
    let mut out = [0; 6];
    checkpoint.read("w", &mut out).unwrap();
    assert_eq!(out, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_pipe_in_place_of_a_file_does_not_block() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = real(dir.path());
    commit(&checkpoints, 1).unwrap();
    for file in files_of(dir.path(), 1).into_iter().rev() {
        std::fs::remove_file(&file).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&file).status().unwrap();
        assert!(made.success());
        let error = checkpoints.open(1).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_text_as_a_manifest_is_refused(
        text in prop::collection::vec(any::<u8>(), 0..400),
        depth in 0..4000usize,
    ) {
        let fs = CrashFs::default();
        let checkpoints = open(Arc::new(fs.clone()), Path::new("/r"));
        commit(&checkpoints, 1).unwrap();
        let path = Path::new("/r/checkpoints/step-00000001/manifest.json");
        let nested = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        for bytes in [text, nested.into_bytes()] {
            write_atomic(&fs, path, &bytes).unwrap();
            let error = checkpoints.open(1).unwrap_err();
            prop_assert_eq!(error.kind(), ErrorKind::Storage);
        }
    }
}
